//! One mapped part: rows looked up in the raw buffers of an Arrow IPC file.
//!
//! Opening parses the footer and the header of each record batch and keeps where the buffers of each
//! column are, after checking that they are inside the file and are as long as the rows ask. What
//! the buffers contain (offsets of keys and labels) is checked at each lookup: a damaged file gives
//! an error, never a wrong slice.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use arrow_ipc::convert::try_fb_to_schema;
use arrow_ipc::{MessageHeader, root_as_footer, root_as_message};

use super::format::{BATCH_ROWS, FileEntry, part_schema};
use crate::hints::prefetch;
use crate::map::Map;
use crate::{Error, Result};

const MAGIC: &[u8; 6] = b"ARROW1";
const CONTINUATION: [u8; 4] = [0xff; 4];

/// One row of a part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row<'a> {
    /// The key of the sample.
    pub key: &'a str,
    /// The number of its shard.
    pub shard: u32,
    /// Where the content of its image begins in the shard.
    pub offset: u64,
    /// Bytes of its image.
    pub size: u32,
}

/// A part of an index, mapped.
#[derive(Debug)]
pub struct Part {
    map: Map,
    batches: Vec<Batch>,
    num_rows: usize,
}

/// Where the buffers of a record batch are in the file.
#[derive(Debug, Clone)]
struct Batch {
    num_rows: usize,
    key_offsets: Range<usize>,
    keys: Range<usize>,
    shards: Range<usize>,
    offsets: Range<usize>,
    sizes: Range<usize>,
    label_offsets: Range<usize>,
    labels: Range<usize>,
}

impl Part {
    /// Maps the part that `entry` of the manifest names.
    pub fn open(folder: &Path, entry: &FileEntry) -> Result<Self> {
        let path = folder.join(&entry.file);
        let (map, batches) = Map::open_after(path, Some(entry.size), read_layout)?;
        let batches = batches.map_err(|what| damaged(&map, &what))?;
        let num_rows: usize = batches.iter().map(|batch| batch.num_rows).sum();
        let full = batches.iter().rev().skip(1).all(|batch| batch.num_rows == BATCH_ROWS);
        if num_rows as u64 != entry.num_rows || !full {
            let what =
                format!("expected {} rows in batches of 65,536, found {num_rows}", entry.num_rows);
            return Err(damaged(&map, &what));
        }
        Ok(Self { map, batches, num_rows })
    }

    /// Rows of the part.
    pub fn num_rows(&self) -> usize {
        self.num_rows
    }

    /// All bytes of the file.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        self.map.path()
    }

    /// The row numbered `row`, which is below [`num_rows`](Self::num_rows), without its labels.
    #[inline]
    pub fn row(&self, row: usize) -> Result<Row<'_>> {
        let (batch, at) = self.locate(row)?;
        let key = self.span(&batch.key_offsets, &batch.keys, at, 1, row)?;
        Ok(Row {
            key: std::str::from_utf8(key)
                .map_err(|_| self.bad_row(row, "a key that is not UTF-8"))?,
            shard: u32_at(&self.map, &batch.shards, at).unwrap_or_default(),
            offset: u64_at(&self.map, &batch.offsets, at).unwrap_or_default(),
            size: u32_at(&self.map, &batch.sizes, at).unwrap_or_default(),
        })
    }

    /// Calls `take` with the bytes of each key, in the order of the rows.
    pub(super) fn each_key(&self, mut take: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let mut row = 0;
        for batch in &self.batches {
            let (offsets, keys) =
                (&self.map[batch.key_offsets.clone()], &self.map[batch.keys.clone()]);
            let mut offsets = numbers(offsets).map(|offset| offset as usize);
            let mut start = offsets.next().unwrap_or_default();
            for end in offsets.take(batch.num_rows) {
                let key = keys.get(start..end);
                take(key.ok_or_else(|| self.bad_row(row, "offsets that point outside the file"))?)?;
                start = end;
                row += 1;
            }
        }
        Ok(())
    }

    /// Reads what [`row`](Self::row) reads first, and returns some number made of it.
    ///
    /// Processors may ignore a hint to fetch, where much is fetched at once.
    #[inline]
    pub(super) fn touch_row(&self, row: usize) -> u8 {
        let Some(batch) = self.batches.get(row / BATCH_ROWS) else { return 0 };
        let at = row % BATCH_ROWS;
        let byte = |place: usize| self.map.get(place).copied().unwrap_or_default();
        byte(batch.key_offsets.start + 4 * at)
            ^ byte(batch.shards.start + 4 * at)
            ^ byte(batch.offsets.start + 8 * at)
            ^ byte(batch.sizes.start + 4 * at)
    }

    /// Makes the processor fetch the key of a row, whose offset was fetched.
    #[inline]
    pub(super) fn prefetch_key(&self, row: usize) {
        let Some(batch) = self.batches.get(row / BATCH_ROWS) else { return };
        if let Some(start) = u32_at(&self.map, &batch.key_offsets, row % BATCH_ROWS) {
            prefetch(&self.map, batch.keys.start + start as usize);
        }
    }

    /// Makes the processor fetch where the labels of a row are.
    #[inline]
    pub(super) fn prefetch_labels(&self, row: usize) {
        let Some(batch) = self.batches.get(row / BATCH_ROWS) else { return };
        prefetch(&self.map, batch.label_offsets.start + 4 * (row % BATCH_ROWS));
    }

    /// The labels of a row, ascending, four bytes each.
    pub(super) fn label_bytes(&self, row: usize) -> Result<&[u8]> {
        let (batch, at) = self.locate(row)?;
        self.span(&batch.label_offsets, &batch.labels, at, 4, row)
    }

    fn locate(&self, row: usize) -> Result<(&Batch, usize)> {
        let batch = self.batches.get(row / BATCH_ROWS).filter(|_| row < self.num_rows);
        batch.map(|batch| (batch, row % BATCH_ROWS)).ok_or_else(|| self.bad_row(row, "no such row"))
    }

    /// The bytes between two neighbouring offsets, which count items of `width` bytes.
    #[inline]
    fn span(
        &self,
        offsets: &Range<usize>,
        values: &Range<usize>,
        at: usize,
        width: usize,
        row: usize,
    ) -> Result<&[u8]> {
        let bound = |at| {
            let offset = u32_at(&self.map, offsets, at).map(|offset| offset as i32)?;
            usize::try_from(offset).ok()?.checked_mul(width)
        };
        let bytes = &self.map[values.clone()];
        let found = bound(at).zip(bound(at + 1)).and_then(|(start, end)| bytes.get(start..end));
        found.ok_or_else(|| self.bad_row(row, "offsets that point outside the file"))
    }

    fn bad_row(&self, row: usize, what: &str) -> Error {
        damaged(&self.map, &format!("row {row}: {what}"))
    }
}

/// Labels out of their bytes.
pub(super) fn numbers(bytes: &[u8]) -> impl ExactSizeIterator<Item = u32> + '_ {
    bytes.chunks_exact(4).map(|label| {
        let mut number = [0; 4];
        number.copy_from_slice(label);
        u32::from_le_bytes(number)
    })
}

fn damaged(map: &Map, what: &str) -> Error {
    Error::data(format!(
        "{}: the part is damaged: {what}; check the index with 'wsl index verify' and build it again",
        map.path().display()
    ))
}

fn u32_at(bytes: &[u8], range: &Range<usize>, at: usize) -> Option<u32> {
    let start = range.start.checked_add(at.checked_mul(4)?)?;
    let number = bytes.get(start..start + 4).filter(|_| start + 4 <= range.end)?;
    Some(u32::from_le_bytes(number.try_into().ok()?))
}

fn u64_at(bytes: &[u8], range: &Range<usize>, at: usize) -> Option<u64> {
    let start = range.start.checked_add(at.checked_mul(8)?)?;
    let number = bytes.get(start..start + 8).filter(|_| start + 8 <= range.end)?;
    Some(u64::from_le_bytes(number.try_into().ok()?))
}

type Parsed<T> = std::result::Result<T, String>;

fn read(file: &File, at: u64, length: usize) -> Parsed<Vec<u8>> {
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, at).map_err(|error| format!("byte {at}: {error}"))?;
    Ok(bytes)
}

fn read_layout(file: &File, size: u64) -> Parsed<Vec<Batch>> {
    let tail = size.checked_sub(10).filter(|&tail| tail >= 8).ok_or("it is too short")?;
    let end = read(file, tail, 10)?;
    if read(file, 0, MAGIC.len())? != MAGIC || &end[4..] != MAGIC {
        return Err("it is not an Arrow IPC file".to_owned());
    }

    // Nothing here is trusted: lengths are checked before they are used, for the file may be
    // damaged.
    let length = u32_at(&end, &(0..4), 0).unwrap_or_default();
    let start = tail.checked_sub(u64::from(length)).ok_or("its footer is longer than the file")?;
    let footer = read(file, start, length as usize)?;
    let footer = root_as_footer(&footer).map_err(|error| format!("footer: {error}"))?;
    let schema = footer.schema().ok_or("its footer has no schema")?;
    let schema = try_fb_to_schema(schema).map_err(|error| format!("schema: {error}"))?;
    if schema.fields() != part_schema().fields() {
        return Err(format!("its columns are not those of a part: {schema}"));
    }
    let Some(blocks) = footer.recordBatches() else { return Ok(Vec::new()) };
    blocks
        .iter()
        .map(|block| {
            let at = usize::try_from(block.offset()).map_err(|_| "a negative offset")?;
            let header =
                usize::try_from(block.metaDataLength()).map_err(|_| "a negative length")?;
            let body = usize::try_from(block.bodyLength()).map_err(|_| "a negative length")?;
            read_batch(file, start as usize, at, header, body)
        })
        .collect()
}

/// One record batch of a file whose footer is at `limit`.
fn read_batch(file: &File, limit: usize, at: usize, header: usize, body: usize) -> Parsed<Batch> {
    // The file may be damaged: every offset and length is checked before anything is read by it.
    let body_start = at.checked_add(header).filter(|&end| end <= limit);
    let body_start = body_start.ok_or("a block outside the file")?;
    let body_end = body_start.checked_add(body).filter(|&end| end <= limit);
    let body_end = body_end.ok_or("a block outside the file")?;
    let message = read(file, at as u64, header)?;
    let prefix = if message.starts_with(&CONTINUATION) { 8 } else { 4 };
    let message = message.get(prefix..).ok_or("a block without a header")?;
    let message = root_as_message(message).map_err(|error| format!("message: {error}"))?;
    if message.header_type() != MessageHeader::RecordBatch {
        return Err("a block that is no record batch".to_owned());
    }
    let batch = message.header_as_record_batch().ok_or("a block that is no record batch")?;
    if batch.compression().is_some() {
        return Err("a compressed record batch".to_owned());
    }
    let num_rows = usize::try_from(batch.length()).map_err(|_| "a negative number of rows")?;
    if num_rows > BATCH_ROWS {
        return Err(format!("a record batch of {num_rows} rows"));
    }

    // Checked once here, so that look-ups need not ask whether a buffer ends within the file.
    let buffers: Vec<Range<usize>> = batch
        .buffers()
        .ok_or("a record batch without buffers")?
        .iter()
        .map(|buffer| {
            let start = usize::try_from(buffer.offset()).ok()?.checked_add(body_start)?;
            let end = start.checked_add(usize::try_from(buffer.length()).ok()?)?;
            (end <= body_end).then_some(start..end)
        })
        .collect::<Option<_>>()
        .ok_or("a buffer outside its record batch")?;
    // Each column brings a validity buffer first; nothing is ever null.
    let [_, key_offsets, keys, _, shards, _, offsets, _, sizes, _, label_offsets, _, labels] =
        <[Range<usize>; 13]>::try_from(buffers).map_err(|_| "a record batch of other buffers")?;

    // A table of no rows may have empty offsets.
    let long_enough =
        |range: &Range<usize>, items: usize, width: usize| range.len() >= items * width;
    let bounds = num_rows + usize::from(num_rows > 0);
    let whole = long_enough(&key_offsets, bounds, 4)
        && long_enough(&shards, num_rows, 4)
        && long_enough(&offsets, num_rows, 8)
        && long_enough(&sizes, num_rows, 4)
        && long_enough(&label_offsets, bounds, 4);
    if !whole {
        return Err("a buffer that is too short for its rows".to_owned());
    }
    Ok(Batch { num_rows, key_offsets, keys, shards, offsets, sizes, label_offsets, labels })
}
