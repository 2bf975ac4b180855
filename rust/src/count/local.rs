//! What one thread does on its own: read records and keep the commonest tags close.
//!
//! Hashtags are Zipf-distributed: a few thousand take most of what is seen. Each thread counts those
//! in a small table of its own that stays in the processor's cache; a tag holds its place there as
//! long as it is seen more often than what else falls on the place. All others wait, sorted by
//! partition, until the shared table takes them in.

use crate::Result;
use crate::hashtag::{Key, RecordReader, Tag, TagColumn, Tally};
use crate::job::Job;

use super::Sizes;
use super::table::{PARTITIONS, partition_of};

/// Rows between two looks at the [`Job`].
const ROWS_PER_CHECK: usize = 4096;

/// Hot tags of a thread; with 24 bytes each they fit a processor's second-level cache.
const HOT_SLOTS: usize = 8192;

/// Tags on their way into a partition.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    pub(super) entries: Vec<Entry>,
    /// The bytes of long tags.
    pub(super) bytes: Vec<u8>,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) hash: u64,
    pub(super) key: Key,
    pub(super) count: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Hot {
    key: Key,
    count: u32,
    /// How often the tag was seen beyond what else fell on its place.
    credit: u32,
}

/// One thread's counts.
#[derive(Debug)]
pub(super) struct Local {
    reader: RecordReader,
    rows: std::ops::Range<usize>,
    memory: usize,
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
            memory,
            cache: Cache::new(memory / 4),
            tally: Tally::default(),
            sizes: Sizes::default(),
        })
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
            let Self { reader, tally, sizes, cache, memory, .. } = self;
            let mut row = first;
            while row < end && !cache.is_full(*memory) {
                let kept = reader.read(column, row, tally, |tag| cache.add(tag));
                sizes.add(kept as u64, 1);
                row += 1;
            }
            job.advance((row - first) as u64);
            self.rows.start = row;
        }
        Ok(())
    }

    /// Whether it is time to hand over.
    pub(super) fn is_full(&self) -> bool {
        self.cache.is_full(self.memory)
    }

    /// What waits for a partition.
    pub(super) fn waiting(&self, partition: usize) -> &Waiting {
        &self.cache.waiting[partition]
    }

    /// Hashtags read, whatever became of them.
    pub(super) fn num_tags_in(&self) -> u64 {
        self.reader.num_tags_in()
    }

    /// Lets the hot tags wait too; their places stay theirs.
    pub(super) fn hand_over(&mut self) {
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
    hot: Vec<Hot>,
    waiting: Vec<Waiting>,
    /// Bytes that wait.
    num_bytes: usize,
    /// Tags counted since all was handed over.
    num_seen: u32,
}

impl Cache {
    fn new(memory: usize) -> Self {
        let size = (memory / size_of::<Hot>()).clamp(64, HOT_SLOTS);
        let size = if size.is_power_of_two() { size } else { size.next_power_of_two() / 2 };
        let waiting = (0..PARTITIONS).map(|_| Waiting::default()).collect();
        Self { hot: vec![Hot::default(); size], waiting, num_bytes: 0, num_seen: 0 }
    }

    #[inline]
    fn add(&mut self, tag: &Tag<'_>) {
        self.num_seen += 1;
        if tag.is_long() {
            self.wait(tag, 1);
            return;
        }
        let place = tag.hash() as usize & (self.hot.len() - 1);
        let hot = &mut self.hot[place];
        if hot.key == tag.key() {
            hot.count += 1;
            hot.credit = hot.credit.saturating_add(1);
        } else if hot.credit > 0 {
            hot.credit -= 1;
            self.wait(tag, 1);
        } else {
            let old = std::mem::replace(hot, Hot { key: tag.key(), count: 1, credit: 1 });
            if old.count > 0 {
                self.wait(&old.key.tag(&[]), u64::from(old.count));
            }
        }
    }

    #[inline]
    fn wait(&mut self, tag: &Tag<'_>, count: u64) {
        let waiting = &mut self.waiting[partition_of(tag.hash())];
        let key = tag.stored(&mut waiting.bytes);
        waiting.entries.push(Entry { hash: tag.hash(), key, count });
        self.num_bytes += size_of::<Entry>() + tag.long().len();
    }

    /// A third of the memory is used (vectors that grow take up to twice what they hold), or the
    /// counts of hot tags could overflow.
    #[inline]
    fn is_full(&self, memory: usize) -> bool {
        self.num_bytes > memory / 3 || self.num_seen > u32::MAX / 2
    }

    fn hand_over(&mut self) {
        for place in 0..self.hot.len() {
            let count = std::mem::take(&mut self.hot[place].count);
            if count > 0 {
                let key = self.hot[place].key;
                self.wait(&key.tag(&[]), u64::from(count));
            }
        }
    }

    fn clear(&mut self) {
        for waiting in &mut self.waiting {
            waiting.entries.clear();
            waiting.bytes.clear();
        }
        self.num_bytes = 0;
        self.num_seen = 0;
    }
}
