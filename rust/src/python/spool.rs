//! The binding of spooled records.

use std::path::PathBuf;

use pyo3::prelude::*;

use super::call::long_call;
use super::counts::HashtagCounts;
use crate::count::CountOptions;
use crate::index::Spool as Spooled;
use crate::parquet::ParquetRecords;
use crate::spill::Memory;

pub(super) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Spool>()
}

/// Hashtags of Parquet files, counted and kept as numbers on disk until they are indexed.
#[pyclass(module = "wsl._core", frozen)]
pub(super) struct Spool {
    pub(super) inner: Spooled,
}

#[pymethods]
impl Spool {
    /// Counts the hashtags of Parquet files whose columns are laid out in a common way and spools them to
    /// a nameless file in `spill_dir`; None where they are not, or where it would take too much.
    #[staticmethod]
    #[pyo3(signature = (
        files, *, key_column, hashtags_column, num_threads=None, memory_bytes=None, spill_dir=None,
        progress=None
    ))]
    #[expect(clippy::too_many_arguments, reason = "keyword arguments of a Python method")]
    fn read(
        py: Python<'_>,
        files: Vec<PathBuf>,
        key_column: &str,
        hashtags_column: String,
        num_threads: Option<usize>,
        memory_bytes: Option<usize>,
        spill_dir: Option<PathBuf>,
        progress: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Option<(HashtagCounts, Self)>> {
        let memory = Memory::limited(memory_bytes, spill_dir)?;
        let read = long_call(py, progress, |job| {
            let records = ParquetRecords::open(&files, &hashtags_column, key_column);
            let Some(records) = records else { return Ok(None) };
            let options = CountOptions { column: hashtags_column, separator: None, num_threads };
            Spooled::read(records, &options, &memory, job)
        })?;
        Ok(read.map(|(counts, spool)| (HashtagCounts { inner: counts }, Self { inner: spool })))
    }
}
