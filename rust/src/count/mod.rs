//! Counting hashtags over streams of records.
//!
//! A tag counts once for every record that has it. [`HashtagCounts::update`] reads record batches
//! one after another. Within a batch each thread takes a range of rows: it counts the commonest tags
//! in a small table of its own and lets the others wait ([`local`]); when enough wait, the threads
//! take the partitions of one shared table and add up what waits for them ([`table`]). Sums do not
//! depend on their order, so threads, batches and the partition of the input never change a result,
//! and [`merge`] joins counts that were made apart.
//!
//! With a limit of [`Memory`] a table that is about to exceed it is written to disk as a sorted run
//! ([`run`]) and begun again; runs are joined by a merge of bounded width. What is there in the end
//! is the same, to the byte, as without a limit.
//!
//! [`merge`]: HashtagCounts::merge

mod dictionary;
mod feed;
mod file;
mod hot;
mod local;
mod ranked;
mod run;
mod table;
mod waiting;
pub mod zipf;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use arrow_array::RecordBatch;
use arrow_schema::ArrowError;
use rayon::prelude::*;

use crate::hashtag::{Tag, TagColumn, Tally};
use crate::job::Job;
use crate::parquet::ParquetTags;
use crate::spill::Memory;
use crate::{Error, Result, threads};
use feed::Feed;
use local::Local;
use ranked::{BYTES_PER_TAG, Ranker};
pub use ranked::{Ranked, RankedIter};
use run::{FAN_IN, Segment, SegmentReader, SegmentWriter, add_up};
use table::{AHEAD, Partition};
use waiting::{PARTITIONS, partition_of};

/// The most a thread takes for tags that wait, in bytes.
const LOCAL_MEMORY: usize = 24 << 20;

/// Tags that are adopted between two looks at the memory.
const ADOPTED: usize = 1 << 9;

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
///
/// ```
/// use std::sync::Arc;
///
/// use arrow_array::{ArrayRef, RecordBatch, StringArray};
/// use wsl_core::count::{CountOptions, HashtagCounts};
/// use wsl_core::job::Job;
///
/// let texts: ArrayRef = Arc::new(StringArray::from(vec!["#Cat #pets", "#cat #cat", ""]));
/// let batch = RecordBatch::try_from_iter([("hashtags", texts)])?;
/// let options = CountOptions { column: "hashtags".into(), separator: None, num_threads: None };
/// let mut counts = HashtagCounts::default();
/// counts.update([Ok(batch)], &options, &Job::new())?;
/// assert_eq!(counts.count_of("cat")?, 2);
/// assert_eq!(counts.num_distinct()?, 2);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct HashtagCounts {
    memory: Memory,
    table: Vec<Partition>,
    runs: Vec<Run>,
    tally: Tally,
    sizes: Sizes,
    /// Kept until something is added.
    multiplicities: Option<Arc<BTreeMap<u64, u64>>>,
}

/// The threads of one update.
struct Workers {
    pool: rayon::ThreadPool,
    locals: Vec<Local>,
    /// What they leave to the table.
    table_memory: usize,
}

impl Workers {
    fn new(options: &CountOptions, memory: &Memory) -> Result<Self> {
        let pool = threads::pool(options.num_threads)?;
        let num_threads = pool.current_num_threads();
        let local_memory = (memory.bytes() / 4 / num_threads).min(LOCAL_MEMORY);
        let table_memory = memory.bytes().saturating_sub(local_memory * num_threads);
        let local = |_| Local::new(options.separator.as_deref(), local_memory);
        let locals = (0..num_threads).map(local).collect::<Result<_>>()?;
        Ok(Self { pool, locals, table_memory })
    }
}

/// A segment for each partition.
type Run = Vec<Segment>;

impl Default for HashtagCounts {
    fn default() -> Self {
        Self::new(Memory::unlimited())
    }
}

impl HashtagCounts {
    /// Counts of nothing, which will take no more than `memory`.
    pub fn new(memory: Memory) -> Self {
        Self {
            memory,
            table: vec![Partition::default(); PARTITIONS],
            runs: Vec::new(),
            tally: Tally::default(),
            sizes: Sizes::default(),
            multiplicities: None,
        }
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
        self.add(|added| added.count(batches, options, job))
    }

    /// Adds the records of Parquet files; `job` advances by records.
    ///
    /// When it fails, the counts are as before the call.
    pub fn update_parquet(
        &mut self,
        tags: &ParquetTags,
        options: &CountOptions,
        job: &Job,
    ) -> Result<()> {
        self.add(|added| added.count_parquet(tags, options, job))
    }

    /// Adds what was counted by other means, tags in any order, and its books.
    pub(crate) fn adopt<'t>(
        &mut self,
        tags: impl ExactSizeIterator<Item = (Tag<'t>, u64)>,
        tally: &Tally,
        sizes: &Sizes,
        job: &Job,
    ) -> Result<()> {
        self.multiplicities = None;
        if self.memory.limit.is_none() {
            // By their hashes tags fall on partitions evenly, but for a few hundredths.
            let share = tags.len() / PARTITIONS;
            self.table.iter_mut().for_each(|partition| partition.reserve(share + share / 16));
        }
        let mut some = Vec::with_capacity(ADOPTED);
        let mut tags = tags.fuse();
        loop {
            some.clear();
            some.extend(tags.by_ref().take(ADOPTED));
            if some.is_empty() {
                break;
            }
            job.check()?;
            self.spill_above_limit()?;
            for some in some.chunks(AHEAD) {
                let home = |tag: &Tag<'_>| self.table[partition_of(tag.hash())].look(tag);
                std::hint::black_box(some.iter().fold(0, |all, (tag, _)| all ^ home(tag)));
                for (tag, count) in some {
                    self.table[partition_of(tag.hash())].add(tag, *count);
                }
            }
        }
        self.tally.add(tally);
        sizes.iter().for_each(|(size, records)| self.sizes.add(size, records));
        Ok(())
    }

    /// Adds what `count` puts into counts of nothing.
    fn add(&mut self, count: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        let mut memory = self.memory.clone();
        if let Some(limit) = memory.limit {
            if self.table_memory() > limit / 2 {
                self.spill()?;
                self.table = vec![Partition::default(); PARTITIONS];
            }
            memory.limit = Some(limit - self.table_memory());
        }
        let mut added = Self::new(memory);
        count(&mut added)?;
        if self.tally == Tally::default() {
            added.memory = self.memory.clone();
            *self = added;
            return Ok(());
        }
        self.merge(&added)
    }

    fn count(
        &mut self,
        batches: impl IntoIterator<Item = std::result::Result<RecordBatch, ArrowError>>,
        options: &CountOptions,
        job: &Job,
    ) -> Result<()> {
        let Workers { pool, mut locals, table_memory } = Workers::new(options, &self.memory)?;
        let num_threads = locals.len();
        for batch in batches {
            let batch = batch?;
            let column = tag_column(&batch, options)?;

            // Each thread has rows of its own, and continues in them after the table has taken in
            // what waits.
            let share = column.len().div_ceil(num_threads).max(1);
            for (number, local) in locals.iter_mut().enumerate() {
                let first = (number * share).min(column.len());
                local.take(first..(first + share).min(column.len()));
            }
            loop {
                pool.install(|| {
                    locals.par_iter_mut().try_for_each(|local| local.count(&column, job))
                })?;

                // A thread stops where too much waits; the rest of its rows comes in the next
                // round.
                if !locals.iter().any(Local::is_full) {
                    break;
                }
                pool.install(|| self.take_in(&mut locals, table_memory))?;
            }
        }
        pool.install(|| self.take_in(&mut locals, table_memory))?;
        self.take_tallies(&locals)
    }

    fn count_parquet(
        &mut self,
        tags: &ParquetTags,
        options: &CountOptions,
        job: &Job,
    ) -> Result<()> {
        let Workers { pool, mut locals, table_memory } = Workers::new(options, &self.memory)?;
        let next = AtomicUsize::new(0);
        let mut feeds: Vec<Feed<'_>> = locals.iter().map(|_| Feed::new(tags, &next)).collect();
        loop {
            let ended = pool.install(|| {
                let fed = locals.par_iter_mut().zip(&mut feeds);
                fed.map(|(local, feed)| feed.fill(local, job)).collect::<Result<Vec<bool>>>()
            })?;
            pool.install(|| self.take_in(&mut locals, table_memory))?;
            if ended.into_iter().all(|ended| ended) {
                return self.take_tallies(&locals);
            }
        }
    }

    /// Adds the books of the threads, which must balance.
    fn take_tallies(&mut self, locals: &[Local]) -> Result<()> {
        for local in locals {
            self.tally.add(&local.tally);
            local.sizes.iter().for_each(|(size, records)| self.sizes.add(size, records));
        }
        let num_in: u64 = locals.iter().map(Local::num_tags_in).sum();
        if num_in != self.tally.num_tags_in() {
            return Err(broken("the hashtags read", num_in, self.tally.num_tags_in()));
        }
        Ok(())
    }

    /// Adds up what waits in the threads, the table written to disk first where it would not fit.
    fn take_in(&mut self, locals: &mut [Local], memory: usize) -> Result<()> {
        locals.par_iter_mut().for_each(Local::hand_over);
        if self.memory.limit.is_some() {
            let needed = |(number, partition): (usize, &Partition)| {
                let waiting = locals.iter().map(|local| local.waiting(number));
                let (tags, bytes) = waiting.fold((0, 0), |(tags, bytes), more| {
                    (tags + more.num_tags(), bytes + more.bytes.len())
                });
                partition.memory_with(tags, bytes)
            };
            if self.table.iter().enumerate().map(needed).sum::<usize>() > memory {
                self.spill()?;
            }
        }
        let others = &*locals;
        self.table.par_iter_mut().enumerate().for_each(|(number, partition)| {
            others.iter().for_each(|local| partition.take_in(local.waiting(number)));
        });
        locals.par_iter_mut().for_each(Local::clear);
        Ok(())
    }

    fn table_memory(&self) -> usize {
        self.table.iter().map(Partition::memory).sum()
    }

    fn num_in_table(&self) -> u64 {
        self.table.iter().map(|partition| partition.len() as u64).sum()
    }

    /// Writes the table to disk as a run, and empties it.
    fn spill(&mut self) -> Result<()> {
        if self.num_in_table() == 0 {
            return Ok(());
        }
        let file = Arc::new(self.memory.spill_file()?);
        let write = |partition: &mut Partition| -> Result<Segment> {
            let mut writer = SegmentWriter::new(file.clone());
            for (tag, count) in partition.sorted() {
                writer.push(tag.bytes(&mut [0; 16]), count)?;
            }
            writer.finish()
        };
        let run = self.table.par_iter_mut().map(write).collect::<Result<Run>>()?;
        // Only now: what could not be written is still in the table.
        self.table.par_iter_mut().for_each(Partition::clear);
        self.runs.push(run);
        if self.runs.len() >= FAN_IN { self.join_runs() } else { Ok(()) }
    }

    /// Spills a table that has no room to grow.
    fn spill_above_limit(&mut self) -> Result<()> {
        let memory = || self.table.iter().map(|partition| partition.memory_with(1 << 9, 1 << 13));
        match self.memory.limit {
            Some(limit) if memory().sum::<usize>() > limit => self.spill(),
            _ => Ok(()),
        }
    }

    /// Makes one run of all.
    fn join_runs(&mut self) -> Result<()> {
        if self.runs.len() < 2 {
            return Ok(());
        }
        let file = Arc::new(self.memory.spill_file()?);
        let join = |number: usize| -> Result<Segment> {
            let segments: Vec<_> = self.runs.iter().map(|run| run[number].clone()).collect();
            let mut writer = SegmentWriter::new(file.clone());
            add_up(&segments, |tag, count| writer.push(tag, count))?;
            writer.finish()
        };
        let joined = (0..PARTITIONS).into_par_iter().map(join).collect::<Result<Run>>()?;
        self.runs = vec![joined];
        Ok(())
    }

    /// Brings everything together: all in the table, or all in one run.
    fn settle(&mut self) -> Result<()> {
        if !self.runs.is_empty() {
            self.spill()?;
            self.table = vec![Partition::default(); PARTITIONS];
            self.join_runs()?;
        }
        Ok(())
    }

    /// Calls `each` for every tag; by hash, ties by bytes, where `sorted` or where there is a run.
    fn for_each(
        &mut self,
        sorted: bool,
        mut each: impl FnMut(&Tag<'_>, u64) -> Result<()>,
    ) -> Result<()> {
        self.settle()?;
        let Some(run) = self.runs.first() else {
            for partition in &self.table {
                if sorted {
                    partition.sorted().iter().try_for_each(|(tag, count)| each(tag, *count))?;
                } else {
                    partition.iter().try_for_each(|(tag, count)| each(&tag, count))?;
                }
            }
            return Ok(());
        };
        for segment in run {
            let mut reader = SegmentReader::new(segment);
            while reader.advance()? {
                each(&Tag::of_bytes(reader.tag()), reader.count())?;
            }
        }
        Ok(())
    }

    /// Adds what was counted elsewhere, over other records. Associative and commutative.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        self.multiplicities = None;
        let needed = |(mine, theirs): (&Partition, &Partition)| {
            mine.memory_with(theirs.len(), theirs.arena_len())
        };
        let needed: usize = self.table.iter().zip(&other.table).map(needed).sum();
        if self.num_in_table() == 0 && self.memory.limit.is_none_or(|_| self.table_memory() == 0) {
            self.table.clone_from(&other.table);
        } else {
            if self.memory.limit.is_some_and(|limit| needed > limit) {
                self.spill()?;
            }
            self.table.par_iter_mut().zip(&other.table).for_each(|(mine, theirs)| {
                theirs.iter().for_each(|(tag, count)| mine.add(&tag, count));
            });
        }
        self.runs.extend(other.runs.iter().cloned());
        self.tally.add(&other.tally);
        other.sizes.iter().for_each(|(size, records)| self.sizes.add(size, records));
        if self.runs.len() >= FAN_IN { self.join_runs() } else { Ok(()) }
    }

    /// What became of the tags: records, kept, duplicates, rejected by cause.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Number of different tags.
    pub fn num_distinct(&mut self) -> Result<u64> {
        self.settle()?;
        Ok(match self.runs.first() {
            Some(run) => run.iter().map(|segment| segment.num_entries).sum(),
            None => self.num_in_table(),
        })
    }

    /// Number of records by how many tags they keep.
    pub fn tags_per_record(&self) -> BTreeMap<u64, u64> {
        self.sizes.iter().collect()
    }

    /// On how many records `tag`, a normalized tag, was seen.
    pub fn count_of(&self, tag: &str) -> Result<u64> {
        let tag = Tag::new(tag);
        let number = partition_of(tag.hash());
        let mut count = self.table[number].get(&tag);
        for run in &self.runs {
            let mut reader = SegmentReader::new(&run[number]);
            while reader.advance()? && reader.hash() <= tag.hash() {
                if reader.hash() == tag.hash() && reader.tag() == tag.bytes(&mut [0; 16]) {
                    count += reader.count();
                }
            }
        }
        Ok(count)
    }

    /// All tags by descending count, ties by byte order.
    pub fn ranked(&mut self, job: &Job) -> Result<Ranked> {
        let wanted = self.num_in_table() as usize * BYTES_PER_TAG;
        if self.runs.is_empty()
            && self.memory.limit.is_some_and(|limit| self.table_memory() + wanted > limit)
        {
            self.spill()?;
            self.table = vec![Partition::default(); PARTITIONS];
        }
        self.settle()?;
        let memory = self.memory.clone();
        let mut ranker = Ranker::new(&memory, self.num_in_table() as usize);
        let (mut number, mut sum) = (0_u64, 0_u64);
        self.for_each(false, |tag, count| {
            number += 1;
            sum += count;
            if number.is_multiple_of(1 << 16) {
                job.check()?;
            }
            ranker.push(tag, count)
        })?;
        self.check_sum(sum)?;
        ranker.finish(job)
    }

    /// How many tags have each count, by ascending count.
    pub fn multiplicities(&mut self) -> Result<Arc<BTreeMap<u64, u64>>> {
        if let Some(known) = &self.multiplicities {
            return Ok(known.clone());
        }
        let mut small = vec![0_u64; 1 << 12];
        let mut all = BTreeMap::new();
        let mut sum = 0_u64;
        self.for_each(false, |_, count| {
            sum += count;
            match small.get_mut(usize::try_from(count).unwrap_or(usize::MAX)) {
                Some(number) => *number += 1,
                None => *all.entry(count).or_insert(0) += 1,
            }
            Ok(())
        })?;
        self.check_sum(sum)?;
        all.extend((0u64..).zip(small).filter(|&(_, number)| number > 0));
        let all = Arc::new(all);
        self.multiplicities = Some(all.clone());
        Ok(all)
    }

    /// Nothing is lost on the way: the counts add up to what was read.
    fn check_sum(&self, sum: u64) -> Result<()> {
        let expected = self.tally.num_hashtags;
        if sum == expected { Ok(()) } else { Err(broken("the hashtags kept", expected, sum)) }
    }
}

fn broken(what: &str, expected: u64, found: u64) -> Error {
    Error::data(format!(
        "the engine failed an internal check: {what} are {expected}, and its books say {found}; \
         please report this as a bug"
    ))
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
pub(crate) struct Sizes {
    small: [u64; 256],
    large: BTreeMap<u64, u64>,
}

impl Default for Sizes {
    fn default() -> Self {
        Self { small: [0; 256], large: BTreeMap::new() }
    }
}

impl Sizes {
    pub(crate) fn add(&mut self, size: u64, records: u64) {
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
