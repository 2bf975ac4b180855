//! Pairs of a sample that are not together, grouped by sample first.

use std::cmp::Ordering;

use arrow_array::RecordBatch;
use arrow_schema::ArrowError;

use super::entry::{descending, little};
use super::pairs::Columns;
use super::top_p::Candidate;
use super::update::check_pair;
use super::{Order, Selection};
use crate::Result;
use crate::job::Job;
use crate::spill::{Record, Sorter};

/// Rows that are sorted between two looks at whether the caller asked to stop.
const ROWS_PER_CHECK: usize = 1 << 14;

/// A pair by sample, then class, in 16 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct UngroupedPair {
    sample_high: u32,
    sample_low: u32,
    class: u32,
    key: u32,
}

impl UngroupedPair {
    #[inline]
    fn sample(self) -> u64 {
        u64::from(self.sample_high) << 32 | u64::from(self.sample_low)
    }

    #[inline]
    fn whole(self) -> u128 {
        u128::from(self.sample()) << 64 | u128::from(self.class) << 32 | u128::from(self.key)
    }
}

impl Ord for UngroupedPair {
    #[inline]
    fn cmp(&self, other: &Self) -> Ordering {
        self.whole().cmp(&other.whole())
    }
}

impl PartialOrd for UngroupedPair {
    #[inline]
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Record for UngroupedPair {
    const BYTES: usize = 16;

    #[inline]
    fn leading(&self) -> u64 {
        self.sample()
    }

    #[inline]
    fn put(self, out: &mut [u8]) {
        for (to, number) in
            out.chunks_exact_mut(4).zip([self.sample_high, self.sample_low, self.class, self.key])
        {
            to.copy_from_slice(&number.to_le_bytes());
        }
    }

    #[inline]
    fn get(bytes: &[u8]) -> Self {
        let number = |at: usize| little(&bytes[at..at + 4]) as u32;
        Self { sample_high: number(0), sample_low: number(4), class: number(8), key: number(12) }
    }
}

impl Selection {
    /// Takes pairs like [`update_batches`](Self::update_batches) whose samples' pairs need not be
    /// together: under image-first they are grouped by sample first, in 16 bytes each, on disk where
    /// they do not fit; class-first takes them as they come. All pairs of a sample must be in this
    /// one call. The job counts rows, those of grouping alone.
    pub fn update_scattered(
        &mut self,
        batches: impl IntoIterator<Item = std::result::Result<RecordBatch, ArrowError>>,
        job: &Job,
    ) -> Result<()> {
        if self.order == Order::ClassFirst {
            return self.update_batches(batches, job);
        }
        self.guarded(|selection| selection.group(batches, job))
    }

    fn group(
        &mut self,
        batches: impl IntoIterator<Item = std::result::Result<RecordBatch, ArrowError>>,
        job: &Job,
    ) -> Result<()> {
        // Half of the memory goes to the sorting, so the classes give theirs up first.
        let spill = self.classes.spill.clone();
        let memory = spill.limit().map(|limit| limit / 2);
        if memory.is_some() {
            self.classes.spill()?;
            self.classes.release();
        }
        let mut sorter = Sorter::new(spill, memory);
        for batch in batches {
            let batch = batch?;
            let columns = Columns::new(&batch, self.num_classes)?;
            for first in (0..columns.num_rows()).step_by(ROWS_PER_CHECK) {
                job.check()?;
                let rows = first..(first + ROWS_PER_CHECK).min(columns.num_rows());
                let piece = columns.pairs(rows.clone(), self.num_classes)?;
                let pairs = piece.samples.iter().zip(piece.classes.iter()).zip(piece.scores);
                for ((&sample, &class), &score) in pairs {
                    check_pair(sample, class, score, self.num_classes)?;
                    let [sample_high, sample_low] = [(sample >> 32) as u32, sample as u32];
                    sorter.push(UngroupedPair {
                        sample_high,
                        sample_low,
                        class,
                        key: descending(score),
                    })?;
                }
                self.num_pairs += piece.samples.len() as u64;
                job.advance(rows.len() as u64);
            }
        }

        // By sample now, so that all pairs of an image are together, which image-first needs.
        let mut sorted = sorter.finish()?.read()?;
        let mut number = 0_usize;
        while let Some(pair) = sorted.next_record()? {
            self.take_pair_of_row(pair.sample(), Candidate { key: pair.key, class: pair.class })?;
            number += 1;
            if number.is_multiple_of(ROWS_PER_CHECK) {
                job.check()?;
            }
        }
        self.flush()
    }
}
