//! Tags that a thread keeps close, counted where they are.
//!
//! Each tag has one place that its key gives it, and keeps it as long as it is seen more often than
//! what else falls on the place. [`HotTags`] are short ones, which are their own keys; beside each
//! of [`HotLongTags`] are its bytes.

use crate::hashtag::{INLINE, Key, Other, Tag, TagColumn, VIEW_INLINE};

/// Rows whose hot tags are counted before the others are looked at.
pub(super) const BLOCK_ROWS: usize = 64;

/// Hot tags of a thread; with 32 bytes each they fit a processor's second-level cache.
const HOT_SLOTS: usize = 16384;

/// The most credit; what was common once gives way in bounded time.
const MOST_CREDIT: u32 = 1 << 16;

/// One in so many of the tags that are not hot challenges the hot one of its place: that finds what
/// is common well enough.
const CHALLENGERS: usize = 16;

#[derive(Debug, Clone, Copy)]
struct Hot {
    key: Key,
    count: u32,
    /// The count at the last challenge.
    counted: u32,
    /// How often the tag was seen, beyond how often others were that belong to its place.
    credit: u32,
    /// The row of the [`HotTags`] in which the tag was seen last.
    row: u32,
}

impl Hot {
    fn new(key: Key, count: u32) -> Self {
        Self { key, count, counted: 0, credit: 0, row: 0 }
    }

    /// Tells the tag and its count, unless that is 0.
    fn tell(&self, gone: &mut impl FnMut(&Tag<'_>, u32)) {
        if self.count > 0 {
            gone(&self.key.tag(&[]), self.count);
        }
    }

    /// Counts from 0 again; how common the tag is stays known.
    fn begin_again(&mut self) {
        self.credit = self.credit.saturating_add(self.count - self.counted).min(MOST_CREDIT);
        self.count = 0;
        self.counted = 0;
    }

    /// Whether the tag keeps its place, given that another came for it.
    fn holds(&mut self) -> bool {
        let credit = self.credit.saturating_add(self.count - self.counted).min(MOST_CREDIT);
        self.counted = self.count;
        self.credit = credit.saturating_sub(CHALLENGERS as u32);
        credit >= CHALLENGERS as u32
    }
}

/// Rows counted by their views since the rows of the slots were reset.
#[derive(Debug, Default)]
struct Rows(u32);

impl Rows {
    /// The number of the first row of the next block; `reset` is called where numbers begin anew.
    fn begin(&mut self, reset: impl FnOnce()) -> u32 {
        if self.0 > u32::MAX - BLOCK_ROWS as u32 {
            reset();
            self.0 = 0;
        }
        self.0 += BLOCK_ROWS as u32;
        self.0 + 1 - BLOCK_ROWS as u32
    }
}

/// The tags that a thread keeps close: each in the one place that its key gives it. No long tag is
/// among them.
#[derive(Debug)]
pub(super) struct HotTags {
    slots: Vec<Hot>,
    bits: u32,
    rows: Rows,
    /// Tags that were not hot since the last one that challenged.
    num_others: usize,
}

impl HotTags {
    pub(super) fn new(memory: usize) -> Self {
        let bits = (memory / size_of::<Hot>()).clamp(64, HOT_SLOTS).ilog2();
        Self {
            slots: vec![Hot::new(Key::NONE, 0); 1 << bits],
            bits,
            rows: Rows::default(),
            num_others: 0,
        }
    }

    /// Counts those texts of a block that are hot tags in normal form, each once in its record, and
    /// lays the others down in `others`, whose number it returns with the number of duplicates.
    ///
    /// There is no branch on which is which, nor on where records end, for neither can be
    /// predicted: a 1 in `begins` marks it. A text that only becomes a hot tag when normalized is
    /// among the others.
    #[inline]
    pub(super) fn count_views(
        &mut self,
        views: &[u128],
        begins: &[u8],
        num_kept: &mut [u8; BLOCK_ROWS],
        others: &mut [Other],
    ) -> (usize, usize) {
        let Self { slots, bits, rows, .. } = self;
        let first_row = rows.begin(|| slots.iter_mut().for_each(|slot| slot.row = 0));
        let (mut row, mut num_others, mut num_duplicates) = (0, 0, 0);
        for (place, (&view, &begins)) in views.iter().zip(begins).enumerate() {
            row += usize::from(begins);
            let stamp = first_row + row as u32;
            let key = Key::of_view(view);
            let slot = &mut slots[key.place(*bits)];

            // Written without branches, since whether a tag is hot cannot be predicted.
            let is_hot = slot.key.equals(key) & (view as u32 as usize <= VIEW_INLINE);
            let is_new = is_hot & (slot.row != stamp);
            slot.count += u32::from(is_new);
            slot.row = if is_hot { stamp } else { slot.row };
            num_kept[row % BLOCK_ROWS] += u8::from(is_new);
            num_duplicates += usize::from(is_hot & !is_new);
            others[num_others] = Other::new(row, place);
            num_others += usize::from(!is_hot);
        }
        (num_others, num_duplicates)
    }

    /// Counts the hot ones of a batch and lays the others down in `others`; returns how many. Those that
    /// give way are passed to `gone`.
    pub(super) fn count(
        &mut self,
        batch: &[(u64, Key)],
        others: &mut [(u64, Key)],
        mut gone: impl FnMut(&Tag<'_>, u32),
    ) -> usize {
        let mut num_others = 0;
        for &(hash, key) in batch {
            let slot = &mut self.slots[key.place(self.bits)];
            if slot.key.equals(key) {
                slot.count += 1;
                continue;
            }
            self.num_others += 1;
            if self.num_others >= CHALLENGERS && !key.is_long() {
                self.num_others = 0;
                if !slot.holds() {
                    slot.tell(&mut gone);
                    *slot = Hot::new(key, 1);
                    continue;
                }
            }
            others[num_others] = (hash, key);
            num_others += 1;
        }
        num_others
    }

    /// Tells all counts and begins again from 0; the places stay who they were.
    pub(super) fn hand_over(&mut self, mut gone: impl FnMut(&Tag<'_>, u32)) {
        for slot in &mut self.slots {
            slot.tell(&mut gone);
            slot.begin_again();
        }
    }
}

/// The longest of [`HotLongTags`], in bytes; with the rest of a slot they are a line of cache.
const MOST_LONG: usize = 32;

const LONG_SLOTS: usize = 8192;

#[derive(Debug, Clone, Copy)]
#[repr(align(64))]
struct HotLong {
    hot: Hot,
    bytes: [u8; MOST_LONG],
}

/// The commonest long tags of a thread.
#[derive(Debug)]
pub(super) struct HotLongTags {
    slots: Vec<HotLong>,
    rows: Rows,
    num_others: usize,
}

impl HotLongTags {
    pub(super) fn new(memory: usize) -> Self {
        let size = 1 << (memory / size_of::<HotLong>()).clamp(16, LONG_SLOTS).ilog2();
        let none = HotLong { hot: Hot::new(Key::NONE, 0), bytes: [0; MOST_LONG] };
        Self { slots: vec![none; size], rows: Rows::default(), num_others: 0 }
    }

    /// Counts those of the `others` in a block that are hot tags in normal form, each once in its record, and
    /// leaves the rest; returns how many these are, and the number of duplicates.
    ///
    /// Long ones are separated from short ones, then hot ones from the rest, each without a branch.
    pub(super) fn count_views(
        &mut self,
        column: &TagColumn,
        views: &[u128],
        num_kept: &mut [u8; BLOCK_ROWS],
        others: &mut [Other],
        long: &mut [u16],
    ) -> (usize, usize) {
        // Few tags are long, and only these have to be looked up here.
        let mut num_long = 0;
        for (number, other) in (0_u16..).zip(&*others) {
            long[num_long] = number;
            num_long += usize::from(
                (INLINE + 1..=MOST_LONG).contains(&(views[other.place()] as u32 as usize)),
            );
        }
        if num_long == 0 {
            return (others.len(), 0);
        }
        let Self { slots, rows, .. } = self;
        let first_row = rows.begin(|| slots.iter_mut().for_each(|slot| slot.hot.row = 0));
        let mut num_duplicates = 0;
        let mask = slots.len() - 1;
        for &number in &long[..num_long] {
            let other = &mut others[usize::from(number)];
            let Some(text) = column.long_text(views[other.place()]) else { continue };
            let slot = &mut slots[place_of(text) & mask];
            let stamp = first_row + other.row() as u32;

            // Written without branches, since whether a tag is hot cannot be predicted.
            let is_hot = slot.is(text);
            let is_new = is_hot & (slot.hot.row != stamp);
            slot.hot.row = if is_hot { stamp } else { slot.hot.row };
            slot.hot.count += u32::from(is_new);
            num_kept[other.row() % BLOCK_ROWS] += u8::from(is_new);
            num_duplicates += usize::from(is_hot & !is_new);
            *other = other.marked(is_hot);
        }
        (leave_unmarked(others), num_duplicates)
    }

    /// Counts a long tag where it is hot; one that gives way to it is passed to `gone`.
    #[inline]
    pub(super) fn count(&mut self, tag: &Tag<'_>, mut gone: impl FnMut(&Tag<'_>, u32)) -> bool {
        let text = tag.long();
        if text.len() > MOST_LONG {
            return false;
        }
        let place = place_of(text) & (self.slots.len() - 1);
        let slot = &mut self.slots[place];
        if slot.is(text) {
            slot.hot.count += 1;
            return true;
        }

        // Most tags are rare, so only one in so many may challenge: that costs little, and a common
        // one soon gets its turn.
        self.num_others += 1;
        if self.num_others < CHALLENGERS {
            return false;
        }
        self.num_others = 0;
        if slot.hot.holds() {
            return false;
        }
        slot.tell(&mut gone);
        slot.hot = Hot::new(tag.key(), 1);
        slot.bytes[..text.len()].copy_from_slice(text);
        true
    }

    /// Tells all counts and begins again from 0; the places stay who they were.
    pub(super) fn hand_over(&mut self, mut gone: impl FnMut(&Tag<'_>, u32)) {
        for slot in &mut self.slots {
            slot.tell(&mut gone);
            slot.hot.begin_again();
        }
    }
}

/// Leaves those of the `others` that are not marked; returns how many.
fn leave_unmarked(others: &mut [Other]) -> usize {
    let mut num_left = 0;
    for number in 0..others.len() {
        let other = others[number];
        others[num_left] = other;
        num_left += usize::from(!other.is_marked());
    }
    num_left
}

/// A number for a text of 16 bytes or more, from its ends and its length.
#[inline(always)]
fn place_of(text: &[u8]) -> usize {
    let ends = text.first_chunk::<16>().zip(text.last_chunk::<16>());
    ends.map_or(0, |(first, last)| {
        let bits = u128::from_le_bytes(*first) ^ u128::from_le_bytes(*last).rotate_left(59);
        Key::place_of(bits ^ text.len() as u128, 24)
    })
}

impl HotLong {
    /// Whether this is the tag `text`, of 16 bytes or more, found without a branch: by its ends, which overlap.
    #[inline(always)]
    fn is(&self, text: &[u8]) -> bool {
        let end = text.len().min(MOST_LONG);
        let words = |bytes: &[u8]| {
            let ends = bytes.first_chunk().zip(bytes.last_chunk());
            ends.map(|(first, last)| [u128::from_le_bytes(*first), u128::from_le_bytes(*last)])
        };
        let known = words(&self.bytes[..end]).zip(words(text));
        let differs = known.map_or(1, |(ours, its)| (ours[0] ^ its[0]) | (ours[1] ^ its[1]));
        (differs == 0) & (self.hot.key.long_len() == text.len())
    }

    fn tell(&self, gone: &mut impl FnMut(&Tag<'_>, u32)) {
        if self.hot.count > 0 {
            gone(&Tag::of_bytes(&self.bytes[..self.hot.key.long_len()]), self.hot.count);
        }
    }
}
