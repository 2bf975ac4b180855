//! Records of a group of tables as keys and labels, parted by the hash of the key.

use std::path::Path;

use arrow_array::RecordBatch;
use arrow_schema::ArrowError;
use xxhash_rust::xxh3::xxh3_64;

use super::sections::SectionsWriter;
use super::{About, Taking};
use crate::count::CountOptions;
use crate::index::write::encode::{BatchEncoder, each_record};
use crate::index::write::records::{Columns, put_record};
use crate::job::Job;
use crate::spill::Memory;
use crate::spill::partitions::Partitions;
use crate::vocabulary::Vocabulary;
use crate::{Result, threads};

/// Writes records, their hashtags as labels of `vocabulary`, as `out`; `job` advances by records.
///
/// Entries wait on disk until their bucket is written, whatever memory there is.
#[expect(clippy::too_many_arguments, reason = "one call makes one file")]
pub fn save_records(
    batches: impl IntoIterator<Item = std::result::Result<RecordBatch, ArrowError>>,
    columns: &Columns,
    options: &CountOptions,
    vocabulary: &Vocabulary,
    taking: &Taking,
    memory: &Memory,
    out: &Path,
    job: &Job,
) -> Result<()> {
    let mut encoder = BatchEncoder::new(threads::pool(options.num_threads)?, vocabulary, options)?;
    let mut buckets = Partitions::new(memory)?;
    let counts = each_record(
        batches,
        columns,
        &mut encoder,
        (taking.scope, &taking.lists),
        job,
        |key, labels| put_record(&mut buckets, xxh3_64(key), key, labels),
    )?;
    write_buckets(buckets, &About::Records { counts }, out, job)
}

/// Writes entries of all buckets, a section for each.
pub(super) fn write_buckets(
    mut buckets: Partitions,
    about: &About,
    out: &Path,
    job: &Job,
) -> Result<()> {
    buckets.finish()?;
    let mut writer = SectionsWriter::create(out)?;
    for bucket in 0..super::NUM_BUCKETS {
        job.check()?;
        buckets.each_block(bucket, |block| writer.put(block))?;
        writer.end_section();
    }
    writer.publish(about)
}
