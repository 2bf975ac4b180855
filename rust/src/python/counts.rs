//! The binding of counts, Zipf statistics and vocabularies.

use std::path::PathBuf;

use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::arrow::{Batches, Table, import_stream};
use super::call::long_call;
use super::storage::{self, Storage};
use crate::count::zipf;
use crate::count::{CountOptions, HashtagCounts as Counts, Ranked};
use crate::hashtag::{Rejection, Scratch, normalize};
use crate::parquet::ParquetTags;
use crate::shard::members::{MemberOptions, MemberRecords};
use crate::spill::Memory;

pub(super) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<HashtagCounts>()?;
    module.add("UNICODE_VERSION", crate::hashtag::unicode_version())?;
    module.add_function(wrap_pyfunction!(normalize_hashtag, module)?)?;
    module.add_function(wrap_pyfunction!(member_records, module)?)
}

/// The records in the `.json` or `.txt` members of shards: columns of keys and of hashtags.
#[pyfunction]
#[pyo3(signature = (
    shards, *, key_column, hashtags_column, separator=None, shard_column=None, storage=None
))]
fn member_records(
    shards: Vec<PathBuf>,
    key_column: String,
    hashtags_column: String,
    separator: Option<String>,
    shard_column: Option<String>,
    storage: Option<PyRef<'_, Storage>>,
) -> PyResult<Table> {
    let storage = storage::given(storage);
    let options = MemberOptions { hashtags: hashtags_column, key_column, separator, shard_column };
    let schema = MemberRecords::schema(&options);
    MemberRecords::new(Vec::new(), options.clone(), storage.clone())?;
    let open = move || match MemberRecords::new(shards.clone(), options.clone(), storage.clone()) {
        Ok(records) => Box::new(records) as Batches,
        Err(error) => Box::new(std::iter::once(Err(error))),
    };
    Ok(Table::streamed(schema, None, open))
}

/// The normalized form of a hashtag, or None where it is rejected.
#[pyfunction]
fn normalize_hashtag(tag: &str) -> Option<String> {
    normalize(tag.as_bytes(), &mut Scratch::default()).ok().map(str::to_owned)
}

/// How often each hashtag was seen.
#[pyclass(module = "wsl._core")]
pub(super) struct HashtagCounts {
    pub(super) inner: Counts,
}

#[pymethods]
impl HashtagCounts {
    #[new]
    #[pyo3(signature = (*, memory_bytes=None, spill_dir=None))]
    fn new(memory_bytes: Option<usize>, spill_dir: Option<PathBuf>) -> PyResult<Self> {
        Ok(Self { inner: Counts::new(Memory::limited(memory_bytes, spill_dir)?) })
    }

    /// Adds the records of a stream.
    #[pyo3(signature = (stream, *, hashtags_column, separator=None, num_threads=None, progress=None))]
    fn update(
        &mut self,
        py: Python<'_>,
        stream: &Bound<'_, PyAny>,
        hashtags_column: String,
        separator: Option<String>,
        num_threads: Option<usize>,
        progress: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let batches = import_stream(stream)?;
        let options = CountOptions { column: hashtags_column, separator, num_threads };
        let inner = &mut self.inner;
        long_call(py, progress, |job| inner.update(batches, &options, job))
    }

    /// Adds the records of Parquet files whose column of hashtags is laid out in a common way; False, and
    /// nothing is read, where it is not.
    #[pyo3(signature = (files, *, hashtags_column, num_threads=None, progress=None))]
    fn update_parquet(
        &mut self,
        py: Python<'_>,
        files: Vec<PathBuf>,
        hashtags_column: String,
        num_threads: Option<usize>,
        progress: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<bool> {
        let inner = &mut self.inner;
        long_call(py, progress, |job| {
            let Some(tags) = ParquetTags::open(&files, &hashtags_column) else { return Ok(false) };
            let options = CountOptions { column: hashtags_column, separator: None, num_threads };
            inner.update_parquet(&tags, &options, job)?;
            Ok(true)
        })
    }

    /// Adds counts made apart.
    fn merge(&mut self, py: Python<'_>, other: PyRef<'_, Self>) -> PyResult<()> {
        let (inner, other) = (&mut self.inner, &other.inner);
        long_call(py, None, |_| inner.merge(other))
    }

    /// Writes the counts to a file, whole or not at all.
    fn save(&mut self, py: Python<'_>, path: PathBuf) -> PyResult<()> {
        let inner = &mut self.inner;
        long_call(py, None, |_| inner.save(path))
    }

    /// Reads counts that `save` wrote.
    #[staticmethod]
    #[pyo3(signature = (path, *, memory_bytes=None, spill_dir=None))]
    fn load(
        py: Python<'_>,
        path: PathBuf,
        memory_bytes: Option<usize>,
        spill_dir: Option<PathBuf>,
    ) -> PyResult<Self> {
        let memory = Memory::limited(memory_bytes, spill_dir)?;
        Ok(Self { inner: long_call(py, None, |job| Counts::load(path, memory, job))? })
    }

    /// All tags and their counts, most frequent first; streamed from disk where they are on disk.
    fn table(&mut self, py: Python<'_>) -> PyResult<Table> {
        let inner = &mut self.inner;
        let ranked = long_call(py, None, |job| inner.ranked(job))?;
        let len = ranked.len() as usize;
        Ok(Table::streamed(Ranked::schema(), Some(len), move || Box::new(ranked.batches())))
    }

    /// The most frequent tags and their counts.
    fn top(&mut self, py: Python<'_>, number: usize) -> PyResult<Vec<(String, u64)>> {
        let inner = &mut self.inner;
        long_call(py, None, |job| inner.ranked(job)?.iter().take(number).collect())
    }

    /// How many tags have each count.
    fn multiplicities<'py>(&mut self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let inner = &mut self.inner;
        let all = PyDict::new(py);
        for (count, number) in long_call(py, None, |_| inner.multiplicities())?.iter() {
            all.set_item(count, number)?;
        }
        Ok(all)
    }

    /// Records, kept tags, duplicates, and rejected tags by cause.
    fn tally<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let tally = self.inner.tally();
        let rejected = PyDict::new(py);
        for (cause, number) in Rejection::ALL.into_iter().zip(tally.rejected) {
            rejected.set_item(cause.name(), number)?;
        }
        let all = PyDict::new(py);
        all.set_item("records", tally.num_records)?;
        all.set_item("hashtags", tally.num_hashtags)?;
        all.set_item("duplicates", tally.num_duplicates)?;
        all.set_item("rejected", rejected)?;
        Ok(all)
    }

    #[getter]
    fn num_distinct(&mut self, py: Python<'_>) -> PyResult<u64> {
        let inner = &mut self.inner;
        long_call(py, None, |_| inner.num_distinct())
    }

    /// Number of records by how many tags they keep.
    fn tags_per_record<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let sizes = PyDict::new(py);
        for (size, records) in self.inner.tags_per_record() {
            sizes.set_item(size, records)?;
        }
        Ok(sizes)
    }

    /// On how many records a normalized tag was seen.
    fn count_of(&self, tag: &str) -> PyResult<u64> {
        Ok(self.inner.count_of(tag)?)
    }

    /// alpha, standard_error, x_min, ks_distance, num_tail, rank_exponent, loglog_slope.
    #[pyo3(signature = (x_min=None))]
    fn fit_zipf(
        &mut self,
        py: Python<'_>,
        x_min: Option<u64>,
    ) -> PyResult<(f64, f64, u64, f64, u64, f64, f64)> {
        let inner = &mut self.inner;
        let fit = long_call(py, None, |job| zipf::fit(&*inner.multiplicities()?, x_min, job))?;
        Ok((
            fit.alpha,
            fit.standard_error,
            fit.x_min,
            fit.ks_distance,
            fit.num_tail,
            fit.rank_exponent,
            fit.loglog_slope,
        ))
    }

    /// The share of all occurrences of the most frequent tags.
    fn head_shares(&mut self, heads: Vec<u64>) -> PyResult<Vec<f64>> {
        Ok(zipf::head_shares(&*self.inner.multiplicities()?, &heads))
    }

    /// How many of the most frequent tags have at least each share of all occurrences.
    fn head_sizes(&mut self, shares: Vec<f64>) -> PyResult<Vec<u64>> {
        Ok(zipf::head_sizes(&*self.inner.multiplicities()?, &shares))
    }
}
