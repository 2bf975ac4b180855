//! Numbers of tags, billions of times: labels of a vocabulary, or numbers given as tags are first seen.
//!
//! Of texts the commonest are found in a small table by the views that they are; the others are looked
//! up some at a time, so that their ways to memory are made together.

use std::ops::Range;

use crate::Result;
use crate::hashtag::{Key, RecordReader, Rejection, Tag, TagColumn};
use crate::vocabulary::Encoder;

/// In place of the number of a tag that has none.
pub(in crate::index) const UNKNOWN: u32 = u32::MAX;
/// Numbers from here on are causes of a rejection.
pub(in crate::index) const REJECTED: u32 = UNKNOWN - Rejection::ALL.len() as u32;

/// Common tags that are kept close, as bits of their number; with 24 bytes each they fit a processor's
/// second-level cache.
const COMMON_BITS: u32 = 14;

/// Texts that are looked for among the common ones before the others are looked up.
const BLOCK: usize = 512;

/// Tags that are looked up together.
pub(in crate::index) const AHEAD: usize = 32;

/// What knows the numbers of tags, lower ones for commoner tags by and large.
pub(in crate::index) trait Numbering {
    /// Reads the places where tags are sought, so that their ways from memory are made together.
    fn touch<'t>(&self, tags: impl Iterator<Item = &'t Tag<'t>>);

    /// The number of a tag, or [`UNKNOWN`].
    fn number(&mut self, tag: &Tag<'_>) -> u32;

    /// Notes that the tag of this number was looked up so many times.
    #[inline]
    fn note(&mut self, _number: u32, _times: u32) {}
}

impl Numbering for &Encoder {
    fn touch<'t>(&self, tags: impl Iterator<Item = &'t Tag<'t>>) {
        Encoder::touch(self, tags);
    }

    fn number(&mut self, tag: &Tag<'_>) -> u32 {
        self.encode(tag).unwrap_or(UNKNOWN)
    }
}

/// A common tag, and how often it was looked up since it took its place.
#[derive(Debug, Clone, Copy)]
struct Common {
    key: Key,
    number: u32,
    times: u32,
}

/// One thread's way from texts to numbers.
#[derive(Debug)]
pub(in crate::index) struct Lookup {
    reader: RecordReader,
    /// Common tags, each in the one place that its key gives it.
    common: Vec<Common>,
    /// The numbers of some texts.
    codes: Vec<u32>,
}

impl Lookup {
    pub(in crate::index) fn new() -> Result<Self> {
        Ok(Self {
            reader: RecordReader::new(None)?,
            common: vec![Common { key: Key::NONE, number: UNKNOWN, times: 0 }; 1 << COMMON_BITS],
            codes: Vec::new(),
        })
    }

    pub(in crate::index) fn reader(&mut self) -> &mut RecordReader {
        &mut self.reader
    }

    /// Takes back numbers that are done with, whose memory is used again.
    pub(in crate::index) fn take_back(&mut self, codes: Vec<u32>) {
        self.codes = codes;
    }

    /// Notes what was not noted yet.
    pub(in crate::index) fn hand_over(&mut self, numbering: &mut impl Numbering) {
        for slot in self.common.iter_mut().filter(|slot| slot.times > 0) {
            numbering.note(slot.number, std::mem::take(&mut slot.times));
        }
    }

    /// The numbers of the texts of a column, in their order.
    pub(in crate::index) fn numbers(
        &mut self,
        column: &TagColumn,
        texts: Range<usize>,
        numbering: &mut impl Numbering,
    ) -> &mut Vec<u32> {
        let Self { reader, common, codes } = self;
        codes.clear();
        codes.resize(texts.len(), UNKNOWN);

        // In blocks: first the common tags, nearly all of them, in one pass, and then the few
        // others.
        let mut others = [0_u32; BLOCK];
        let mut some: Vec<(usize, Tag<'_>)> = Vec::with_capacity(AHEAD);
        for start in texts.clone().step_by(BLOCK) {
            let first = start - texts.start;
            let keys = (start..texts.end.min(start + BLOCK)).map(|text| column.key(text));
            let num_others = find_common(keys, common, &mut codes[first..], &mut others);
            for &other in &others[..num_others] {
                let place = first + other as usize;
                let text = texts.start + place;
                let Some(tag) = column.plain(text) else {
                    codes[place] = match reader.normal_form(column, text, &mut [0; 16]) {
                        Ok(tag) => {
                            let number = numbering.number(&tag);
                            numbering.note(number, 1);
                            number
                        }
                        Err(cause) => REJECTED + cause as u32,
                    };
                    continue;
                };

                // A tag waits for some others, so that their places in memory are fetched together.
                some.push((place, tag));
                if some.len() == AHEAD {
                    number_some(&mut some, common, codes, numbering);
                }
            }
        }
        number_some(&mut some, common, codes, numbering);
        codes
    }
}

/// Lays down the numbers of common tags, and the places of all others, whose number it returns.
///
/// There is no branch on which is which, for that is anybody's guess.
#[inline]
fn find_common(
    keys: impl Iterator<Item = Key>,
    common: &mut [Common],
    codes: &mut [u32],
    others: &mut [u32; BLOCK],
) -> usize {
    let mut num_others = 0;
    for ((place, key), code) in (0..).zip(keys).zip(codes) {
        let slot = &mut common[key.place(COMMON_BITS)];
        let is_common = slot.key.equals(key) & !key.is_long();
        slot.times += u32::from(is_common);
        *code = slot.number;
        others[num_others % BLOCK] = place;
        num_others += usize::from(!is_common);
    }
    num_others
}

/// Numbers tags whose places come from memory together.
fn number_some(
    some: &mut Vec<(usize, Tag<'_>)>,
    common: &mut [Common],
    codes: &mut [u32],
    numbering: &mut impl Numbering,
) {
    numbering.touch(some.iter().map(|(_, tag)| tag));
    for (place, tag) in some.drain(..) {
        let number = numbering.number(&tag);
        numbering.note(number, 1);
        codes[place] = number;
        // The lower one is the commoner.
        let slot = &mut common[tag.key().place(COMMON_BITS)];
        if number < slot.number && !tag.is_long() {
            if slot.times > 0 {
                numbering.note(slot.number, slot.times);
            }
            *slot = Common { key: tag.key(), number, times: 0 };
        }
    }
}
