//! The K best of every class by sample, in memory.
//!
//! Samples are split into ranges, so that the pairs of one fit a core's cache when they are sorted.
//! All are in one piece of memory, range after range; in a range each thread has a room of its own,
//! as large as what it may put there, which is counted before. Which ranges are about equal is
//! estimated by a look at some of the entries.

use std::ops::Range;
use std::slice::IterMut;
use std::sync::Arc;

use rayon::prelude::*;

use super::class_image::{Packed, packed};
use super::entry::Entry;
use super::top_k::TopK;
use crate::Result;
use crate::hints::prefer_large_pages;
use crate::radix;

/// Ranges of samples, a power of two.
const MOST_RANGES: usize = 256;
/// Entries that are worth a range.
const WORTH_A_RANGE: usize = 4096;
/// Of so many entries and more, one chunk in [`RARE`] is looked at.
const MANY: usize = 1 << 20;
const RARE: usize = 16;

/// Which range a sample is in.
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

    /// The first and the last range have what is outside all of them too.
    #[inline]
    fn of(self, sample: u64) -> usize {
        let range = sample.saturating_sub(self.low) >> self.shift;
        (range as usize).min(MOST_RANGES - 1)
    }
}

/// What some entries are.
#[derive(Debug, Clone)]
struct Seen {
    low: u64,
    high: u64,
    num_entries: usize,
    /// How many are in each range, where these are known.
    counts: Vec<usize>,
}

impl Seen {
    /// The entries that each thread takes: every so-many-th part of the classes, one chunk in `step`.
    fn by_thread(
        classes: &TopK,
        more: &[(u32, Entry)],
        num_threads: usize,
        step: usize,
        ranges: Option<Ranges>,
    ) -> Vec<Self> {
        let look = |thread: usize| {
            let mut seen =
                Self { low: u64::MAX, high: 0, num_entries: 0, counts: vec![0; MOST_RANGES] };
            let mut add = |entry: Entry| {
                let sample = entry.sample();
                (seen.low, seen.high) = (seen.low.min(sample), seen.high.max(sample));
                seen.num_entries += 1;
                if let Some(ranges) = ranges {
                    seen.counts[ranges.of(sample)] += 1;
                }
            };
            for part in (thread..classes.parts.len()).step_by(num_threads) {
                classes.visit_listed(part, more, step, &mut add);
            }
            seen
        };
        (0..num_threads).into_par_iter().map(look).collect()
    }

    fn bounds(all: &[Self]) -> (u64, u64) {
        let low = all.iter().map(|seen| seen.low).min().unwrap_or(0);
        (low, all.iter().map(|seen| seen.high).max().unwrap_or(0))
    }
}

/// Where pairs are put by sample.
#[derive(Debug)]
pub(super) struct Shelves {
    ranges: Ranges,
    /// The smallest sample.
    low: u64,
    memory: Vec<Packed>,
    /// The room of each thread in each range.
    rooms: Vec<Vec<usize>>,
}

impl Shelves {
    /// For what `num_threads` threads take, each every so-many-th part of the classes; none where the samples
    /// are too far apart.
    pub(super) fn new(classes: &TopK, more: &[(u32, Entry)], num_threads: usize) -> Option<Self> {
        let step = if classes.num_listed() < MANY { 1 } else { RARE };
        let some = Seen::by_thread(classes, more, num_threads, step, None);
        let (low, high) = Seen::bounds(&some);
        let number: usize = some.iter().map(|seen| seen.num_entries).sum();
        let ranges = Ranges::new(low, high, step * number);
        let all = Seen::by_thread(classes, more, num_threads, 1, Some(ranges));
        let (low, high) = Seen::bounds(&all);
        if high.saturating_sub(low) > u64::from(u32::MAX) {
            return None;
        }
        let rooms: Vec<Vec<usize>> = (0..MOST_RANGES)
            .map(|range| all.iter().map(|seen| seen.counts[range]).collect())
            .collect();
        let mut memory = vec![0; rooms.iter().flatten().sum()];
        prefer_large_pages(&mut memory);
        Some(Self { ranges, low, memory, rooms })
    }

    /// What the threads put pairs through.
    pub(super) fn collectors(&mut self) -> Vec<Collector<'_>> {
        let num_threads = self.rooms.first().map_or(0, Vec::len);
        let (ranges, low) = (self.ranges, self.low);
        let collector = |_| Collector { ranges, low, rooms: Vec::with_capacity(MOST_RANGES) };
        let mut collectors: Vec<Collector<'_>> = (0..num_threads).map(collector).collect();
        let mut rest = self.memory.as_mut_slice();
        for rooms in &self.rooms {
            for (collector, &room) in collectors.iter_mut().zip(rooms) {
                let (own, others) = rest.split_at_mut(room);
                collector.rooms.push(own.iter_mut());
                rest = others;
            }
        }
        collectors
    }
}

/// What one thread puts pairs through.
#[derive(Debug)]
pub(super) struct Collector<'a> {
    ranges: Ranges,
    low: u64,
    /// What is left of its room in each range.
    rooms: Vec<IterMut<'a, Packed>>,
}

impl Collector<'_> {
    /// Takes what `class` took as its `rank`-th, from 1.
    #[inline]
    pub(super) fn push(&mut self, entry: Entry, class: u32, rank: u32) {
        let sample = entry.sample();
        // Every entry was counted.
        if let Some(place) = self.rooms[self.ranges.of(sample)].next() {
            *place = packed::of((sample - self.low) as u32, entry.key(), class, rank);
        }
    }

    /// How much of its rooms is left.
    pub(super) fn left(self) -> Vec<usize> {
        self.rooms.into_iter().map(|room| room.len()).collect()
    }
}

/// A range to be sorted: its memory, and how much is filled in the room of each thread.
struct Unsorted<'a> {
    start: usize,
    memory: &'a mut [Packed],
    filled: Vec<Range<usize>>,
}

impl Unsorted<'_> {
    /// Brings what is there together and sorts it; where it begins in all memory.
    fn sort(&mut self, scratch: &mut Vec<Packed>) -> (Range<usize>, &[Packed]) {
        let mut number = 0;
        for filled in &self.filled {
            if filled.start > number {
                self.memory.copy_within(filled.clone(), number);
            }
            number += filled.len();
        }
        let all = &mut self.memory[..number];
        radix::sort_slice(all, scratch, |&pair| u64::from(packed::distance(pair)));
        (self.start..self.start + number, all)
    }
}

/// Pairs by sample.
#[derive(Debug, Clone)]
pub(super) struct BySample {
    low: u64,
    memory: Arc<Vec<Packed>>,
    /// Where the pairs of the ranges are, ascending.
    ranges: Arc<Vec<Range<usize>>>,
}

impl BySample {
    /// What the threads put on the shelves, who left so much of their rooms; each range is shown to `look`
    /// while it is close, with the sample that distances count from, and what that made of several ranges is
    /// returned in their order.
    pub(super) fn new<T: Default + Send>(
        mut shelves: Shelves,
        left: &[Vec<usize>],
        look: impl Fn(&mut T, u64, &[Packed]) -> Result<()> + Sync,
    ) -> Result<(Self, Vec<T>)> {
        let low = shelves.low;
        let mut unsorted = Vec::with_capacity(MOST_RANGES);

        // The memory is cut into ranges before the threads begin, so that none touches another's.
        let (mut rest, mut start) = (shelves.memory.as_mut_slice(), 0);
        for (range, rooms) in shelves.rooms.iter().enumerate() {
            let mut length = 0;
            let filled = rooms.iter().zip(left).map(|(room, left)| {
                length += room;
                length - room..length - left[range]
            });
            let filled = filled.collect();
            let (memory, others) = rest.split_at_mut(length);
            unsorted.push(Unsorted { start, memory, filled });
            (rest, start) = (others, start + length);
        }
        unsorted.retain(|range| !range.memory.is_empty());

        // Neighbouring ranges go to one thread, so that what is found can be joined in their order.
        let share = unsorted.len().div_ceil(rayon::current_num_threads()).max(1);
        let sorted = unsorted.par_chunks_mut(share).map(|ranges| {
            let (mut sorted, mut scratch, mut found) = (Vec::new(), Vec::new(), T::default());
            for range in ranges {
                let (place, pairs) = range.sort(&mut scratch);
                look(&mut found, low, pairs)?;
                sorted.push(place);
            }
            Ok((sorted, found))
        });
        // The first error by sample, whichever thread was first.
        let sorted = sorted.collect::<Vec<Result<(Vec<_>, T)>>>();
        let (ranges, found): (Vec<_>, Vec<_>) =
            sorted.into_iter().collect::<Result<Vec<_>>>()?.into_iter().unzip();
        let ranges = Arc::new(ranges.concat());
        Ok((Self { low, memory: Arc::new(shelves.memory), ranges }, found))
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
    /// Where the pairs of the image are.
    image: Range<usize>,
}

impl ListedImages {
    /// Goes to the next image, and returns whether there is one.
    #[inline]
    pub(super) fn next(&mut self) -> bool {
        while let Some(range) = self.of.ranges.get(self.range) {
            let start = self.image.end.max(range.start);
            let rest = &self.of.memory[start..range.end];
            if let Some(&first) = rest.first() {
                let same = |&&pair: &&Packed| packed::distance(pair) == packed::distance(first);
                self.image = start..start + rest.iter().take_while(same).count();
                return true;
            }
            self.range += 1;
            self.image = range.end..range.end;
        }
        self.image = 0..0;
        false
    }

    /// The pairs of the image, the best first; none before the first and after the last.
    pub(super) fn pairs(&self) -> &[Packed] {
        &self.of.memory[self.image.clone()]
    }

    /// The sample of the image.
    pub(super) fn sample(&self) -> u64 {
        let distance = self.pairs().first().map_or(0, |&pair| packed::distance(pair));
        self.of.low + u64::from(distance)
    }
}
