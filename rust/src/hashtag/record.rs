//! One record's hashtags: split, normalized, rejected, its duplicates dropped, the books kept.

use hashbrown::HashTable;

use super::column::Raw;
use super::{Key, Rejection, Scratch, Tag, TagColumn, Tally, normalize};
use crate::{Error, Result};

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
    num_tags_in: u64,
}

/// The distinct tags of the record being read.
#[derive(Debug, Default)]
struct Record {
    /// Hash and key; the key of a long tag says where its bytes lie.
    tags: Vec<(u64, Key)>,
    bytes: Vec<u8>,
    table: HashTable<u32>,
}

impl Record {
    fn clear(&mut self) {
        self.bytes.clear();
        self.tags.clear();
        if !self.table.is_empty() {
            self.table.clear();
        }
    }

    /// Whether the tag is new to the record, which has it from now on.
    #[inline(always)]
    fn insert(&mut self, tag: &Tag<'_>) -> bool {
        if self.tags.len() >= FEW {
            return self.insert_among_many(tag);
        }
        let mut known = false;
        for (hash, key) in &self.tags {
            known |= *hash == tag.hash() && key.is(tag, &self.bytes);
        }
        if !known {
            let key = tag.stored(&mut self.bytes);
            self.tags.push((tag.hash(), key));
        }
        !known
    }

    #[cold]
    fn insert_among_many(&mut self, tag: &Tag<'_>) -> bool {
        let Self { tags, bytes, table } = self;
        let hash_at = |tags: &[(u64, Key)], place: u32| tags[place as usize].0;
        if table.is_empty() {
            for (place, &(hash, _)) in tags.iter().enumerate() {
                table.insert_unique(hash, place as u32, |&place| hash_at(tags, place));
            }
        }
        let same = |&place: &u32| {
            let (hash, key) = tags[place as usize];
            hash == tag.hash() && key.is(tag, bytes)
        };
        if table.find(tag.hash(), same).is_some() {
            return false;
        }
        tags.push((tag.hash(), tag.stored(bytes)));
        let last = (tags.len() - 1) as u32;
        table.insert_unique(tag.hash(), last, |&place| hash_at(tags, place));
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

    /// Reads record `row` of `column` and calls `each(tag)` for each distinct tag it keeps, in
    /// their order. Returns how many it kept.
    pub fn read(
        &mut self,
        column: &TagColumn,
        row: usize,
        tally: &mut Tally,
        mut each: impl FnMut(&Tag<'_>),
    ) -> usize {
        self.record.clear();
        tally.num_records += 1;
        if column.is_text() {
            if let Some(text) = column.range(row).next().and_then(|index| column.text(index)) {
                self.split(text, tally, &mut each);
            }
            return self.record.tags.len();
        }
        let texts = column.range(row);
        self.num_tags_in += texts.len() as u64;
        for index in texts {
            match column.raw(index) {
                Raw::Short(bits, length) => match Tag::plain(bits, length) {
                    Some(tag) => keep(&mut self.record, &tag, tally, &mut each),
                    None => {
                        let bytes = bits.to_le_bytes();
                        take(
                            &mut self.record,
                            &mut self.scratch,
                            &bytes[..length],
                            tally,
                            &mut each,
                        );
                    }
                },
                Raw::Long(text) => match Tag::plain_long(text) {
                    Some(tag) => keep(&mut self.record, &tag, tally, &mut each),
                    None => take(&mut self.record, &mut self.scratch, text, tally, &mut each),
                },
                Raw::Null => tally.reject(Rejection::Null),
            }
        }
        self.record.tags.len()
    }

    /// Tags read so far, kept or not.
    pub fn num_tags_in(&self) -> u64 {
        self.num_tags_in
    }

    /// Splits a text. Pieces between white space are never empty; between separators they can be,
    /// and are rejected then, except that an empty text has no pieces.
    fn split(&mut self, text: &[u8], tally: &mut Tally, each: &mut impl FnMut(&Tag<'_>)) {
        let Self { separator, scratch, record, num_tags_in } = self;
        if let Some(separator) = separator {
            if text.is_empty() {
                return;
            }
            for piece in split_at(text, separator.as_bytes()) {
                *num_tags_in += 1;
                take(record, scratch, piece, tally, each);
            }
            return;
        }
        for piece in text.split(|&byte| matches!(byte, 0x09..=0x0d | b' ')) {
            match std::str::from_utf8(piece) {
                Ok(piece) => {
                    for piece in piece.split_whitespace() {
                        *num_tags_in += 1;
                        take(record, scratch, piece.as_bytes(), tally, each);
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

#[inline(always)]
fn keep(record: &mut Record, tag: &Tag<'_>, tally: &mut Tally, each: &mut impl FnMut(&Tag<'_>)) {
    if record.insert(tag) {
        tally.num_hashtags += 1;
        each(tag);
    } else {
        tally.num_duplicates += 1;
    }
}

fn take(
    record: &mut Record,
    scratch: &mut Scratch,
    raw: &[u8],
    tally: &mut Tally,
    each: &mut impl FnMut(&Tag<'_>),
) {
    match normalize(raw, scratch) {
        Ok(text) => keep(record, &Tag::new(text), tally, each),
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
