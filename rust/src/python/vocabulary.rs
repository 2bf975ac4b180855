//! The binding of vocabularies.

use std::path::PathBuf;

use pyo3::prelude::*;

use super::arrow::{Table, import_stream};
use super::call::long_call;
use super::counts::HashtagCounts;
use crate::count::CountOptions;
use crate::vocabulary::wordnet::WordNet;
use crate::vocabulary::{Coverage, Selection, Vocabulary as Labels};

pub(super) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Vocabulary>()
}

/// Tags and their labels.
#[pyclass(module = "wsl._core", frozen)]
pub(super) struct Vocabulary {
    pub(super) inner: Labels,
}

#[pymethods]
impl Vocabulary {
    /// The most frequent tags, those of one meaning merged where a WordNet folder is given, and what
    /// they cover: pairs of tags and hashtags for all, covered, matched, ambiguous.
    #[staticmethod]
    #[pyo3(signature = (counts, *, min_count=1, max_labels=None, wordnet=None, synsets=Vec::new()))]
    fn from_counts(
        py: Python<'_>,
        mut counts: PyRefMut<'_, HashtagCounts>,
        min_count: u64,
        max_labels: Option<usize>,
        wordnet: Option<PathBuf>,
        synsets: Vec<String>,
    ) -> PyResult<(Self, [(u64, u64); 4])> {
        let counts = &mut counts.inner;
        let (inner, coverage) = long_call(py, None, |job| {
            let wordnet = wordnet.map(|folder| WordNet::read(folder, &synsets)).transpose()?;
            let selection = Selection { min_count, max_labels, wordnet: wordnet.as_ref() };
            Labels::from_ranked(&counts.ranked(job)?, selection)
        })?;
        let Coverage { all, covered, matched, ambiguous } = coverage;
        let shares = [all, covered, matched, ambiguous];
        Ok((Self { inner }, shares.map(|share| (share.num_tags, share.num_hashtags))))
    }

    /// Records of a stream, and those with a label.
    #[pyo3(signature = (stream, *, hashtags_column, separator=None, progress=None))]
    fn cover(
        &self,
        py: Python<'_>,
        stream: &Bound<'_, PyAny>,
        hashtags_column: String,
        separator: Option<String>,
        progress: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<(u64, u64)> {
        let batches = import_stream(stream)?;
        let options = CountOptions { column: hashtags_column, separator, num_threads: None };
        let covered = long_call(py, progress, |job| self.inner.cover(batches, &options, job))?;
        Ok((covered.num_records, covered.num_covered))
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
        self.inner.labels().iter().map(|entry| entry.name.to_owned()).collect()
    }

    /// The label of a normalized tag, or None.
    fn encode(&self, tag: &str) -> Option<u32> {
        self.inner.encode(tag)
    }

    fn __len__(&self) -> usize {
        self.inner.len()
    }
}
