//! One record's hashtags: split, normalized, rejected, its duplicates dropped, the books kept.

use hashbrown::HashTable;

use super::column::Raw;
use super::{FEW, Key, Rejection, Scratch, Tag, TagColumn, Tally, normalize};
use crate::{Error, Result};

/// Reads records: splits, normalizes, rejects, drops duplicates, and keeps the books.
///
/// One reader is for one thread; its buffers are used again for every record.
#[derive(Debug, Default)]
pub struct RecordReader {
    separator: Option<String>,
    scratch: Scratch,
    forms: Forms,
    record: Record,
    num_tags_in: u64,
}

/// Short texts that are not plain, as bits of how many are remembered.
const FORM_BITS: u32 = 12;

/// The normal forms of short texts that are not plain: what is seen once is seen again.
#[derive(Debug, Default)]
struct Forms {
    /// A text and its length, the hash and the key of its tag; nothing before the first.
    slots: Vec<(u128, u64, Key)>,
}

impl Forms {
    /// The tag of a text; that of a short one is remembered where it is short too.
    fn find<'a>(
        &mut self,
        raw: &Raw<'a>,
        scratch: &'a mut Scratch,
        buffer: &'a mut [u8; 16],
    ) -> std::result::Result<Tag<'a>, Rejection> {
        let Some((bits, length)) = raw.short() else {
            return normalize(raw.bytes(buffer), scratch).map(Tag::new);
        };
        let text = bits | (length as u128) << 120;
        let place = Key::place_of(text, FORM_BITS);
        if let Some(&(known, hash, key)) = self.slots.get(place)
            && known == text
        {
            return Ok(key.hashed_tag(hash, &[]));
        }
        let tag = Tag::new(normalize(raw.bytes(buffer), scratch)?);
        if !tag.is_long() {
            if self.slots.is_empty() {
                self.slots.resize(1 << FORM_BITS, (u128::MAX, 0, Key::NONE));
            }
            self.slots[place] = (text, tag.hash(), tag.key());
        }
        Ok(tag)
    }
}

/// The distinct tags of the records read and not yet forgotten.
#[derive(Debug, Default)]
struct Record {
    /// Hash and key; the key of a long tag has the place of its bytes.
    tags: Vec<(u64, Key)>,
    bytes: Vec<u8>,
    /// Where the tags of the record being read begin.
    start: usize,
    /// A bit for each of its tags, by the tag's hash: most tags are found new by it.
    seen: u64,
    table: HashTable<u32>,
}

impl Record {
    fn forget(&mut self) {
        self.bytes.clear();
        self.tags.clear();
    }

    fn begin(&mut self) {
        self.start = self.tags.len();
        self.seen = 0;
        if !self.table.is_empty() {
            self.table.clear();
        }
    }

    fn num_tags(&self) -> usize {
        self.tags.len() - self.start
    }

    /// Whether the tag is new to the record, which has it from now on.
    #[inline(always)]
    fn insert(&mut self, tag: &Tag<'_>) -> bool {
        let bit = 1 << (tag.hash() & 63);
        if self.seen & bit != 0 {
            return self.insert_unless_known(tag);
        }
        self.seen |= bit;
        let key = tag.stored(&mut self.bytes);
        self.tags.push((tag.hash(), key));
        true
    }

    #[cold]
    fn insert_unless_known(&mut self, tag: &Tag<'_>) -> bool {
        let before = &self.tags[self.start..];
        if before.len() >= FEW {
            return self.insert_among_many(tag);
        }
        if before.iter().any(|(hash, key)| *hash == tag.hash() && key.is(tag, &self.bytes)) {
            return false;
        }
        let key = tag.stored(&mut self.bytes);
        self.tags.push((tag.hash(), key));
        true
    }

    fn insert_among_many(&mut self, tag: &Tag<'_>) -> bool {
        let Self { tags, bytes, start, table, .. } = self;
        let hash_at = |tags: &[(u64, Key)], place: u32| tags[*start + place as usize].0;
        // Tags that were found new without it are not in it yet.
        for place in table.len()..tags.len() - *start {
            let hash = hash_at(tags, place as u32);
            table.insert_unique(hash, place as u32, |&place| hash_at(tags, place));
        }
        let same = |&place: &u32| {
            let (hash, key) = tags[*start + place as usize];
            hash == tag.hash() && key.is(tag, bytes)
        };
        if table.find(tag.hash(), same).is_some() {
            return false;
        }
        tags.push((tag.hash(), tag.stored(bytes)));
        true
    }
}

/// Some records whose texts are views and are one after another.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Block<'a> {
    pub(crate) views: &'a [u128],
    /// Where each record begins.
    pub(crate) starts: &'a [u16],
}

impl Block<'_> {
    fn views_of(&self, row: usize) -> &[u128] {
        let end = self.starts.get(row + 1).map_or(self.views.len(), |&start| usize::from(start));
        &self.views[usize::from(self.starts[row])..end]
    }
}

/// A text of a block: its place in the block and that of its record, and a mark.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Other(u32);

impl Other {
    const MARK: u32 = 1 << 31;

    #[inline(always)]
    pub(crate) fn new(row: usize, place: usize) -> Self {
        Self((place << 8 | row) as u32)
    }

    #[inline(always)]
    pub(crate) fn row(self) -> usize {
        (self.0 & 0xff) as usize
    }

    #[inline(always)]
    pub(crate) fn place(self) -> usize {
        (self.0 >> 8) as usize
    }

    /// The same with a mark where `is_marked`; it is of no use but for the mark then.
    #[inline(always)]
    pub(crate) fn marked(self, is_marked: bool) -> Self {
        Self(self.0 | if is_marked { Self::MARK } else { 0 })
    }

    #[inline(always)]
    pub(crate) fn is_marked(self) -> bool {
        self.0 >= Self::MARK
    }
}

/// The tags of some records, one record after another.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Gathered<'a> {
    /// The hash and key of each tag.
    pub(crate) tags: &'a [(u64, Key)],
    /// The bytes of long ones.
    pub(crate) bytes: &'a [u8],
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

    /// Reads record `row` of `column` and calls `each(tag)` for each distinct tag it keeps, in
    /// their order. Returns how many it kept.
    pub fn read(
        &mut self,
        column: &TagColumn,
        row: usize,
        tally: &mut Tally,
        mut each: impl FnMut(&Tag<'_>),
    ) -> usize {
        self.forget();
        let num_kept = self.gather(column, row, tally);
        let Gathered { tags, bytes } = self.gathered();
        tags.iter().for_each(|(hash, key)| each(&key.hashed_tag(*hash, bytes)));
        num_kept
    }

    /// Reads a record like [`read`](Self::read), and lays its tags behind those of the records
    /// before it.
    #[inline]
    pub(crate) fn gather(&mut self, column: &TagColumn, row: usize, tally: &mut Tally) -> usize {
        self.record.begin();
        tally.num_records += 1;
        if column.is_text() {
            if let Some(text) = column.range(row).next().and_then(|index| column.text(index)) {
                self.split(text, tally);
            }
        } else {
            self.take_list(column, row, tally);
        }
        let num_kept = self.record.num_tags();
        tally.num_hashtags += num_kept as u64;
        num_kept
    }

    /// Gathers those texts of a block of records that `others` names, record by record. The rest of them
    /// are tags in normal form that are kept already, and a text that becomes one of those is a
    /// duplicate. Adds to `num_kept` what it keeps of each record.
    pub(crate) fn gather_others(
        &mut self,
        column: &TagColumn,
        block: &Block<'_>,
        others: &[Other],
        tally: &mut Tally,
        num_kept: &mut [u8],
    ) {
        let Self { record, scratch, forms, .. } = self;
        record.begin();
        let mut row = 0;
        let first = record.tags.len();
        for other in others {
            // No branch: where records end is anybody's guess.
            let same_row = other.row() == row;
            row = other.row();
            record.seen = if same_row { record.seen } else { 0 };
            record.start = if same_row { record.start } else { record.tags.len() };
            let before = record.tags.len();
            let mut buffer = [0; 16];
            let view = block.views[other.place()];
            match tag_of(column.view(view), forms, scratch, &mut buffer) {
                Ok(tag) if is_text(column, view, &tag) => keep(record, &tag, tally),
                Ok(tag) => keep_unless_among(record, column, block.views_of(row), &tag, tally),
                Err(cause) => tally.reject(cause),
            }
            num_kept[row] += (record.tags.len() - before) as u8;
        }
        tally.num_hashtags += (record.tags.len() - first) as u64;
    }

    /// Notes the records of a block, of whose texts so many were kept beforehand.
    pub(crate) fn note(&mut self, block: &Block<'_>, num_kept: usize, tally: &mut Tally) {
        self.num_tags_in += block.views.len() as u64;
        tally.num_records += block.starts.len() as u64;
        tally.num_hashtags += num_kept as u64;
    }

    /// The normal form of a text of a column; what else its record has is not looked at.
    pub(crate) fn normal_form<'a>(
        &'a mut self,
        column: &'a TagColumn,
        text: usize,
        buffer: &'a mut [u8; 16],
    ) -> std::result::Result<Tag<'a>, Rejection> {
        tag_of(column.raw(text), &mut self.forms, &mut self.scratch, buffer)
    }

    /// Notes texts that were counted elsewhere.
    pub(crate) fn note_texts(&mut self, number: u64) {
        self.num_tags_in += number;
    }

    /// What [`gather`](Self::gather) laid down.
    pub(crate) fn gathered(&self) -> Gathered<'_> {
        Gathered { tags: &self.record.tags, bytes: &self.record.bytes }
    }

    /// Forgets what [`gather`](Self::gather) laid down.
    pub(crate) fn forget(&mut self) {
        self.record.forget();
    }

    #[inline]
    fn take_list(&mut self, column: &TagColumn, row: usize, tally: &mut Tally) {
        let texts = column.range(row);
        self.num_tags_in += texts.len() as u64;
        let Self { record, scratch, forms, .. } = self;
        for index in texts {
            let mut buffer = [0; 16];
            match tag_of(column.raw(index), forms, scratch, &mut buffer) {
                Ok(tag) => keep(record, &tag, tally),
                Err(cause) => tally.reject(cause),
            }
        }
    }

    /// Tags read so far, kept or not.
    pub fn num_tags_in(&self) -> u64 {
        self.num_tags_in
    }

    /// Splits a text. Pieces between white space are never empty; between separators they can be,
    /// and are rejected then, except that an empty text has no pieces.
    fn split(&mut self, text: &[u8], tally: &mut Tally) {
        let Self { separator, scratch, record, num_tags_in, .. } = self;
        if let Some(separator) = separator {
            if text.is_empty() {
                return;
            }
            for piece in split_at(text, separator.as_bytes()) {
                *num_tags_in += 1;
                take(record, scratch, piece, tally);
            }
            return;
        }

        // At ASCII white space first: a piece that is no UTF-8 must not cost the other tags of its
        // text.
        for piece in text.split(|&byte| matches!(byte, 0x09..=0x0d | b' ')) {
            match std::str::from_utf8(piece) {
                Ok(piece) => {
                    for piece in piece.split_whitespace() {
                        *num_tags_in += 1;
                        take(record, scratch, piece.as_bytes(), tally);
                    }
                }
                Err(_) => {
                    *num_tags_in += 1;
                    tally.reject(Rejection::NotUtf8);
                }
            }
        }
    }
}

/// The tag of a text, in normal form; the bytes of a short text are laid into `buffer`.
#[inline(always)]
fn tag_of<'a>(
    raw: Raw<'a>,
    forms: &mut Forms,
    scratch: &'a mut Scratch,
    buffer: &'a mut [u8; 16],
) -> std::result::Result<Tag<'a>, Rejection> {
    let plain = match raw {
        Raw::Null => return Err(Rejection::Null),
        Raw::Short(bits, length) => Tag::plain(bits, length),
        Raw::Long(text) => Tag::plain_long(text),
    };
    plain.map_or_else(|| forms.find(&raw, scratch, buffer), Ok)
}

#[inline(always)]
fn keep(record: &mut Record, tag: &Tag<'_>, tally: &mut Tally) {
    if !record.insert(tag) {
        tally.num_duplicates += 1;
    }
}

/// Whether a text is the tag in normal form.
#[inline(always)]
fn is_text(column: &TagColumn, view: u128, tag: &Tag<'_>) -> bool {
    if tag.is_long() {
        // Mostly the very same bytes.
        column
            .long_text(view)
            .is_some_and(|text| std::ptr::eq(text, tag.long()) || text == tag.long())
    } else {
        tag.is_view(view)
    }
}

/// Keeps a tag, unless a text of its record is the tag in normal form.
fn keep_unless_among(
    record: &mut Record,
    column: &TagColumn,
    views: &[u128],
    tag: &Tag<'_>,
    tally: &mut Tally,
) {
    if views.iter().any(|&view| is_text(column, view, tag)) {
        tally.num_duplicates += 1;
    } else {
        keep(record, tag, tally);
    }
}

fn take(record: &mut Record, scratch: &mut Scratch, raw: &[u8], tally: &mut Tally) {
    match normalize(raw, scratch) {
        Ok(text) => keep(record, &Tag::new(text), tally),
        Err(cause) => tally.reject(cause),
    }
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
