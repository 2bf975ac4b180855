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
    fn number(self) -> u128 {
        u128::from(self.key) << 64 | u128::from(self.sample())
    }
}

impl Ord for Entry {
    #[inline]
    fn cmp(&self, other: &Self) -> Ordering {
        self.number().cmp(&other.number())
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
        self.number() < other.number()
    }

    #[inline]
    fn ge(&self, other: &Self) -> bool {
        self.number() >= other.number()
    }
}

impl Record for Entry {
    const BYTES: usize = 12;

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

/// Leaves the `k` smallest of `entries`, the largest of them last where there were more.
pub(super) fn keep_best(entries: &mut Vec<Entry>, k: usize) {
    if entries.len() > k {
        entries.select_nth_unstable(k - 1);
        entries.truncate(k);
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
