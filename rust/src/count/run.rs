//! Sorted runs: tags and counts on disk while a table does not fit in memory.
//!
//! A run has one segment for each partition of the table, in the order of the tags' hashes, so runs
//! are joined partition by partition, on as many threads as there are. A segment is a list of blocks
//! of a [`SpillFile`], which hold entries: the tag's length (u8), its bytes, its count (LEB128). What
//! is read back is checked against the hash of what was written.

use std::sync::Arc;

use xxhash_rust::xxh3::Xxh3;

use crate::hashtag::{MAX_BYTES, Tag};
use crate::spill::{Merge, Source, SpillFile};
use crate::{Error, Result, leb128};

/// Bytes of a block.
const BLOCK: usize = 1 << 16;

/// Runs read at once when they are joined.
pub(super) const FAN_IN: usize = 48;

/// Entries in some order, on disk.
#[derive(Debug, Clone)]
pub(super) struct Segment {
    file: Arc<SpillFile>,
    blocks: Vec<(u64, u32)>,
    pub(super) num_entries: u64,
    digest: u64,
}

/// Writes one segment.
pub(super) struct SegmentWriter {
    file: Arc<SpillFile>,
    blocks: Vec<(u64, u32)>,
    buffer: Vec<u8>,
    num_entries: u64,
    hasher: Xxh3,
}

impl SegmentWriter {
    pub(super) fn new(file: Arc<SpillFile>) -> Self {
        let buffer = Vec::with_capacity(BLOCK + 160);
        Self { file, blocks: Vec::new(), buffer, num_entries: 0, hasher: Xxh3::new() }
    }

    pub(super) fn push(&mut self, tag: &[u8], count: u64) -> Result<()> {
        encode(&mut self.buffer, tag, count);
        self.num_entries += 1;
        if self.buffer.len() >= BLOCK { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        self.hasher.update(&self.buffer);
        let place = self.file.append(&self.buffer)?;
        self.blocks.push((place, self.buffer.len() as u32));
        self.buffer.clear();
        Ok(())
    }

    pub(super) fn finish(mut self) -> Result<Segment> {
        self.flush()?;
        let Self { file, blocks, num_entries, hasher, .. } = self;
        Ok(Segment { file, blocks, num_entries, digest: hasher.digest() })
    }
}

/// Lays an entry into `out`.
pub(super) fn encode(out: &mut Vec<u8>, tag: &[u8], count: u64) {
    out.push(tag.len() as u8);
    out.extend_from_slice(tag);
    leb128::put(out, count);
}

/// Reads one segment, an entry at a time.
pub(super) struct SegmentReader {
    segment: Segment,
    next_block: usize,
    buffer: Vec<u8>,
    place: usize,
    hasher: Xxh3,
    tag: std::ops::Range<usize>,
    hash: u64,
    count: u64,
}

impl SegmentReader {
    pub(super) fn new(segment: &Segment) -> Self {
        Self {
            segment: segment.clone(),
            next_block: 0,
            buffer: Vec::new(),
            place: 0,
            hasher: Xxh3::new(),
            tag: 0..0,
            hash: 0,
            count: 0,
        }
    }

    /// Goes to the next entry, and says whether there is one.
    pub(super) fn advance(&mut self) -> Result<bool> {
        if self.place == self.buffer.len() && !self.read_block()? {
            return Ok(false);
        }
        let rest = &self.buffer[self.place..];
        let entry = rest.split_first().and_then(|(&length, rest)| {
            let length = usize::from(length);
            let (count, used) = decode_count(rest.get(length..)?)?;
            (1..=MAX_BYTES).contains(&length).then_some((length, count, used))
        });
        let Some((length, count, used)) = entry else { return Err(self.damaged()) };
        let start = self.place + 1;
        self.tag = start..start + length;
        self.count = count;
        self.place = start + length + used;
        self.hash = Tag::of_bytes(self.tag()).hash();
        Ok(true)
    }

    fn read_block(&mut self) -> Result<bool> {
        let Some(&(place, size)) = self.segment.blocks.get(self.next_block) else {
            let sound = self.hasher.digest() == self.segment.digest;
            return if sound { Ok(false) } else { Err(self.damaged()) };
        };
        self.next_block += 1;
        self.buffer.resize(size as usize, 0);
        self.place = 0;
        self.segment.file.read(place, &mut self.buffer)?;
        self.hasher.update(&self.buffer);
        Ok(true)
    }

    fn damaged(&self) -> Error {
        Error::data(
            "a temporary file does not hold what was written to it; look after the disk of the \
             spill folder and start again",
        )
    }

    pub(super) fn tag(&self) -> &[u8] {
        &self.buffer[self.tag.clone()]
    }

    pub(super) fn hash(&self) -> u64 {
        self.hash
    }

    pub(super) fn count(&self) -> u64 {
        self.count
    }
}

fn decode_count(bytes: &[u8]) -> Option<(u64, usize)> {
    leb128::get(bytes).filter(|&(count, _)| count > 0)
}

/// The order of a merge: a number of each entry, the smaller first; ties go by bytes.
pub(super) type Order = fn(&SegmentReader) -> u64;

/// By ascending hash, ties by bytes.
pub(super) fn by_hash(entry: &SegmentReader) -> u64 {
    entry.hash()
}

/// By descending count, ties by bytes.
pub(super) fn by_rank(entry: &SegmentReader) -> u64 {
    !entry.count()
}

/// A segment whose entries are in an order.
struct Ordered {
    reader: SegmentReader,
    order: Order,
}

impl Source<u64> for Ordered {
    const HOLDS_MORE: bool = true;

    #[inline]
    fn next_record(&mut self) -> Result<Option<u64>> {
        Ok(self.reader.advance()?.then(|| (self.order)(&self.reader)))
    }

    #[inline]
    fn is_before(&self, other: &Self) -> bool {
        self.reader.tag() < other.reader.tag()
    }
}

/// Several segments read as one, in order.
pub(super) struct SegmentMerge(Merge<u64, Ordered>);

impl SegmentMerge {
    pub(super) fn new(segments: &[Segment], order: Order) -> Self {
        let readers = segments.iter().map(SegmentReader::new);
        Self(Merge::new(readers.map(|reader| Ordered { reader, order }).collect()))
    }

    /// Goes to the next entry, which is returned; equal tags come one after another.
    pub(super) fn next(&mut self) -> Result<Option<&SegmentReader>> {
        let found = self.0.next_record()?;
        Ok(found.and_then(|_| self.0.source()).map(|source| &source.reader))
    }
}

/// Calls `each(tag, count)` for every tag of segments sorted by hash, counts of equal tags added up.
pub(super) fn add_up(
    segments: &[Segment],
    mut each: impl FnMut(&[u8], u64) -> Result<()>,
) -> Result<()> {
    let mut merge = SegmentMerge::new(segments, by_hash);
    let mut tag: Vec<u8> = Vec::new();
    let mut sum = 0_u64;
    while let Some(entry) = merge.next()? {
        if entry.tag() == tag {
            sum += entry.count();
            continue;
        }
        if sum > 0 {
            each(&tag, sum)?;
        }
        tag.clear();
        tag.extend_from_slice(entry.tag());
        sum = entry.count();
    }
    if sum > 0 { each(&tag, sum) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_any_size_survive_a_segment() {
        let folder = tempfile::tempdir().unwrap();
        let file = Arc::new(SpillFile::create(folder.path()).unwrap());
        let counts = [1, 127, 128, u64::from(u32::MAX), u64::MAX];
        let mut writer = SegmentWriter::new(file);
        for round in 0..3000 {
            for count in counts {
                writer.push(format!("tag-{round}").as_bytes(), count).unwrap();
            }
        }
        let segment = writer.finish().unwrap();
        assert!(segment.blocks.len() > 1);
        let mut reader = SegmentReader::new(&segment);
        for round in 0..3000 {
            for count in counts {
                assert!(reader.advance().unwrap());
                assert_eq!(reader.tag(), format!("tag-{round}").as_bytes());
                assert_eq!(reader.count(), count);
            }
        }
        assert!(!reader.advance().unwrap());
    }

    #[test]
    fn a_run_altered_on_disk_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let file = Arc::new(SpillFile::create(folder.path()).unwrap());
        let mut writer = SegmentWriter::new(file);
        writer.push(b"cat", 3).unwrap();
        let mut segment = writer.finish().unwrap();
        segment.digest ^= 1;
        let mut reader = SegmentReader::new(&segment);
        assert!(reader.advance().unwrap());
        assert!(reader.advance().unwrap_err().to_string().contains("does not hold"));
        assert_eq!(decode_count(&[0x80; 11]), None);
        assert_eq!(decode_count(&[0]), None);
    }
}
