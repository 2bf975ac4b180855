//! The binding of builds that many processes share.

use std::path::PathBuf;

use pyo3::prelude::*;

use super::arrow::import_stream;
use super::call::long_call;
use super::recipe::{Recipe, Resources};
use super::storage::{self, Storage};
use super::vocabulary::Vocabulary;
use crate::index::LabelSource;
use crate::index::steps::{self, Inputs, PartGroup, Taking};

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

/// Scans shards into a file.
#[pyfunction]
#[pyo3(signature = (shards, out, recipe, *, num_threads=1, storage=None, progress=None))]
fn save_scans(
    py: Python<'_>,
    shards: Vec<PathBuf>,
    out: PathBuf,
    recipe: Recipe,
    num_threads: usize,
    storage: Option<PyRef<'_, Storage>>,
    progress: Option<&Bound<'_, PyAny>>,
) -> PyResult<()> {
    let (scope, storage) = (recipe.key_scope()?, storage::given(storage));
    let with_classes = recipe.label_source()? == LabelSource::Members;
    long_call(py, progress, |job| {
        crate::index::save_scans(&shards, &out, with_classes, scope, num_threads, &storage, job)
    })
}

/// Writes keys and labels of records into a file, parted by the hash of the key.
#[pyfunction]
#[pyo3(signature = (stream, out, recipe, *, vocabulary, resources))]
fn save_records(
    py: Python<'_>,
    stream: &Bound<'_, PyAny>,
    out: PathBuf,
    recipe: Recipe,
    vocabulary: PyRef<'_, Vocabulary>,
    resources: Resources,
) -> PyResult<()> {
    let batches = import_stream(stream)?;
    let (columns, options) = (recipe.columns()?, recipe.counting(resources.num_threads));
    let (taking, labels, memory) = (recipe.taking()?, &vocabulary.inner, resources.memory()?);
    long_call(py, None, |job| {
        steps::save_records(batches, &columns, &options, labels, &taking, &memory, &out, job)
    })
}

/// Writes the samples of scanned shards into a file: how many are taken, and their keys where records label
/// them.
#[pyfunction]
#[pyo3(signature = (scans, shards, out, recipe, *, resources))]
fn save_samples(
    py: Python<'_>,
    scans: PathBuf,
    shards: Vec<String>,
    out: PathBuf,
    recipe: Recipe,
    resources: Resources,
) -> PyResult<()> {
    let (taking, memory) = (recipe.taking()?, resources.memory()?);
    let is_joined = recipe.label_source()? == LabelSource::Records;
    long_call(py, None, |job| {
        steps::save_samples(&scans, &shards, &taking, is_joined, &memory, &out, job)
    })
}

/// Writes the keys of the index in `folder` into a file, for the join of what is appended to it.
#[pyfunction]
#[pyo3(signature = (folder, out, recipe, *, resources))]
fn save_known(
    py: Python<'_>,
    folder: PathBuf,
    out: PathBuf,
    recipe: Recipe,
    resources: Resources,
) -> PyResult<()> {
    let taking = Taking::new(recipe.key_scope()?, None, &[])?;
    let memory = resources.memory()?;
    long_call(py, None, |job| steps::save_known(&folder, &taking, &memory, &out, job))
}

/// Samples that are taken of each shard, for each file of samples, which may be in a store; of a
/// file of rows one number.
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

/// Joins some buckets of files, which may be in a store, into a file of labels.
#[pyfunction]
#[pyo3(signature = (
    records, samples, out, *, known=None, first_bucket, stop_bucket, resources, storage=None
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
    resources: Resources,
    storage: Option<PyRef<'_, Storage>>,
) -> PyResult<()> {
    let (inputs, storage) = (Inputs { records, samples, known }, storage::given(storage));
    let memory = resources.memory()?;
    let buckets = first_bucket..stop_bucket;
    long_call(py, None, |job| steps::join(&inputs, buckets, &memory, &storage, &out, job))
}

/// Scans, names of the shards, number of the group, number of its first shard, shards and samples that are
/// skipped, first and last row that are wanted.
type Group = (PathBuf, Vec<String>, usize, u32, (usize, u64), (u64, u64));

/// Writes a part of an index.
#[pyfunction]
#[pyo3(signature = (groups, labels, out, recipe, *, storage=None))]
fn write_part(
    py: Python<'_>,
    groups: Vec<Group>,
    labels: Vec<PathBuf>,
    out: PathBuf,
    recipe: Recipe,
    storage: Option<PyRef<'_, Storage>>,
) -> PyResult<()> {
    let group = |(scans, shards, number, first_shard, skip, rows): Group| {
        let rows = rows.0..rows.1;
        PartGroup { scans, shards, number, first_shard, skip, rows }
    };
    let groups: Vec<PartGroup> = groups.into_iter().map(group).collect();
    let (source, taking) = (recipe.label_source()?, recipe.taking()?);
    let storage = storage::given(storage);
    long_call(py, None, |job| {
        steps::write_part(&groups, source, &labels, &taking, &storage, &out, job)
    })
}

/// Writes records as rows of an index into a file, in their order.
#[pyfunction]
#[pyo3(signature = (stream, out, recipe, *, vocabulary, num_threads=None))]
fn save_rows(
    py: Python<'_>,
    stream: &Bound<'_, PyAny>,
    out: PathBuf,
    recipe: Recipe,
    vocabulary: PyRef<'_, Vocabulary>,
    num_threads: Option<usize>,
) -> PyResult<()> {
    let batches = import_stream(stream)?;
    let (columns, options) = (recipe.columns()?, recipe.counting(num_threads));
    let (taking, labels) = (recipe.taking()?, &vocabulary.inner);
    long_call(py, None, |job| {
        steps::save_rows(batches, &columns, &options, labels, &taking, &out, job)
    })
}

/// The same with the records of Parquet files whose columns are laid out in a common way; False, and
/// nothing is written, where they are not.
#[pyfunction]
#[pyo3(signature = (files, out, recipe, *, vocabulary, num_threads=None))]
fn save_parquet_rows(
    py: Python<'_>,
    files: Vec<PathBuf>,
    out: PathBuf,
    recipe: Recipe,
    vocabulary: PyRef<'_, Vocabulary>,
    num_threads: Option<usize>,
) -> PyResult<bool> {
    let (taking, labels) = (recipe.taking()?, &vocabulary.inner);
    long_call(py, None, |job| {
        let Some(records) = recipe.parquet(&files) else { return Ok(false) };
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
