//! The K best of every class by sample, in memory.
//!
//! Samples are split into ranges, and each thread puts what it finds into lists of its own, one for each
//! range, so that a list fits a core's cache when it is sorted. Which ranges make lists of about one length,
//! and how long these become, is estimated before by a look at some of the entries.

use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

use super::chosen::Chosen;
use super::entry::Entry;
use super::radix;
use super::top_k::TopK;
use crate::Result;

/// Ranges of samples, a power of two.
const MOST_RANGES: usize = 256;
/// Entries that are worth a range.
const WORTH_A_RANGE: usize = 4096;
/// Of so many entries and more, one chunk in [`RARE`] is looked at.
const MANY: usize = 1 << 20;
const RARE: usize = 16;

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

    /// The first and the last range hold what lies outside all of them too.
    #[inline]
    fn of(self, sample: u64) -> usize {
        let range = sample.saturating_sub(self.low) >> self.shift;
        (range as usize).min(MOST_RANGES - 1)
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
        let step = if classes.num_listed() < MANY { 1 } else { RARE };
        let looked_at = (0..num_threads).into_par_iter().map(|thread| {
            let mut samples = Vec::new();
            for part in (thread..classes.parts.len()).step_by(num_threads) {
                let push = &mut |entry: Entry| samples.push(entry.sample());
                classes.visit_listed(part, more, step, push);
            }
            samples
        });
        let looked_at: Vec<Vec<u64>> = looked_at.collect();
        let samples = || looked_at.iter().flatten().copied();
        let (low, high) = (samples().min().unwrap_or(0), samples().max().unwrap_or(0));
        let ranges = Ranges::new(low, high, step * samples().count());
        let collector = |samples: Vec<u64>| {
            let mut counts = vec![0; MOST_RANGES];
            samples.into_iter().for_each(|sample| counts[ranges.of(sample)] += step);
            // A little more where it is an estimate.
            let room = |count: usize| if step == 1 { count } else { count + count / 16 + 64 };
            let lists = counts.into_iter().map(|count| Vec::with_capacity(room(count)));
            Self { ranges, lists: lists.collect() }
        };
        looked_at.into_iter().map(collector).collect()
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
    /// What the threads collected, sorted; each range is shown to `look` while it is close, and what that
    /// made of several ranges is returned in their order.
    pub(super) fn new<T: Default + Send>(
        collectors: Vec<Collector>,
        look: impl Fn(&mut T, &[Chosen]) -> Result<()> + Sync,
    ) -> Result<(Self, Vec<T>)> {
        let mut collected: Vec<Vec<Vec<Chosen>>> = vec![Vec::new(); MOST_RANGES];
        for collector in collectors {
            collected.iter_mut().zip(collector.lists).for_each(|(lists, own)| lists.push(own));
        }
        collected.retain(|lists| lists.iter().any(|list| !list.is_empty()));
        let share = collected.len().div_ceil(rayon::current_num_threads()).max(1);
        let sorted = collected.par_chunks_mut(share).map(|ranges| {
            let (mut sorted, mut scratch, mut found) = (Vec::new(), Vec::new(), T::default());
            for lists in ranges.iter_mut().map(std::mem::take) {
                let mut joined = Vec::with_capacity(lists.iter().map(Vec::len).sum());
                lists.into_iter().for_each(|list| joined.extend(list));
                radix::sort(&mut joined, &mut scratch, |chosen: &Chosen| chosen.sample());
                look(&mut found, &joined)?;
                sorted.push(joined);
            }
            Ok((sorted, found))
        });
        // The first error by sample, whichever thread was first.
        let sorted = sorted.collect::<Vec<Result<(Vec<_>, T)>>>();
        let (ranges, found): (Vec<_>, Vec<_>) =
            sorted.into_iter().collect::<Result<Vec<_>>>()?.into_iter().unzip();
        Ok((Self { ranges: Arc::new(ranges.into_iter().flatten().collect()) }, found))
    }

    /// The images of all ranges.
    pub(super) fn images(&self) -> ListedImages {
        ListedImages { of: self.clone(), range: 0, image: 0..0 }
    }
}

/// Goes through all ranges, one image after another.
#[derive(Debug)]
pub(super) struct ListedImages {
    of: BySample,
    range: usize,
    /// Where the pairs of the image stand in its range.
    image: Range<usize>,
}

impl ListedImages {
    /// Goes to the next image, and says whether there is one.
    #[inline]
    pub(super) fn next(&mut self) -> bool {
        while let Some(range) = self.of.ranges.get(self.range) {
            let rest = &range[self.image.end..];
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
