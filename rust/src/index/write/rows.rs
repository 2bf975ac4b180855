//! Rows under way: of the part being filled, and of the table of shards.

use std::ops::Range;
use std::sync::Arc;

use arrow_array::builder::StringBuilder;
use arrow_array::{ArrayRef, ListArray, RecordBatch, StringArray, UInt32Array, UInt64Array};
use arrow_buffer::{Buffer, OffsetBuffer, ScalarBuffer};
use arrow_schema::{DataType, Field};

use crate::index::format::{BATCH_ROWS, NO_SHARD, part_schema, shards_schema};
use crate::index::images::shards::Shard;
use crate::index::tables::group::Group;
use crate::{Error, Result};

/// Rows of the part under way, laid out as Arrow has them.
#[derive(Debug, Default)]
pub(in crate::index) struct Rows {
    keys: Vec<u8>,
    key_ends: Vec<usize>,
    shards: Vec<u32>,
    offsets: Vec<u64>,
    sizes: Vec<u32>,
    labels: Vec<u32>,
    label_ends: Vec<usize>,
}

impl Rows {
    pub(in crate::index) fn len(&self) -> usize {
        self.shards.len()
    }

    /// Adds a sample whose image is at `(shard, offset, size)`.
    pub(in crate::index) fn push(&mut self, key: &str, place: (u32, u64, u32), labels: &[u32]) {
        self.keys.extend_from_slice(key.as_bytes());
        self.key_ends.push(self.keys.len());
        self.shards.push(place.0);
        self.offsets.push(place.1);
        self.sizes.push(place.2);
        self.labels.extend_from_slice(labels);
        self.label_ends.push(self.labels.len());
    }

    /// Adds records without images; returns how many of them have no labels.
    pub(in crate::index) fn push_group(&mut self, group: &Group, rows: Range<usize>) -> u64 {
        let (keys, key_ends) = group.keys(rows.clone());
        let (labels, label_ends) = group.labels(rows.clone());
        let (key_base, label_base) = (self.keys.len(), self.labels.len());
        self.keys.extend_from_slice(keys);
        self.key_ends.extend(key_ends.map(|end| key_base + end));
        self.labels.extend_from_slice(labels);
        let (mut last, mut num_empty) = (0, 0);
        self.label_ends.extend(label_ends.map(|end| {
            num_empty += u64::from(end == last);
            last = end;
            label_base + end
        }));
        let len = self.shards.len() + rows.len();
        self.shards.resize(len, NO_SHARD);
        self.offsets.resize(len, 0);
        self.sizes.resize(len, 0);
        num_empty
    }

    /// Forgets the rows and keeps the memory.
    pub(in crate::index) fn clear(&mut self) {
        let Self { keys, key_ends, shards, offsets, sizes, labels, label_ends } = self;
        keys.clear();
        labels.clear();
        offsets.clear();
        [shards, sizes].into_iter().for_each(Vec::clear);
        [key_ends, label_ends].into_iter().for_each(Vec::clear);
    }

    /// The rows as batches of [`BATCH_ROWS`], made one after another.
    pub(in crate::index) fn batches(&self) -> impl Iterator<Item = Result<RecordBatch>> + '_ {
        let starts = (0..self.len()).step_by(BATCH_ROWS);
        starts.map(|start| self.batch(start, (start + BATCH_ROWS).min(self.len())))
    }

    fn batch(&self, start: usize, end: usize) -> Result<RecordBatch> {
        let (key_offsets, keys) = spans(&self.key_ends, start, end)?;
        let (label_offsets, labels) = spans(&self.label_ends, start, end)?;
        let keys = Buffer::from(&self.keys[keys]);
        let item = Arc::new(Field::new("item", DataType::UInt32, false));
        let labels: ArrayRef = Arc::new(UInt32Array::from(self.labels[labels].to_vec()));
        let columns: Vec<ArrayRef> = vec![
            Arc::new(StringArray::try_new(key_offsets, keys, None)?),
            Arc::new(UInt32Array::from(self.shards[start..end].to_vec())),
            Arc::new(UInt64Array::from(self.offsets[start..end].to_vec())),
            Arc::new(UInt32Array::from(self.sizes[start..end].to_vec())),
            Arc::new(ListArray::try_new(item, label_offsets, labels, None)?),
        ];
        Ok(RecordBatch::try_new(part_schema(), columns)?)
    }
}

/// Arrow's offsets of the rows from `start` to `end`, and the values they span.
fn spans(ends: &[usize], start: usize, end: usize) -> Result<(OffsetBuffer<i32>, Range<usize>)> {
    let base = if start == 0 { 0 } else { ends[start - 1] };
    let last = ends.get(end.wrapping_sub(1)).copied().unwrap_or(base);
    if i32::try_from(last - base).is_err() {
        return Err(Error::data(format!(
            "the rows {start} to {end} of a part hold over 2 GiB of keys or labels, more than an index can \
             hold there; shorten the keys"
        )));
    }
    let mut offsets = Vec::with_capacity(end - start + 1);
    offsets.push(0);
    offsets.extend(ends[start..end].iter().map(|&end| (end - base) as i32));
    Ok((OffsetBuffer::new(ScalarBuffer::from(offsets)), base..last))
}

/// Rows of `shards.arrow`.
pub(in crate::index) fn shards_batch(shards: &[Shard]) -> Result<RecordBatch> {
    let mut paths = StringBuilder::new();
    shards.iter().for_each(|shard| paths.append_value(&shard.path));
    let numbers = |number: fn(&Shard) -> u64| -> ArrayRef {
        Arc::new(UInt64Array::from(shards.iter().map(number).collect::<Vec<_>>()))
    };
    let mut columns: Vec<ArrayRef> = vec![
        Arc::new(paths.finish()),
        numbers(|shard| shard.size),
        numbers(|shard| shard.header_checksum),
        numbers(|shard| shard.first_sample),
        numbers(|shard| shard.num_samples),
    ];
    let with_etags = shards.iter().any(|shard| shard.etag.is_some());
    if with_etags {
        let mut etags = StringBuilder::new();
        shards.iter().for_each(|shard| etags.append_option(shard.etag.as_deref()));
        columns.push(Arc::new(etags.finish()));
    }
    Ok(RecordBatch::try_new(shards_schema(with_etags), columns)?)
}
