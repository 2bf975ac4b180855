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

/// The most tags that wait for a partition, but for records with very many.
const MOST_WAITING: usize = 8192;

/// Keys between rows: a cache line, so that the ends of the rows fall on different sets of it.
const PADDING: usize = 4;

/// The most credit; what was common once gives way in bounded time.
const MOST_CREDIT: u32 = 1 << 16;

/// Tags that are brought to the hot ones together.
const BATCH: usize = 256;

/// One tag in so many may take the place of a hot one: places change hands seldom, which is all that
/// lasting commonness needs, and rare turns are cheap to foresee.
const CHALLENGERS: usize = 16;

/// Tags on their way into the partitions, each partition's in a row of its own.
#[derive(Debug)]
pub(super) struct Waiting {
    /// Tags that were seen once each.
    rows: Vec<Key>,
    /// Tags that a row can hold.
    capacity: usize,
    lens: [usize; PARTITIONS],
    /// Hot tags with their counts, and what a row cannot hold of records with very many tags.
    counted: Vec<Vec<(Key, u64)>>,
    /// The bytes of long tags.
    bytes: Vec<Vec<u8>>,
    num_bytes: usize,
}

/// What waits for one partition.
#[derive(Debug, Clone, Copy)]
pub(super) struct Arrivals<'a> {
    /// Tags that count once each.
    pub(super) single: &'a [Key],
    /// Tags with their counts.
    pub(super) counted: &'a [(Key, u64)],
    /// The bytes of long tags.
    pub(super) bytes: &'a [u8],
}

impl Waiting {
    fn new(memory: usize) -> Self {
        let capacity = (memory / size_of::<Key>() / PARTITIONS).clamp(8, MOST_WAITING);
        Self {
            rows: vec![Key::default(); (capacity + PADDING) * PARTITIONS],
            capacity,
            lens: [0; PARTITIONS],
            counted: vec![Vec::new(); PARTITIONS],
            bytes: vec![Vec::new(); PARTITIONS],
            num_bytes: 0,
        }
    }

    fn of(&self, partition: usize) -> Arrivals<'_> {
        let row = partition * (self.capacity + PADDING);
        Arrivals {
            single: &self.rows[row..row + self.lens[partition]],
            counted: &self.counted[partition],
            bytes: &self.bytes[partition],
        }
    }

    /// Lays a tag down and keeps it where `kept`: no branch, for which tags wait is anybody's guess.
    #[inline]
    fn push(&mut self, hash: u64, key: Key, kept: bool) {
        let partition = partition_of(hash);
        let len = self.lens[partition];
        if len == self.capacity {
            if kept {
                self.counted[partition].push((key, 1));
            }
            return;
        }
        self.rows[partition * (self.capacity + PADDING) + len] = key;
        self.lens[partition] = len + usize::from(kept);
    }

    fn push_long(&mut self, tag: &Tag<'_>) {
        let key = tag.stored(&mut self.bytes[partition_of(tag.hash())]);
        self.num_bytes += tag.long().len();
        self.push(tag.hash(), key, true);
    }

    fn push_counted(&mut self, key: Key, count: u32) {
        if count > 0 {
            let partition = partition_of(key.tag(&[]).hash());
            self.counted[partition].push((key, u64::from(count)));
        }
    }

    /// Whether a row has little room left for another batch.
    fn is_full(&self) -> bool {
        let fullest = self.lens.iter().fold(0, |most, &len| most.max(len));
        2 * fullest > self.capacity || self.num_bytes > self.rows.len() * size_of::<Key>()
    }

    fn clear(&mut self) {
        self.lens = [0; PARTITIONS];
        self.counted.iter_mut().for_each(Vec::clear);
        self.bytes.iter_mut().for_each(Vec::clear);
        self.num_bytes = 0;
    }
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
            cache: Cache::new(memory),
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
            let Self { reader, tally, sizes, cache, .. } = self;
            let mut row = first;
            while row < end && !cache.is_full {
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
    /// Short tags on their way to the hot ones; many at once, so that none waits for another's slot.
    batch: Vec<(u64, Key)>,
    waiting: Waiting,
    is_full: bool,
    /// Tags counted since all was handed over.
    num_seen: u32,
}

impl Cache {
    fn new(memory: usize) -> Self {
        let size = (memory / 4 / size_of::<Hot>()).clamp(64, HOT_SLOTS);
        let size = if size.is_power_of_two() { size } else { size.next_power_of_two() / 2 };
        Self {
            hot: vec![Hot::default(); size],
            batch: Vec::with_capacity(BATCH),
            waiting: Waiting::new(memory / 2),
            is_full: false,
            num_seen: 0,
        }
    }

    #[inline]
    fn add(&mut self, tag: &Tag<'_>) {
        if tag.is_long() {
            self.waiting.push_long(tag);
            self.is_full |= self.waiting.num_bytes.is_multiple_of(16) && self.waiting.is_full();
            return;
        }
        self.batch.push((tag.hash(), tag.key()));
        if self.batch.len() == BATCH {
            self.count_batch();
        }
    }

    fn count_batch(&mut self) {
        let Self { hot, batch, waiting, .. } = self;
        let mask = hot.len() - 1;
        // Looked at once before, so that the slots' ways from memory are made together.
        let ahead = batch.iter().fold(0, |all, (hash, _)| all ^ hot[*hash as usize & mask].credit);
        std::hint::black_box(ahead);
        for (place, &(hash, key)) in batch.iter().enumerate() {
            let slot = &mut hot[hash as usize & mask];
            let same = slot.key.equals(key);
            if place % CHALLENGERS == 0 && slot.credit == 0 && !same {
                let old = std::mem::replace(slot, Hot { key, count: 1, credit: 1 });
                waiting.push_counted(old.key, old.count);
                continue;
            }
            slot.count += u32::from(same);
            slot.credit = (slot.credit + 2 * u32::from(same)).saturating_sub(1).min(MOST_CREDIT);
            waiting.push(hash, key, !same);
        }
        self.num_seen += batch.len() as u32;
        batch.clear();
        self.is_full = self.num_seen > u32::MAX / 2 || waiting.is_full();
    }

    fn hand_over(&mut self) {
        self.count_batch();
        for slot in &mut self.hot {
            self.waiting.push_counted(slot.key, std::mem::take(&mut slot.count));
        }
    }

    fn clear(&mut self) {
        self.waiting.clear();
        self.is_full = false;
        self.num_seen = 0;
    }
}
