//! A scored sample of a class, in 12 bytes.

use std::cmp::Ordering;

use crate::spill::Record;

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

/// A sample and its score; the smaller entry is the better one: the higher score, then the smaller
/// sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    key: u32,
    sample_high: u32,
    sample_low: u32,
}

impl Entry {
    /// Worse than every entry, since its key is of no finite score.
    pub(super) const WORST: Self =
        Self { key: u32::MAX, sample_high: u32::MAX, sample_low: u32::MAX };

    #[inline]
    pub(super) fn new(score: f32, sample: u64) -> Self {
        Self::from_key(descending(score), sample)
    }

    #[inline]
    pub(super) fn from_key(key: u32, sample: u64) -> Self {
        Self { key, sample_high: (sample >> 32) as u32, sample_low: sample as u32 }
    }

    pub(super) fn key(self) -> u32 {
        self.key
    }

    pub(super) fn score(self) -> f32 {
        score_of(self.key)
    }

    #[inline]
    pub(super) fn sample(self) -> u64 {
        u64::from(self.sample_high) << 32 | u64::from(self.sample_low)
    }

    /// One number that orders as the entry does: compared without a branch.
    #[inline]
    fn whole(self) -> u128 {
        u128::from(self.key) << 64 | u128::from(self.sample())
    }
}

impl Ord for Entry {
    #[inline]
    fn cmp(&self, other: &Self) -> Ordering {
        self.whole().cmp(&other.whole())
    }

    // The other comparisons through it would not be without branches.
}

impl PartialOrd for Entry {
    #[inline]
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }

    #[inline]
    fn lt(&self, other: &Self) -> bool {
        self.whole() < other.whole()
    }

    #[inline]
    fn ge(&self, other: &Self) -> bool {
        self.whole() >= other.whole()
    }
}

impl Record for Entry {
    const BYTES: usize = 12;

    #[inline]
    fn leading(&self) -> u64 {
        u64::from(self.key)
    }

    #[inline]
    fn put(self, out: &mut [u8]) {
        out[..4].copy_from_slice(&self.key.to_le_bytes());
        out[4..].copy_from_slice(&self.sample().to_le_bytes());
    }

    #[inline]
    fn get(bytes: &[u8]) -> Self {
        let (key, sample) = bytes.split_at(4);
        Self::from_key(little(key) as u32, little(sample))
    }
}

/// A little-endian number of at most 8 bytes.
#[inline]
pub(super) fn little(bytes: &[u8]) -> u64 {
    let mut number = [0; 8];
    number[..bytes.len()].copy_from_slice(bytes);
    u64::from_le_bytes(number)
}

/// Entries from which on a histogram finds the K-th faster than partitions do.
const MANY: usize = 1024;
/// Counters of the histogram.
const COUNTERS: usize = 2048;

/// Leaves the `k` smallest of `entries`, the largest of them last where there were more.
///
/// A histogram of the keys shows which entries are surely among them and which surely not; only
/// those of one counter, a few where scores differ, are looked at by rank.
pub(super) fn keep_best(entries: &mut Vec<Entry>, k: usize) {
    if entries.len() <= k {
        return;
    }
    if entries.len() < MANY {
        entries.select_nth_unstable(k - 1);
        return entries.truncate(k);
    }

    // A pass that only counts is faster than selecting among all, since most entries are clearly in
    // or out.
    let (low, high) = entries
        .iter()
        .fold((u32::MAX, 0), |(low, high), entry| (low.min(entry.key), high.max(entry.key)));
    let shift = (u32::BITS - (high - low).leading_zeros()).saturating_sub(COUNTERS.ilog2());
    let counter = |entry: &Entry| ((entry.key - low) >> shift) as usize & (COUNTERS - 1);
    let mut counts = [0_u32; COUNTERS];
    entries.iter().for_each(|entry| counts[counter(entry)] += 1);
    let (mut edge, mut before) = (0, 0);
    while before + (counts[edge] as usize) < k {
        before += counts[edge] as usize;
        edge += 1;
    }

    // Written without a branch: whether an entry is kept cannot be predicted.
    let mut doubtful = Vec::with_capacity(counts[edge] as usize);
    let mut kept = 0;
    for place in 0..entries.len() {
        let entry = entries[place];
        let counter = counter(&entry);
        entries[kept] = entry;
        kept += usize::from(counter < edge);
        if counter == edge {
            doubtful.push(entry);
        }
    }
    entries.truncate(kept);
    doubtful.select_nth_unstable(k - before - 1);
    entries.extend_from_slice(&doubtful[..k - before]);
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
    fn the_best_are_those_of_a_sort_and_the_last_of_them_stands_last() {
        let mut state = 7_u64;
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            state >> 33
        };
        for (num, values) in [(3000, 1), (3000, 3), (5000, 1 << 20), (1024, 1 << 30), (90, 40)] {
            let entries: Vec<_> = (0..num)
                .map(|_| Entry::new((random() % values) as f32 - 5.0, random() % 4000))
                .collect();
            for k in [1, 2, num as usize / 3, num as usize - 1, num as usize] {
                let (mut found, mut sorted) = (entries.clone(), entries.clone());
                keep_best(&mut found, k);
                sorted.sort_unstable();
                sorted.truncate(k);
                if k < num as usize {
                    assert_eq!(found.last(), sorted.last());
                }
                found.sort_unstable();
                assert!(found == sorted, "{num} entries of {values} values, K = {k}");
            }
        }
    }

    #[test]
    fn an_entry_takes_twelve_bytes_in_memory_and_on_disk_and_has_one_order() {
        assert_eq!((size_of::<Entry>(), Entry::BYTES), (12, 12));
        let entries = [(3.0, u64::MAX), (1.0, 1), (1.0, 1 << 33), (-2.0, 0)];
        let entries = entries.map(|(score, sample)| Entry::new(score, sample));
        assert!(entries.windows(2).all(|pair| pair[0] < pair[1] && pair[1] >= pair[0]));
        for entry in entries {
            let mut bytes = [0; 12];
            entry.put(&mut bytes);
            assert_eq!(Entry::get(&bytes), entry);
        }
    }
}
