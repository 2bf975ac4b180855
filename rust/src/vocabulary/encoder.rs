//! Labels of tags, billions of times.
//!
//! The keys of all tags and their labels are side by side in one open-addressing table, half full
//! at most, so that a look-up is one step into memory.

use super::Labels;
use crate::hashtag::{Key, Tag};
use crate::{Error, Result};

/// From tags to labels.
#[derive(Debug, Clone)]
pub struct Encoder {
    slots: Vec<(Key, u32)>,
    arena: Vec<u8>,
}

/// The label of a free slot; no vocabulary has so many.
const FREE: u32 = u32::MAX;

/// The fewest slots, so that one is always free.
const FEWEST: usize = 64;

/// Tags that are looked up together.
const AHEAD: usize = 32;

impl Default for Encoder {
    fn default() -> Self {
        Self::for_tags(0)
    }
}

impl Encoder {
    fn for_tags(num_tags: usize) -> Self {
        let size = (2 * num_tags).next_power_of_two().max(FEWEST);
        Self { slots: vec![(Key::default(), FREE); size], arena: Vec::new() }
    }

    /// The encoder of all tags of `labels`, each of which may lead to one label only.
    pub(super) fn new(labels: &Labels) -> Result<Self> {
        let mut encoder = Self::for_tags(labels.num_tags());
        let mut some = Vec::with_capacity(AHEAD);
        for (label, entry) in (0..).zip(labels.iter()) {
            for tag in entry.tags.map(Tag::new) {
                some.push((tag, label));
                if some.len() == AHEAD {
                    encoder.add(&mut some)?;
                }
            }
        }
        encoder.add(&mut some)?;
        Ok(encoder)
    }

    fn add(&mut self, some: &mut Vec<(Tag<'_>, u32)>) -> Result<()> {
        self.touch(some.iter().map(|(tag, _)| tag));
        for (tag, label) in some.drain(..) {
            let place = self.place(&tag);
            let other = self.slots[place].1;
            if other != FREE {
                let text = String::from_utf8_lossy(tag.bytes(&mut [0; 16])).into_owned();
                return Err(Error::data(format!(
                    "vocabulary: the tag {text:?} leads to label {other} and to label {label}; a tag \
                     can have one label only"
                )));
            }
            self.slots[place] = (tag.stored(&mut self.arena), label);
        }
        Ok(())
    }

    /// The slot of a tag, or the free one where it would be.
    #[inline]
    fn place(&self, tag: &Tag<'_>) -> usize {
        let mask = self.slots.len() - 1;
        let mut place = tag.hash() as usize & mask;
        while self.slots[place].1 != FREE && !self.slots[place].0.is(tag, &self.arena) {
            place = (place + 1) & mask;
        }
        place
    }

    /// Reads the slots where tags are sought, so that their ways from memory are made together.
    pub(crate) fn touch<'t>(&self, tags: impl Iterator<Item = &'t Tag<'t>>) {
        let mask = self.slots.len() - 1;
        let seen = tags.fold(0, |all, tag| all ^ self.slots[tag.hash() as usize & mask].1);
        std::hint::black_box(seen);
    }

    /// The label of a tag.
    #[inline]
    pub fn encode(&self, tag: &Tag<'_>) -> Option<u32> {
        let label = self.slots[self.place(tag)].1;
        (label != FREE).then_some(label)
    }
}
