//! Entries on disk, parted by the hash of their keys.
//!
//! An entry is bytes that its writer understands. Entries of one partition come back in the order in
//! which they were written. Buffers are flushed as blocks of one [`SpillFile`], so a partition is read
//! in a few large steps.

pub(crate) use crate::leb128::put;
use crate::spill::{Memory, SpillFile};
use crate::{Error, Result, leb128};

/// Number of partitions: the upper eight bits of a hash.
pub(crate) const PARTITIONS: usize = 256;

/// The partition of a key with this hash.
pub(crate) fn partition_of(hash: u64) -> usize {
    (hash >> 56) as usize
}

/// Entries of [`PARTITIONS`] partitions.
#[derive(Debug)]
pub(crate) struct Partitions {
    file: SpillFile,
    buffers: Vec<Vec<u8>>,
    blocks: Vec<Vec<(u64, u32)>>,
    bytes: Vec<u64>,
    buffer_bytes: usize,
}

impl Partitions {
    /// Empty ones, whose buffers take about an eighth of what is allowed.
    pub(crate) fn new(memory: &Memory) -> Result<Self> {
        let share = memory.bytes() / (8 * PARTITIONS);
        Ok(Self {
            file: memory.spill_file()?,
            buffers: vec![Vec::new(); PARTITIONS],
            blocks: vec![Vec::new(); PARTITIONS],
            bytes: vec![0; PARTITIONS],
            buffer_bytes: share.clamp(512, 1 << 18),
        })
    }

    /// Adds what `write` appends to the buffer it gets.
    pub(crate) fn push(
        &mut self,
        partition: usize,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> Result<()> {
        let buffer = &mut self.buffers[partition];
        let before = buffer.len();
        write(buffer);
        self.bytes[partition] += (buffer.len() - before) as u64;
        if self.buffers[partition].len() >= self.buffer_bytes {
            self.flush(partition)?;
        }
        Ok(())
    }

    /// Ends the block of a partition, so that the next entry begins one.
    pub(crate) fn flush(&mut self, partition: usize) -> Result<()> {
        let buffer = &mut self.buffers[partition];
        if !buffer.is_empty() {
            let place = self.file.append(buffer)?;
            self.blocks[partition].push((place, buffer.len() as u32));
            buffer.clear();
        }
        Ok(())
    }

    /// Ends the blocks of all partitions and frees the buffers.
    pub(crate) fn finish(&mut self) -> Result<()> {
        for partition in 0..PARTITIONS {
            self.flush(partition)?;
            self.buffers[partition] = Vec::new();
        }
        Ok(())
    }

    /// Bytes of a partition's entries.
    pub(crate) fn num_bytes(&self, partition: usize) -> u64 {
        self.bytes[partition]
    }

    /// Blocks of a partition so far; it changes when one is flushed.
    pub(crate) fn num_blocks(&self, partition: usize) -> usize {
        self.blocks[partition].len()
    }

    /// Calls `take` with the bytes of a partition's entries, a block at a time.
    pub(crate) fn each_block(
        &self,
        partition: usize,
        mut take: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let mut bytes = Vec::new();
        for &(place, length) in &self.blocks[partition] {
            bytes.resize(length as usize, 0);
            self.file.read(place, &mut bytes)?;
            take(&bytes)?;
        }
        Ok(())
    }

    /// Calls `take` with each entry's bytes on; `take` returns what it leaves over.
    pub(crate) fn read(
        &self,
        partition: usize,
        blocks: std::ops::Range<usize>,
        mut take: impl for<'a> FnMut(Input<'a>) -> Result<Input<'a>>,
    ) -> Result<()> {
        let mut bytes = Vec::new();
        for &(place, length) in &self.blocks[partition][blocks] {
            bytes.resize(length as usize, 0);
            self.file.read(place, &mut bytes)?;
            let mut input = Input(&bytes);
            while !input.is_empty() {
                input = take(input)?;
            }
        }
        Ok(())
    }
}

/// What is left of a block of entries.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A number as [`put`] wrote it.
    #[inline]
    pub(crate) fn number(&mut self) -> Result<u64> {
        let (number, length) = leb128::get(self.0).ok_or_else(damaged)?;
        self.0 = &self.0[length..];
        Ok(number)
    }

    /// Bytes as [`put_bytes`] wrote them.
    #[inline]
    pub(crate) fn bytes(&mut self) -> Result<&'a [u8]> {
        let length = self.number()? as usize;
        if length > self.0.len() {
            return Err(damaged());
        }
        let (bytes, rest) = self.0.split_at(length);
        self.0 = rest;
        Ok(bytes)
    }
}

fn damaged() -> Error {
    Error::data("a temporary file of the join was altered while it was used; run the command again")
}

/// Writes a length and bytes.
#[inline]
pub(crate) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}
