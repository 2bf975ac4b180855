//! From tags to counts: one table in 64 parts, each in the order of the tags' hashes.
//!
//! The top bits of a tag's hash choose its partition, the next ones its home in it, so partitions
//! can be filled by several threads, grow one at a time, and leave nearly sorted. A partition is an
//! open-addressing table with linear probing whose size is any number, not a power of two: large
//! ones grow by a quarter, so that a table near its memory limit is well filled.
//!
//! A slot is 24 bytes: a [`Key`] and a count, and a tag of up to 15 bytes is its own key. Longer tags
//! are in the partition's arena.

use super::waiting::{Arrivals, PARTITION_BITS};
use crate::hashtag::{Key, Tag};

/// Slots below which a partition doubles when it is full.
const SMALL: usize = 1 << 16;
/// Slots looked at ahead of their turn, so that their way from memory is made together.
pub(super) const AHEAD: usize = 32;

#[derive(Debug, Clone, Copy, Default)]
struct Slot {
    key: Key,
    /// 0 where the slot is free.
    count: u64,
}

/// Four slots of five are used at most.
#[inline]
fn needs_more(tags: usize, slots: usize) -> bool {
    tags * 5 > slots * 4
}

fn grown(slots: usize) -> usize {
    if slots < SMALL { (2 * slots).max(16) } else { slots + slots / 4 }
}

/// The tags of one partition.
#[derive(Debug, Clone, Default)]
pub(super) struct Partition {
    slots: Vec<Slot>,
    len: usize,
    arena: Vec<u8>,
}

impl Partition {
    /// Number of tags.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Bytes it takes.
    pub(super) fn memory(&self) -> usize {
        self.slots.capacity() * size_of::<Slot>() + self.arena.capacity()
    }

    /// Bytes of its long tags.
    pub(super) fn arena_len(&self) -> usize {
        self.arena.len()
    }

    /// Bytes it would take with so many tags, and bytes of long ones, more.
    pub(super) fn memory_with(&self, num_tags: usize, num_bytes: usize) -> usize {
        let mut slots = self.slots.len();
        while needs_more(self.len + num_tags, slots) {
            slots = grown(slots);
        }
        let arena = self.arena.len() + num_bytes;
        let arena = if arena > self.arena.capacity() { arena + arena / 4 } else { arena };
        slots * size_of::<Slot>() + arena.max(self.arena.capacity())
    }

    /// Reads the slot where `tag` is sought first.
    #[inline]
    pub(super) fn look(&self, tag: &Tag<'_>) -> u64 {
        self.slots.get(self.home(tag.hash())).map_or(0, |slot| slot.count)
    }

    /// Makes room for so many tags where there is none yet.
    pub(super) fn reserve(&mut self, num_tags: usize) {
        if self.slots.is_empty() {
            self.slots = vec![Slot::default(); (num_tags + num_tags / 4 + 16).max(16)];
        }
    }

    /// Forgets all tags and keeps the memory.
    pub(super) fn clear(&mut self) {
        self.slots.fill(Slot::default());
        self.len = 0;
        self.arena.clear();
    }

    #[inline]
    fn home(&self, hash: u64) -> usize {
        let rest = u128::from(hash << PARTITION_BITS);
        ((rest * self.slots.len() as u128) >> 64) as usize
    }

    /// Adds `count` to what `tag` has.
    #[inline]
    pub(super) fn add(&mut self, tag: &Tag<'_>, count: u64) {
        if needs_more(self.len + 1, self.slots.len()) {
            self.grow();
        }
        let mut place = self.home(tag.hash());
        loop {
            let slot = &mut self.slots[place];
            if slot.count == 0 {
                *slot = Slot { key: tag.stored(&mut self.arena), count };
                self.len += 1;
                return;
            }
            if slot.key.is(tag, &self.arena) {
                slot.count += count;
                return;
            }
            place += 1;
            if place == self.slots.len() {
                place = 0;
            }
        }
    }

    fn grow(&mut self) {
        let larger = grown(self.slots.len());
        let old = std::mem::replace(&mut self.slots, vec![Slot::default(); larger]);
        for slot in old.into_iter().filter(|slot| slot.count > 0) {
            let mut place = self.home(slot.key.tag(&self.arena).hash());
            while self.slots[place].count > 0 {
                place += 1;
                if place == self.slots.len() {
                    place = 0;
                }
            }
            self.slots[place] = slot;
        }
        if self.arena.capacity() - self.arena.len() < self.arena.len() / 8 {
            self.arena.reserve_exact(self.arena.len() / 4);
        }
    }

    /// Adds what waits for this partition.
    pub(super) fn take_in(&mut self, arrivals: Arrivals<'_>) {
        let bytes = arrivals.bytes;
        let stretch = self.slots.len() / arrivals.num_rows();
        for (number, row) in arrivals.rows().enumerate() {
            if row.len() * 4 > stretch {
                self.touch(number * stretch, stretch);
            }
            self.add_row(row, bytes);
        }
        for (key, count) in arrivals.counted {
            self.add(&key.tag(bytes), *count);
        }
    }

    /// Reads a stretch of slots of which most are wanted soon: in their order they come fast.
    fn touch(&self, first: usize, length: usize) {
        let slots = &self.slots[first..first + length];
        std::hint::black_box(slots.iter().step_by(2).fold(0, |all, slot| all ^ slot.count));
    }

    fn add_row(&mut self, row: &[Key], bytes: &[u8]) {
        let mut hashes = [0; AHEAD];
        for keys in row.chunks(AHEAD) {
            let mut seen = 0;
            for (hash, key) in hashes.iter_mut().zip(keys) {
                *hash = key.tag(bytes).hash();
                seen ^= self.slots.get(self.home(*hash)).map_or(0, |slot| slot.count);
            }
            std::hint::black_box(seen);
            for (hash, key) in hashes.iter().zip(keys) {
                self.add(&key.hashed_tag(*hash, bytes), 1);
            }
        }
    }

    /// The count of `tag`, 0 where it has none.
    pub(super) fn get(&self, tag: &Tag<'_>) -> u64 {
        if self.slots.is_empty() {
            return 0;
        }
        let home = self.home(tag.hash());
        let (before, after) = self.slots.split_at(home);
        let mut seen = after.iter().chain(before).take_while(|slot| slot.count > 0);
        seen.find(|slot| slot.key.is(tag, &self.arena)).map_or(0, |slot| slot.count)
    }

    /// All tags and their counts, in no order that means anything.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Tag<'_>, u64)> {
        let used = self.slots.iter().filter(|slot| slot.count > 0);
        used.map(|slot| (slot.key.tag(&self.arena), slot.count))
    }

    /// All tags and their counts by hash, ties by bytes.
    pub(super) fn sorted(&self) -> Vec<(Tag<'_>, u64)> {
        let mut tags: Vec<_> = self.iter().collect();
        tags.sort_unstable_by(|(a, _), (b, _)| {
            a.hash().cmp(&b.hash()).then_with(|| a.bytes(&mut [0; 16]).cmp(b.bytes(&mut [0; 16])))
        });
        tags
    }
}
