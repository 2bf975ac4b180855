//! Lists of entries in chunks out of one pool.
//!
//! The classes of a part grow side by side; vectors of their own would waste up to half of what they
//! reserve and leave holes behind. Here a list grows by a chunk of a few hundred bytes, chunks that a
//! list gives back are used by the next, and the pool itself grows by slabs that are never moved.

use super::entry::Entry;
use crate::hints::prefetch;

/// Entries of a chunk at most.
pub(super) const CHUNK: usize = 32;
/// Chunks of the first slab; each slab has twice as many as the one before.
const FIRST_SLAB: usize = 16;
const NONE: u32 = u32::MAX;

/// Chunks of entries.
#[derive(Debug, Clone)]
pub(super) struct Pool {
    /// A power of two, 2^shift.
    chunk: usize,
    shift: u32,
    slabs: Vec<Slab>,
    num_made: u32,
    free: Vec<u32>,
}

#[derive(Debug, Default)]
struct Slab {
    entries: Vec<Entry>,
    /// Of every chunk the one that was filled before it.
    before: Vec<u32>,
}

impl Clone for Slab {
    /// With the same room as the original, which a list may grow into.
    fn clone(&self) -> Self {
        let mut entries = Vec::with_capacity(self.entries.capacity());
        entries.extend_from_slice(&self.entries);
        Self { entries, before: self.before.clone() }
    }
}

/// A list in a pool.
#[derive(Debug, Clone, Copy)]
pub(super) struct List {
    /// The chunk that is being filled.
    last: u32,
    len: usize,
}

impl List {
    pub(super) const EMPTY: Self = Self { last: NONE, len: 0 };

    pub(super) fn len(self) -> usize {
        self.len
    }
}

impl Pool {
    /// A pool of chunks that suit lists of up to `most` entries.
    pub(super) fn new(most: usize) -> Self {
        let chunk = most.clamp(4, CHUNK).next_power_of_two();
        Self { shift: chunk.ilog2(), chunk, slabs: Vec::new(), num_made: 0, free: Vec::new() }
    }

    /// Bytes of a chunk.
    pub(super) fn chunk_bytes(&self) -> usize {
        self.chunk * size_of::<Entry>() + size_of::<u32>()
    }

    /// Entries of a chunk.
    pub(super) fn chunk_len(&self) -> usize {
        self.chunk
    }

    /// Chunks that are in use.
    pub(super) fn num_used(&self) -> usize {
        self.num_made as usize - self.free.len()
    }

    #[inline]
    pub(super) fn push(&mut self, list: &mut List, entry: Entry) {
        let filled = list.len & (self.chunk - 1);
        if filled == 0 {
            list.last = self.take(list.last);
        }
        let (slab, place) = self.place(list.last);
        self.slabs[slab].entries[(place << self.shift) + filled] = entry;
        list.len += 1;
    }

    /// Makes the processor fetch where `list` grows.
    #[inline]
    pub(super) fn prefetch_end(&self, list: List) {
        if list.last != NONE {
            let (slab, place) = self.place(list.last);
            let entry = (place << self.shift) + (list.len & (self.chunk - 1));
            prefetch(&self.slabs[slab].entries, entry);
        }
    }

    /// Adds entries to an empty list.
    pub(super) fn fill(&mut self, list: &mut List, entries: &[Entry]) {
        for some in entries.chunks(self.chunk) {
            list.last = self.take(list.last);
            let (slab, place) = self.place(list.last);
            let first = place << self.shift;
            self.slabs[slab].entries[first..first + some.len()].copy_from_slice(some);
            list.len += some.len();
        }
    }

    /// A chunk to be filled after `before`.
    fn take(&mut self, before: u32) -> u32 {
        let number = self.free.pop().unwrap_or_else(|| {
            self.num_made += 1;
            self.num_made - 1
        });
        let (slab, place) = self.place(number);
        if slab == self.slabs.len() {
            let entries = Vec::with_capacity((FIRST_SLAB << slab) * self.chunk);
            self.slabs.push(Slab { entries, before: Vec::new() });
        }
        let slab = &mut self.slabs[slab];
        if place == slab.before.len() {
            slab.before.push(before);
            // Only as far as it is used, so that the rest of a slab takes no memory.
            slab.entries.resize((place + 1) * self.chunk, Entry::WORST);
        } else {
            slab.before[place] = before;
        }
        number
    }

    /// The slab of a chunk, and which one of the slab's it is.
    #[inline]
    fn place(&self, chunk: u32) -> (usize, usize) {
        let number = chunk as usize / FIRST_SLAB + 1;
        let slab = number.ilog2() as usize;
        (slab, chunk as usize - FIRST_SLAB * ((1 << slab) - 1))
    }

    /// Adds the entries of `list` to `out`, in no order.
    pub(super) fn read(&self, list: List, out: &mut Vec<Entry>) {
        self.for_each_chunk(list, 1, |entries| out.extend_from_slice(entries));
    }

    /// Calls `each` for the entries of `list`, in no order; those of one chunk in `step` only.
    pub(super) fn for_each(&self, list: List, step: usize, each: &mut impl FnMut(Entry)) {
        self.for_each_chunk(list, step, |entries| entries.iter().for_each(|&entry| each(entry)));
    }

    fn for_each_chunk(&self, list: List, step: usize, mut each: impl FnMut(&[Entry])) {
        let (mut chunk, mut number) = (list.last, 0_usize);
        let mut filled = if list.len == 0 { 0 } else { (list.len - 1) % self.chunk + 1 };
        while chunk != NONE {
            let (slab, place) = self.place(chunk);
            let first = place << self.shift;
            if number.is_multiple_of(step) {
                each(&self.slabs[slab].entries[first..first + filled]);
            }
            number += 1;
            chunk = self.slabs[slab].before[place];
            filled = self.chunk;
        }
    }

    /// Gives the chunks of `list` back.
    pub(super) fn empty(&mut self, list: &mut List) {
        let mut chunk = list.last;
        while chunk != NONE {
            self.free.push(chunk);
            let (slab, place) = self.place(chunk);
            chunk = self.slabs[slab].before[place];
        }
        *list = List::EMPTY;
    }

    /// Forgets all lists and keeps the memory for new ones.
    pub(super) fn clear(&mut self) {
        self.num_made = 0;
        self.free.clear();
    }

    /// Forgets all lists and gives the memory back.
    pub(super) fn release(&mut self) {
        self.clear();
        self.free = Vec::new();
        self.slabs = Vec::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_grow_side_by_side_and_reuse_what_others_gave_back() {
        let mut pool = Pool::new(1000);
        let mut lists = vec![(List::EMPTY, Vec::new()); 7];
        for round in 0..3000_u64 {
            let (list, twin) = &mut lists[(round * round % 7) as usize];
            if round % 411 == 0 {
                pool.empty(list);
                twin.clear();
            }
            let entry = Entry::new(1.0, round);
            pool.push(list, entry);
            twin.push(entry);
        }
        let mut used = 0;
        for (list, twin) in &mut lists {
            let mut found = Vec::new();
            pool.read(*list, &mut found);
            found.sort_unstable();
            assert_eq!(found, *twin);
            used += twin.len().div_ceil(CHUNK);
        }
        assert_eq!(pool.num_used(), used);
        let copy = pool.clone();
        pool.clear();
        assert_eq!(pool.num_used(), 0);
        let (mut list, mut found) = (List::EMPTY, Vec::new());
        (0..5000).for_each(|sample| pool.push(&mut list, Entry::new(0.5, sample)));
        pool.read(list, &mut found);
        assert_eq!(found.len(), 5000);
        copy.read(lists[1].0, &mut found);
        assert_eq!(found.len(), 5000 + lists[1].1.len());
    }
}
