//! Label noise: the study of Mahajan et al. 2018, section 3.1.2.
//!
//! Each label of each image, independently and with probability p, is replaced by one drawn from the
//! marginal distribution of the labels, and never by a label that the image has or was given before:
//! a replacement always is wrong, and the number of labels stays. Where no other label is left it
//! stays and is counted. Everything is a pure function of (seed, sample, slot), slot being the place
//! in the ascending list of the image's labels.

use crate::epoch::{hash, unit};
use crate::{Error, Result};

const CHOICE: u64 = 3;
const DRAW: u64 = 4;

/// How labels are replaced.
#[derive(Debug, Clone)]
pub struct LabelNoise {
    share: f64,
    seed: u64,
    /// Images with a smaller label: the marginal distribution, cumulated.
    before: Vec<u64>,
}

/// What became of some labels.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NoiseTally {
    /// Labels seen.
    pub num_labels: u64,
    /// Labels replaced.
    pub num_replaced: u64,
    /// Labels that were to be replaced and stayed, since no other was left.
    pub num_stayed: u64,
}

impl LabelNoise {
    /// Replaces a `share` of the labels, from 0 to 1; `counts[l]` is the number of images with label l.
    pub fn new(counts: &[u64], share: f64, seed: u64) -> Result<Self> {
        if !(0.0..=1.0).contains(&share) {
            return Err(Error::usage(format!(
                "label noise: expected a share from 0 to 1, got {share}"
            )));
        }
        let mut before = Vec::with_capacity(counts.len() + 1);
        let mut total = 0_u64;
        before.push(0);
        for &count in counts {
            total = total
                .checked_add(count)
                .ok_or_else(|| Error::usage("label noise: the counts of the labels overflow"))?;
            before.push(total);
        }
        Ok(Self { share, seed, before })
    }

    /// Replaces labels of `sample`, which are distinct and ascending, in place; the new ones are in
    /// the slots of the old.
    pub fn apply(&self, sample: u64, labels: &mut [u32], tally: &mut NoiseTally) -> Result<()> {
        let num_known = self.before.len() as u64 - 1;
        if let Some(&label) = labels.iter().find(|&&label| u64::from(label) >= num_known) {
            return Err(Error::data(format!(
                "label noise: sample {sample} has label {label}, but there are {num_known} labels"
            )));
        }
        tally.num_labels += labels.len() as u64;

        // A label must not come twice in a sample, so those drawn are taken too.
        let mut taken = labels.to_vec();
        for (slot, label) in (0_u64..).zip(labels.iter_mut()) {
            if unit(hash([CHOICE, self.seed, sample, slot])) >= self.share {
                continue;
            }
            match self.draw(hash([DRAW, self.seed, sample, slot]), &taken) {
                Some(drawn) => {
                    *label = drawn;
                    taken.insert(taken.partition_point(|&other| other < drawn), drawn);
                    tally.num_replaced += 1;
                }
                None => tally.num_stayed += 1,
            }
        }
        Ok(())
    }

    /// A label drawn in proportion to its count, none of the ascending `taken`.
    fn draw(&self, bits: u64, taken: &[u32]) -> Option<u32> {
        let count = |label: u32| self.before[label as usize + 1] - self.before[label as usize];
        let total = self.before[self.before.len() - 1];
        let left = total - taken.iter().map(|&label| count(label)).sum::<u64>();
        if left == 0 {
            return None;
        }
        // The upper half of a product of 64 bits each: uniform to within 2^-64 of the total.
        let mut place = ((u128::from(bits) * u128::from(left)) >> 64) as u64;
        for &label in taken {
            if place >= self.before[label as usize] {
                place += count(label);
            }
        }
        Some((self.before.partition_point(|&before| before <= place) - 1) as u32)
    }
}
