//! Where the blocks of an epoch begin in its list of repeated samples.
//!
//! For each group of blocks the table keeps the lower 32 bits of the place at which it begins, and for
//! every 2^shift-th place the group that contains it. A look-up goes from a place to the groups
//! that contain the marks before and after it, and seeks between them, about [`NEIGHBOURS`] groups
//! however uneven the factors are. What begins between two marks is distinguished by lower bits, as
//! marks are at most 2^31 apart and no group is longer than that.
//!
//! A group is one block where the table takes at most 64 MiB so (a billion samples), else up to 16.

use super::factors::{Buffer, Factors};
use super::{Error, Result, block_length};
use crate::hints::prefetch;

/// Groups between two marks, on average.
const NEIGHBOURS: f64 = 16.0;
/// Above so many groups blocks are put together.
const MAX_GROUPS: usize = 1 << 24;
/// Blocks of a group at most.
const MAX_STRIDE: usize = 16;
/// Places of a group, and between two marks, at most.
const MAX_LENGTH: f64 = (1_u64 << 31) as f64;

/// The starts of all groups of blocks.
#[derive(Debug)]
pub(super) struct Starts {
    /// Blocks of a group.
    stride: usize,
    /// The lower 32 bits of the place at which each group begins.
    starts: Vec<u32>,
    /// Marks are at the multiples of 2^shift.
    shift: u32,
    /// The group that contains each mark, and the last group once more.
    holders: Vec<u32>,
    /// Places in all.
    pub(super) length: u64,
    rounding: u64,
}

impl Starts {
    /// The starts that `rounding`, a hash of seed and epoch, gives the blocks of `factors`.
    pub(super) fn new(factors: &Factors, rounding: u64) -> Result<Self> {
        Self::with_groups(factors, rounding, MAX_GROUPS)
    }

    /// The same with blocks put together from `max_groups` groups on.
    pub(super) fn with_groups(factors: &Factors, rounding: u64, max_groups: usize) -> Result<Self> {
        let stride = stride_of(factors, max_groups);
        let groups = factors.num_blocks().div_ceil(stride);
        let last = u32::try_from(groups.saturating_sub(1)).map_err(|_| {
            Error::usage("repeat factors: so many samples do not fit the table of an epoch's order")
        })?;

        // A mark for every few groups on average, so that a look-up seeks among a few, however
        // uneven they are.
        let spread = (NEIGHBOURS * factors.total() / groups as f64).clamp(1.0, MAX_LENGTH);
        let shift = spread.log2() as u32;
        let mut starts = Vec::with_capacity(groups);
        let mut holders: Vec<u32> =
            Vec::with_capacity((factors.total() as u64 >> shift) as usize + 2);
        let mut length = 0_u64;
        factors.each_sum(|block, sum| {
            if block % stride == 0 {
                starts.push(length as u32);
            }
            length += block_length(sum, rounding, block);
            while (holders.len() as u64) << shift < length {
                holders.push((block / stride) as u32);
            }
        })?;
        holders.push(last);
        Ok(Self { stride, starts, shift, holders, length, rounding })
    }

    /// Makes the processor fetch the marks around `place`.
    #[inline]
    pub(super) fn prefetch_mark(&self, place: u64) {
        prefetch(&self.holders, (place >> self.shift) as usize);
    }

    /// Makes the processor fetch the starts among which `place` is sought.
    #[inline]
    pub(super) fn prefetch_starts(&self, place: u64) {
        let low = self.holders[(place >> self.shift) as usize] as usize;
        prefetch(&self.starts, low);
        prefetch(&self.starts, low + 16);
    }

    /// The block that contains `place`, which is below the length, and the places of the block
    /// before it.
    #[inline]
    pub(super) fn find(
        &self,
        place: u64,
        factors: &Factors,
        few: bool,
        buffer: &mut Buffer,
    ) -> Result<Option<(usize, u64)>> {
        let at = (place >> self.shift) as usize;
        let (low, high) = (self.holders[at] as usize, self.holders[at + 1] as usize);
        let mark = ((at as u64) << self.shift) as u32;
        let inside = (place as u32).wrapping_sub(mark);
        let between = &self.starts[low + 1..=high];
        let group = low + between.partition_point(|start| start.wrapping_sub(mark) <= inside);
        let left = u64::from((place as u32).wrapping_sub(self.starts[group]));
        if self.stride == 1 {
            return Ok(Some((group, left)));
        }
        self.find_in_group(group, left, factors, few, buffer)
    }

    fn find_in_group(
        &self,
        group: usize,
        mut left: u64,
        factors: &Factors,
        few: bool,
        buffer: &mut Buffer,
    ) -> Result<Option<(usize, u64)>> {
        let first = group * self.stride;
        let number = self.stride.min(factors.num_blocks() - first);
        for (block, sum) in (first..).zip(factors.sums(first, number, few, buffer)?) {
            let length = block_length(sum, self.rounding, block);
            if left < length {
                return Ok(Some((block, left)));
            }
            left -= length;
        }
        Ok(None)
    }

    /// The place at which a block begins.
    pub(super) fn place_of(&self, block: usize, factors: &Factors) -> Result<u64> {
        let group = block / self.stride;
        let marks = &self.holders[..self.holders.len() - 1];
        // The last mark before the group; before the first mark everything begins at 0.
        let start = match marks.partition_point(|&holder| (holder as usize) < group) {
            0 => 0,
            after => {
                let mark = (after as u64 - 1) << self.shift;
                mark + u64::from(self.starts[group].wrapping_sub(mark as u32))
            }
        };
        let first = group * self.stride;
        let mut buffer: Buffer = [0; size_of::<Buffer>()];
        let sums = factors.sums(first, block - first, true, &mut buffer)?;
        let lengths = (first..).zip(sums).map(|(at, sum)| block_length(sum, self.rounding, at));
        Ok(start + lengths.sum::<u64>())
    }
}

/// Blocks of a group: as many as the size of the table asks and the length of a group allows.
fn stride_of(factors: &Factors, max_groups: usize) -> usize {
    let mut stride = 1;
    while stride < MAX_STRIDE
        && factors.num_blocks().div_ceil(stride) > max_groups
        && (2 * stride) as f64 * (factors.largest_sum() + 1.0) < MAX_LENGTH
    {
        stride *= 2;
    }
    stride
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(values: Vec<f32>, max_groups: usize, rounding: u64) {
        let Ok(factors) = Factors::in_memory(values.clone(), values.len() as u64) else { return };
        let starts = Starts::with_groups(&factors, rounding, max_groups).unwrap();
        let mut lengths = Vec::new();
        factors.each_sum(|block, sum| lengths.push(block_length(sum, rounding, block))).unwrap();
        assert_eq!(starts.length, lengths.iter().sum::<u64>());
        let mut before = 0;
        for (block, &length) in lengths.iter().enumerate() {
            assert_eq!(starts.place_of(block, &factors).unwrap(), before);
            let mut looked = vec![0, length / 2, length.saturating_sub(1)];
            looked.retain(|&left| left < length);
            for left in looked {
                for few in [false, true] {
                    let mut buffer: Buffer = [0; size_of::<Buffer>()];
                    let found = starts.find(before + left, &factors, few, &mut buffer).unwrap();
                    assert_eq!(found, Some((block, left)));
                }
            }
            before += length;
        }
    }

    proptest! {
        #[test]
        fn every_place_is_found_in_its_block(
            stretches in prop::collection::vec(
                (prop_oneof![Just(0.0_f32), 0.0_f32..3.0, 0.0_f32..1e-3, 1e3_f32..1.6e7], 1_usize..400),
                1..12,
            ),
            max_groups in prop_oneof![Just(1_usize), Just(7), Just(1 << 24)],
            rounding in any::<u64>(),
        ) {
            let values = stretches.iter().flat_map(|&(value, number)| vec![value; number]).collect();
            check(values, max_groups, rounding);
        }
    }

    #[test]
    fn the_longest_blocks_stay_apart() {
        check(vec![super::super::MAX_FACTOR; 64 * 40], 1, 5);
        check([vec![0.0; 64 * 900], vec![super::super::MAX_FACTOR; 64 * 9]].concat(), 1 << 24, 5);
        check([vec![1e-6; 64 * 900], vec![1.0; 1], vec![0.0; 64 * 50]].concat(), 1 << 24, 1 << 63);
    }
}
