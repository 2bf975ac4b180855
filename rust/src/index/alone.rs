//! Records that are a whole index by themselves: labels by key, no images.
//!
//! Such an index serves all that needs labels alone (statistics, repeat factors, epoch orders,
//! joining later); reading an image from it is an error that says so. Batches are encoded on all
//! threads, a range of rows each, and their rows are kept in the order of the records.

use arrow_array::RecordBatch;
use arrow_schema::ArrowError;
use rayon::prelude::*;
use xxhash_rust::xxh3::xxh3_64;

use super::build::Builder;
use super::format::{NO_SHARD, PART_ROWS};
use super::records::Keys;
use crate::count::{CountOptions, tag_column};
use crate::hashtag::{RecordReader, TagColumn, Tally};
use crate::job::Job;
use crate::vocabulary::{Encoder, Vocabulary};
use crate::{Error, Result};

/// Rows between two looks at the [`Job`].
const ROWS_PER_CHECK: usize = 4096;

/// The labels of a range of rows.
#[derive(Debug, Default)]
struct Encoded {
    reader: RecordReader,
    labels: Vec<u32>,
    ends: Vec<usize>,
    num_unknown: u64,
}

impl Encoded {
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

impl Builder {
    /// Writes records as samples without an image; `job` advances by records.
    pub fn index_records(
        &mut self,
        batches: impl IntoIterator<Item = std::result::Result<RecordBatch, ArrowError>>,
        key_column: &str,
        options: &CountOptions,
        vocabulary: &Vocabulary,
        job: &Job,
    ) -> Result<()> {
        let pool = self.thread_pool()?;
        let encoder = Encoder::new(vocabulary);
        let separator = options.separator.as_deref();
        let part = |_| Ok(Encoded { reader: RecordReader::new(separator)?, ..Encoded::default() });
        let mut parts: Vec<Encoded> =
            (0..pool.current_num_threads()).map(part).collect::<Result<_>>()?;
        for batch in batches {
            let batch = batch?;
            let column = tag_column(&batch, options)?;
            let keys = Keys::new(&batch, key_column)?;
            let share = column.len().div_ceil(parts.len()).max(1);
            pool.install(|| {
                parts.par_iter_mut().enumerate().try_for_each(|(number, part)| {
                    let first = (number * share).min(column.len());
                    part.encode(&encoder, &column, first..(first + share).min(column.len()), job)
                })
            })?;
            let mut row = 0;
            for part in &parts {
                let mut start = 0;
                for &end in &part.ends {
                    let key = keys.get(row).ok_or_else(|| {
                        Error::data(format!(
                            "a record without a key (column {key_column:?} is null)"
                        ))
                    })?;
                    self.push_record(&key, &part.labels[start..end])?;
                    start = end;
                    row += 1;
                }
            }
            *self.count("records") += row as u64;
            job.advance(row as u64);
        }
        let num_unknown: u64 = parts.iter().map(|part| part.num_unknown).sum();
        *self.count("hashtags_outside_the_vocabulary") += num_unknown;
        Ok(())
    }

    fn push_record(&mut self, key: &str, labels: &[u32]) -> Result<()> {
        if self.exclude.contains(key) {
            *self.count("samples_excluded") += 1;
            return Ok(());
        }
        if labels.is_empty() {
            *self.count("samples_without_labels") += 1;
        }
        self.rows.push(key, (NO_SHARD, 0, 0), labels);
        self.keys.push((xxh3_64(key.as_bytes()), self.num_samples));
        self.num_samples += 1;
        if self.rows.len() == PART_ROWS { self.write_part() } else { Ok(()) }
    }
}
