//! Counting hashtags over streams of records.
//!
//! A tag counts once for every record that has it. [`HashtagCounts::update`] reads record batches
//! one after another; within a batch each thread takes a range of rows and counts into a table of
//! its own, and the tables are added up when the stream ends. Sums do not depend on their order, so
//! threads, batches and the partition of the input never change a result, and [`merge`] joins counts
//! that were made apart.
//!
//! Hashtags are short and Zipf-distributed: up to 15 bytes lie in the table's entry itself (24
//! bytes with the 64-bit count), longer ones in one arena, so a hot tag costs one cache line and a
//! table of a million tags some 40 MB. Each thread holds what it has seen, so memory is at most
//! `num_threads` times that while a stream is read.
//!
//! [`merge`]: HashtagCounts::merge

mod file;

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow_array::builder::StringBuilder;
use arrow_array::{RecordBatch, UInt64Array};
use arrow_schema::{ArrowError, DataType, Field, Schema, SchemaRef};
use hashbrown::HashTable;
use rayon::prelude::*;
use xxhash_rust::xxh3::xxh3_64;

use crate::hashtag::{RecordReader, TagColumn, Tally};
use crate::job::Job;
use crate::{Error, Result};

/// Rows between two looks at the [`Job`].
const ROWS_PER_CHECK: usize = 4096;

/// How records are read.
#[derive(Debug, Clone, Default)]
pub struct CountOptions {
    /// The column of hashtags.
    pub column: String,
    /// Where a text column is split; white space where `None`.
    pub separator: Option<String>,
    /// Threads to count with; as many as the machine has where `None`.
    pub num_threads: Option<usize>,
}

/// How often each hashtag was seen, and what became of the rest.
#[derive(Debug, Clone, Default)]
pub struct HashtagCounts {
    table: Table,
    tally: Tally,
    sizes: Sizes,
}

impl HashtagCounts {
    /// Counts of nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the records of `batches`; `job` advances by records.
    ///
    /// When it fails, the counts are as before the call.
    pub fn update(
        &mut self,
        batches: impl IntoIterator<Item = std::result::Result<RecordBatch, ArrowError>>,
        options: &CountOptions,
        job: &Job,
    ) -> Result<()> {
        let num_threads = match options.num_threads {
            Some(0) => return Err(Error::usage("num_threads must be at least 1")),
            Some(number) => number,
            None => std::thread::available_parallelism().map_or(1, usize::from),
        };
        let separator = options.separator.as_deref();
        let mut parts = (0..num_threads)
            .map(|_| Ok((RecordReader::new(separator)?, Self::default())))
            .collect::<Result<Vec<_>>>()?;
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(num_threads)
            .build()
            .map_err(|error| Error::usage(format!("num_threads {num_threads}: {error}")))?;
        for batch in batches {
            let batch = batch?;
            let column = tag_column(&batch, options)?;
            let share = column.len().div_ceil(num_threads).max(1);
            pool.install(|| {
                parts.par_iter_mut().enumerate().try_for_each(|(part, (reader, counts))| {
                    let first = (part * share).min(column.len());
                    let last = (first + share).min(column.len());
                    counts.count_rows(reader, &column, first..last, job)
                })
            })?;
        }
        for (_, part) in parts {
            self.merge_owned(part);
        }
        Ok(())
    }

    fn count_rows(
        &mut self,
        reader: &mut RecordReader,
        column: &TagColumn,
        rows: std::ops::Range<usize>,
        job: &Job,
    ) -> Result<()> {
        let Self { table, tally, sizes } = self;
        for first in rows.clone().step_by(ROWS_PER_CHECK) {
            job.check()?;
            let last = (first + ROWS_PER_CHECK).min(rows.end);
            for row in first..last {
                let kept =
                    reader.read(column, row, tally, |tag, hash| table.add(tag.as_bytes(), hash, 1));
                sizes.add(kept as u64, 1);
            }
            job.advance((last - first) as u64);
        }
        Ok(())
    }

    /// Adds what was counted elsewhere, over other records. Associative and commutative.
    pub fn merge(&mut self, other: &Self) {
        for (tag, count) in other.table.iter() {
            self.table.add(tag, xxh3_64(tag), count);
        }
        self.tally.add(&other.tally);
        other.sizes.iter().for_each(|(size, records)| self.sizes.add(size, records));
    }

    fn merge_owned(&mut self, mut other: Self) {
        if other.table.len() > self.table.len() {
            std::mem::swap(self, &mut other);
        }
        self.merge(&other);
    }

    /// What became of the tags: records, kept, duplicates, rejected by cause.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Number of different tags.
    pub fn num_distinct(&self) -> u64 {
        self.table.len() as u64
    }

    /// Number of records by how many tags they keep.
    pub fn tags_per_record(&self) -> BTreeMap<u64, u64> {
        self.sizes.iter().collect()
    }

    /// On how many records `tag`, a normalized tag, was seen.
    pub fn count_of(&self, tag: &str) -> u64 {
        self.table.get(tag.as_bytes())
    }

    /// All tags by descending count, ties by byte order.
    pub fn ranked(&self) -> Vec<(&str, u64)> {
        let mut ranked: Vec<(&str, u64)> = self.texts().collect();
        ranked.par_sort_unstable_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(b.0)));
        ranked
    }

    /// How many tags have each count, by ascending count.
    pub fn multiplicities(&self) -> BTreeMap<u64, u64> {
        let mut multiplicities = BTreeMap::new();
        for (_, count) in self.table.iter() {
            *multiplicities.entry(count).or_insert(0) += 1;
        }
        multiplicities
    }

    /// The columns of [`table`](Self::table).
    pub fn schema() -> SchemaRef {
        Arc::new(Schema::new(vec![
            Field::new("hashtag", DataType::Utf8, false),
            Field::new("count", DataType::UInt64, false),
        ]))
    }

    /// All tags and their counts, in the order of [`ranked`](Self::ranked).
    pub fn table(&self) -> Result<Vec<RecordBatch>> {
        // A million tags of at most 128 bytes stay far below the 2 GiB of a column of 32-bit offsets.
        let make = |rows: &[(&str, u64)]| {
            let mut tags = StringBuilder::with_capacity(rows.len(), rows.len() * 12);
            rows.iter().for_each(|(tag, _)| tags.append_value(tag));
            let counts = UInt64Array::from_iter_values(rows.iter().map(|row| row.1));
            let columns: Vec<arrow_array::ArrayRef> =
                vec![Arc::new(tags.finish()), Arc::new(counts)];
            Ok(RecordBatch::try_new(Self::schema(), columns)?)
        };
        self.ranked().chunks(1 << 20).map(make).collect()
    }

    fn texts(&self) -> impl Iterator<Item = (&str, u64)> {
        // Everything in the table was a `str` when it went in, so nothing is ever left out here.
        self.table
            .iter()
            .filter_map(|(tag, count)| std::str::from_utf8(tag).ok().map(|tag| (tag, count)))
    }
}

pub(crate) fn tag_column(batch: &RecordBatch, options: &CountOptions) -> Result<TagColumn> {
    let name = &options.column;
    let array = batch.column_by_name(name).ok_or_else(|| {
        let schema = batch.schema();
        let known: Vec<_> = schema.fields().iter().map(|field| field.name().as_str()).collect();
        Error::usage(format!(
            "the records have no column {name:?}; their columns are: {}",
            known.join(", ")
        ))
    })?;
    let column = TagColumn::new(array, name)?;
    if options.separator.is_some() && !column.is_text() {
        return Err(Error::usage(format!(
            "separator: column {name:?} is of type {}, which is split already; leave the separator \
             out",
            array.data_type()
        )));
    }
    Ok(column)
}

/// Records by the number of their tags: an array for small numbers, a map for the rest.
#[derive(Debug, Clone)]
struct Sizes {
    small: [u64; 256],
    large: BTreeMap<u64, u64>,
}

impl Default for Sizes {
    fn default() -> Self {
        Self { small: [0; 256], large: BTreeMap::new() }
    }
}

impl Sizes {
    fn add(&mut self, size: u64, records: u64) {
        match self.small.get_mut(usize::try_from(size).unwrap_or(usize::MAX)) {
            Some(count) => *count += records,
            None => *self.large.entry(size).or_insert(0) += records,
        }
    }

    fn iter(&self) -> impl Iterator<Item = (u64, u64)> {
        let small = (0u64..).zip(self.small).filter(|&(_, records)| records > 0);
        small.chain(self.large.iter().map(|(&size, &records)| (size, records)))
    }
}

/// Bytes of a tag that lie in the entry itself.
const INLINE: usize = 15;
/// What the last byte of a key says when the tag lies in the arena.
const IN_ARENA: u8 = u8::MAX;

/// A tag of up to 15 bytes, padded with zeros, with its length as the last byte; or the offset (8
/// bytes) and length (4 bytes) of a longer one in the arena, with [`IN_ARENA`] as the last byte.
type Key = [u8; INLINE + 1];

#[derive(Debug, Clone, Copy)]
struct Slot {
    key: Key,
    count: u64,
}

/// From tags to counts.
#[derive(Debug, Clone, Default)]
struct Table {
    slots: HashTable<Slot>,
    arena: Vec<u8>,
}

fn inline_key(tag: &[u8]) -> Option<Key> {
    let mut key = [0; INLINE + 1];
    key.get_mut(..tag.len()).filter(|_| tag.len() <= INLINE)?.copy_from_slice(tag);
    key[INLINE] = tag.len() as u8;
    Some(key)
}

fn arena_key(offset: usize, length: usize) -> Key {
    let mut key = [0; INLINE + 1];
    key[..8].copy_from_slice(&(offset as u64).to_le_bytes());
    key[8..12].copy_from_slice(&(length as u32).to_le_bytes());
    key[INLINE] = IN_ARENA;
    key
}

fn text_of<'a>(key: &'a Key, arena: &'a [u8]) -> &'a [u8] {
    if key[INLINE] != IN_ARENA {
        return &key[..usize::from(key[INLINE])];
    }
    let [a, b, c, d, e, f, g, h, i, j, k, l, ..] = *key;
    let offset = u64::from_le_bytes([a, b, c, d, e, f, g, h]) as usize;
    let length = u32::from_le_bytes([i, j, k, l]) as usize;
    &arena[offset..offset + length]
}

impl Table {
    fn len(&self) -> usize {
        self.slots.len()
    }

    #[inline]
    fn add(&mut self, tag: &[u8], hash: u64, count: u64) {
        let Self { slots, arena } = self;
        let short = inline_key(tag);
        let found = match short {
            Some(key) => slots.find_mut(hash, |slot| slot.key == key),
            None => slots.find_mut(hash, |slot| {
                slot.key[INLINE] == IN_ARENA && text_of(&slot.key, arena) == tag
            }),
        };
        if let Some(slot) = found {
            slot.count += count;
            return;
        }
        let key = short.unwrap_or_else(|| {
            arena.extend_from_slice(tag);
            arena_key(arena.len() - tag.len(), tag.len())
        });
        slots.insert_unique(hash, Slot { key, count }, |slot| xxh3_64(text_of(&slot.key, arena)));
    }

    fn get(&self, tag: &[u8]) -> u64 {
        let same = |slot: &Slot| text_of(&slot.key, &self.arena) == tag;
        self.slots.find(xxh3_64(tag), same).map_or(0, |slot| slot.count)
    }

    fn iter(&self) -> impl Iterator<Item = (&[u8], u64)> {
        self.slots.iter().map(|slot| (text_of(&slot.key, &self.arena), slot.count))
    }
}
