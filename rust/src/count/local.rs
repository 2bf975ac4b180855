//! What one thread does on its own: read records and keep the commonest tags close.
//!
//! Hashtags are Zipf-distributed: a few thousand take most of what is seen. Each thread counts those
//! in a small table of its own that stays in the processor's cache; a tag holds its place there as
//! long as it is seen more often than what else falls on the place. All others wait in rows, one for each
//! stretch of the shared table, until it takes them in stretch by stretch: a stretch fits the
//! processor's first-level cache.

use crate::Result;
use crate::hashtag::{
    Block, FEW, Gathered, Key, Other, RecordReader, TagColumn, Tally, VIEW_INLINE,
};
use crate::job::Job;

use super::Sizes;
use super::waiting::{Arrivals, Waiting};

/// Rows between two looks at the [`Job`].
const ROWS_PER_CHECK: usize = 4096;

/// Rows whose hot tags are counted before the others are looked at.
const BLOCK_ROWS: usize = 64;

/// Hot tags of a thread; with 32 bytes each they fit a processor's second-level cache.
const HOT_SLOTS: usize = 16384;

/// The most credit; what was common once gives way in bounded time.
const MOST_CREDIT: u32 = 1 << 16;

/// Tags that are brought to the hot ones together.
const BATCH: usize = 256;

/// One in so many of the tags that are not hot challenges the hot one of its place: that tells what is
/// common well enough.
const CHALLENGERS: usize = 16;

#[derive(Debug, Clone, Copy)]
struct Hot {
    key: Key,
    count: u32,
    /// The count at the last challenge.
    counted: u32,
    /// How often the tag was seen, beyond how often others were that belong to its place.
    credit: u32,
    /// The row of the [`HotTags`] in which the tag was seen last.
    row: u32,
}

impl Hot {
    fn new(key: Key, count: u32) -> Self {
        Self { key, count, counted: 0, credit: 0, row: 0 }
    }

    /// Whether the tag keeps its place, given that another came for it.
    fn holds(&mut self) -> bool {
        let credit = self.credit.saturating_add(self.count - self.counted).min(MOST_CREDIT);
        self.counted = self.count;
        self.credit = credit.saturating_sub(CHALLENGERS as u32);
        credit >= CHALLENGERS as u32
    }
}

/// The tags that a thread keeps close: each in the one place that its key gives it. No long tag is
/// among them.
#[derive(Debug)]
struct HotTags {
    slots: Vec<Hot>,
    bits: u32,
    /// Rows counted by [`count_views`](Self::count_views) since the slots' rows were reset.
    num_rows: u32,
    /// Tags that were not hot since the last one that challenged.
    num_others: usize,
}

impl HotTags {
    fn new(memory: usize) -> Self {
        let bits = (memory / size_of::<Hot>()).clamp(64, HOT_SLOTS).ilog2();
        Self { slots: vec![Hot::new(Key::NONE, 0); 1 << bits], bits, num_rows: 0, num_others: 0 }
    }

    /// Counts those texts of a block that are hot tags in normal form, each once in its record, and
    /// lays the others down in `others`, whose number it returns with the number of duplicates.
    ///
    /// There is no branch on which is which, nor on where records end, for that is anybody's guess: a 1
    /// in `begins` tells it. A text that merely stands for a hot tag is among the others.
    #[inline]
    fn count_views(
        &mut self,
        views: &[u128],
        begins: &[u8],
        num_kept: &mut [u8; BLOCK_ROWS],
        others: &mut [Other],
    ) -> (usize, usize) {
        if self.num_rows > u32::MAX - BLOCK_ROWS as u32 {
            self.slots.iter_mut().for_each(|slot| slot.row = 0);
            self.num_rows = 0;
        }
        let first_row = self.num_rows + 1;
        self.num_rows += BLOCK_ROWS as u32;
        let Self { slots, bits, .. } = self;
        let (mut row, mut num_others, mut num_duplicates) = (0, 0, 0);
        for (place, (&view, &begins)) in views.iter().zip(begins).enumerate() {
            row += usize::from(begins);
            let stamp = first_row + row as u32;
            let key = Key::of_view(view);
            let slot = &mut slots[key.place(*bits)];
            let is_hot = slot.key.equals(key) & (view as u32 as usize <= VIEW_INLINE);
            let is_new = is_hot & (slot.row != stamp);
            slot.count += u32::from(is_new);
            slot.row = if is_hot { stamp } else { slot.row };
            num_kept[row % BLOCK_ROWS] += u8::from(is_new);
            num_duplicates += usize::from(is_hot & !is_new);
            others[num_others] = Other::new(row, place);
            num_others += usize::from(!is_hot);
        }
        (num_others, num_duplicates)
    }

    /// Counts the hot ones of a batch and lays the others down in `others`; returns how many.
    fn count(
        &mut self,
        batch: &[(u64, Key)],
        others: &mut [(u64, Key)],
        mut gone: impl FnMut(Key, u32),
    ) -> usize {
        let mut num_others = 0;
        for &(hash, key) in batch {
            let slot = &mut self.slots[key.place(self.bits)];
            if slot.key.equals(key) {
                slot.count += 1;
                continue;
            }
            self.num_others += 1;
            if self.num_others >= CHALLENGERS && !key.is_long() {
                self.num_others = 0;
                if !slot.holds() {
                    gone(slot.key, slot.count);
                    *slot = Hot::new(key, 1);
                    continue;
                }
            }
            others[num_others] = (hash, key);
            num_others += 1;
        }
        num_others
    }

    /// Tells all counts and begins again from 0; the places stay who they were.
    fn hand_over(&mut self, mut gone: impl FnMut(Key, u32)) {
        for slot in &mut self.slots {
            slot.credit = slot.credit.saturating_add(slot.count - slot.counted).min(MOST_CREDIT);
            gone(slot.key, std::mem::take(&mut slot.count));
            slot.counted = 0;
        }
    }
}

/// What the work on a block of records needs.
#[derive(Debug)]
struct Bench {
    lens: [u8; BLOCK_ROWS],
    starts: [u16; BLOCK_ROWS],
    num_kept: [u8; BLOCK_ROWS],
    /// How many records begin at each text.
    begins: [u8; BLOCK_ROWS * FEW + 1],
    others: [Other; BLOCK_ROWS * FEW + 1],
}

impl Default for Bench {
    fn default() -> Self {
        Self {
            lens: [0; BLOCK_ROWS],
            starts: [0; BLOCK_ROWS],
            num_kept: [0; BLOCK_ROWS],
            begins: [0; BLOCK_ROWS * FEW + 1],
            others: [Other::default(); BLOCK_ROWS * FEW + 1],
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
        let Bench { starts, num_kept, begins, others, .. } = &mut **bench;
        let (num_others, num_duplicates) = cache.hot.count_views(views, begins, num_kept, others);
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
            waiting: Waiting::new(memory / 2),
            others: vec![(0, Key::default()); BATCH],
            is_full: false,
            num_records: 0,
        }
    }

    /// Counts the hot tags of a batch and lets the others wait.
    fn count(&mut self, batch: Gathered<'_>) {
        let Self { hot, waiting, others, .. } = self;
        for some in batch.tags.chunks(BATCH) {
            let num_others = hot.count(some, others, |key, count| waiting.push_counted(key, count));
            for &(hash, key) in &others[..num_others] {
                if key.is_long() {
                    waiting.push_long(hash, key, batch.bytes);
                } else {
                    waiting.push(hash, key);
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
        let Self { hot, waiting, .. } = self;
        hot.hand_over(|key, count| waiting.push_counted(key, count));
    }

    fn clear(&mut self) {
        self.waiting.clear();
        self.is_full = false;
        self.num_records = 0;
    }
}
