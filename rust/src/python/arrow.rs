//! The border: Arrow record batches through the PyCapsule interface, without a copy.
//!
//! Anything with `__arrow_c_stream__` comes in: a Polars frame, a DuckDB relation, a pyarrow
//! reader. What goes out is a [`Table`], which any of them reads the same way.
//! <https://arrow.apache.org/docs/format/CDataInterface/PyCapsuleInterface.html>

use arrow_array::ffi_stream::{FFI_ArrowArrayStream, RecordBatchStreamReader};
use arrow_array::{RecordBatch, RecordBatchIterator, RecordBatchReader};
use arrow_schema::{ArrowError, SchemaRef};
use pyo3::exceptions::PyTypeError;
use pyo3::ffi::c_str;
use pyo3::prelude::*;
use pyo3::types::PyCapsule;

use std::ffi::CStr;

use crate::Result;

const STREAM: &CStr = c_str!("arrow_array_stream");

/// Takes the record batches out of `source`, which must have `__arrow_c_stream__`.
///
/// The stream may call back into Python for its next batch; it does so by itself, from whatever
/// thread reads it, so it can be read with the interpreter released.
#[allow(unsafe_code)]
pub(super) fn import_stream(source: &Bound<'_, PyAny>) -> PyResult<RecordBatchStreamReader> {
    let method = source.getattr("__arrow_c_stream__").map_err(|_| {
        PyTypeError::new_err(format!(
            "expected an object with __arrow_c_stream__ (a Polars frame, a DuckDB relation, a \
             pyarrow reader), got {}",
            source.get_type()
        ))
    })?;
    let capsule = method.call0()?;
    let capsule = capsule.cast::<PyCapsule>()?;
    let pointer = capsule.pointer_checked(Some(STREAM))?.cast::<FFI_ArrowArrayStream>();
    // SAFETY: the protocol says that a capsule of this name holds a valid stream; the pointer is
    // not null, and `from_raw` moves the stream out and leaves a released one behind, so that the
    // capsule's destructor does nothing.
    let stream = unsafe { FFI_ArrowArrayStream::from_raw(pointer.as_ptr()) };
    RecordBatchStreamReader::try_new(stream)
        .map_err(|error| PyTypeError::new_err(format!("the Arrow stream has no schema: {error}")))
}

/// Batches, as they are made.
pub(super) type Batches = Box<dyn Iterator<Item = Result<RecordBatch>> + Send>;

/// A table made by the engine; read it with `polars.DataFrame(table)`, `pyarrow.table(table)` or
/// any other reader of `__arrow_c_stream__`.
#[pyclass(module = "wsl._core", frozen)]
pub(super) struct Table {
    schema: SchemaRef,
    len: Option<usize>,
    open: Box<dyn Fn() -> Batches + Send + Sync>,
}

impl Table {
    /// A table in memory.
    pub(super) fn new(schema: SchemaRef, batches: Vec<RecordBatch>) -> Self {
        let len = batches.iter().map(RecordBatch::num_rows).sum();
        Self::streamed(schema, Some(len), move || Box::new(batches.clone().into_iter().map(Ok)))
    }

    /// A table of `len` rows, where they are known, whose batches are made when they are read.
    pub(super) fn streamed(
        schema: SchemaRef,
        len: Option<usize>,
        open: impl Fn() -> Batches + Send + Sync + 'static,
    ) -> Self {
        Self { schema, len, open: Box::new(open) }
    }
}

#[pymethods]
impl Table {
    /// The Arrow PyCapsule interface; may be called any number of times.
    #[pyo3(signature = (requested_schema=None))]
    fn __arrow_c_stream__<'py>(
        &self,
        py: Python<'py>,
        requested_schema: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyCapsule>> {
        let _ = requested_schema; // a hint, which the protocol allows to ignore
        let batches = (self.open)()
            .map(|batch| batch.map_err(|e| ArrowError::from_external_error(Box::new(e))));
        let reader: Box<dyn RecordBatchReader + Send> =
            Box::new(RecordBatchIterator::new(batches, self.schema.clone()));
        PyCapsule::new_with_value(py, FFI_ArrowArrayStream::new(reader), STREAM)
    }

    fn __len__(&self) -> PyResult<usize> {
        self.len.ok_or_else(|| {
            PyTypeError::new_err("the table is streamed, so its rows are known once it is read")
        })
    }

    fn __repr__(&self) -> String {
        let names: Vec<_> =
            self.schema.fields().iter().map(|field| field.name().as_str()).collect();
        let rows = self.len.map_or("streamed".to_owned(), |len| format!("{len} rows"));
        format!("Table({rows}: {})", names.join(", "))
    }
}
