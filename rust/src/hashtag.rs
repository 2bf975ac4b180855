//! Hashtags as people write them, brought into one form.
//!
//! `#Straße`, `STRASSE` and `ｓｔｒａｓｓｅ` are one tag. [`normalize`] makes them so in this order:
//!
//! 1. the bytes must be UTF-8;
//! 2. NFKC, full case folding, NFKC again (folding alone does not keep a text in NFKC);
//! 3. U+FE0F and the zero-width characters are dropped;
//! 4. white space and leading `#`s are trimmed, in any mixture;
//! 5. what is empty, has a control character or more than [`MAX_BYTES`] bytes is rejected.
//!
//! Dropping a character can bring a letter beside a combining mark, so steps 2 to 4 are repeated
//! until nothing changes; that makes normalization idempotent. Plain ASCII, most of what is seen,
//! takes a path of its own: nothing but case and the ends can change there.
//!
//! [`TagColumn`] reads the tags out of every form of Arrow column that holds text or lists of text,
//! and [`RecordReader`] turns one record into its kept tags and keeps the books: tags in = kept +
//! duplicates + rejected, for every record. A null list or null text is a record without tags; a
//! null among a list's tags is rejected as [`Rejection::Null`].

use arrow_array::cast::AsArray;
use arrow_array::types::ByteArrayType;
use arrow_array::{Array, ArrayRef, BinaryViewArray, GenericByteArray, OffsetSizeTrait};
use arrow_buffer::NullBuffer;
use arrow_schema::DataType;
use hashbrown::HashTable;
use unicode_normalization::UnicodeNormalization;
use xxhash_rust::xxh3::xxh3_64;

use crate::{Error, Result};

/// The longest tag kept, in bytes of its normalized form.
pub const MAX_BYTES: usize = 128;

/// The version of Unicode whose normalization is applied.
pub const UNICODE_VERSION: (u8, u8, u8) = unicode_normalization::UNICODE_VERSION;

/// Rounds of normalization after which a text that still changes is taken as it is; two are enough
/// for every text known, the bound only excludes an endless loop.
const MAX_ROUNDS: usize = 8;

/// Why a tag is not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rejection {
    /// The bytes are not UTF-8.
    NotUtf8,
    /// Nothing is left of it.
    Empty,
    /// It has a control character (Unicode category Cc) inside.
    ControlCharacter,
    /// Its normalized form has more than [`MAX_BYTES`] bytes.
    TooLong,
    /// A null in a list of tags.
    Null,
}

impl Rejection {
    /// All causes, in the order in which tallies keep them.
    pub const ALL: [Self; 5] =
        [Self::NotUtf8, Self::Empty, Self::ControlCharacter, Self::TooLong, Self::Null];

    /// The stable name used in reports and files.
    pub fn name(self) -> &'static str {
        match self {
            Self::NotUtf8 => "not_utf8",
            Self::Empty => "empty",
            Self::ControlCharacter => "control_character",
            Self::TooLong => "too_long",
            Self::Null => "null",
        }
    }
}

/// Buffers that [`normalize`] uses again and again.
#[derive(Debug, Default)]
pub struct Scratch {
    text: String,
    folded: String,
    next: String,
}

const UPPER: u8 = 1;
const NOT_ASCII: u8 = 2;
const CONTROL: u8 = 4;
const EDGE: u8 = 8;

/// What each byte asks for: lower case, the full path, rejection, or trimming.
const CLASS: [u8; 256] = {
    let mut class = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        class[byte] = match byte as u8 {
            b'A'..=b'Z' => UPPER,
            0x80.. => NOT_ASCII,
            0x09..=0x0d => CONTROL | EDGE,
            0..=0x1f | 0x7f => CONTROL,
            b' ' | b'#' => EDGE,
            _ => 0,
        };
        byte += 1;
    }
    class
};

/// Brings one tag into its normal form, which lies in `raw` itself or in `scratch`.
///
/// Idempotent: the result is its own normal form.
pub fn normalize<'a>(
    raw: &'a [u8],
    scratch: &'a mut Scratch,
) -> std::result::Result<&'a str, Rejection> {
    let mut classes = 0;
    for &byte in raw {
        classes |= CLASS[usize::from(byte)];
    }
    let text = if classes & NOT_ASCII != 0 {
        let text = std::str::from_utf8(raw).map_err(|_| Rejection::NotUtf8)?;
        normalize_unicode(text, scratch);
        scratch.text.as_str()
    } else {
        let text = std::str::from_utf8(raw).map_err(|_| Rejection::NotUtf8)?;
        let text = if classes & EDGE == 0 { text } else { trim(text) };
        if classes & UPPER == 0 {
            text
        } else {
            scratch.text.clear();
            scratch.text.push_str(text);
            scratch.text.make_ascii_lowercase();
            scratch.text.as_str()
        }
    };
    if text.is_empty() {
        return Err(Rejection::Empty);
    }
    if classes & (CONTROL | NOT_ASCII) != 0 && text.chars().any(char::is_control) {
        return Err(Rejection::ControlCharacter);
    }
    if text.len() > MAX_BYTES { Err(Rejection::TooLong) } else { Ok(text) }
}

fn normalize_unicode(raw: &str, scratch: &mut Scratch) {
    let Scratch { text, folded, next } = scratch;
    one_round(raw, folded, text);
    for _ in 1..MAX_ROUNDS {
        one_round(text, folded, next);
        if text == next {
            return;
        }
        std::mem::swap(text, next);
    }
}

fn one_round(raw: &str, folded: &mut String, out: &mut String) {
    use caseless::Caseless;
    folded.clear();
    folded.extend(raw.nfkc().default_case_fold());
    out.clear();
    out.extend(folded.nfkc().filter(|&character| !is_invisible(character)));
    let kept = trim(out);
    let start = kept.as_ptr() as usize - out.as_ptr() as usize;
    let end = start + kept.len();
    out.truncate(end);
    out.drain(..start);
}

/// Characters without ink that people type, or keyboards add, without knowing it.
///
/// U+FE0F asks for the coloured form of an emoji, and some keyboards add it and some do not; zero
/// width space, non-joiner, joiner (U+200B to U+200D), word joiner (U+2060) and the byte order mark
/// (U+FEFF) come with pasted text. Each would make two tags of what looks like one.
fn is_invisible(character: char) -> bool {
    matches!(character, '\u{fe0f}' | '\u{200b}'..='\u{200d}' | '\u{2060}' | '\u{feff}')
}

fn trim(text: &str) -> &str {
    text.trim_start_matches(|character: char| character == '#' || character.is_whitespace())
        .trim_end()
}

/// What became of the tags of some records.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Records read, those without tags included.
    pub num_records: u64,
    /// Tags kept: each once in its record.
    pub num_hashtags: u64,
    /// Tags dropped because their record has them already.
    pub num_duplicates: u64,
    /// Tags rejected, by cause in the order of [`Rejection::ALL`].
    pub rejected: [u64; Rejection::ALL.len()],
}

impl Tally {
    /// Tags seen in all: kept, duplicates and rejected.
    pub fn num_tags_in(&self) -> u64 {
        self.num_hashtags + self.num_duplicates + self.rejected.iter().sum::<u64>()
    }

    /// Adds what another part of the records gave.
    pub fn add(&mut self, other: &Self) {
        self.num_records += other.num_records;
        self.num_hashtags += other.num_hashtags;
        self.num_duplicates += other.num_duplicates;
        for (mine, theirs) in self.rejected.iter_mut().zip(other.rejected) {
            *mine += theirs;
        }
    }

    fn reject(&mut self, cause: Rejection) {
        self.rejected[cause as usize] += 1;
    }
}

/// A column of text in any of Arrow's layouts, read as bytes: nothing is assumed to be UTF-8.
#[derive(Debug, Clone)]
enum Texts {
    Small(Offsets<i32>),
    Large(Offsets<i64>),
    View(BinaryViewArray),
    Dictionary { keys: Vec<usize>, nulls: Option<NullBuffer>, values: Box<Texts> },
    Nulls,
}

#[derive(Debug, Clone)]
struct Offsets<O: arrow_buffer::ArrowNativeType> {
    offsets: arrow_buffer::ScalarBuffer<O>,
    data: arrow_buffer::Buffer,
    nulls: Option<NullBuffer>,
}

impl<O: OffsetSizeTrait> Offsets<O> {
    fn new<T: ByteArrayType<Offset = O>>(array: &GenericByteArray<T>) -> Self {
        Self {
            offsets: array.offsets().inner().clone(),
            data: array.values().clone(),
            nulls: array.nulls().cloned(),
        }
    }

    fn get(&self, row: usize) -> Option<&[u8]> {
        if self.nulls.as_ref().is_some_and(|nulls| nulls.is_null(row)) {
            return None;
        }
        self.data.get(self.offsets[row].as_usize()..self.offsets[row + 1].as_usize())
    }
}

impl Texts {
    fn new(array: &ArrayRef) -> Option<Self> {
        Some(match array.data_type() {
            DataType::Utf8 => Self::Small(Offsets::new(array.as_string::<i32>())),
            DataType::Binary => Self::Small(Offsets::new(array.as_binary::<i32>())),
            DataType::LargeUtf8 => Self::Large(Offsets::new(array.as_string::<i64>())),
            DataType::LargeBinary => Self::Large(Offsets::new(array.as_binary::<i64>())),
            DataType::Utf8View => Self::View(array.as_string_view().clone().to_binary_view()),
            DataType::BinaryView => Self::View(array.as_binary_view().clone()),
            DataType::Null => Self::Nulls,
            DataType::Dictionary(..) => {
                let array = array.as_any_dictionary();
                if array.values().is_empty() {
                    Self::Nulls
                } else {
                    Self::Dictionary {
                        keys: array.normalized_keys(),
                        nulls: array.keys().nulls().cloned(),
                        values: Box::new(Self::new(array.values())?),
                    }
                }
            }
            _ => return None,
        })
    }

    fn get(&self, row: usize) -> Option<&[u8]> {
        match self {
            Self::Small(array) => array.get(row),
            Self::Large(array) => array.get(row),
            Self::View(array) => array.is_valid(row).then(|| array.value(row)),
            Self::Dictionary { keys, nulls, values } => {
                let null = nulls.as_ref().is_some_and(|nulls| nulls.is_null(row));
                if null { None } else { values.get(keys[row]) }
            }
            Self::Nulls => None,
        }
    }
}

/// Which texts belong to a record.
#[derive(Debug, Clone)]
enum Rows {
    Text,
    Small(arrow_buffer::OffsetBuffer<i32>),
    Large(arrow_buffer::OffsetBuffer<i64>),
    View { starts: Vec<usize>, sizes: Vec<usize> },
    Fixed(usize),
    Nulls,
}

/// The column of hashtags of one record batch.
///
/// Lists (of 32 or 64 bit offsets, list views, fixed size) of texts, or one text a record, which is
/// split; a text is UTF-8 or binary, of 32 or 64 bit offsets or views, or dictionary-encoded.
#[derive(Debug, Clone)]
pub struct TagColumn {
    rows: Rows,
    nulls: Option<NullBuffer>,
    texts: Texts,
    len: usize,
}

impl TagColumn {
    /// Takes a column; `name` is for the message when it is of another type.
    pub fn new(array: &ArrayRef, name: &str) -> Result<Self> {
        let (rows, values) = match array.data_type() {
            DataType::List(_) => {
                let list = array.as_list::<i32>();
                (Rows::Small(list.offsets().clone()), list.values())
            }
            DataType::LargeList(_) => {
                let list = array.as_list::<i64>();
                (Rows::Large(list.offsets().clone()), list.values())
            }
            DataType::ListView(_) => {
                let list = array.as_list_view::<i32>();
                (view_rows(list.offsets(), list.sizes()), list.values())
            }
            DataType::LargeListView(_) => {
                let list = array.as_list_view::<i64>();
                (view_rows(list.offsets(), list.sizes()), list.values())
            }
            DataType::FixedSizeList(_, size) => {
                let size = usize::try_from(*size).unwrap_or_default();
                (Rows::Fixed(size), array.as_fixed_size_list().values())
            }
            DataType::Null => (Rows::Nulls, array),
            _ => (Rows::Text, array),
        };
        let texts = Texts::new(values).ok_or_else(|| {
            Error::usage(format!(
                "column {name:?}: hashtags are read from a column of text or of lists of text, and \
                 this one is of type {}; choose another column or cast it",
                array.data_type()
            ))
        })?;
        Ok(Self { rows, nulls: array.nulls().cloned(), texts, len: array.len() })
    }

    /// Number of records.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no record.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether a record is one text, to be split.
    pub fn is_text(&self) -> bool {
        matches!(self.rows, Rows::Text)
    }

    fn range(&self, row: usize) -> std::ops::Range<usize> {
        if self.nulls.as_ref().is_some_and(|nulls| nulls.is_null(row)) {
            return 0..0;
        }
        match &self.rows {
            Rows::Text => row..row + 1,
            Rows::Small(offsets) => offsets[row] as usize..offsets[row + 1] as usize,
            Rows::Large(offsets) => offsets[row] as usize..offsets[row + 1] as usize,
            Rows::View { starts, sizes } => starts[row]..starts[row] + sizes[row],
            Rows::Fixed(size) => row * size..(row + 1) * size,
            Rows::Nulls => 0..0,
        }
    }
}

fn view_rows<O: OffsetSizeTrait>(offsets: &[O], sizes: &[O]) -> Rows {
    Rows::View {
        starts: offsets.iter().map(|offset| offset.as_usize()).collect(),
        sizes: sizes.iter().map(|size| size.as_usize()).collect(),
    }
}

/// Above this many tags a record's duplicates are sought with a table instead of one by one.
const FEW: usize = 24;

/// Reads records: splits, normalizes, rejects, drops duplicates, and keeps the books.
///
/// One reader serves one thread; its buffers are used again for every record.
#[derive(Debug, Default)]
pub struct RecordReader {
    separator: Option<String>,
    scratch: Scratch,
    record: Record,
}

/// The distinct tags of the record being read.
#[derive(Debug, Default)]
struct Record {
    bytes: Vec<u8>,
    tags: Vec<(u64, usize, usize)>,
    table: HashTable<usize>,
}

impl Record {
    fn clear(&mut self) {
        self.bytes.clear();
        self.tags.clear();
        if !self.table.is_empty() {
            self.table.clear();
        }
    }

    fn is_tag(&self, tag: usize, hash: u64, text: &[u8]) -> bool {
        let (its_hash, start, end) = self.tags[tag];
        its_hash == hash && &self.bytes[start..end] == text
    }

    /// Whether the tag is new to the record, which has it from now on.
    fn insert(&mut self, hash: u64, text: &[u8]) -> bool {
        let known = if self.tags.len() < FEW {
            (0..self.tags.len()).any(|tag| self.is_tag(tag, hash, text))
        } else {
            if self.table.is_empty() {
                for (tag, &(its_hash, ..)) in self.tags.iter().enumerate() {
                    self.table.insert_unique(its_hash, tag, |&tag| self.tags[tag].0);
                }
            }
            self.table.find(hash, |&tag| self.is_tag(tag, hash, text)).is_some()
        };
        if known {
            return false;
        }
        let start = self.bytes.len();
        self.bytes.extend_from_slice(text);
        self.tags.push((hash, start, self.bytes.len()));
        if self.tags.len() > FEW {
            let tags = &self.tags;
            self.table.insert_unique(hash, tags.len() - 1, |&tag| tags[tag].0);
        }
        true
    }
}

impl RecordReader {
    /// A reader; a text column is split at `separator`, or at white space where that is `None`.
    ///
    /// A separator must not be empty.
    pub fn new(separator: Option<&str>) -> Result<Self> {
        if separator == Some("") {
            return Err(Error::usage(
                "separator: expected at least one character; leave it out to split at white space",
            ));
        }
        Ok(Self { separator: separator.map(str::to_owned), ..Self::default() })
    }

    /// Reads record `row` of `column` and calls `each(tag, hash)` for each distinct tag it keeps, in
    /// their order; `hash` is the tag's [`hash`](hash_of). Returns how many it kept.
    pub fn read(
        &mut self,
        column: &TagColumn,
        row: usize,
        tally: &mut Tally,
        mut each: impl FnMut(&str, u64),
    ) -> usize {
        self.record.clear();
        tally.num_records += 1;
        for index in column.range(row) {
            let Some(text) = column.texts.get(index) else {
                if !column.is_text() {
                    tally.reject(Rejection::Null);
                }
                continue;
            };
            if column.is_text() {
                self.split(text, tally, &mut each);
            } else {
                take(&mut self.record, &mut self.scratch, text, tally, &mut each);
            }
        }
        self.record.tags.len()
    }

    /// Splits a text. Pieces between white space are never empty; between separators they can be,
    /// and are rejected then, except that an empty text has no pieces.
    fn split(&mut self, text: &[u8], tally: &mut Tally, each: &mut impl FnMut(&str, u64)) {
        let Self { separator, scratch, record } = self;
        if let Some(separator) = separator {
            if text.is_empty() {
                return;
            }
            for piece in split_at(text, separator.as_bytes()) {
                take(record, scratch, piece, tally, each);
            }
            return;
        }
        for piece in text.split(|&byte| matches!(byte, 0x09..=0x0d | b' ')) {
            match std::str::from_utf8(piece) {
                Ok(piece) => {
                    for piece in piece.split_whitespace() {
                        take(record, scratch, piece.as_bytes(), tally, each);
                    }
                }
                Err(_) => tally.reject(Rejection::NotUtf8),
            }
        }
    }
}

fn take(
    record: &mut Record,
    scratch: &mut Scratch,
    raw: &[u8],
    tally: &mut Tally,
    each: &mut impl FnMut(&str, u64),
) {
    match normalize(raw, scratch) {
        Ok(tag) => {
            let hash = hash_of(tag);
            if record.insert(hash, tag.as_bytes()) {
                tally.num_hashtags += 1;
                each(tag, hash);
            } else {
                tally.num_duplicates += 1;
            }
        }
        Err(cause) => tally.reject(cause),
    }
}

/// The hash by which tags are looked up in this process's tables.
#[inline]
pub fn hash_of(tag: &str) -> u64 {
    xxh3_64(tag.as_bytes())
}

/// The pieces of `text` between occurrences of `separator`, which is not empty.
fn split_at<'a>(text: &'a [u8], separator: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let current = rest?;
        let place = current.windows(separator.len()).position(|window| window == separator);
        match place {
            Some(place) => {
                rest = Some(&current[place + separator.len()..]);
                Some(&current[..place])
            }
            None => {
                rest = None;
                Some(current)
            }
        }
    })
}
