//! The order of an epoch without a list of it.
//!
//! Sample `i` has a repeat factor r(i), 1 where none is given. An epoch shows it about r(i) times, in
//! a pseudo-random order, and everything is a pure function of (seed, epoch, position): any position
//! is reached at once, whatever was asked before.
//!
//! *Rounding.* Samples are taken in blocks of 64. With S the running sum of the factors in a block and
//! u = hash(seed, epoch, block) in [0, 1), sample i appears floor(S_i + u) - floor(S_(i-1) + u) times:
//! its expectation is exactly r(i), and the total of a block varies by at most one between epochs.
//! One number a block, the running total before it, is kept for the epoch in use.
//!
//! *Order.* Position j of an epoch of n is sent through a permutation of 0..n: a Feistel network over
//! the next power of two whose rounds are keyed by (seed, epoch), walked until it falls below n (Black
//! and Rogaway 2002). What comes out is a place in the list of repeated samples.
//!
//! The stream of all epochs has no end; a batch may span two of them.

use std::sync::{Arc, Mutex, PoisonError};

use crate::{Error, Result};

/// Samples that are rounded together.
pub const BLOCK: usize = 64;
/// The largest repeat factor.
pub const MAX_FACTOR: f32 = 16_777_216.0;
const ROUNDS: usize = 6;
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;
/// What the hashes are for, so that they share no numbers.
const ROUNDING: u64 = 1;
const PERMUTATION: u64 = 2;

/// The finaliser of SplitMix64 (Steele, Lea and Flood 2014).
#[inline]
pub(crate) fn mix(z: u64) -> u64 {
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// A hash of some words, the first of which says what it is for.
#[inline]
pub(crate) fn hash<const N: usize>(words: [u64; N]) -> u64 {
    words.iter().fold(0, |state: u64, &word| mix(state.wrapping_add(GOLDEN) ^ word))
}

/// The upper 53 bits as a number in [0, 1).
#[inline]
pub(crate) fn unit(bits: u64) -> f64 {
    (bits >> 11) as f64 * (1.0 / 9_007_199_254_740_992.0)
}

/// A permutation of 0..n, computed position by position.
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
        let bits = 64 - n.saturating_sub(1).leading_zeros();
        let low_bits = bits.div_ceil(2);
        let mut keys = [0; ROUNDS];
        for (round, key) in keys.iter_mut().enumerate() {
            *key = hash([PERMUTATION, seed, epoch, round as u64]);
        }
        let high_mask = (1_u64 << (bits - low_bits)) - 1;
        Self { n, low_bits, low_mask: (1_u64 << low_bits) - 1, high_mask, keys }
    }

    /// Where `position`, which is below n, is sent.
    #[inline]
    pub fn get(&self, position: u64) -> u64 {
        let mut value = position;
        loop {
            let (mut low, mut high) = (value & self.low_mask, value >> self.low_bits);
            for pair in self.keys.chunks_exact(2) {
                high ^= mix(low ^ pair[0]) & self.high_mask;
                low ^= mix(high ^ pair[1]) & self.low_mask;
            }
            value = high << self.low_bits | low;
            if value < self.n {
                return value;
            }
        }
    }
}

/// What one epoch needs beside the factors.
#[derive(Debug)]
struct Epoch {
    number: u64,
    /// Places in the list of repeated samples before each block, and after the last.
    before: Vec<u64>,
    permutation: Permutation,
}

#[derive(Debug, Default)]
struct Memory {
    /// Positions before each epoch that was looked at, from epoch 0.
    starts: Vec<u64>,
    /// The two epochs used last: a batch may span two.
    epochs: Vec<Arc<Epoch>>,
}

/// The stream of all epochs over some samples.
#[derive(Debug)]
pub struct EpochOrder {
    num_samples: u64,
    seed: u64,
    factors: Option<Vec<f32>>,
    /// Sum of the factors of each block.
    sums: Vec<f64>,
    memory: Mutex<Memory>,
}

impl EpochOrder {
    /// An order over samples 0..`num_samples`, each once an epoch, or `factors[i]` times on average.
    ///
    /// Factors are finite and from 0 to [`MAX_FACTOR`], as many as there are samples, and add up to
    /// at least 1.
    pub fn new(num_samples: u64, factors: Option<Vec<f32>>, seed: u64) -> Result<Self> {
        if num_samples == 0 {
            return Err(Error::usage("an epoch order needs at least one sample"));
        }
        if num_samples > 1 << 48 {
            return Err(Error::usage(format!(
                "an epoch order over {num_samples} samples: too many"
            )));
        }
        let mut sums = Vec::new();
        if let Some(factors) = &factors {
            check(factors, num_samples)?;
            sums = factors.chunks(BLOCK).map(sum).collect();
        }
        let memory = Mutex::new(Memory { starts: vec![0], epochs: Vec::new() });
        Ok(Self { num_samples, seed, factors, sums, memory })
    }

    /// Number of samples in the index, shown or not.
    pub fn num_samples(&self) -> u64 {
        self.num_samples
    }

    /// Positions in epoch `epoch`.
    pub fn epoch_length(&self, epoch: u64) -> u64 {
        if self.factors.is_none() {
            return self.num_samples;
        }
        let block_length = |(block, &sum): (usize, &f64)| (sum + self.offset(epoch, block)) as u64;
        self.sums.iter().enumerate().map(block_length).sum()
    }

    /// A hash of everything that determines the order.
    pub fn fingerprint(&self) -> String {
        let mut hasher = xxhash_rust::xxh3::Xxh3::new();
        hasher.update(b"wsl epoch order 1");
        hasher.update(&self.num_samples.to_le_bytes());
        hasher.update(&self.seed.to_le_bytes());
        for factor in self.factors.iter().flatten() {
            hasher.update(&factor.to_bits().to_le_bytes());
        }
        format!("{:032x}", hasher.digest128())
    }

    /// Writes the samples at positions `start`.. of the stream to `out`.
    pub fn fill(&self, start: u64, out: &mut [i64]) -> Result<()> {
        let end = u64::try_from(out.len()).ok().and_then(|length| start.checked_add(length));
        if end.is_none_or(|end| end > 1 << 62) {
            return Err(Error::usage(format!("position {start} of an epoch order: too far")));
        }
        let mut position = start;
        let mut rest = out;
        while !rest.is_empty() {
            let (epoch, first, length) = self.epoch_at(position);
            let offset = position - first;
            let take = (length - offset).min(rest.len() as u64) as usize;
            let (now, later) = rest.split_at_mut(take);
            self.fill_within(epoch, length, offset, now);
            position += take as u64;
            rest = later;
        }
        Ok(())
    }

    fn fill_within(&self, number: u64, length: u64, offset: u64, out: &mut [i64]) {
        let Some(factors) = &self.factors else {
            let permutation = Permutation::new(length, self.seed, number);
            for (place, sample) in (offset..).zip(out) {
                *sample = permutation.get(place) as i64;
            }
            return;
        };
        let epoch = self.epoch(number);
        for (place, sample) in (offset..).zip(out) {
            let place = epoch.permutation.get(place);
            let block = epoch.before.partition_point(|&before| before <= place) - 1;
            *sample = self.within(factors, &epoch, block, place - epoch.before[block]) as i64;
        }
    }

    /// The sample at `place` in the list of a block's repeated samples.
    fn within(&self, factors: &[f32], epoch: &Epoch, block: usize, place: u64) -> u64 {
        let first = block * BLOCK;
        let offset = self.offset(epoch.number, block);
        let mut total = 0.0;
        for (sample, &factor) in (first as u64..).zip(&factors[first..]) {
            total += f64::from(factor);
            if (total + offset) as u64 > place {
                return sample;
            }
        }
        self.num_samples - 1 // not reached: `place` is below the floor of the block's sum
    }

    fn offset(&self, epoch: u64, block: usize) -> f64 {
        unit(hash([ROUNDING, self.seed, epoch, block as u64]))
    }

    /// The epoch of a position, the first position of that epoch, and its length.
    fn epoch_at(&self, position: u64) -> (u64, u64, u64) {
        if self.factors.is_none() {
            let number = position / self.num_samples;
            return (number, number * self.num_samples, self.num_samples);
        }
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let known = memory.starts.len() - 1;
            let end = memory.starts[known];
            if position < end {
                break;
            }
            let length = self.epoch_length(known as u64);
            memory.starts.push(end + length);
        }
        let number = memory.starts.partition_point(|&start| start <= position) - 1;
        let first = memory.starts[number];
        (number as u64, first, memory.starts[number + 1] - first)
    }

    fn epoch(&self, number: u64) -> Arc<Epoch> {
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(epoch) = memory.epochs.iter().find(|epoch| epoch.number == number) {
            return epoch.clone();
        }
        let mut before = Vec::with_capacity(self.sums.len() + 1);
        let mut total = 0;
        before.push(0);
        for (block, &sum) in self.sums.iter().enumerate() {
            total += (sum + self.offset(number, block)) as u64;
            before.push(total);
        }
        let permutation = Permutation::new(total, self.seed, number);
        let epoch = Arc::new(Epoch { number, before, permutation });
        if memory.epochs.len() == 2 {
            memory.epochs.remove(0);
        }
        memory.epochs.push(epoch.clone());
        epoch
    }
}

fn sum(factors: &[f32]) -> f64 {
    factors.iter().fold(0.0, |total, &factor| total + f64::from(factor))
}

fn check(factors: &[f32], num_samples: u64) -> Result<()> {
    if factors.len() as u64 != num_samples {
        return Err(Error::usage(format!(
            "repeat factors: expected one for each of {num_samples} samples, got {}",
            factors.len()
        )));
    }
    let wrong = |factor: &f32| !(0.0..=MAX_FACTOR).contains(factor);
    if let Some(sample) = factors.iter().position(wrong) {
        return Err(Error::usage(format!(
            "repeat factors: sample {sample} has {}; expected a number from 0 to {MAX_FACTOR}",
            factors[sample]
        )));
    }
    let total: f64 = factors.chunks(BLOCK).map(sum).sum();
    if total < 1.0 {
        return Err(Error::usage(format!(
            "repeat factors: they add up to {total}, so an epoch would be empty; is anything in the \
             index labelled?"
        )));
    }
    Ok(())
}
