//! The K best of every class by sample, in memory.
//!
//! Samples are split into ranges, and each thread puts what it finds into lists of its own, one for each
//! range, so that a list fits a core's cache when it is sorted. How long the lists may become is counted
//! before, so that none of them is ever moved.

use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

use super::chosen::Chosen;
use super::entry::Entry;
use super::radix;
use super::top_k::TopK;

/// Ranges of samples, a power of two.
const MOST_RANGES: usize = 256;
/// Entries that are worth a range.
const WORTH_A_RANGE: usize = 4096;

/// Which range a sample lies in.
#[derive(Debug, Clone, Copy)]
struct Ranges {
    low: u64,
    shift: u32,
}

impl Ranges {
    fn new(low: u64, high: u64, num_entries: usize) -> Self {
        let most = (num_entries / WORTH_A_RANGE).clamp(1, MOST_RANGES);
        let bits = u64::BITS - high.saturating_sub(low).leading_zeros();
        // All 64 bits of a wide span with one range: such a shift would overflow.
        Self { low, shift: bits.saturating_sub(most.ilog2()).min(u64::BITS - 1) }
    }

    #[inline]
    fn of(self, sample: u64) -> usize {
        ((sample - self.low) >> self.shift) as usize & (MOST_RANGES - 1)
    }
}

/// What one thread puts into its lists.
#[derive(Debug)]
pub(super) struct Collector {
    ranges: Ranges,
    lists: Vec<Vec<Chosen>>,
}

impl Collector {
    /// One for each of `num_threads` threads, of which each takes every so-many-th part of the classes.
    pub(super) fn for_threads(
        classes: &TopK,
        more: &[(u32, Entry)],
        num_threads: usize,
    ) -> Vec<Self> {
        let bounds = (0..classes.parts.len()).into_par_iter().map(|part| {
            let (mut low, mut high, mut number) = (u64::MAX, 0, 0);
            classes.visit_listed(part, more, &mut |entry| {
                low = low.min(entry.sample());
                high = high.max(entry.sample());
                number += 1;
            });
            (low, high, number)
        });
        let (low, high, number) =
            bounds.reduce(|| (u64::MAX, 0, 0), |a, b| (a.0.min(b.0), a.1.max(b.1), a.2 + b.2));
        let ranges = Ranges::new(low, high, number);
        let collector = |thread| {
            let mut counts = vec![0; MOST_RANGES];
            for part in (thread..classes.parts.len()).step_by(num_threads) {
                classes
                    .visit_listed(part, more, &mut |entry| counts[ranges.of(entry.sample())] += 1);
            }
            Self { ranges, lists: counts.into_iter().map(Vec::with_capacity).collect() }
        };
        (0..num_threads).into_par_iter().map(collector).collect()
    }

    #[inline]
    pub(super) fn push(&mut self, chosen: Chosen) {
        self.lists[self.ranges.of(chosen.sample())].push(chosen);
    }
}

/// A sorted list for each of some ascending ranges.
#[derive(Debug, Clone)]
pub(super) struct BySample {
    ranges: Arc<Vec<Vec<Chosen>>>,
}

impl BySample {
    /// What the threads collected, sorted.
    pub(super) fn new(collectors: Vec<Collector>) -> Self {
        let mut collected: Vec<Vec<Vec<Chosen>>> = vec![Vec::new(); MOST_RANGES];
        for collector in collectors {
            collected.iter_mut().zip(collector.lists).for_each(|(lists, own)| lists.push(own));
        }
        collected.retain(|lists| lists.iter().any(|list| !list.is_empty()));
        let sorted = collected.into_par_iter().map_init(Vec::new, |scratch, lists| {
            let mut joined = Vec::with_capacity(lists.iter().map(Vec::len).sum());
            lists.into_iter().for_each(|list| joined.extend(list));
            radix::sort(&mut joined, scratch, |chosen| chosen.sample());
            joined
        });
        Self { ranges: Arc::new(sorted.collect()) }
    }

    /// Ranges that have records.
    pub(super) fn num_ranges(&self) -> usize {
        self.ranges.len()
    }

    /// The images of the ranges from `first` to before `last`.
    pub(super) fn images(&self, first: usize, last: usize) -> ListedImages {
        ListedImages { of: self.clone(), range: first, last, image: 0..0 }
    }
}

/// Goes through some ranges, one image after another.
#[derive(Debug)]
pub(super) struct ListedImages {
    of: BySample,
    range: usize,
    last: usize,
    /// Where the pairs of the image stand in its range.
    image: Range<usize>,
}

impl ListedImages {
    /// Goes to the next image, and says whether there is one.
    #[inline]
    pub(super) fn next(&mut self) -> bool {
        while self.range < self.last {
            let rest = &self.of.ranges[self.range][self.image.end..];
            if let Some(first) = rest.first() {
                let same = |pair: &&Chosen| pair.sample() == first.sample();
                let number = rest.iter().take_while(same).count();
                self.image = self.image.end..self.image.end + number;
                return true;
            }
            self.range += 1;
            self.image = 0..0;
        }
        false
    }

    /// The pairs of the image, the best first.
    pub(super) fn pairs(&self) -> &[Chosen] {
        // Before the first and after the last image there are none.
        self.of.ranges.get(self.range).map_or(&[], |range| &range[self.image.clone()])
    }
}
