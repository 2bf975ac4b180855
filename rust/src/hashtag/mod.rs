//! Hashtags as people write them, in one normal form.
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
//! [`TagColumn`] reads the tags out of every form of Arrow column that has text or lists of text,
//! and [`RecordReader`] turns one record into its kept tags and keeps the books: tags in = kept +
//! duplicates + rejected, for every record. A null list or null text is a record without tags; a
//! null among a list's tags is rejected as [`Rejection::Null`].

mod column;
mod key;
mod record;

use unicode_normalization::{IsNormalized, UnicodeNormalization};

pub use column::TagColumn;
pub(crate) use key::{INLINE, Key, VIEW_INLINE};
pub use key::{Tag, hash_of};
pub use record::RecordReader;
pub(crate) use record::{Block, Gathered, Other};

/// Above this many tags a record's duplicates are sought with a table instead of one by one.
pub(crate) const FEW: usize = 24;

/// The longest tag kept, in bytes of its normalized form.
pub const MAX_BYTES: usize = 128;

/// The version of Unicode whose normalization is applied.
pub const UNICODE_VERSION: (u8, u8, u8) = unicode_normalization::UNICODE_VERSION;

/// [`UNICODE_VERSION`] as text.
pub fn unicode_version() -> String {
    let (major, minor, patch) = UNICODE_VERSION;
    format!("{major}.{minor}.{patch}")
}

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

/// Brings one tag into its normal form, which is in `raw` itself or in `scratch`.
///
/// Idempotent: the result is its own normal form.
///
/// ```
/// use wsl_core::hashtag::{Rejection, Scratch, normalize};
///
/// let mut scratch = Scratch::default();
/// assert_eq!(normalize(b"#Cats", &mut scratch), Ok("cats"));
/// assert_eq!(normalize(b" # ", &mut scratch), Err(Rejection::Empty));
/// ```
pub fn normalize<'a>(
    raw: &'a [u8],
    scratch: &'a mut Scratch,
) -> std::result::Result<&'a str, Rejection> {
    // One look at all bytes decides how much there is to do; for most tags it is nothing.
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

    // After normalizing, which may remove all of a tag, or make it longer.
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
    if is_normal(raw) {
        text.clear();
        text.push_str(trim(raw));
        return;
    }
    one_round(raw, folded, text);
    for _ in 1..MAX_ROUNDS {
        one_round(text, folded, next);
        if text == next {
            return;
        }
        std::mem::swap(text, next);
    }
}

/// Whether nothing but the ends can change: what most tags outside ASCII are, found without writing.
fn is_normal(raw: &str) -> bool {
    use caseless::Caseless;
    let folded = |character: char| {
        character.is_ascii() && !character.is_ascii_uppercase()
            || std::iter::once(character).default_case_fold().eq([character])
    };
    raw.chars().all(|character| !is_invisible(character) && folded(character))
        && unicode_normalization::is_nfkc_quick(raw.chars()) == IsNormalized::Yes
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

    pub(crate) fn reject(&mut self, cause: Rejection) {
        self.rejected[cause as usize] += 1;
    }
}
