//! The order of an epoch without a list of it.
//!
//! Sample `i` has a repeat factor r(i), 1 where none is given. An epoch shows it about r(i) times, in
//! a pseudo-random order, and everything is a pure function of (seed, epoch, position): any position
//! is reached at once, whatever was asked before.
//!
//! *Rounding.* Samples are taken in blocks of 64. With S the running sum of the factors in a block and
//! u = hash(seed, epoch, block) in [0, 1), sample i appears floor(S_i + u) - floor(S_(i-1) + u) times:
//! its expectation is exactly r(i), and the total of a block varies by at most one between epochs.
//! Where each block begins is kept for the epoch in use, in about four bytes ([`Starts`]).
//!
//! *Order.* Position j of an epoch of n is sent through a permutation of 0..n ([`Permutation`]), or
//! through windows of shards ([`Window`]). What comes out is a place in the list of repeated samples.
//!
//! The stream of all epochs has no end; a batch may span two of them.

mod factors;
pub mod noise;
mod permutation;
pub mod resample;
mod starts;
mod window;

use std::sync::{Arc, Mutex, TryLockError};

pub use factors::Factors;
pub use permutation::Permutation;
pub use window::Window;

use crate::{Error, Result};
use starts::Starts;
use window::Windows;

/// Samples that are rounded together.
pub const BLOCK: usize = 64;
/// The largest repeat factor.
pub const MAX_FACTOR: f32 = 16_777_216.0;
/// Positions that are looked up together, so that their misses of the cache overlap.
const LANES: usize = 128;
/// Positions up to which files of factors are read and not mapped.
const FEW: usize = 4096;
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

/// A hash of some words, the first of which is its purpose.
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
    /// Where blocks begin in the list of repeated samples; `None` without factors.
    starts: Option<Starts>,
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
///
/// ```
/// use wsl_core::epoch::EpochOrder;
///
/// let order = EpochOrder::new(10, None, 42, None)?;
/// let mut epoch = [0; 10];
/// order.fill(0, &mut epoch)?;
/// // What stands at a position does not depend on what was asked before.
/// let mut third = [0];
/// order.fill(2, &mut third)?;
/// assert_eq!(third[0], epoch[2]);
/// epoch.sort();
/// assert_eq!(epoch, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
/// # Ok::<(), wsl_core::Error>(())
/// ```
#[derive(Debug)]
pub struct EpochOrder {
    num_samples: u64,
    seed: u64,
    factors: Option<Factors>,
    window: Option<Window>,
    memory: Mutex<Memory>,
}

impl EpochOrder {
    /// An order over samples 0..`num_samples`, each once an epoch, or as often as by `factors`.
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
        if let Some((factors, starts)) = self.factors.as_ref().zip(epoch.starts.as_ref()) {
            let few = out.len() <= FEW;
            let look = |some| self.samples_at(factors, starts, epoch.rounding, some, few);
            out.chunks_mut(LANES).try_for_each(look)?;
        }
        Ok(())
    }

    /// Turns places in the list of repeated samples into samples, step by step for all of them, so that
    /// what a step needs was asked of memory the step before.
    fn samples_at(
        &self,
        factors: &Factors,
        starts: &Starts,
        rounding: u64,
        places: &mut [u64],
        few: bool,
    ) -> Result<()> {
        let mut blocks = [0; LANES];
        let mut buffer = [0; 4 * BLOCK];
        places.iter().for_each(|&place| starts.prefetch_mark(place));
        places.iter().for_each(|&place| starts.prefetch_starts(place));
        for (place, block) in places.iter_mut().zip(&mut blocks) {
            let found = starts.find(*place, factors, few, &mut buffer)?;
            (*block, *place) = found.ok_or_else(changed)?;
            if !few {
                factors.prefetch(*block);
            }
        }
        for (place, &block) in places.iter_mut().zip(&blocks) {
            let mut values = factors.block(block, self.size_of(block), few, &mut buffer)?;
            let offset = offset(rounding, block);
            // floor(x) > p is x >= p + 1.
            let wanted = (*place + 1) as f64;
            let mut total = 0.0;
            let found = values.position(|factor| {
                total += f64::from(factor);
                total + offset >= wanted
            });
            *place = (block * BLOCK + found.ok_or_else(changed)?) as u64;
        }
        Ok(())
    }

    /// Samples of a block.
    fn size_of(&self, block: usize) -> usize {
        BLOCK.min(self.num_samples as usize - block * BLOCK)
    }

    /// The place of a sample in the epoch's list of repeated samples.
    fn place_of(
        &self,
        factors: &Factors,
        starts: &Starts,
        rounding: u64,
        sample: u64,
    ) -> Result<u64> {
        let (block, inside) = (sample as usize / BLOCK, sample as usize % BLOCK);
        let mut buffer = [0; 4 * BLOCK];
        let values = factors.block(block, inside, true, &mut buffer)?;
        let total = values.fold(0.0, |total, factor| total + f64::from(factor));
        let part = if inside == 0 { 0 } else { (total + offset(rounding, block)) as u64 };
        Ok(starts.place_of(block, factors)? + part)
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
        let factors = self.factors.as_ref();
        let starts = factors.map(|factors| Starts::new(factors, rounding)).transpose()?;
        let length = starts.as_ref().map_or(self.num_samples, |starts| starts.length);
        let shuffle = match &self.window {
            None => Shuffle::Whole(Permutation::new(length, self.seed, number)),
            Some(window) => {
                let place_of = |sample| match factors.zip(starts.as_ref()) {
                    None => Ok(sample),
                    Some(_) if sample == self.num_samples => Ok(length),
                    Some((factors, starts)) => self.place_of(factors, starts, rounding, sample),
                };
                Shuffle::Windows(Windows::new(window, self.seed, number, place_of)?)
            }
        };
        Ok(Epoch { number, length, starts, rounding, shuffle })
    }

    /// What `look` makes of what is remembered; `None` where another thread has locked it and does
    /// not unlock it, as in a process that was forked at that moment.
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
    (sum + offset(rounding, block)) as i64 as u64
}

fn changed() -> Error {
    Error::data(
        "the repeat factors are not those that their sums were made of; write the file of factors \
         again, and never alter one in place",
    )
}
