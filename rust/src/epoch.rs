//! The order of an epoch without a list of it.
//!
//! Sample `i` has a repeat factor r(i), 1 where none is given. An epoch shows it about r(i) times, in
//! a pseudo-random order, and everything is a pure function of (seed, epoch, position): any position
//! is reached at once, whatever was asked before.
//!
//! *Rounding.* Samples are taken in blocks of 64. With S the running sum of the factors in a block and
//! u = hash(seed, epoch, block) in [0, 1), sample i appears floor(S_i + u) - floor(S_(i-1) + u) times:
//! its expectation is exactly r(i), and the total of a block varies by at most one between epochs.
//! One number for 16 blocks, the running total before them, is kept for the epoch in use.
//!
//! *Order.* Position j of an epoch of n is sent through a permutation of 0..n ([`Permutation`]), or
//! through windows of shards ([`Window`]). What comes out is a place in the list of repeated samples.
//!
//! The stream of all epochs has no end; a batch may span two of them.

mod factors;
mod permutation;
mod window;

use std::sync::{Arc, Mutex, TryLockError};

pub use factors::Factors;
pub use permutation::Permutation;
pub use window::Window;

use crate::{Error, Result};
use window::Windows;

/// Samples that are rounded together.
pub const BLOCK: usize = 64;
/// The largest repeat factor.
pub const MAX_FACTOR: f32 = 16_777_216.0;
/// Blocks between two running totals that are kept.
const STRIDE: usize = 16;
/// Positions that are looked up together, so that their misses of the cache overlap.
const LANES: usize = 128;
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;
/// What the hashes of the rounding begin with.
const ROUNDING: u64 = 1;

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
    words.iter().fold(0, |state: u64, &word| hash_on(state, word))
}

/// The hash of one word more.
#[inline]
fn hash_on(state: u64, word: u64) -> u64 {
    mix(state.wrapping_add(GOLDEN) ^ word)
}

/// The upper 53 bits as a number in [0, 1).
#[inline]
pub(crate) fn unit(bits: u64) -> f64 {
    (bits >> 11) as f64 * (1.0 / 9_007_199_254_740_992.0)
}

/// What one epoch needs beside the factors.
#[derive(Debug)]
struct Epoch {
    number: u64,
    /// Positions.
    length: u64,
    /// Places in the list of repeated samples before each [`STRIDE`] blocks, and after the last.
    before: Vec<u64>,
    /// The hash of what is the same for the rounding of all blocks.
    rounding: u64,
    shuffle: Shuffle,
}

#[derive(Debug)]
enum Shuffle {
    Whole(Permutation),
    Windows(Windows),
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
    factors: Option<Factors>,
    window: Option<Window>,
    memory: Mutex<Memory>,
}

impl EpochOrder {
    /// An order over samples 0..`num_samples`, each once an epoch, or as often as `factors` say.
    pub fn new(
        num_samples: u64,
        factors: Option<Factors>,
        seed: u64,
        window: Option<Window>,
    ) -> Result<Self> {
        if num_samples == 0 {
            return Err(Error::usage("an epoch order needs at least one sample"));
        }
        if num_samples > 1 << 48 {
            return Err(Error::usage(format!(
                "an epoch order over {num_samples} samples: too many"
            )));
        }
        let memory = Mutex::new(Memory { starts: vec![0], epochs: Vec::new() });
        Ok(Self { num_samples, seed, factors, window, memory })
    }

    /// Number of samples in the index, shown or not.
    pub fn num_samples(&self) -> u64 {
        self.num_samples
    }

    /// Positions in epoch `epoch`.
    pub fn epoch_length(&self, epoch: u64) -> Result<u64> {
        match &self.factors {
            None => Ok(self.num_samples),
            Some(_) => Ok(self.epoch(epoch)?.length),
        }
    }

    /// A hash of everything that determines the order.
    pub fn fingerprint(&self) -> String {
        let mut hasher = xxhash_rust::xxh3::Xxh3::new();
        hasher.update(b"wsl epoch order 2");
        hasher.update(&self.num_samples.to_le_bytes());
        hasher.update(&self.seed.to_le_bytes());
        if let Some(factors) = &self.factors {
            hasher.update(b"factors");
            hasher.update(&factors.checksum.to_le_bytes());
        }
        if let Some(window) = &self.window {
            hasher.update(b"window");
            hasher.update(&(window.size() as u64).to_le_bytes());
            window.bounds().iter().for_each(|bound| hasher.update(&bound.to_le_bytes()));
        }
        format!("{:032x}", hasher.digest128())
    }

    /// Writes the samples at positions `start`.. of the stream to `out`.
    pub fn fill(&self, start: u64, out: &mut [u64]) -> Result<()> {
        let end = u64::try_from(out.len()).ok().and_then(|length| start.checked_add(length));
        if end.is_none_or(|end| end > 1 << 62) {
            return Err(Error::usage(format!("position {start} of an epoch order: too far")));
        }
        let mut position = start;
        let mut rest = out;
        while !rest.is_empty() {
            let (number, first, length) = self.epoch_at(position)?;
            let offset = position - first;
            let take = (length - offset).min(rest.len() as u64) as usize;
            let (now, later) = rest.split_at_mut(take);
            self.fill_within(number, offset, now)?;
            position += take as u64;
            rest = later;
        }
        Ok(())
    }

    fn fill_within(&self, number: u64, offset: u64, out: &mut [u64]) -> Result<()> {
        if self.factors.is_none() && self.window.is_none() {
            Permutation::new(self.num_samples, self.seed, number).fill(offset, out);
            return Ok(());
        }
        let epoch = self.epoch(number)?;
        match &epoch.shuffle {
            Shuffle::Whole(permutation) => permutation.fill(offset, out),
            Shuffle::Windows(windows) => windows.fill(offset, out),
        }
        if let Some(factors) = &self.factors {
            out.chunks_mut(LANES).try_for_each(|some| self.samples_at(factors, &epoch, some))?;
        }
        Ok(())
    }

    /// Turns places in the list of repeated samples into samples.
    fn samples_at(&self, factors: &Factors, epoch: &Epoch, places: &mut [u64]) -> Result<()> {
        let mut blocks = [0; LANES];
        let number = places.len();
        for (place, block) in places.iter().zip(&mut blocks) {
            *block = group_of(&epoch.before, *place, epoch.length);
            std::hint::black_box(factors.sum(*block * STRIDE));
        }
        for (place, block) in places.iter_mut().zip(&mut blocks) {
            let mut left = *place - epoch.before[*block];
            let mut at = *block * STRIDE;
            loop {
                let length = block_length(factors.sum(at), epoch.rounding, at);
                if left < length {
                    break;
                }
                left -= length;
                at += 1;
                if at == factors.num_blocks() {
                    return Err(changed());
                }
            }
            (*place, *block) = (left, at);
            std::hint::black_box(factors.get(at * BLOCK));
        }
        for (place, &block) in places.iter_mut().zip(&blocks[..number]) {
            *place = self.within(factors, epoch, block, *place)?;
        }
        Ok(())
    }

    /// The sample at `place` in the list of a block's repeated samples.
    #[inline]
    fn within(&self, factors: &Factors, epoch: &Epoch, block: usize, place: u64) -> Result<u64> {
        let first = block * BLOCK;
        let end = (first + BLOCK).min(self.num_samples as usize);
        let offset = offset(epoch.rounding, block);
        let mut total = 0.0;
        for sample in first..end {
            total += f64::from(factors.get(sample));
            if (total + offset) as u64 > place {
                return Ok(sample as u64);
            }
        }
        Err(changed())
    }

    /// The place of a sample in the epoch's list of repeated samples.
    fn place_of(&self, factors: &Factors, before: &[u64], rounding: u64, sample: u64) -> u64 {
        let block = sample as usize / BLOCK;
        let group = block / STRIDE;
        let whole = (group * STRIDE..block)
            .map(|at| block_length(factors.sum(at), rounding, at))
            .sum::<u64>();
        let mut total = 0.0;
        for earlier in block * BLOCK..sample as usize {
            total += f64::from(factors.get(earlier));
        }
        let inside = if (sample as usize).is_multiple_of(BLOCK) {
            0
        } else {
            (total + offset(rounding, block)) as u64
        };
        before[group] + whole + inside
    }

    /// The epoch of a position, the first position of that epoch, and its length.
    fn epoch_at(&self, position: u64) -> Result<(u64, u64, u64)> {
        if self.factors.is_none() {
            let number = position / self.num_samples;
            return Ok((number, number * self.num_samples, self.num_samples));
        }
        let mut starts = self.remembered(|memory| memory.starts.clone()).unwrap_or_else(|| vec![0]);
        let known = starts.len();
        while position >= starts[starts.len() - 1] {
            let length = self.epoch(starts.len() as u64 - 1)?.length;
            starts.push(starts[starts.len() - 1] + length);
        }
        if starts.len() > known {
            let all = starts.clone();
            self.remembered(|memory| {
                if all.len() > memory.starts.len() {
                    memory.starts = all;
                }
            });
        }
        let number = starts.partition_point(|&start| start <= position) - 1;
        Ok((number as u64, starts[number], starts[number + 1] - starts[number]))
    }

    fn epoch(&self, number: u64) -> Result<Arc<Epoch>> {
        let found = self.remembered(|memory| {
            memory.epochs.iter().find(|epoch| epoch.number == number).cloned()
        });
        if let Some(epoch) = found.flatten() {
            return Ok(epoch);
        }
        let epoch = Arc::new(self.make_epoch(number)?);
        self.remembered(|memory| {
            if memory.epochs.len() == 2 {
                memory.epochs.remove(0);
            }
            memory.epochs.push(epoch.clone());
        });
        Ok(epoch)
    }

    fn make_epoch(&self, number: u64) -> Result<Epoch> {
        let rounding = hash([ROUNDING, self.seed, number]);
        let (mut before, mut length) = (Vec::new(), self.num_samples);
        if let Some(factors) = &self.factors {
            length = 0;
            before.reserve_exact(factors.num_blocks() / STRIDE + 2);
            factors.each_sum(|block, sum| {
                if block % STRIDE == 0 {
                    before.push(length);
                }
                length += block_length(sum, rounding, block);
            })?;
            before.push(length);
        }
        let shuffle = match &self.window {
            None => Shuffle::Whole(Permutation::new(length, self.seed, number)),
            Some(window) => {
                let place_of = |sample| match &self.factors {
                    None => sample,
                    Some(_) if sample == self.num_samples => length,
                    Some(factors) => self.place_of(factors, &before, rounding, sample),
                };
                Shuffle::Windows(Windows::new(window, self.seed, number, place_of))
            }
        };
        Ok(Epoch { number, length, before, rounding, shuffle })
    }

    /// What `look` makes of what is remembered; `None` where another thread holds it and does not let
    /// go, as in a process that was forked at that moment.
    fn remembered<T>(&self, look: impl FnOnce(&mut Memory) -> T) -> Option<T> {
        for _ in 0..10_000 {
            match self.memory.try_lock() {
                Ok(mut memory) => return Some(look(&mut memory)),
                Err(TryLockError::Poisoned(error)) => {
                    return Some(look(&mut error.into_inner()));
                }
                Err(TryLockError::WouldBlock) => std::thread::yield_now(),
            }
        }
        None
    }
}

fn offset(rounding: u64, block: usize) -> f64 {
    unit(hash_on(rounding, block as u64))
}

/// How many repeated samples a block has.
#[inline]
fn block_length(sum: f64, rounding: u64, block: usize) -> u64 {
    (sum + offset(rounding, block)) as u64
}

/// The last entry of `before` that is at most `place`, sought from where it would be if factors were
/// spread evenly.
#[inline]
fn group_of(before: &[u64], place: u64, length: u64) -> usize {
    let groups = before.len() - 1;
    let mut low = (u128::from(place) * groups as u128 / u128::from(length)) as usize;
    let mut step = 1;
    while before[low] > place {
        low = low.saturating_sub(step);
        step *= 2;
    }
    let mut high = low + 1;
    step = 1;
    while high < groups && before[high] <= place {
        low = high;
        high = (high + step).min(groups);
        step *= 2;
    }
    low + before[low..high].partition_point(|&start| start <= place) - 1
}

fn changed() -> Error {
    Error::data(
        "the repeat factors are not those that their sums were made of; write the file of factors \
         again, and never alter one in place",
    )
}
