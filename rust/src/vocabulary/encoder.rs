//! Labels of tags, billions of times.
//!
//! A [`Vocabulary`] keeps texts; looking one up follows three pointers. An encoder lays the keys of
//! all tags and their labels side by side in one open-addressing table, half full at most, so that a
//! look-up is one step into memory.

use super::Vocabulary;
use crate::hashtag::{Key, Tag};

/// From tags to labels.
#[derive(Debug)]
pub struct Encoder {
    slots: Vec<(Key, u32)>,
    arena: Vec<u8>,
}

/// The label of a free slot; no vocabulary has so many.
const FREE: u32 = u32::MAX;

impl Encoder {
    /// The encoder of all tags of `vocabulary`.
    pub fn new(vocabulary: &Vocabulary) -> Self {
        let num_tags: usize = vocabulary.entries().iter().map(|entry| entry.tags.len()).sum();
        let size = (2 * num_tags).next_power_of_two().max(64);
        let mut encoder = Self { slots: vec![(Key::default(), FREE); size], arena: Vec::new() };
        for (label, entry) in vocabulary.entries().iter().enumerate() {
            for text in &entry.tags {
                let tag = Tag::new(text);
                let place = encoder.place(&tag);
                encoder.slots[place] = (tag.stored(&mut encoder.arena), label as u32);
            }
        }
        encoder
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
