//! An image that a class took.

use std::cmp::Ordering;

use super::entry::{Entry, little, score_of};
use super::top_p::SelectedPair;
use crate::spill::Record;

/// An image that a class took, in 20 bytes; by sample, then the best class first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ClassImage {
    sample_high: u32,
    sample_low: u32,
    key: u32,
    class: u32,
    /// From 1.
    rank: u32,
}

impl ClassImage {
    /// What `class` took as its `rank`-th, from 1.
    #[inline]
    pub(super) fn new(entry: Entry, class: u32, rank: u32) -> Self {
        let [sample_high, sample_low] = [(entry.sample() >> 32) as u32, entry.sample() as u32];
        Self { sample_high, sample_low, key: entry.key(), class, rank }
    }

    #[inline]
    pub(super) fn sample(self) -> u64 {
        u64::from(self.sample_high) << 32 | u64::from(self.sample_low)
    }

    /// The same without its sample.
    pub(super) fn packed(self) -> Packed {
        packed::of(0, self.key, self.class, self.rank)
    }

    #[inline]
    fn whole(self) -> u128 {
        u128::from(self.sample()) << 64 | u128::from(self.key) << 32 | u128::from(self.class)
    }
}

impl Ord for ClassImage {
    #[inline]
    fn cmp(&self, other: &Self) -> Ordering {
        self.whole().cmp(&other.whole()).then(self.rank.cmp(&other.rank))
    }
}

impl PartialOrd for ClassImage {
    #[inline]
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Record for ClassImage {
    const BYTES: usize = 20;

    #[inline]
    fn leading(&self) -> u64 {
        self.sample()
    }

    #[inline]
    fn put(self, out: &mut [u8]) {
        out[..8].copy_from_slice(&self.sample().to_le_bytes());
        out[8..12].copy_from_slice(&self.key.to_le_bytes());
        out[12..16].copy_from_slice(&self.class.to_le_bytes());
        out[16..].copy_from_slice(&self.rank.to_le_bytes());
    }

    #[inline]
    fn get(bytes: &[u8]) -> Self {
        let sample = little(&bytes[..8]);
        let small = |at: usize| little(&bytes[at..at + 4]) as u32;
        Self {
            sample_high: (sample >> 32) as u32,
            sample_low: sample as u32,
            key: small(8),
            class: small(12),
            rank: small(16),
        }
    }
}

/// The same in one number, of samples that are near one another: how far the sample is from the first of
/// them, the key of the score, class and rank. Numbers order as the values do, and a million zeros
/// cost nothing until they are written.
pub(super) type Packed = u128;

/// What a [`Packed`] is made of.
pub(super) mod packed {
    use super::{Packed, SelectedPair, score_of};

    #[inline]
    pub(in super::super) fn of(distance: u32, key: u32, class: u32, rank: u32) -> Packed {
        let small = |high: u32, low: u32| u64::from(high) << 32 | u64::from(low);
        Packed::from(small(distance, key)) << 64 | Packed::from(small(class, rank))
    }

    #[inline]
    pub(in super::super) fn distance(packed: Packed) -> u32 {
        (packed >> 96) as u32
    }

    #[inline]
    pub(in super::super) fn score(packed: Packed) -> f32 {
        score_of((packed >> 64) as u32)
    }

    #[inline]
    pub(in super::super) fn class(packed: Packed) -> u32 {
        (packed >> 32) as u32
    }

    #[inline]
    pub(in super::super) fn rank(packed: Packed) -> u32 {
        packed as u32
    }

    pub(in super::super) fn pair(sample: u64, packed: Packed) -> SelectedPair {
        SelectedPair { sample, class: class(packed), rank: rank(packed), score: score(packed) }
    }
}
