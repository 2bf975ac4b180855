//! Tags that come as numbers of dictionary entries.
//!
//! Each entry is normalized once. A cell for each has how many records have it and
//! the last one that had, so that a tag counts once in its record; entries of one normal form share a
//! cell. At the end of the dictionary its counts go the way of all others.

use hashbrown::HashTable;

use super::Sizes;
use super::waiting::Waiting;
use crate::hashtag::{Key, RecordReader, Rejection, TagColumn, Tally};
use crate::parquet::Numbers;

/// For an entry that is rejected: this and the number of the cause.
const REJECTED: u32 = u32::MAX - Rejection::ALL.len() as u32;

#[derive(Debug, Clone, Copy, Default)]
struct Cell {
    count: u32,
    /// The number of the last record that had the tag; the first is 1.
    record: u32,
}

/// A dictionary and what was counted of it.
#[derive(Debug)]
pub(super) struct Dictionary {
    /// Hash and key of each entry.
    tags: Vec<(u64, Key)>,
    bytes: Vec<u8>,
    cells: Vec<Cell>,
    /// For each entry the one whose cell it shares; nothing where each has its own.
    stands_for: Vec<u32>,
    num_records: u32,
    num_handed_over: usize,
}

impl Dictionary {
    /// The entries are the texts of the one record of a column.
    pub(super) fn new(entries: &TagColumn, reader: &mut RecordReader) -> Self {
        let texts = entries.range(0);
        let mut tags: Vec<(u64, Key)> = Vec::with_capacity(texts.len());
        let mut stands_for = Vec::with_capacity(texts.len());
        let (mut bytes, mut known) = (Vec::new(), HashTable::with_capacity(texts.len()));
        let mut is_distinct = true;
        for (number, text) in (0_u32..).zip(texts) {
            let mut buffer = [0; 16];
            let tag = match reader.normal_form(entries, text, &mut buffer) {
                Ok(tag) => tag,
                Err(cause) => {
                    is_distinct = false;
                    tags.push((0, Key::NONE));
                    stands_for.push(REJECTED + cause as u32);
                    continue;
                }
            };

            // Two spellings of a tag are one tag: records with both count it once.
            let same = |&other: &u32| {
                let (hash, key) = tags[other as usize];
                hash == tag.hash() && key.is(&tag, &bytes)
            };
            if let Some(&other) = known.find(tag.hash(), same) {
                is_distinct = false;
                tags.push((0, Key::NONE));
                stands_for.push(other);
                continue;
            }
            tags.push((tag.hash(), tag.stored(&mut bytes)));
            stands_for.push(number);
            known.insert_unique(tag.hash(), number, |&other| tags[other as usize].0);
        }

        // Most dictionaries have each tag once, and then entries need no detour.
        if is_distinct {
            stands_for = Vec::new();
        }
        let cells = vec![Cell::default(); tags.len()];
        Self { tags, bytes, cells, stands_for, num_records: 0, num_handed_over: 0 }
    }

    /// Counts records by the numbers of their entries.
    pub(super) fn count(&mut self, records: &Numbers, tally: &mut Tally, sizes: &mut Sizes) {
        let (mut num_kept, mut num_texts, mut num_rejected) = (0, 0, 0);
        for numbers in records.records() {
            self.num_records = self.num_records.wrapping_add(1);
            let mut kept = 0;

            // Most dictionaries have each tag once, and need no detour.
            if self.stands_for.is_empty() {
                for &number in numbers {
                    kept += u64::from(self.cells[number as usize].see(self.num_records));
                }
            } else {
                for &number in numbers {
                    let number = self.stands_for[number as usize];
                    if number < REJECTED {
                        kept += u64::from(self.cells[number as usize].see(self.num_records));
                    } else {
                        tally.rejected[(number - REJECTED) as usize] += 1;
                        num_rejected += 1;
                    }
                }
            }
            num_kept += kept;
            num_texts += numbers.len() as u64;
            sizes.add(kept, 1);
        }

        // What is neither kept nor rejected was a duplicate.
        tally.num_records += records.records().len() as u64;
        tally.num_hashtags += num_kept;
        tally.num_duplicates += num_texts - num_kept - num_rejected;
    }

    /// Hands counts over until enough wait; whether all are.
    pub(super) fn hand_over(&mut self, waiting: &mut Waiting) -> bool {
        let first = self.num_handed_over;
        for (&(hash, key), cell) in self.tags[first..].iter().zip(&self.cells[first..]) {
            if waiting.is_full() {
                return false;
            }
            let tag = key.hashed_tag(hash, &self.bytes);
            match cell.count {
                0 => {}
                1 if tag.is_long() => waiting.push_long(&tag),
                1 => waiting.push(hash, key),
                count => waiting.push_counted(&tag, count),
            }
            self.num_handed_over += 1;
        }
        true
    }
}

impl Cell {
    /// Notes that a record has the tag; whether it is new to the record.
    #[inline(always)]
    fn see(&mut self, record: u32) -> bool {
        let is_new = self.record != record;
        self.record = record;
        self.count += u32::from(is_new);
        is_new
    }
}
