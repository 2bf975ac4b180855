//! The binding of builds that many processes share.

use std::path::PathBuf;

use pyo3::prelude::*;

use super::arrow::import_stream;
use super::call::long_call;
use super::exceptions::UsageError;
use super::storage::{self, Storage};
use super::vocabulary::Vocabulary;
use crate::count::CountOptions;
use crate::index::format::KeyScope;
use crate::index::steps::{self, Inputs, PartGroup, Taking};
use crate::index::{Columns, KeyFormat, LabelSource};
use crate::parquet::ParquetRecords;
use crate::spill::Memory;

pub(super) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(save_scans, module)?)?;
    module.add_function(wrap_pyfunction!(save_records, module)?)?;
    module.add_function(wrap_pyfunction!(save_samples, module)?)?;
    module.add_function(wrap_pyfunction!(save_known, module)?)?;
    module.add_function(wrap_pyfunction!(num_samples_taken, module)?)?;
    module.add_function(wrap_pyfunction!(join_samples, module)?)?;
    module.add_function(wrap_pyfunction!(write_part, module)?)?;
    module.add_function(wrap_pyfunction!(save_rows, module)?)?;
    module.add_function(wrap_pyfunction!(save_parquet_rows, module)?)?;
    module.add_function(wrap_pyfunction!(write_alone, module)?)
}

/// Where the labels that are called so come from.
pub(super) fn label_source(labels: &str) -> PyResult<LabelSource> {
    match labels {
        "none" => Ok(LabelSource::None),
        "members" => Ok(LabelSource::Members),
        "records" => Ok(LabelSource::Records),
        _ => Err(UsageError::new_err(format!(
            "labels: expected none, members or records, got {labels:?}"
        ))),
    }
}

/// Scans shards into a file.
#[pyfunction]
#[pyo3(signature = (shards, out, *, with_classes, key_scope="global", num_threads=1, storage=None, progress=None))]
#[expect(clippy::too_many_arguments, reason = "keyword arguments of a Python function")]
fn save_scans(
    py: Python<'_>,
    shards: Vec<PathBuf>,
    out: PathBuf,
    with_classes: bool,
    key_scope: &str,
    num_threads: usize,
    storage: Option<PyRef<'_, Storage>>,
    progress: Option<&Bound<'_, PyAny>>,
) -> PyResult<()> {
    let (scope, storage) = (KeyScope::parse(key_scope)?, storage::given(storage));
    long_call(py, progress, |job| {
        crate::index::save_scans(&shards, &out, with_classes, scope, num_threads, &storage, job)
    })
}

/// Writes keys and labels of records into a file, parted by the hash of the key.
#[pyfunction]
#[pyo3(signature = (
    stream, out, *, key_column, hashtags_column, vocabulary, separator=None, shard_column=None,
    key_format=None, key_scope="global", include=None, exclude=None, num_threads=None, memory_bytes=None,
    spill_dir=None
))]
#[expect(clippy::too_many_arguments, reason = "keyword arguments of a Python function")]
fn save_records(
    py: Python<'_>,
    stream: &Bound<'_, PyAny>,
    out: PathBuf,
    key_column: String,
    hashtags_column: String,
    vocabulary: PyRef<'_, Vocabulary>,
    separator: Option<String>,
    shard_column: Option<String>,
    key_format: Option<&str>,
    key_scope: &str,
    include: Option<Vec<String>>,
    exclude: Option<Vec<String>>,
    num_threads: Option<usize>,
    memory_bytes: Option<usize>,
    spill_dir: Option<PathBuf>,
) -> PyResult<()> {
    let batches = import_stream(stream)?;
    let options = CountOptions { column: hashtags_column, separator, num_threads };
    let key_format = key_format.map(KeyFormat::parse).transpose()?;
    let columns = Columns { key: key_column, shard: shard_column, key_format };
    let (taking, labels) = (taking(key_scope, include, exclude)?, &vocabulary.inner);
    let memory = Memory::limited(memory_bytes, spill_dir)?;
    long_call(py, None, |job| {
        steps::save_records(batches, &columns, &options, labels, &taking, &memory, &out, job)
    })
}

/// Writes the samples of scanned shards into a file: how many are taken, and their keys where `joined`.
#[pyfunction]
#[pyo3(signature = (
    scans, shards, out, *, joined, key_scope="global", include=None, exclude=None, memory_bytes=None,
    spill_dir=None
))]
#[expect(clippy::too_many_arguments, reason = "keyword arguments of a Python function")]
fn save_samples(
    py: Python<'_>,
    scans: PathBuf,
    shards: Vec<String>,
    out: PathBuf,
    joined: bool,
    key_scope: &str,
    include: Option<Vec<String>>,
    exclude: Option<Vec<String>>,
    memory_bytes: Option<usize>,
    spill_dir: Option<PathBuf>,
) -> PyResult<()> {
    let taking = taking(key_scope, include, exclude)?;
    let memory = Memory::limited(memory_bytes, spill_dir)?;
    long_call(py, None, |job| {
        steps::save_samples(&scans, &shards, &taking, joined, &memory, &out, job)
    })
}

/// Writes the keys of the index in `folder` into a file, for the join of what is appended to it.
#[pyfunction]
#[pyo3(signature = (folder, out, *, key_scope="global", memory_bytes=None, spill_dir=None))]
fn save_known(
    py: Python<'_>,
    folder: PathBuf,
    out: PathBuf,
    key_scope: &str,
    memory_bytes: Option<usize>,
    spill_dir: Option<PathBuf>,
) -> PyResult<()> {
    let taking = taking(key_scope, None, None)?;
    let memory = Memory::limited(memory_bytes, spill_dir)?;
    long_call(py, None, |job| steps::save_known(&folder, &taking, &memory, &out, job))
}

/// Samples that are taken of each shard, for each file of samples, which may lie in a store; of a file of
/// rows one number.
#[pyfunction]
#[pyo3(signature = (places, *, storage=None))]
fn num_samples_taken(
    py: Python<'_>,
    places: Vec<PathBuf>,
    storage: Option<PyRef<'_, Storage>>,
) -> PyResult<Vec<Vec<u64>>> {
    let storage = storage::given(storage);
    long_call(py, None, |job| steps::num_samples(&places, &storage, job))
}

/// Joins some buckets of files, which may lie in a store, into a file of labels.
#[pyfunction]
#[pyo3(signature = (
    records, samples, out, *, known=None, first_bucket, stop_bucket, memory_bytes=None, spill_dir=None,
    storage=None
))]
#[expect(clippy::too_many_arguments, reason = "keyword arguments of a Python function")]
fn join_samples(
    py: Python<'_>,
    records: Vec<PathBuf>,
    samples: Vec<PathBuf>,
    out: PathBuf,
    known: Option<PathBuf>,
    first_bucket: usize,
    stop_bucket: usize,
    memory_bytes: Option<usize>,
    spill_dir: Option<PathBuf>,
    storage: Option<PyRef<'_, Storage>>,
) -> PyResult<()> {
    let (inputs, storage) = (Inputs { records, samples, known }, storage::given(storage));
    let memory = Memory::limited(memory_bytes, spill_dir)?;
    let buckets = first_bucket..stop_bucket;
    long_call(py, None, |job| steps::join(&inputs, buckets, &memory, &storage, &out, job))
}

/// Scans, names of the shards, number of the group, number of its first shard, shards and samples that are
/// skipped, first and last row that are wanted.
type Group = (PathBuf, Vec<String>, usize, u32, (usize, u64), (u64, u64));

/// Writes a part of an index.
#[pyfunction]
#[pyo3(signature = (
    groups, labels, out, *, label_source, key_scope="global", include=None, exclude=None, storage=None
))]
#[expect(clippy::too_many_arguments, reason = "keyword arguments of a Python function")]
fn write_part(
    py: Python<'_>,
    groups: Vec<Group>,
    labels: Vec<PathBuf>,
    out: PathBuf,
    label_source: &str,
    key_scope: &str,
    include: Option<Vec<String>>,
    exclude: Option<Vec<String>>,
    storage: Option<PyRef<'_, Storage>>,
) -> PyResult<()> {
    let group = |(scans, shards, number, first_shard, skip, rows): Group| {
        let rows = rows.0..rows.1;
        PartGroup { scans, shards, number, first_shard, skip, rows }
    };
    let groups: Vec<PartGroup> = groups.into_iter().map(group).collect();
    let (source, storage) = (self::label_source(label_source)?, storage::given(storage));
    let taking = taking(key_scope, include, exclude)?;
    long_call(py, None, |job| {
        steps::write_part(&groups, source, &labels, &taking, &storage, &out, job)
    })
}

/// Writes records as rows of an index into a file, in their order.
#[pyfunction]
#[pyo3(signature = (
    stream, out, *, key_column, hashtags_column, vocabulary, separator=None, key_format=None, include=None,
    exclude=None, num_threads=None
))]
#[expect(clippy::too_many_arguments, reason = "keyword arguments of a Python function")]
fn save_rows(
    py: Python<'_>,
    stream: &Bound<'_, PyAny>,
    out: PathBuf,
    key_column: String,
    hashtags_column: String,
    vocabulary: PyRef<'_, Vocabulary>,
    separator: Option<String>,
    key_format: Option<&str>,
    include: Option<Vec<String>>,
    exclude: Option<Vec<String>>,
    num_threads: Option<usize>,
) -> PyResult<()> {
    let batches = import_stream(stream)?;
    let options = CountOptions { column: hashtags_column, separator, num_threads };
    let key_format = key_format.map(KeyFormat::parse).transpose()?;
    let columns = Columns { key: key_column, shard: None, key_format };
    let (taking, labels) = (taking("global", include, exclude)?, &vocabulary.inner);
    long_call(py, None, |job| {
        steps::save_rows(batches, &columns, &options, labels, &taking, &out, job)
    })
}

/// The same with the records of Parquet files whose columns are laid out in a common way; False, and
/// nothing is written, where they are not.
#[pyfunction]
#[pyo3(signature = (
    files, out, *, key_column, hashtags_column, vocabulary, include=None, exclude=None, num_threads=None
))]
#[expect(clippy::too_many_arguments, reason = "keyword arguments of a Python function")]
fn save_parquet_rows(
    py: Python<'_>,
    files: Vec<PathBuf>,
    out: PathBuf,
    key_column: &str,
    hashtags_column: &str,
    vocabulary: PyRef<'_, Vocabulary>,
    include: Option<Vec<String>>,
    exclude: Option<Vec<String>>,
    num_threads: Option<usize>,
) -> PyResult<bool> {
    let (taking, labels) = (taking("global", include, exclude)?, &vocabulary.inner);
    long_call(py, None, |job| {
        let records = ParquetRecords::open(&files, hashtags_column, key_column);
        let Some(records) = records else { return Ok(false) };
        steps::save_parquet_rows(&records, num_threads, labels, &taking, &out, job)?;
        Ok(true)
    })
}

/// Writes a part of an index of records alone: file of rows, first and last row that are wanted.
#[pyfunction]
#[pyo3(signature = (wanted, out, *, storage=None))]
fn write_alone(
    py: Python<'_>,
    wanted: Vec<(PathBuf, (u64, u64))>,
    out: PathBuf,
    storage: Option<PyRef<'_, Storage>>,
) -> PyResult<()> {
    let wanted: Vec<_> = wanted.into_iter().map(|(file, rows)| (file, rows.0..rows.1)).collect();
    let storage = storage::given(storage);
    long_call(py, None, |job| steps::write_alone(&wanted, &storage, &out, job))
}

fn taking(
    key_scope: &str,
    include: Option<Vec<String>>,
    exclude: Option<Vec<String>>,
) -> PyResult<Taking> {
    let scope = KeyScope::parse(key_scope)?;
    Ok(Taking::new(scope, include.as_deref(), &exclude.unwrap_or_default())?)
}
