//! Windows of shards: an order that reads a few shards at a time.
//!
//! Shards are put in a pseudo-random order, anew in every epoch, and taken in windows of W. Within a
//! window all its samples are shuffled. So a disk or an object store sees W shards at a time, each
//! once, and what is near in the order comes from W shards drawn at random.

use super::permutation::Permutation;
use super::{Error, Result, hash};

const SHARDS: u64 = 3;
const WITHIN: u64 = 4;

/// Where shards begin, and how many make a window.
#[derive(Debug, Clone)]
pub struct Window {
    /// The first sample of each shard that is not empty, and the number of samples.
    bounds: Vec<u64>,
    size: usize,
}

impl Window {
    /// Windows of `size` shards; `first_samples` are those of the shards, ascending from 0.
    pub fn new(size: usize, first_samples: &[u64], num_samples: u64) -> Result<Self> {
        if size == 0 {
            return Err(Error::usage("window: expected at least one shard"));
        }
        let ascending = first_samples.windows(2).all(|pair| pair[0] <= pair[1]);
        if first_samples.first() != Some(&0) || !ascending {
            return Err(Error::usage(
                "window: the order has no shards to draw; it is made of an index with shards",
            ));
        }
        let mut bounds = first_samples.to_vec();
        bounds.push(num_samples);
        bounds.dedup();
        if bounds[bounds.len() - 1] != num_samples
            || bounds.windows(2).any(|pair| pair[0] > pair[1])
        {
            return Err(Error::usage("window: shards begin beyond the last sample"));
        }
        Ok(Self { bounds, size })
    }

    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// Where shards begin, and where the last ends.
    pub(super) fn bounds(&self) -> &[u64] {
        &self.bounds
    }
}

/// The windows of one epoch.
#[derive(Debug)]
pub(super) struct Windows {
    /// The place at which each shard begins in the list of repeated samples, in the epoch's order.
    places: Vec<u64>,
    /// The position at which each of them begins in the epoch, and the end.
    starts: Vec<u64>,
    size: usize,
    seed: u64,
    epoch: u64,
}

impl Windows {
    /// `place_of` gives the place of a sample in the epoch's list of repeated samples.
    pub(super) fn new(
        window: &Window,
        seed: u64,
        epoch: u64,
        mut place_of: impl FnMut(u64) -> Result<u64>,
    ) -> Result<Self> {
        let bounds: Vec<u64> =
            window.bounds.iter().map(|&sample| place_of(sample)).collect::<Result<_>>()?;
        let num_shards = bounds.len() - 1;
        let order =
            Permutation::keyed(num_shards as u64, |round| hash([SHARDS, seed, epoch, round]));
        let (mut places, mut starts, mut total) = (Vec::new(), vec![0], 0);
        for position in 0..num_shards as u64 {
            let shard = order.get(position) as usize;
            places.push(bounds[shard]);
            total += bounds[shard + 1] - bounds[shard];
            starts.push(total);
        }
        Ok(Self { places, starts, size: window.size, seed, epoch })
    }

    /// Writes the places that the positions from `first` on are sent to.
    pub(super) fn fill(&self, first: u64, out: &mut [u64]) {
        let mut rest = out;
        let mut position = first;
        while !rest.is_empty() {
            let shard = self.starts.partition_point(|&start| start <= position) - 1;
            let begin = shard / self.size * self.size;
            let end = (begin + self.size).min(self.places.len());
            let starts = &self.starts[begin..=end];
            let length = starts[starts.len() - 1] - starts[0];
            let number = (begin / self.size) as u64;

            // The permutation is keyed by the window, so that every position can be had without
            // those before it.
            let within = Permutation::keyed(length, |round| {
                hash([WITHIN, self.seed, self.epoch, number, round])
            });
            let left = starts[starts.len() - 1] - position;
            let (now, later) = rest.split_at_mut(left.min(rest.len() as u64) as usize);
            within.fill(position - starts[0], now);

            // The permutation is over the samples of the window; its shards need not be neighbours
            // in the index.
            for slot in now.iter_mut() {
                let inside = *slot + starts[0];
                let at = starts.partition_point(|&start| start <= inside) - 1;
                *slot = self.places[begin + at] + (inside - starts[at]);
            }
            position += now.len() as u64;
            rest = later;
        }
    }
}
