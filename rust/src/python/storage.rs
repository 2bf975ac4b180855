//! The binding of object stores.

use std::collections::BTreeMap;
use std::path::PathBuf;

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use super::call::long_call;
use super::exceptions::UsageError;
use crate::store::{self, CacheOptions, Limits, Object};

pub(super) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("HAS_STORES", store::IS_BUILT_IN)?;
    module.add("STORE_LIMITS", limits(module.py())?)?;
    module.add_function(wrap_pyfunction!(is_remote, module)?)?;
    module.add_class::<Storage>()
}

/// The limits of stores where no others are given, by name: the one place where Python has them
/// from.
fn limits(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    let Limits { timeout_s, retry_s, request_bytes, gap_bytes, num_requests } = Limits::default();
    let found = PyDict::new(py);
    found.set_item("timeout_s", timeout_s)?;
    found.set_item("retry_s", retry_s)?;
    found.set_item("request_bytes", request_bytes)?;
    found.set_item("gap_bytes", gap_bytes)?;
    found.set_item("num_requests", num_requests)?;
    Ok(found)
}

/// Whether a path or URI names something in a store.
#[pyfunction]
fn is_remote(path: &str) -> bool {
    store::is_remote(path)
}

/// URI, size, etag and time of change in milliseconds.
type Seen = (String, u64, String, i64);

fn seen(object: Object) -> Seen {
    (object.uri, object.size, object.etag, object.modified_ms)
}

/// How stores are reached; has no connection.
#[pyclass(module = "wsl._core", frozen)]
pub(super) struct Storage {
    pub(super) inner: store::Storage,
}

/// The storage that is given, or that of the environment.
pub(super) fn given(storage: Option<PyRef<'_, Storage>>) -> store::Storage {
    storage.map_or_else(store::Storage::default, |storage| storage.inner.clone())
}

#[pymethods]
impl Storage {
    #[new]
    #[pyo3(signature = (
        options=None, *, timeout_s=None, retry_s=None, request_bytes=None, gap_bytes=None,
        num_requests=None, cache=None, cache_bytes=None
    ))]
    #[expect(clippy::too_many_arguments, reason = "keyword arguments of a Python method")]
    fn new(
        options: Option<BTreeMap<String, String>>,
        timeout_s: Option<f64>,
        retry_s: Option<f64>,
        request_bytes: Option<u64>,
        gap_bytes: Option<u64>,
        num_requests: Option<usize>,
        cache: Option<PathBuf>,
        cache_bytes: Option<u64>,
    ) -> PyResult<Self> {
        let cache = match (cache, cache_bytes) {
            (None, None) => None,
            (Some(folder), Some(limit_bytes)) => Some(CacheOptions { folder, limit_bytes }),
            _ => {
                return Err(UsageError::new_err(
                    "storage: cache, a folder, and cache_bytes, its limit, are given together or not at all",
                ));
            }
        };
        let unset = Limits::default();
        let limits = Limits {
            timeout_s: timeout_s.unwrap_or(unset.timeout_s),
            retry_s: retry_s.unwrap_or(unset.retry_s),
            request_bytes: request_bytes.unwrap_or(unset.request_bytes),
            gap_bytes: gap_bytes.unwrap_or(unset.gap_bytes),
            num_requests: num_requests.unwrap_or(unset.num_requests),
        };
        Ok(Self { inner: store::Storage::new(options.unwrap_or_default(), limits, cache)? })
    }

    fn __repr__(&self) -> String {
        format!("{:?}", self.inner)
    }

    /// What is known of an object, or None.
    fn head(&self, py: Python<'_>, uri: &str) -> PyResult<Option<Seen>> {
        Ok(long_call(py, None, |job| self.inner.head(uri, job))?.map(seen))
    }

    /// The objects under a URI, by their URIs.
    #[pyo3(signature = (uri, *, recursive=true))]
    fn list(&self, py: Python<'_>, uri: &str, recursive: bool) -> PyResult<Vec<Seen>> {
        let found = long_call(py, None, |job| self.inner.list(uri, recursive, job))?;
        Ok(found.into_iter().map(seen).collect())
    }

    /// The content of an object.
    fn read<'py>(&self, py: Python<'py>, uri: &str) -> PyResult<Bound<'py, PyBytes>> {
        let (content, _) = long_call(py, None, |job| self.inner.read(uri, job))?;
        Ok(PyBytes::new(py, &content))
    }

    /// One range of an object.
    fn read_range<'py>(
        &self,
        py: Python<'py>,
        uri: &str,
        start: u64,
        stop: u64,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let range = start..stop.max(start);
        let span = store::Span { uri: uri.into(), range, etag: None };
        let content = long_call(py, None, |job| self.inner.read_span(span, job))?;
        Ok(PyBytes::new(py, &content))
    }

    /// Makes `content` the object at `uri`, whole.
    fn write(&self, py: Python<'_>, uri: &str, content: &[u8]) -> PyResult<()> {
        let content = content.to_vec();
        long_call(py, None, |job| self.inner.write(uri, content, job))
    }

    /// Removes an object; one that is not there is none.
    fn delete(&self, py: Python<'_>, uri: &str) -> PyResult<()> {
        long_call(py, None, |job| self.inner.delete(uri, job))
    }

    /// Makes the file at `path` the object at `uri`, whole.
    fn upload(&self, py: Python<'_>, path: PathBuf, uri: &str) -> PyResult<()> {
        long_call(py, None, |job| self.inner.upload(&path, uri, job))
    }

    /// Makes the object at `uri` the file at `path`, whole.
    fn download(&self, py: Python<'_>, uri: &str, path: PathBuf) -> PyResult<Seen> {
        Ok(seen(long_call(py, None, |job| self.inner.download(uri, &path, job))?))
    }

    /// Requests, repeated ones, bytes asked for and bytes that came, through this value.
    fn report(&self) -> (u64, u64, u64, u64) {
        numbers(self.inner.tally().report())
    }
}

/// A report as numbers.
pub(super) fn numbers(report: store::Report) -> (u64, u64, u64, u64) {
    (report.num_requests, report.num_retries, report.wanted_bytes, report.read_bytes)
}
