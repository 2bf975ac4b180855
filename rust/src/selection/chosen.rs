//! An image that a class took.

use std::cmp::Ordering;

use super::entry::{Entry, little, score_of};
use super::top_p::SelectedPair;
use crate::spill::Record;

/// An image that a class took, in 20 bytes; by sample, then the best class first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Chosen {
    sample_high: u32,
    sample_low: u32,
    key: u32,
    pub(super) class: u32,
    /// From 1.
    pub(super) rank: u32,
}

impl Chosen {
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

    #[inline]
    fn number(self) -> u128 {
        u128::from(self.sample()) << 64 | u128::from(self.key) << 32 | u128::from(self.class)
    }

    pub(super) fn score(self) -> f32 {
        score_of(self.key)
    }

    pub(super) fn pair(self) -> SelectedPair {
        SelectedPair {
            sample: self.sample(),
            class: self.class,
            rank: self.rank,
            score: self.score(),
        }
    }
}

impl Ord for Chosen {
    #[inline]
    fn cmp(&self, other: &Self) -> Ordering {
        self.number().cmp(&other.number()).then(self.rank.cmp(&other.rank))
    }
}

impl PartialOrd for Chosen {
    #[inline]
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Record for Chosen {
    const BYTES: usize = 20;

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
