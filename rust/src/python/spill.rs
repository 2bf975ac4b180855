//! The binding of spill folders.

use std::path::PathBuf;
use std::sync::Arc;

use pyo3::prelude::*;

use crate::spill::{self, Memory};

pub(super) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<SpillFolder>()
}

/// A private folder for files that do not outlive their job; one that a killed process left is removed
/// by the next job that spills to the same place.
#[pyclass(module = "wsl._core")]
struct SpillFolder {
    folder: Option<Arc<spill::SpillFolder>>,
    path: PathBuf,
}

#[pymethods]
impl SpillFolder {
    /// Makes one in `parent`, the system's folder for temporary files where absent.
    #[new]
    #[pyo3(signature = (parent=None))]
    fn new(parent: Option<PathBuf>) -> PyResult<Self> {
        let memory = Memory { limit: None, spill_dir: parent };
        let folder = spill::SpillFolder::create(&memory.folder())?;
        Ok(Self { path: folder.path().to_path_buf(), folder: Some(folder) })
    }

    /// Where it is.
    #[getter]
    fn path(&self) -> PathBuf {
        self.path.clone()
    }

    /// Removes it with all that is in it.
    fn close(&mut self) {
        self.folder = None;
    }
}
