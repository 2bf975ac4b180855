//! The K best entries of every class, in one pass.
//!
//! A class collects entries in a buffer; when 2K are in it, the K best stay (a partial selection,
//! so that an entry costs constant time on average) and the K-th becomes the class's cut: what is
//! not better than the cut can never be among the K best and is dropped unseen. Beside the exact
//! cut stands its score as a plain float, the floor, so that a row of scores is compared with the
//! floors of its classes sixteen at a time; after the first few thousand rows almost nothing gets
//! past that.
//!
//! What is kept is the K smallest of the multiset of entries under a total order. Equal entries are
//! indistinguishable, so it does not depend on the order in which they came.

use rayon::prelude::*;

use super::Samples;

/// Scores that are compared with their floors together.
const LANES: usize = 16;
/// Fewer classes than this are not worth a thread.
const MIN_CLASSES_PER_THREAD: usize = 4 * LANES;

/// A score as a number that is smaller the higher the score; -0 and +0 are one.
pub(super) fn descending(score: f32) -> u32 {
    let bits = (score + 0.0).to_bits(); // -0 + 0 is +0
    let ascending = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
    !ascending
}

/// The score that [`descending`] made `key` from.
pub(super) fn score_of(key: u32) -> f32 {
    let ascending = !key;
    let bits = if ascending >> 31 == 1 { ascending & !(1 << 31) } else { !ascending };
    f32::from_bits(bits)
}

/// A scored sample of a class, in 12 bytes; the smaller entry is the better one: the higher score,
/// then the smaller sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Entry {
    key: u32,
    sample_high: u32,
    sample_low: u32,
}

impl Entry {
    /// Worse than every entry, since its key is of no finite score.
    const WORST: Self = Self { key: u32::MAX, sample_high: u32::MAX, sample_low: u32::MAX };

    pub(super) fn new(score: f32, sample: u64) -> Self {
        Self::from_key(descending(score), sample)
    }

    pub(super) fn from_key(key: u32, sample: u64) -> Self {
        Self { key, sample_high: (sample >> 32) as u32, sample_low: sample as u32 }
    }

    pub(super) fn key(self) -> u32 {
        self.key
    }

    pub(super) fn score(self) -> f32 {
        score_of(self.key)
    }

    pub(super) fn sample(self) -> u64 {
        u64::from(self.sample_high) << 32 | u64::from(self.sample_low)
    }
}

/// The best entries of one class: up to 2K, the K best among them.
#[derive(Debug, Clone)]
struct Best {
    entries: Vec<Entry>,
    cut: Entry,
}

impl Best {
    const EMPTY: Self = Self { entries: Vec::new(), cut: Entry::WORST };

    /// Takes `entry` where it may be among the `k` best; true where the cut rose.
    #[inline]
    fn offer(&mut self, entry: Entry, k: usize) -> bool {
        if entry >= self.cut {
            return false;
        }
        if self.entries.len() == self.entries.capacity() {
            // Doubling, but never beyond the 2K that are needed.
            let more = self.entries.len().max(4).min(2 * k - self.entries.len());
            self.entries.reserve_exact(more);
        }
        self.entries.push(entry);
        let full = self.entries.len() >= 2 * k;
        if full {
            keep_best(&mut self.entries, k);
            self.cut = self.entries[k - 1];
        }
        full
    }

    fn floor(&self) -> f32 {
        if self.cut == Entry::WORST { f32::NEG_INFINITY } else { self.cut.score() }
    }
}

/// Leaves the `k` smallest of `entries`, the largest of them last where there were more.
fn keep_best(entries: &mut Vec<Entry>, k: usize) {
    if entries.len() > k {
        entries.select_nth_unstable(k - 1);
        entries.truncate(k);
    }
}

/// The K best entries of every class.
#[derive(Debug, Clone)]
pub(super) struct TopK {
    k: usize,
    /// The score of every class's cut: a lower one need not be looked at.
    floors: Vec<f32>,
    classes: Vec<Best>,
}

impl TopK {
    pub(super) fn new(num_classes: usize, k: usize) -> Self {
        Self {
            k,
            floors: vec![f32::NEG_INFINITY; num_classes],
            classes: vec![Best::EMPTY; num_classes],
        }
    }

    /// Appends a class with the entries of a saved one: at most K, the best first.
    pub(super) fn push_class(&mut self, entries: Vec<Entry>) {
        let last = entries.last().copied().filter(|_| entries.len() >= self.k);
        let best = Best { cut: last.unwrap_or(Entry::WORST), entries };
        self.floors.push(best.floor());
        self.classes.push(best);
    }

    pub(super) fn num_classes(&self) -> usize {
        self.classes.len()
    }

    /// What is kept of `class`, in no order.
    pub(super) fn entries(&self, class: usize) -> &[Entry] {
        &self.classes[class].entries
    }

    #[inline]
    pub(super) fn offer_score(&mut self, class: usize, sample: u64, score: f32) {
        if score >= self.floors[class] {
            self.offer(class, Entry::new(score, sample));
        }
    }

    #[inline]
    pub(super) fn offer(&mut self, class: usize, entry: Entry) {
        if self.classes[class].offer(entry, self.k) {
            self.floors[class] = self.classes[class].floor();
        }
    }

    /// Offers every score of a matrix of finite scores, a column for each class.
    ///
    /// Every thread takes some of the classes, over all rows: nothing is shared.
    pub(super) fn offer_rows(&mut self, samples: Samples<'_>, matrix: &[f32]) {
        let width = self.classes.len();
        let share = width.div_ceil(rayon::current_num_threads()).next_multiple_of(LANES);
        let share = share.max(MIN_CLASSES_PER_THREAD);
        let k = self.k;
        let parts = self.floors.par_chunks_mut(share).zip(self.classes.par_chunks_mut(share));
        parts.enumerate().for_each(|(part, (floors, classes))| {
            let mut part = Part { k, first: part * share, floors, classes };
            for (row, scores) in matrix.chunks_exact(width).enumerate() {
                part.offer_row(samples.get(row), scores);
            }
        });
    }

    pub(super) fn merge(&mut self, other: &Self) {
        let k = self.k;
        let pairs = self.classes.par_iter_mut().zip(&mut self.floors).zip(&other.classes);
        pairs.for_each(|((best, floor), other)| {
            for &entry in &other.entries {
                best.offer(entry, k);
            }
            *floor = best.floor();
        });
    }

    /// The `k` best entries of `class` and of `more`, the best first.
    pub(super) fn best(&self, class: usize, more: &[Entry], k: usize) -> Vec<Entry> {
        let entries = &self.classes[class].entries;
        let mut best = Vec::with_capacity(entries.len() + more.len());
        best.extend_from_slice(entries);
        best.extend_from_slice(more);
        keep_best(&mut best, k);
        best.sort_unstable();
        best
    }
}

/// Some adjacent classes, in the hands of one thread.
struct Part<'a> {
    k: usize,
    first: usize,
    floors: &'a mut [f32],
    classes: &'a mut [Best],
}

impl Part<'_> {
    fn offer_row(&mut self, sample: u64, scores: &[f32]) {
        let scores = &scores[self.first..self.first + self.floors.len()];
        let (lanes, rest) = scores.as_chunks::<LANES>();
        for (chunk, scores) in lanes.iter().enumerate() {
            let first = chunk * LANES;
            let floors = &self.floors[first..first + LANES];
            let any =
                scores.iter().zip(floors).fold(false, |any, (score, floor)| any | (score >= floor));
            if any {
                self.offer_lanes(sample, first, scores);
            }
        }
        self.offer_lanes(sample, lanes.len() * LANES, rest);
    }

    fn offer_lanes(&mut self, sample: u64, first: usize, scores: &[f32]) {
        for (class, &score) in (first..).zip(scores) {
            if score >= self.floors[class]
                && self.classes[class].offer(Entry::new(score, sample), self.k)
            {
                self.floors[class] = self.classes[class].floor();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_fall_as_scores_rise_and_give_them_back() {
        let scores =
            [f32::MIN, -1.5, -f32::MIN_POSITIVE, -1e-45, 0.0, 1e-45, 0.5, 1.0, 88.0, f32::MAX];
        assert!(scores.windows(2).all(|pair| descending(pair[0]) > descending(pair[1])));
        assert!(
            scores.iter().all(|&score| score_of(descending(score)).to_bits() == score.to_bits())
        );
        assert_eq!(descending(-0.0), descending(0.0));
    }

    #[test]
    fn an_entry_takes_twelve_bytes_and_a_huge_k_reserves_nothing() {
        assert_eq!(size_of::<Entry>(), 12);
        let mut best = TopK::new(2, u32::MAX as usize);
        best.offer_score(1, u64::MAX, 0.5);
        assert!(best.classes[1].entries.capacity() <= 4);
        assert_eq!(best.best(1, &[], 1)[0].sample(), u64::MAX);
    }
}
