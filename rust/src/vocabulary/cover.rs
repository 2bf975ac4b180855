//! How many records have a label of a vocabulary.

use arrow_array::RecordBatch;
use arrow_schema::ArrowError;

use super::Vocabulary;
use crate::Result;
use crate::count::{CountOptions, tag_column};
use crate::hashtag::{RecordReader, Tally};
use crate::job::Job;

/// Rows between two looks at the [`Job`].
const ROWS_PER_CHECK: usize = 4096;

/// Records, and those of them with a label.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Covered {
    /// Records read.
    pub num_records: u64,
    /// Records with one tag at least that leads to a label.
    pub num_covered: u64,
}

impl Vocabulary {
    /// Reads records once; `job` advances by them.
    pub fn cover(
        &self,
        batches: impl IntoIterator<Item = std::result::Result<RecordBatch, ArrowError>>,
        options: &CountOptions,
        job: &Job,
    ) -> Result<Covered> {
        let mut reader = RecordReader::new(options.separator.as_deref())?;
        let mut covered = Covered::default();
        for batch in batches {
            let batch = batch?;
            let column = tag_column(&batch, options)?;
            for row in 0..column.len() {
                if row % ROWS_PER_CHECK == 0 {
                    job.check()?;
                }
                let mut known = false;
                reader.read(&column, row, &mut Tally::default(), |tag| {
                    known |= self.encoder().encode(tag).is_some();
                });
                covered.num_covered += u64::from(known);
            }
            covered.num_records += column.len() as u64;
            job.advance(column.len() as u64);
        }
        Ok(covered)
    }
}
