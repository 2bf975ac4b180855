//! The binding of counts, Zipf statistics and vocabularies.

use std::path::PathBuf;

use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::arrow::{Table, import_stream};
use super::call::long_call;
use crate::count::{CountOptions, HashtagCounts as Counts};
use crate::hashtag::{Rejection, Scratch, normalize};
use crate::vocabulary::Vocabulary as Labels;
use crate::zipf;

pub(super) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<HashtagCounts>()?;
    module.add_class::<Vocabulary>()?;
    let (major, minor, patch) = crate::hashtag::UNICODE_VERSION;
    module.add("UNICODE_VERSION", format!("{major}.{minor}.{patch}"))?;
    module.add_function(wrap_pyfunction!(normalize_hashtag, module)?)
}

/// The normalized form of a hashtag, or None where it is rejected.
#[pyfunction]
fn normalize_hashtag(tag: &str) -> Option<String> {
    normalize(tag.as_bytes(), &mut Scratch::default()).ok().map(str::to_owned)
}

/// How often each hashtag was seen.
#[pyclass(module = "wsl._core")]
pub(super) struct HashtagCounts {
    inner: Counts,
}

#[pymethods]
impl HashtagCounts {
    #[new]
    fn new() -> Self {
        Self { inner: Counts::new() }
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

    /// Adds counts made apart.
    fn merge(&mut self, other: PyRef<'_, Self>) {
        self.inner.merge(&other.inner);
    }

    /// Writes the counts to a file, whole or not at all.
    fn save(&self, py: Python<'_>, path: PathBuf) -> PyResult<()> {
        long_call(py, None, |_| self.inner.save(path))
    }

    /// Reads counts that `save` wrote.
    #[staticmethod]
    fn load(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        Ok(Self { inner: long_call(py, None, |_| Counts::load(path))? })
    }

    /// All tags and their counts, most frequent first.
    fn table(&self, py: Python<'_>) -> PyResult<Table> {
        Ok(Table::new(Counts::schema(), long_call(py, None, |_| self.inner.table())?))
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
    fn num_distinct(&self) -> u64 {
        self.inner.num_distinct()
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
    fn count_of(&self, tag: &str) -> u64 {
        self.inner.count_of(tag)
    }

    /// alpha, standard_error, x_min, ks_distance, num_tail, rank_exponent, loglog_slope.
    #[pyo3(signature = (x_min=None))]
    fn fit_zipf(
        &self,
        py: Python<'_>,
        x_min: Option<u64>,
    ) -> PyResult<(f64, f64, u64, f64, u64, f64, f64)> {
        let fit = long_call(py, None, |job| zipf::fit(&self.inner.multiplicities(), x_min, job))?;
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

    /// The share of all occurrences held by the most frequent tags.
    fn head_shares(&self, heads: Vec<u64>) -> Vec<f64> {
        zipf::head_shares(&self.inner.multiplicities(), &heads)
    }

    /// How many of the most frequent tags hold at least each share of all occurrences.
    fn head_sizes(&self, shares: Vec<f64>) -> Vec<u64> {
        zipf::head_sizes(&self.inner.multiplicities(), &shares)
    }
}

/// Tags and their labels.
#[pyclass(module = "wsl._core", frozen)]
pub(super) struct Vocabulary {
    pub(super) inner: Labels,
}

#[pymethods]
impl Vocabulary {
    /// The most frequent tags.
    #[staticmethod]
    #[pyo3(signature = (counts, *, min_count=1, max_labels=None))]
    fn from_counts(
        counts: PyRef<'_, HashtagCounts>,
        min_count: u64,
        max_labels: Option<usize>,
    ) -> PyResult<Self> {
        Ok(Self { inner: Labels::from_counts(&counts.inner, min_count, max_labels)? })
    }

    /// Class i is called `names[i]`.
    #[staticmethod]
    fn from_class_names(names: Vec<String>) -> PyResult<Self> {
        Ok(Self { inner: Labels::from_class_names(&names)? })
    }

    /// Reads a table of columns label, name, synset, tag_count, tags.
    #[staticmethod]
    fn from_table(py: Python<'_>, stream: &Bound<'_, PyAny>) -> PyResult<Self> {
        let batches = import_stream(stream)?;
        Ok(Self { inner: long_call(py, None, |_| Labels::from_table(batches))? })
    }

    /// One row a label: label, name, synset, tag_count, tags.
    fn table(&self, py: Python<'_>) -> PyResult<Table> {
        Ok(Table::new(Labels::schema(), long_call(py, None, |_| self.inner.table())?))
    }

    #[getter]
    fn fingerprint(&self) -> String {
        self.inner.fingerprint()
    }

    /// The name of each label.
    fn names(&self) -> Vec<String> {
        self.inner.entries().iter().map(|entry| entry.name.clone()).collect()
    }

    /// The label of a normalized tag, or None.
    fn encode(&self, tag: &str) -> Option<u32> {
        self.inner.encode(tag)
    }

    fn __len__(&self) -> usize {
        self.inner.len()
    }
}
