//! What one thread does on its own: read records and keep the commonest tags close.
//!
//! Hashtags are Zipf-distributed: a few thousand take most of what is seen. Each thread counts those
//! in a small table of its own that stays in the processor's cache; a tag keeps its place there as
//! long as it is seen more often than what else falls on the place. All others wait in rows, one for each
//! stretch of the shared table, until it takes them in stretch by stretch: a stretch fits the
//! processor's first-level cache.

use crate::Result;
use crate::hashtag::{Block, FEW, Gathered, Key, Other, RecordReader, Rejection, TagColumn, Tally};
use crate::job::Job;
use crate::parquet::Numbers;

use super::Sizes;
use super::dictionary::Dictionary;
use super::hot::{BLOCK_ROWS, HotLongTags, HotTags};
use super::waiting::{Arrivals, Waiting};

/// Rows between two looks at the [`Job`].
const ROWS_PER_CHECK: usize = 4096;

/// Tags that are compared with the hot ones together.
const BATCH: usize = 256;

/// What the work on a block of records needs.
#[derive(Debug)]
struct Bench {
    lens: [u8; BLOCK_ROWS],
    starts: [u16; BLOCK_ROWS],
    num_kept: [u8; BLOCK_ROWS],
    /// How many records begin at each text.
    begins: [u8; BLOCK_ROWS * FEW + 1],
    others: [Other; BLOCK_ROWS * FEW + 1],
    /// Which of the others are long.
    long: [u16; BLOCK_ROWS * FEW + 1],
}

impl Default for Bench {
    fn default() -> Self {
        Self {
            lens: [0; BLOCK_ROWS],
            starts: [0; BLOCK_ROWS],
            num_kept: [0; BLOCK_ROWS],
            begins: [0; BLOCK_ROWS * FEW + 1],
            others: [Other::default(); BLOCK_ROWS * FEW + 1],
            long: [0; BLOCK_ROWS * FEW + 1],
        }
    }
}

impl Bench {
    /// Lays out where `num_rows` records of `num_texts` texts begin.
    fn lay_out(&mut self, num_rows: usize, num_texts: usize) {
        self.begins[..=num_texts].fill(0);
        self.num_kept.fill(0);
        let mut start = 0;
        for (len, at) in self.lens[..num_rows].iter().zip(&mut self.starts) {
            *at = start;
            self.begins[usize::from(start)] += 1;
            start += u16::from(*len);
        }
        // The first one is there from the beginning.
        self.begins[0] -= u8::from(num_rows > 0);
    }
}

/// One thread's counts.
#[derive(Debug)]
pub(super) struct Local {
    reader: RecordReader,
    rows: std::ops::Range<usize>,
    bench: Box<Bench>,
    cache: Cache,
    pub(super) tally: Tally,
    pub(super) sizes: Sizes,
}

impl Local {
    /// A thread that takes `memory` bytes at most, by and large.
    pub(super) fn new(separator: Option<&str>, memory: usize) -> Result<Self> {
        Ok(Self {
            reader: RecordReader::new(separator)?,
            rows: 0..0,
            bench: Box::default(),
            cache: Cache::new(memory),
            tally: Tally::default(),
            sizes: Sizes::default(),
        })
    }

    /// A dictionary whose entries are the texts of the one record of a column.
    pub(super) fn dictionary(&mut self, entries: &TagColumn) -> Dictionary {
        Dictionary::new(entries, &mut self.reader)
    }

    /// Counts records by the numbers of their dictionary entries.
    pub(super) fn count_numbers(&mut self, dictionary: &mut Dictionary, records: &Numbers) {
        dictionary.count(records, &mut self.tally, &mut self.sizes);
        self.reader.note_texts(records.num_texts());
    }

    /// Lets the counts of a dictionary wait, until too much does; whether all wait.
    pub(super) fn hand_over_dictionary(&mut self, dictionary: &mut Dictionary) -> bool {
        let is_done = dictionary.hand_over(&mut self.cache.waiting);
        self.cache.is_full |= self.cache.waiting.is_full();
        is_done
    }

    /// Counts nulls in lists.
    pub(super) fn note_nulls(&mut self, number: u64) {
        self.tally.rejected[Rejection::Null as usize] += number;
        self.reader.note_texts(number);
    }

    /// Whether rows are left of those that it took on.
    pub(super) fn is_under_way(&self) -> bool {
        !self.rows.is_empty()
    }

    /// Takes on some rows of the next column.
    pub(super) fn take(&mut self, rows: std::ops::Range<usize>) {
        self.rows = rows;
    }

    /// Counts the rows it took on, until they end or too much waits; `job` advances by them.
    pub(super) fn count(&mut self, column: &TagColumn, job: &Job) -> Result<()> {
        while !self.rows.is_empty() && !self.is_full() {
            job.check()?;
            let first = self.rows.start;
            let end = self.rows.end.min(first + ROWS_PER_CHECK);
            while self.rows.start < end && !self.is_full() {
                let block = self.rows.start..end.min(self.rows.start + BLOCK_ROWS);
                self.rows.start = block.end;
                self.count_block(column, block);
                if self.reader.gathered().tags.len() >= BATCH {
                    self.cache.count(self.reader.gathered());
                    self.reader.forget();
                }
            }
            job.advance((self.rows.start - first) as u64);
        }
        Ok(())
    }

    /// Counts the hot tags of a few rows and gathers the others.
    fn count_block(&mut self, column: &TagColumn, rows: std::ops::Range<usize>) {
        let Self { reader, tally, sizes, cache, bench, .. } = self;
        cache.note(rows.len());
        let Some(views) = column.views(rows.clone(), &mut bench.lens) else {
            for row in rows {
                sizes.add(reader.gather(column, row, tally) as u64, 1);
            }
            return;
        };
        bench.lay_out(rows.len(), views.len());
        let Bench { starts, num_kept, begins, others, long, .. } = &mut **bench;
        let (num_others, short) = cache.hot.count_views(views, begins, num_kept, others);
        let (num_others, long) =
            cache.hot_long.count_views(column, views, num_kept, &mut others[..num_others], long);
        let num_duplicates = short + long;
        tally.num_duplicates += num_duplicates as u64;
        let block = Block { views, starts: &starts[..rows.len()] };
        reader.note(&block, views.len() - num_others - num_duplicates, tally);
        reader.gather_others(column, &block, &others[..num_others], tally, num_kept);
        num_kept[..rows.len()].iter().for_each(|&number| sizes.add(u64::from(number), 1));
    }

    /// Whether it is time to hand over.
    pub(super) fn is_full(&self) -> bool {
        self.cache.is_full
    }

    /// What waits for a partition.
    pub(super) fn waiting(&self, partition: usize) -> Arrivals<'_> {
        self.cache.waiting.of(partition)
    }

    /// Hashtags read, whatever became of them.
    pub(super) fn num_tags_in(&self) -> u64 {
        self.reader.num_tags_in()
    }

    /// Lets the hot tags wait too; their places stay theirs.
    pub(super) fn hand_over(&mut self) {
        self.cache.count(self.reader.gathered());
        self.reader.forget();
        self.cache.hand_over();
    }

    /// Forgets what waited, once it is taken in.
    pub(super) fn clear(&mut self) {
        self.cache.clear();
    }
}

/// One thread's tags.
#[derive(Debug)]
struct Cache {
    hot: HotTags,
    hot_long: HotLongTags,
    waiting: Waiting,
    /// The tags of a batch that are not hot.
    others: Vec<(u64, Key)>,
    is_full: bool,
    /// Records since all was handed over.
    num_records: u32,
}

impl Cache {
    fn new(memory: usize) -> Self {
        Self {
            hot: HotTags::new(memory / 4),
            hot_long: HotLongTags::new(memory / 8),
            waiting: Waiting::new(memory / 2),
            others: vec![(0, Key::default()); BATCH],
            is_full: false,
            num_records: 0,
        }
    }

    /// Counts the hot tags of a batch and lets the others wait.
    fn count(&mut self, batch: Gathered<'_>) {
        let Self { hot, hot_long, waiting, others, .. } = self;
        for some in batch.tags.chunks(BATCH) {
            let num_others = hot.count(some, others, |tag, count| waiting.push_counted(tag, count));
            for &(hash, key) in &others[..num_others] {
                if !key.is_long() {
                    waiting.push(hash, key);
                    continue;
                }
                let tag = key.hashed_tag(hash, batch.bytes).unstored();
                if !hot_long.count(&tag, |tag, count| waiting.push_counted(tag, count)) {
                    waiting.push_long(&tag);
                }
            }
        }
        self.is_full |= self.waiting.is_full();
    }

    /// Notes that so many records come, lest a count of 32 bits overflow.
    fn note(&mut self, num_records: usize) {
        self.num_records += num_records as u32;
        self.is_full |= self.num_records > u32::MAX / 2;
    }

    fn hand_over(&mut self) {
        let Self { hot, hot_long, waiting, .. } = self;
        hot.hand_over(|tag, count| waiting.push_counted(tag, count));
        hot_long.hand_over(|tag, count| waiting.push_counted(tag, count));
    }

    fn clear(&mut self) {
        self.waiting.clear();
        self.is_full = false;
        self.num_records = 0;
    }
}
