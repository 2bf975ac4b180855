//! Tags on their way from a thread to the shared table.
//!
//! The top bits of a tag's hash give the partition of the table that it goes to, and the next ones
//! the stretch of it: each stretch has a row of its own here, so that the table takes a row in
//! within a few lines of memory that are near by then.

use crate::hashtag::{Key, Tag};

/// Parts of a table.
pub(super) const PARTITIONS: usize = 1 << PARTITION_BITS;
pub(super) const PARTITION_BITS: u32 = 6;

/// Rows of waiting tags for each partition.
const ROWS: usize = 1 << ROW_BITS;
const ROW_BITS: u32 = 4;

/// The most tags that wait in a row.
const MOST_WAITING: usize = 1024;

/// Keys between rows: a cache line, so that the ends of the rows fall on different sets of it.
const PADDING: usize = 4;

/// The partition of a tag.
#[inline]
pub(super) fn partition_of(hash: u64) -> usize {
    (hash >> (64 - PARTITION_BITS)) as usize
}

/// Tags on their way into the partitions.
#[derive(Debug)]
pub(super) struct Waiting {
    /// Tags that were seen once each: rows by the top bits of their hashes.
    keys: Vec<Key>,
    /// Tags that fit in a row.
    capacity: usize,
    lens: Vec<u32>,
    num_keys: usize,
    /// Tags with their counts, and what does not fit in a row.
    counted: Vec<Vec<(Key, u64)>>,
    num_counted: usize,
    /// The bytes of long tags.
    bytes: Vec<Vec<u8>>,
    num_bytes: usize,
}

/// What waits for one partition.
#[derive(Debug, Clone, Copy)]
pub(super) struct Arrivals<'a> {
    /// Tags that count once each, in rows of `stride` keys; of each row as many as its number in
    /// `lens`.
    keys: &'a [Key],
    stride: usize,
    lens: &'a [u32],
    /// Tags with their counts.
    pub(super) counted: &'a [(Key, u64)],
    /// The bytes of long tags.
    pub(super) bytes: &'a [u8],
}

impl<'a> Arrivals<'a> {
    /// Tags that count once each, in rows that ascend by their hashes.
    pub(super) fn rows(self) -> impl Iterator<Item = &'a [Key]> {
        self.keys.chunks(self.stride).zip(self.lens).map(|(row, &len)| &row[..len as usize])
    }

    /// How many rows there are.
    pub(super) fn num_rows(self) -> usize {
        self.lens.len()
    }

    /// How many tags there are.
    pub(super) fn num_tags(self) -> usize {
        self.lens.iter().map(|&len| len as usize).sum::<usize>() + self.counted.len()
    }
}

impl Waiting {
    pub(super) fn new(memory: usize) -> Self {
        let num_rows = PARTITIONS * ROWS;
        let capacity = (memory / size_of::<Key>() / num_rows).clamp(2, MOST_WAITING);
        Self {
            keys: vec![Key::default(); (capacity + PADDING) * num_rows],
            capacity,
            lens: vec![0; num_rows],
            num_keys: 0,
            counted: vec![Vec::new(); PARTITIONS],
            num_counted: 0,
            bytes: vec![Vec::new(); PARTITIONS],
            num_bytes: 0,
        }
    }

    pub(super) fn of(&self, partition: usize) -> Arrivals<'_> {
        let stride = self.capacity + PADDING;
        let rows = partition * ROWS..(partition + 1) * ROWS;
        Arrivals {
            keys: &self.keys[rows.start * stride..rows.end * stride],
            stride,
            lens: &self.lens[rows],
            counted: &self.counted[partition],
            bytes: &self.bytes[partition],
        }
    }

    #[inline]
    pub(super) fn push(&mut self, hash: u64, key: Key) {
        let row = (hash >> (64 - PARTITION_BITS - ROW_BITS)) as usize;
        let len = self.lens[row] as usize;
        if len == self.capacity {
            self.counted[row >> ROW_BITS].push((key, 1));
            self.num_counted += 1;
            return;
        }
        self.keys[row * (self.capacity + PADDING) + len] = key;
        self.lens[row] = len as u32 + 1;
        self.num_keys += 1;
    }

    pub(super) fn push_long(&mut self, tag: &Tag<'_>) {
        self.num_bytes += tag.long().len();
        let key = tag.stored(&mut self.bytes[partition_of(tag.hash())]);
        self.push(tag.hash(), key);
    }

    pub(super) fn push_counted(&mut self, tag: &Tag<'_>, count: u32) {
        let partition = partition_of(tag.hash());
        self.num_bytes += tag.long().len();
        let key = tag.stored(&mut self.bytes[partition]);
        self.counted[partition].push((key, u64::from(count)));
        self.num_counted += 1;
    }

    /// Whether the rows are as good as full: three quarters, for they do not fill alike.
    pub(super) fn is_full(&self) -> bool {
        let room = self.capacity * self.lens.len();
        4 * self.num_keys > 3 * room
            || 2 * self.num_counted > room
            || self.num_bytes > room * size_of::<Key>()
    }

    pub(super) fn clear(&mut self) {
        self.lens.fill(0);
        self.num_keys = 0;
        self.counted.iter_mut().for_each(Vec::clear);
        self.num_counted = 0;
        self.bytes.iter_mut().for_each(Vec::clear);
        self.num_bytes = 0;
    }
}
