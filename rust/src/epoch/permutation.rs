//! Permutations of 0..n, computed position by position.
//!
//! A Feistel network over the next power of two whose rounds are keyed by a hash, walked until it falls
//! below n (Black and Rogaway 2002).

use super::{hash, mix};

const ROUNDS: usize = 6;
/// What the keys of a whole epoch's permutation are hashed with.
const PERMUTATION: u64 = 2;

/// A permutation of 0..n.
#[derive(Debug, Clone)]
pub struct Permutation {
    n: u64,
    low_bits: u32,
    low_mask: u64,
    high_mask: u64,
    keys: [u64; ROUNDS],
}

impl Permutation {
    /// The permutation of 0..n that `seed` and `epoch` choose.
    pub fn new(n: u64, seed: u64, epoch: u64) -> Self {
        Self::keyed(n, |round| hash([PERMUTATION, seed, epoch, round]))
    }

    /// The permutation of 0..n with these keys of its rounds.
    pub(super) fn keyed(n: u64, key: impl Fn(u64) -> u64) -> Self {
        let bits = 64 - n.saturating_sub(1).leading_zeros();
        let low_bits = bits.div_ceil(2);
        let mut keys = [0; ROUNDS];
        for (round, slot) in (0..).zip(&mut keys) {
            *slot = key(round);
        }
        let high_mask = (1_u64 << (bits - low_bits)) - 1;
        Self { n, low_bits, low_mask: (1_u64 << low_bits) - 1, high_mask, keys }
    }

    /// Where `position`, which is below n, is sent.
    #[inline]
    pub fn get(&self, position: u64) -> u64 {
        let mut value = position;
        loop {
            value = self.walk(value);
            if value < self.n {
                return value;
            }
        }
    }

    #[inline(always)]
    fn walk(&self, value: u64) -> u64 {
        let (mut low, mut high) = (value & self.low_mask, value >> self.low_bits);
        for pair in self.keys.chunks_exact(2) {
            high ^= mix(low ^ pair[0]) & self.high_mask;
            low ^= mix(high ^ pair[1]) & self.low_mask;
        }
        high << self.low_bits | low
    }

    /// Where the positions from `first` on are sent; the same as [`get`](Self::get), several at once.
    pub fn fill(&self, first: u64, out: &mut [u64]) {
        const LANES: usize = 8;
        let mut position = first;
        let mut groups = out.chunks_exact_mut(LANES);
        for group in &mut groups {
            let mut values: [u64; LANES] = std::array::from_fn(|lane| position + lane as u64);
            values = values.map(|value| self.walk(value));
            for (slot, value) in group.iter_mut().zip(values) {
                *slot = if value < self.n { value } else { self.get(value) };
            }
            position += LANES as u64;
        }
        for slot in groups.into_remainder() {
            *slot = self.get(position);
            position += 1;
        }
    }
}
