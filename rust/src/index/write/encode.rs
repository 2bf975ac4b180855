//! Hashtags of record batches as labels, on all threads, in the order of the records.

use std::collections::BTreeMap;

use arrow_array::RecordBatch;
use arrow_schema::ArrowError;
use rayon::prelude::*;

use super::lists::Lists;
use super::records::{Columns, Keys};
use crate::count::{CountOptions, tag_column};
use crate::hashtag::{RecordReader, TagColumn, Tally};
use crate::index::format::KeyScope;
use crate::index::format::join_key;
use crate::job::Job;
use crate::vocabulary::{Encoder, Vocabulary};
use crate::{Error, Result};

/// Rows between two looks at the [`Job`].
const ROWS_PER_CHECK: usize = 4096;

/// The labels of a range of rows.
#[derive(Debug, Default)]
struct Range {
    reader: RecordReader,
    labels: Vec<u32>,
    ends: Vec<usize>,
    num_unknown: u64,
}

impl Range {
    fn encode(
        &mut self,
        encoder: &Encoder,
        column: &TagColumn,
        rows: std::ops::Range<usize>,
        job: &Job,
    ) -> Result<()> {
        let Self { reader, labels, ends, num_unknown } = self;
        labels.clear();
        ends.clear();
        let mut of_row = Vec::new();
        for row in rows {
            if row % ROWS_PER_CHECK == 0 {
                job.check()?;
            }
            of_row.clear();
            reader.read(column, row, &mut Tally::default(), |tag| match encoder.encode(tag) {
                Some(label) => of_row.push(label),
                None => *num_unknown += 1,
            });
            of_row.sort_unstable();
            of_row.dedup();
            labels.extend_from_slice(&of_row);
            ends.push(labels.len());
        }
        Ok(())
    }
}

/// Encodes one batch after another, a range of rows on each thread.
pub(in crate::index) struct BatchEncoder<'a> {
    pool: rayon::ThreadPool,
    encoder: &'a Encoder,
    options: &'a CountOptions,
    ranges: Vec<Range>,
}

impl<'a> BatchEncoder<'a> {
    pub(in crate::index) fn new(
        pool: rayon::ThreadPool,
        vocabulary: &'a Vocabulary,
        options: &'a CountOptions,
    ) -> Result<Self> {
        let separator = options.separator.as_deref();
        let range = |_| Ok(Range { reader: RecordReader::new(separator)?, ..Range::default() });
        let ranges = (0..pool.current_num_threads()).map(range).collect::<Result<_>>()?;
        Ok(Self { pool, encoder: vocabulary.encoder(), options, ranges })
    }

    /// Calls `take(row, labels)` for every row of the batch in its order; labels are distinct and
    /// ascending.
    pub(in crate::index) fn encode(
        &mut self,
        batch: &RecordBatch,
        job: &Job,
        mut take: impl FnMut(usize, &[u32]) -> Result<()>,
    ) -> Result<()> {
        let column = tag_column(batch, self.options)?;
        let Self { pool, encoder, ranges, .. } = self;
        let share = column.len().div_ceil(ranges.len()).max(1);
        pool.install(|| {
            ranges.par_iter_mut().enumerate().try_for_each(|(number, range)| {
                let first = (number * share).min(column.len());
                range.encode(encoder, &column, first..(first + share).min(column.len()), job)
            })
        })?;
        let mut row = 0;
        for range in ranges {
            let mut start = 0;
            for &end in &range.ends {
                take(row, &range.labels[start..end])?;
                start = end;
                row += 1;
            }
        }
        Ok(())
    }

    /// Hashtags so far that the vocabulary lacks.
    pub(in crate::index) fn num_unknown(&self) -> u64 {
        self.ranges.iter().map(|range| range.num_unknown).sum()
    }
}

/// Calls `take(key, labels)` for every record that the lists take, in order, its key joined with its shard
/// where keys begin anew in every shard; returns what was counted. `job` advances by records.
pub(in crate::index) fn each_record(
    batches: impl IntoIterator<Item = std::result::Result<RecordBatch, ArrowError>>,
    columns: &Columns,
    encoder: &mut BatchEncoder<'_>,
    (scope, lists): (KeyScope, &Lists),
    job: &Job,
    mut take: impl FnMut(&[u8], &[u32]) -> Result<()>,
) -> Result<BTreeMap<String, u64>> {
    if columns.shard.is_some() != (scope == KeyScope::Shard) {
        return Err(Error::usage(
            "records need a column that names their shard where keys begin anew in every shard, and \
             only there",
        ));
    }
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    let mut scratch = Vec::new();
    for batch in batches {
        let batch = batch?;
        let keys = Keys::new(&batch, columns, true)?;
        encoder.encode(&batch, job, |row, labels| {
            let (shard, key) = (keys.shard(row)?, keys.get(row)?);

            // What the lists leave out takes no room among the records.
            let key = join_key(&shard, &key, &mut scratch);
            if let Some(cause) = lists.cause(key) {
                *counts.entry(format!("records_{cause}")).or_insert(0) += 1;
                return Ok(());
            }
            take(key, labels)
        })?;
        *counts.entry("records".to_owned()).or_insert(0) += batch.num_rows() as u64;
        job.advance(batch.num_rows() as u64);
    }
    counts.insert("hashtags_outside_the_vocabulary".to_owned(), encoder.num_unknown());
    Ok(counts)
}
