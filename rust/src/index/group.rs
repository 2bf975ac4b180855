//! Records of Parquet files as keys and labels, a row group on each thread, in the order of the records.
//!
//! A dictionary's entries are looked up once. Of texts the commonest are found in a small table by the
//! views that they are; the others are looked up some at a time, so that their ways to memory are made
//! together.

use std::ops::Range;

use hashbrown::HashTable;
use rayon::prelude::*;

use crate::hashtag::{Key, RecordReader, Tag, TagColumn, Tally};
use crate::job::Job;
use crate::parquet::{Numbers, ParquetRecords, Piece};
use crate::vocabulary::{Encoder, Vocabulary};
use crate::{Error, Result};

/// What stands for a label of a tag that the vocabulary lacks, and of one that is rejected.
const UNKNOWN: u32 = u32::MAX;
const REJECTED: u32 = u32::MAX - 1;

/// Common tags that are kept close, as bits of their number; with 24 bytes each they fit a processor's
/// second-level cache.
const COMMON_BITS: u32 = 14;

/// Tags that are looked up together.
const AHEAD: usize = 32;

/// Keys and labels of some records.
#[derive(Debug, Default)]
pub(super) struct Group {
    keys: Vec<u8>,
    key_ends: Vec<usize>,
    labels: Vec<u32>,
    label_ends: Vec<usize>,
}

impl Group {
    pub(super) fn len(&self) -> usize {
        self.key_ends.len()
    }

    fn clear(&mut self) {
        let Self { keys, key_ends, labels, label_ends } = self;
        keys.clear();
        labels.clear();
        key_ends.clear();
        label_ends.clear();
    }

    fn push_key(&mut self, key: &[u8]) {
        self.keys.extend_from_slice(key);
        self.key_ends.push(self.keys.len());
    }

    /// Adds the labels of a record; returns how many tags are unknown.
    fn push_labels(&mut self, labels: impl Iterator<Item = u32>) -> u64 {
        let Self { labels: all, label_ends, .. } = self;
        let (first, mut num_unknown) = (all.len(), 0);
        for label in labels {
            if label < REJECTED {
                all.push(label);
            } else {
                num_unknown += u64::from(label == UNKNOWN);
            }
        }
        all[first..].sort_unstable();
        let mut end = first;
        for place in first..all.len() {
            if end == first || all[place] != all[end - 1] {
                all[end] = all[place];
                end += 1;
            }
        }
        all.truncate(end);
        label_ends.push(end);
        num_unknown
    }

    /// The key and the labels of a record, distinct and ascending.
    pub(super) fn row(&self, row: usize) -> (&str, &[u32]) {
        // Seen to be text when they were read.
        let key = std::str::from_utf8(self.keys(row..row + 1).0).unwrap_or_default();
        (key, self.labels(row..row + 1).0)
    }

    /// The keys of some records one after another, and where each ends.
    pub(super) fn keys(&self, rows: Range<usize>) -> (&[u8], impl Iterator<Item = usize>) {
        let (span, ends) = span(&self.key_ends, rows);
        (&self.keys[span], ends)
    }

    /// The labels of some records one after another, and where those of each end.
    pub(super) fn labels(&self, rows: Range<usize>) -> (&[u32], impl Iterator<Item = usize>) {
        let (span, ends) = span(&self.label_ends, rows);
        (&self.labels[span], ends)
    }
}

/// What some rows span, and where in that each ends.
fn span(ends: &[usize], rows: Range<usize>) -> (Range<usize>, impl Iterator<Item = usize>) {
    let before = |row: usize| row.checked_sub(1).map_or(0, |before| ends[before]);
    let start = before(rows.start);
    (start..before(rows.end), ends[rows].iter().map(move |end| end - start))
}

/// Encodes row groups, one on each thread.
pub(super) struct GroupEncoder<'a> {
    pool: rayon::ThreadPool,
    records: &'a ParquetRecords,
    encoder: Encoder,
    threads: Vec<Thread>,
    /// A group for each thread, whose memory is used again.
    groups: Vec<Group>,
    next: usize,
}

impl<'a> GroupEncoder<'a> {
    pub(super) fn new(
        pool: rayon::ThreadPool,
        records: &'a ParquetRecords,
        vocabulary: &Vocabulary,
    ) -> Result<Self> {
        let thread = |_| Thread::new();
        let threads = (0..pool.current_num_threads()).map(thread).collect::<Result<Vec<_>>>()?;
        let groups = threads.iter().map(|_| Group::default()).collect();
        Ok(Self { pool, records, encoder: Encoder::new(vocabulary), threads, groups, next: 0 })
    }

    /// The next row groups, at most one for each thread; none at the end.
    pub(super) fn next_groups(&mut self, job: &Job) -> Result<&[Group]> {
        let Self { pool, records, encoder, threads, groups, next } = self;
        let first = *next;
        *next = records.tags.num_chunks().min(first + threads.len());
        pool.install(|| {
            let work = threads.par_iter_mut().zip(groups.par_iter_mut()).zip(first..*next);
            work.try_for_each(|((thread, group), number)| {
                thread.encode(records, number, encoder, group, job)
            })
        })?;
        Ok(&groups[..*next - first])
    }

    /// Hashtags so far that the vocabulary lacks.
    pub(super) fn num_unknown(&self) -> u64 {
        self.threads.iter().map(|thread| thread.num_unknown).sum()
    }
}

/// What one thread needs.
struct Thread {
    reader: RecordReader,
    /// Common tags by their keys, and their labels.
    common: Vec<(Key, u32)>,
    /// The labels of some texts.
    codes: Vec<u32>,
    /// The labels of the entries of the dictionary.
    entries: Vec<u32>,
    /// Of entries without label, the first one of the same tag.
    alike: Vec<u32>,
    num_unknown: u64,
}

impl Thread {
    fn new() -> Result<Self> {
        Ok(Self {
            reader: RecordReader::new(None)?,
            common: vec![(Key::NONE, UNKNOWN); 1 << COMMON_BITS],
            codes: Vec::new(),
            entries: Vec::new(),
            alike: Vec::new(),
            num_unknown: 0,
        })
    }

    fn encode(
        &mut self,
        records: &ParquetRecords,
        number: usize,
        encoder: &Encoder,
        group: &mut Group,
        job: &Job,
    ) -> Result<()> {
        group.clear();
        read_keys(records, number, group, job)?;
        let mut tags = records.tags.read(number)?;
        while let Some(piece) = tags.next_piece()? {
            job.check()?;
            match piece {
                Piece::Dictionary(entries) => self.take_dictionary(&entries, encoder),
                Piece::Numbers(numbers) => self.encode_numbers(&numbers, group),
                Piece::Texts(column) => {
                    self.encode_texts(&column, encoder, group);
                    tags.reuse(column);
                }
            }
        }
        Ok(())
    }

    fn take_dictionary(&mut self, entries: &TagColumn, encoder: &Encoder) {
        self.look_up(entries, entries.range(0), encoder);
        std::mem::swap(&mut self.codes, &mut self.entries);
        self.alike.clear();
        if !self.entries.contains(&UNKNOWN) {
            return;
        }
        let (mut tags, mut bytes) = (Vec::new(), Vec::new());
        let mut known: HashTable<u32> = HashTable::new();
        for (number, text) in (0_u32..).zip(entries.range(0)) {
            let mut buffer = [0; 16];
            let Ok(tag) = self.reader.normal_form(entries, text, &mut buffer) else {
                tags.push((0, Key::NONE));
                self.alike.push(number);
                continue;
            };
            let same = |&other: &u32| {
                let (hash, key): (u64, Key) = tags[other as usize];
                hash == tag.hash() && key.is(&tag, &bytes)
            };
            let other = known.find(tag.hash(), same).copied();
            tags.push((tag.hash(), tag.stored(&mut bytes)));
            self.alike.push(other.unwrap_or(number));
            if other.is_none() {
                known.insert_unique(tag.hash(), number, |&other| tags[other as usize].0);
            }
        }
    }

    fn encode_numbers(&mut self, records: &Numbers, group: &mut Group) {
        for numbers in records.records() {
            let labels = numbers.iter().map(|&number| self.entries[number as usize]);
            let mut num_unknown = group.push_labels(labels);
            if num_unknown > 1 {
                let unknown = numbers.iter().filter(|&&n| self.entries[n as usize] == UNKNOWN);
                let mut unknown: Vec<u32> = unknown.map(|&n| self.alike[n as usize]).collect();
                unknown.sort_unstable();
                unknown.dedup();
                num_unknown = unknown.len() as u64;
            }
            self.num_unknown += num_unknown;
        }
    }

    fn encode_texts(&mut self, column: &TagColumn, encoder: &Encoder, group: &mut Group) {
        let first = column.range(0).start;
        let texts = first..column.range(column.len() - 1).end;
        self.look_up(column, texts, encoder);
        for row in 0..column.len() {
            let texts = column.range(row);
            let labels = &self.codes[texts.start - first..texts.end - first];
            let mut num_unknown = group.push_labels(labels.iter().copied());
            if num_unknown > 1 {
                num_unknown = 0;
                self.reader.read(column, row, &mut Tally::default(), |tag| {
                    num_unknown += u64::from(encoder.encode(tag).is_none());
                });
            }
            self.num_unknown += num_unknown;
        }
    }

    /// Lays the labels of texts into `codes`.
    fn look_up(&mut self, column: &TagColumn, texts: Range<usize>, encoder: &Encoder) {
        let Self { reader, common, codes, .. } = self;
        codes.clear();
        codes.resize(texts.len(), UNKNOWN);
        let mut some: Vec<(usize, Tag<'_>)> = Vec::with_capacity(AHEAD);
        for (place, text) in texts.enumerate() {
            let key = column.key(text);
            let (known, label) = common[key.place(COMMON_BITS)];
            if known.equals(key) && !key.is_long() {
                codes[place] = label;
                continue;
            }
            let Some(tag) = column.plain(text) else {
                codes[place] = match reader.normal_form(column, text, &mut [0; 16]) {
                    Ok(tag) => encoder.encode(&tag).unwrap_or(UNKNOWN),
                    Err(_) => REJECTED,
                };
                continue;
            };
            some.push((place, tag));
            if some.len() == AHEAD {
                look_up_some(&mut some, common, codes, encoder);
            }
        }
        look_up_some(&mut some, common, codes, encoder);
    }
}

/// Looks tags up whose slots come from memory together.
fn look_up_some(
    some: &mut Vec<(usize, Tag<'_>)>,
    common: &mut [(Key, u32)],
    codes: &mut [u32],
    encoder: &Encoder,
) {
    encoder.touch(some.iter().map(|(_, tag)| tag));
    for (place, tag) in some.drain(..) {
        let label = encoder.encode(&tag).unwrap_or(UNKNOWN);
        codes[place] = label;
        // Labels are ranks: the lower one is the commoner.
        let slot = &mut common[tag.key().place(COMMON_BITS)];
        if label < slot.1 && !tag.is_long() {
            *slot = (tag.key(), label);
        }
    }
}

/// Reads the keys of a row group.
fn read_keys(records: &ParquetRecords, number: usize, group: &mut Group, job: &Job) -> Result<()> {
    let missing =
        || Error::data(format!("a record without a key (column {:?} is null)", records.key_column));
    let mut reader = records.keys.read(number)?;
    let mut entries = None;
    while let Some(piece) = reader.next_piece()? {
        job.check()?;
        match piece {
            Piece::Dictionary(column) => entries = Some(column),
            Piece::Numbers(numbers) => {
                for numbers in numbers.records() {
                    let text = entries.as_ref().zip(numbers.first());
                    let text = text.and_then(|(entries, &number)| entries.text(number as usize));
                    group.push_key(text.ok_or_else(missing)?);
                }
            }
            Piece::Texts(column) => {
                for row in 0..column.len() {
                    let text = column.range(row).next().and_then(|text| column.text(text));
                    group.push_key(text.ok_or_else(missing)?);
                }
                reader.reuse(column);
            }
        }
    }
    let text = std::str::from_utf8(&group.keys).ok();
    if text.is_none_or(|text| group.key_ends.iter().any(|&end| !text.is_char_boundary(end))) {
        return Err(Error::data(format!(
            "a record whose key is not UTF-8 (column {:?})",
            records.key_column
        )));
    }
    Ok(())
}
