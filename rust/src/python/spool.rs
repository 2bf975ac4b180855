//! The binding of spooled records.

use std::path::PathBuf;

use pyo3::prelude::*;

use super::call::long_call;
use super::counts::HashtagCounts;
use super::recipe::{Recipe, Resources};
use crate::index::Spool as Spooled;

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
    /// a nameless file in the folder of `resources`; None where they are not, or where it would take too much.
    #[staticmethod]
    #[pyo3(signature = (files, recipe, *, resources, progress=None))]
    fn read(
        py: Python<'_>,
        files: Vec<PathBuf>,
        recipe: Recipe,
        resources: Resources,
        progress: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Option<(HashtagCounts, Self)>> {
        let (memory, options) = (resources.memory()?, recipe.counting(resources.num_threads));
        let read = long_call(py, progress, |job| {
            let Some(records) = recipe.parquet(&files) else { return Ok(None) };
            Spooled::read(records, &options, &memory, job)
        })?;
        Ok(read.map(|(counts, spool)| (HashtagCounts { inner: counts }, Self { inner: spool })))
    }
}
