//! A set of samples that is small where samples are ordinals.
//!
//! Samples are split into blocks of 65,536; a block is a sorted list of up to 4,096 low halves, or
//! a bitmap of 8 KiB (the two kinds of container of Chambi, Lemire, Kaser, Godin 2016, "Better
//! bitmap performance with Roaring bitmaps"). A billion ordinals take 125 MB in any order.

use std::collections::BTreeMap;

/// The most samples of a block that is a list.
pub(super) const MAX_LISTED: usize = 4096;
/// The 64-bit words of a bitmap.
pub(super) const WORDS: usize = (1 << 16) / 64;

/// The samples that share all but their low 16 bits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Block {
    /// Ascending, at most [`MAX_LISTED`].
    List(Vec<u16>),
    /// [`WORDS`] words with more than [`MAX_LISTED`] bits set.
    Bits(Box<[u64]>),
}

impl Block {
    fn contains(&self, low: u16) -> bool {
        match self {
            Self::List(list) => list.binary_search(&low).is_ok(),
            Self::Bits(words) => words[usize::from(low) / 64] >> (low % 64) & 1 == 1,
        }
    }

    /// Adds `low`; false where it was there.
    fn insert(&mut self, low: u16) -> bool {
        match self {
            Self::List(list) => match list.binary_search(&low) {
                Ok(_) => return false,
                Err(_) if list.len() == MAX_LISTED => {
                    let mut words = vec![0u64; WORDS].into_boxed_slice();
                    for &low in list.iter().chain([&low]) {
                        words[usize::from(low) / 64] |= 1 << (low % 64);
                    }
                    *self = Self::Bits(words);
                }
                Err(place) => list.insert(place, low),
            },
            Self::Bits(words) => {
                let (word, bit) = (&mut words[usize::from(low) / 64], 1 << (low % 64));
                if *word & bit != 0 {
                    return false;
                }
                *word |= bit;
            }
        }
        true
    }

    fn values(&self) -> Vec<u16> {
        match self {
            Self::List(list) => list.clone(),
            Self::Bits(_) => (0..=u16::MAX).filter(|&low| self.contains(low)).collect(),
        }
    }
}

/// A set of samples.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct SampleSet {
    blocks: BTreeMap<u64, Block>,
}

impl SampleSet {
    /// Adds `sample`; false where it was there.
    pub(super) fn insert(&mut self, sample: u64) -> bool {
        let block = self.blocks.entry(sample >> 16).or_insert_with(|| Block::List(Vec::new()));
        block.insert(sample as u16)
    }

    pub(super) fn contains(&self, sample: u64) -> bool {
        self.blocks.get(&(sample >> 16)).is_some_and(|block| block.contains(sample as u16))
    }

    /// The smallest sample that is in both.
    pub(super) fn first_common(&self, other: &Self) -> Option<u64> {
        other.blocks.iter().find_map(|(&high, block)| {
            let own = self.blocks.get(&high)?;
            let low = block.values().into_iter().find(|&low| own.contains(low))?;
            Some(high << 16 | u64::from(low))
        })
    }

    pub(super) fn union(&mut self, other: &Self) {
        for (&high, block) in &other.blocks {
            match self.blocks.get_mut(&high) {
                Some(own) => block.values().into_iter().for_each(|low| {
                    own.insert(low);
                }),
                None => {
                    self.blocks.insert(high, block.clone());
                }
            }
        }
    }

    /// The blocks by their samples' high 48 bits, ascending.
    pub(super) fn blocks(&self) -> impl ExactSizeIterator<Item = (u64, &Block)> {
        self.blocks.iter().map(|(&high, block)| (high, block))
    }

    /// Puts in a block that was checked to keep what [`Block`] promises.
    pub(super) fn put_block(&mut self, high: u64, block: Block) {
        self.blocks.insert(high, block);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_set_of_samples_is_a_set() {
        let mut state = 1u64;
        let (mut set, mut twin) = (SampleSet::default(), BTreeSet::new());
        for round in 0..60_000u64 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let sample = if round % 8 == 0 { state } else { state >> 47 };
            assert_eq!(set.insert(sample), twin.insert(sample));
        }
        assert!(twin.iter().all(|&sample| set.contains(sample)));
        assert!(set.blocks().any(|(_, block)| matches!(block, Block::Bits(_))));
        assert!(!set.contains(u64::MAX - 1));
    }

    #[test]
    fn a_union_holds_both_and_the_smallest_common_sample_is_found() {
        let set = |samples: &mut dyn Iterator<Item = u64>| {
            let mut set = SampleSet::default();
            samples.for_each(|sample| assert!(set.insert(sample)));
            set
        };
        let (mut even, odd) = (set(&mut (0..20_000).step_by(2)), set(&mut (1..20_000).step_by(2)));
        assert_eq!(even.first_common(&odd), None);
        even.union(&odd);
        assert_eq!(even, set(&mut (0..20_000)));
        assert_eq!(even.first_common(&odd), Some(1));
    }
}
