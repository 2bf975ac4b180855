//! Records of Parquet files as keys and labels, a row group on each thread, in the order of the records.
//!
//! A dictionary's entries are looked up once. Records that were spooled as they were counted are not
//! read again, but for their keys.

use std::ops::Range;

use hashbrown::HashTable;
use rayon::prelude::*;

use super::lookup::{Lookup, REJECTED, UNKNOWN};
use super::spool::{Spool, SpooledLabels};
use crate::hashtag::{Key, TagColumn, Tally};
use crate::job::Job;
use crate::parquet::{Numbers, ParquetRecords, Piece};
use crate::vocabulary::{Encoder, Vocabulary};
use crate::{Error, Result};

/// Up to so many labels are sorted by insertion.
const FEW: usize = 8;

/// Keys and labels of some records.
#[derive(Debug, Default)]
pub(in crate::index) struct Group {
    keys: Vec<u8>,
    key_ends: Vec<usize>,
    labels: Vec<u32>,
    label_ends: Vec<usize>,
}

impl Group {
    pub(in crate::index) fn len(&self) -> usize {
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
        let first = self.labels.len();
        self.labels.extend(labels);
        self.settle(first)
    }

    /// Brings the labels from `first` on into the form of a record: ascending, each once, those that
    /// are none left out. Returns how many tags are unknown.
    #[inline]
    fn settle(&mut self, first: usize) -> u64 {
        let Self { labels: all, label_ends, .. } = self;
        sort(&mut all[first..]);
        let mut num_unknown = 0;
        while let Some(&last) = all[first..].last()
            && last >= REJECTED
        {
            num_unknown += u64::from(last == UNKNOWN);
            all.pop();
        }
        if all[first..].windows(2).any(|pair| pair[0] == pair[1]) {
            let mut end = first + 1;
            for place in first + 1..all.len() {
                if all[place] != all[end - 1] {
                    all[end] = all[place];
                    end += 1;
                }
            }
            all.truncate(end);
        }
        label_ends.push(all.len());
        num_unknown
    }

    /// The key and the labels of a record, distinct and ascending.
    pub(in crate::index) fn row(&self, row: usize) -> (&str, &[u32]) {
        // Seen to be text when they were read.
        let key = std::str::from_utf8(self.keys(row..row + 1).0).unwrap_or_default();
        (key, self.labels(row..row + 1).0)
    }

    /// The keys of some records one after another, and where each ends.
    pub(in crate::index) fn keys(
        &self,
        rows: Range<usize>,
    ) -> (&[u8], impl Iterator<Item = usize>) {
        let (span, ends) = span(&self.key_ends, rows);
        (&self.keys[span], ends)
    }

    /// The labels of some records one after another, and where those of each end.
    pub(in crate::index) fn labels(
        &self,
        rows: Range<usize>,
    ) -> (&[u32], impl Iterator<Item = usize>) {
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

/// Sorts a few numbers without a branch on what they are; most records have no more than a handful.
#[inline]
fn sort(numbers: &mut [u32]) {
    if numbers.len() > FEW {
        numbers.sort_unstable();
        return;
    }
    for end in 1..numbers.len() {
        let mut number = numbers[end];
        for other in &mut numbers[..end] {
            (*other, number) = ((*other).min(number), (*other).max(number));
        }
        numbers[end] = number;
    }
}

/// Encodes row groups, one on each thread.
pub(in crate::index) struct GroupEncoder<'a> {
    pool: rayon::ThreadPool,
    records: &'a ParquetRecords,
    labels: Labels<'a>,
    threads: Vec<Thread>,
    /// A group for each thread, whose memory is used again.
    groups: Vec<Group>,
    next: usize,
}

/// Where the labels of records come from.
enum Labels<'a> {
    Texts(&'a Encoder),
    Spooled(SpooledLabels<'a>),
}

impl<'a> GroupEncoder<'a> {
    /// An encoder of `records`, whose tags are read again unless they were spooled.
    pub(in crate::index) fn new(
        pool: rayon::ThreadPool,
        records: &'a ParquetRecords,
        spool: Option<&'a Spool>,
        vocabulary: &'a Vocabulary,
    ) -> Result<Self> {
        let encoder = vocabulary.encoder();
        let labels = match spool {
            Some(spool) => Labels::Spooled(spool.labels(encoder)),
            None => Labels::Texts(encoder),
        };
        let thread = |_| Thread::new();
        let threads = (0..pool.current_num_threads()).map(thread).collect::<Result<Vec<_>>>()?;
        let groups = threads.iter().map(|_| Group::default()).collect();
        Ok(Self { pool, records, labels, threads, groups, next: 0 })
    }

    /// The next row groups, at most one for each thread; none at the end.
    pub(in crate::index) fn next_groups(&mut self, job: &Job) -> Result<&[Group]> {
        let Self { pool, records, labels, threads, groups, next } = self;
        let first = *next;
        *next = records.tags.num_chunks().min(first + threads.len());
        pool.install(|| {
            let work = threads.par_iter_mut().zip(groups.par_iter_mut()).zip(first..*next);
            work.try_for_each(|((thread, group), number)| {
                group.clear();
                read_keys(records, number, group, job)?;
                match &*labels {
                    Labels::Texts(encoder) => thread.encode(records, number, encoder, group, job),
                    Labels::Spooled(spooled) => thread.take_spooled(spooled, number, group, job),
                }
            })
        })?;
        Ok(&groups[..*next - first])
    }

    /// Hashtags so far that the vocabulary lacks.
    pub(in crate::index) fn num_unknown(&self) -> u64 {
        self.threads.iter().map(|thread| thread.num_unknown).sum()
    }
}

/// What one thread needs.
struct Thread {
    lookup: Lookup,
    /// The labels of the entries of the dictionary.
    entries: Vec<u32>,
    /// Of entries without label, the first one of the same tag.
    alike: Vec<u32>,
    num_unknown: u64,
}

impl Thread {
    fn new() -> Result<Self> {
        let lookup = Lookup::new()?;
        Ok(Self { lookup, entries: Vec::new(), alike: Vec::new(), num_unknown: 0 })
    }

    fn take_spooled(
        &mut self,
        spooled: &SpooledLabels<'_>,
        number: usize,
        group: &mut Group,
        job: &Job,
    ) -> Result<()> {
        let num_unknown = &mut self.num_unknown;
        spooled.read(number, job, |labels| {
            *num_unknown += group.push_labels(labels.iter().copied())
        })?;
        if group.label_ends.len() == group.len() {
            return Ok(());
        }
        Err(Error::data(
            "the record files changed while they were indexed: a row group had another number of records \
             when it was read again; run the command again",
        ))
    }

    fn encode(
        &mut self,
        records: &ParquetRecords,
        number: usize,
        encoder: &Encoder,
        group: &mut Group,
        job: &Job,
    ) -> Result<()> {
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

    fn take_dictionary(&mut self, entries: &TagColumn, mut encoder: &Encoder) {
        let codes = self.lookup.numbers(entries, entries.range(0), &mut encoder);
        std::mem::swap(codes, &mut self.entries);
        self.alike.clear();

        // Only tags outside the vocabulary have no label by which two entries of one tag could be
        // known as one.
        if !self.entries.contains(&UNKNOWN) {
            return;
        }
        let (mut tags, mut bytes) = (Vec::new(), Vec::new());
        let mut known: HashTable<u32> = HashTable::new();
        for (number, text) in (0_u32..).zip(entries.range(0)) {
            let mut buffer = [0; 16];
            let Ok(tag) = self.lookup.reader().normal_form(entries, text, &mut buffer) else {
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

    fn encode_texts(&mut self, column: &TagColumn, mut encoder: &Encoder, group: &mut Group) {
        let first = column.range(0).start;
        let texts = first..column.range(column.len() - 1).end;
        let codes = std::mem::take(self.lookup.numbers(column, texts, &mut encoder));
        for row in 0..column.len() {
            let texts = column.range(row);
            let labels = &codes[texts.start - first..texts.end - first];
            let mut num_unknown = group.push_labels(labels.iter().copied());
            if num_unknown > 1 {
                num_unknown = 0;
                self.lookup.reader().read(column, row, &mut Tally::default(), |tag| {
                    num_unknown += u64::from(encoder.encode(tag).is_none());
                });
            }
            self.num_unknown += num_unknown;
        }
        self.lookup.take_back(codes);
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

    // All keys are checked at once, which is faster than one by one; then each has to end between
    // characters.
    let text = std::str::from_utf8(&group.keys).ok();
    if text.is_none_or(|text| group.key_ends.iter().any(|&end| !text.is_char_boundary(end))) {
        return Err(Error::data(format!(
            "a record whose key is not UTF-8 (column {:?})",
            records.key_column
        )));
    }
    Ok(())
}
