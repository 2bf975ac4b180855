//! Records that are a whole index by themselves: labels by key, no images.
//!
//! Such an index is enough for all that needs labels alone (statistics, repeat factors, epoch
//! orders, joining later); reading an image from it is an error. Rows are kept in the order of the
//! records.

use arrow_array::RecordBatch;
use arrow_schema::ArrowError;

use super::Builder;
use super::encode::BatchEncoder;
use super::records::{Columns, Keys};
use crate::Result;
use crate::count::CountOptions;
use crate::index::tables::group::GroupEncoder;
use crate::index::tables::spool::Spool;
use crate::job::Job;
use crate::parquet::ParquetRecords;
use crate::vocabulary::Vocabulary;

impl Builder {
    /// Writes records as samples without an image; `job` advances by records.
    pub fn index_records(
        &mut self,
        batches: impl IntoIterator<Item = std::result::Result<RecordBatch, ArrowError>>,
        columns: &Columns,
        options: &CountOptions,
        vocabulary: &Vocabulary,
        job: &Job,
    ) -> Result<()> {
        let mut encoder = BatchEncoder::new(self.thread_pool()?, vocabulary, options)?;
        let (mut number, num_done) = (0, self.num_records_done());
        for batch in batches {
            let batch = batch?;
            let keys = Keys::new(&batch, columns, false)?;
            encoder.encode(&batch, job, |row, labels| {
                if number + row < num_done {
                    return Ok(());
                }
                let key = keys.get(row)?;
                self.push_record(number + row, &key, labels)
            })?;
            number += batch.num_rows();
            job.advance(batch.num_rows() as u64);
        }
        self.end_records(number);
        self.note_records(number as u64, encoder.num_unknown());
        Ok(())
    }

    /// The same with the records of Parquet files.
    pub fn index_parquet(
        &mut self,
        records: &ParquetRecords,
        vocabulary: &Vocabulary,
        job: &Job,
    ) -> Result<()> {
        let encoder = GroupEncoder::new(self.thread_pool()?, records, None, vocabulary)?;
        self.index_groups(encoder, job)
    }

    /// The same with records whose hashtags were spooled.
    pub fn index_spooled(
        &mut self,
        spool: &Spool,
        vocabulary: &Vocabulary,
        job: &Job,
    ) -> Result<()> {
        let pool = self.thread_pool()?;
        let encoder = GroupEncoder::new(pool, &spool.records, Some(spool), vocabulary)?;
        self.index_groups(encoder, job)
    }

    fn index_groups(&mut self, mut encoder: GroupEncoder<'_>, job: &Job) -> Result<()> {
        let (mut number, num_done) = (0, self.num_records_done());
        loop {
            let groups = encoder.next_groups(job)?;
            if groups.is_empty() {
                break;
            }
            for group in groups {
                self.push_group(number, group, num_done.saturating_sub(number))?;
                number += group.len();
                job.advance(group.len() as u64);
            }
        }
        self.end_records(number);
        self.note_records(number as u64, encoder.num_unknown());
        Ok(())
    }

    /// Notes how many records were read, and hashtags of theirs that the vocabulary lacks.
    pub(in crate::index) fn note_records(&mut self, number: u64, num_unknown: u64) {
        let fresh = [
            ("records".to_owned(), number),
            ("hashtags_outside_the_vocabulary".to_owned(), num_unknown),
        ];
        self.set_counts(fresh.into(), false);
    }
}
