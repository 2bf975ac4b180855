//! The binding of selection.

use std::ops::Range;
use std::path::PathBuf;

use pyo3::buffer::{Element, PyBuffer};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PySlice};

use super::arrow::{Table, import_stream};
use super::call::long_call;
use super::exceptions::UsageError;
use crate::selection::{Order, Samples, Selected, Selection};

/// Scores of a matrix that are copied out of Python's memory at a time (4 MiB).
const SCORES_PER_COPY: usize = 1 << 20;

pub(super) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<TopK>()?;
    module.add_function(wrap_pyfunction!(log_odds, module)?)
}

/// The softmax's log-odds of a C-contiguous float32 matrix of logits, a row for each sample: float32
/// of the same shape.
#[pyfunction]
fn log_odds<'py>(
    py: Python<'py>,
    logits: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, pyo3::types::PyByteArray>> {
    let matrix = buffer::<f32>(logits, "logits", "float32", 2)?;
    let width = matrix.shape()[1];
    if width < 2 {
        return Err(UsageError::new_err(format!(
            "logits: log-odds need at least 2 classes, got {width}"
        )));
    }
    let logits = matrix.to_vec(py)?;
    let mut scores = vec![0.0; logits.len()];
    let found = py.detach(|| crate::selection::log_odds_of(&logits, &mut scores, width));
    if let Some(place) = found {
        return Err(super::exceptions::DataError::new_err(format!(
            "logits: row {}, class {}: {} is not a finite number; the network diverged",
            place / width,
            place % width,
            logits[place]
        )));
    }
    Ok(super::buffer::writable(py, &scores))
}

/// The state of a top-K/top-P selection; see `wsl.TopK`, which takes more kinds of arrays.
#[pyclass(module = "wsl._core")]
struct TopK {
    selection: Selection,
}

#[pymethods]
impl TopK {
    #[new]
    #[pyo3(signature = (num_classes, k, p, order="class-first"))]
    fn new(num_classes: i64, k: i64, p: i64, order: &str) -> PyResult<Self> {
        let num_classes = positive("num_classes", num_classes)?;
        let (k, p) = (positive("k", k)?, positive("p", p)?);
        Ok(Self { selection: Selection::new(num_classes, k, p, Order::parse(order)?)? })
    }

    #[getter]
    fn num_classes(&self) -> u32 {
        self.selection.num_classes()
    }

    #[getter]
    fn k(&self) -> u32 {
        self.selection.k()
    }

    #[getter]
    fn p(&self) -> u32 {
        self.selection.p()
    }

    #[getter]
    fn order(&self) -> &'static str {
        self.selection.order().name()
    }

    /// Scored pairs seen so far.
    #[getter]
    fn num_pairs(&self) -> u64 {
        self.selection.num_pairs()
    }

    /// Takes pairs from a stream with the columns sample, class and score; progress counts pairs.
    #[pyo3(signature = (stream, *, progress=None))]
    fn update_pairs(
        &mut self,
        py: Python<'_>,
        stream: &Bound<'_, PyAny>,
        progress: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let reader = import_stream(stream)?;
        Selection::check_schema(&arrow_array::RecordBatchReader::schema(&reader))?;
        let selection = &mut self.selection;
        let outcome = long_call(py, progress, |job| selection.update_batches(reader, job));
        // An exception of the caller's may come when the update is through; say so all the same.
        outcome.inspect_err(|_| self.selection.abandon())
    }

    /// Takes a C-contiguous float32 buffer of scores, a row for each sample.
    #[pyo3(signature = (scores, samples=None, first_sample=None))]
    fn update_dense(
        &mut self,
        py: Python<'_>,
        scores: &Bound<'_, PyAny>,
        samples: Option<&Bound<'_, PyAny>>,
        first_sample: Option<u64>,
    ) -> PyResult<()> {
        self.update_matrix(py, scores, samples, first_sample, Kind::Scores)
    }

    /// Takes a C-contiguous float32 buffer of logits, and ranks by the softmax's log-odds.
    #[pyo3(signature = (logits, samples=None, first_sample=None))]
    fn update_logits(
        &mut self,
        py: Python<'_>,
        logits: &Bound<'_, PyAny>,
        samples: Option<&Bound<'_, PyAny>>,
        first_sample: Option<u64>,
    ) -> PyResult<()> {
        self.update_matrix(py, logits, samples, first_sample, Kind::Logits)
    }

    /// Adds what another selection of the same options took.
    fn merge(&mut self, py: Python<'_>, other: &Bound<'_, Self>) -> PyResult<()> {
        // `self` is borrowed, so a borrow of `other` fails where they are one.
        let other = other.try_borrow().map_err(|_| {
            UsageError::new_err(
                "merge: a selection cannot be merged with itself, or while it is in use",
            )
        })?;
        let (selection, other) = (&mut self.selection, &other.selection);
        // A merge is done whole or not at all, so it is not to be interrupted.
        Ok(py.detach(|| selection.merge(other))?)
    }

    /// Writes the state to a file, whole or not at all.
    fn save(&self, py: Python<'_>, path: PathBuf) -> PyResult<()> {
        long_call(py, None, |_| self.selection.save(path))
    }

    /// Reads a file of `save`, and checks all of it.
    #[staticmethod]
    fn load(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        Ok(Self { selection: long_call(py, None, |_| Selection::load(path))? })
    }

    /// The selected pairs by class and rank, and the images of every class before and after the P
    /// cut, as uint64 in the machine's byte order.
    #[pyo3(signature = (k=None, p=None))]
    fn finish<'py>(
        &self,
        py: Python<'py>,
        k: Option<i64>,
        p: Option<i64>,
    ) -> PyResult<(Table, Bound<'py, PyBytes>, Bound<'py, PyBytes>)> {
        let k = k.map(|k| positive("k", k)).transpose()?;
        let p = p.map(|p| positive("p", p)).transpose()?;
        let (selected, batches) = long_call(py, None, |job| {
            let selected = self.selection.finish(k, p, job)?;
            let batches = selected.table()?;
            Ok((selected, batches))
        })?;
        let bytes = |numbers: &[u64]| {
            PyBytes::new(py, &numbers.iter().flat_map(|n| n.to_ne_bytes()).collect::<Vec<_>>())
        };
        let (before, after) = (bytes(selected.num_before()), bytes(selected.num_after()));
        Ok((Table::new(Selected::schema(), batches), before, after))
    }

    fn __repr__(&self) -> String {
        format!(
            "TopK(num_classes={}, k={}, p={}, order='{}', num_pairs={})",
            self.num_classes(),
            self.k(),
            self.p(),
            self.order(),
            self.num_pairs()
        )
    }
}

/// What the numbers of a matrix are.
#[derive(Clone, Copy)]
enum Kind {
    Scores,
    Logits,
}

impl TopK {
    fn update_matrix(
        &mut self,
        py: Python<'_>,
        object: &Bound<'_, PyAny>,
        samples: Option<&Bound<'_, PyAny>>,
        first_sample: Option<u64>,
        kind: Kind,
    ) -> PyResult<()> {
        let name = match kind {
            Kind::Scores => "scores",
            Kind::Logits => "logits",
        };
        let width = self.num_classes() as usize;
        let matrix = buffer::<f32>(object, name, "float32", 2)?;
        let &[num_rows, num_columns] = matrix.shape() else { return Ok(()) };
        if num_columns != width {
            return Err(UsageError::new_err(format!(
                "{name}: expected a column for each of the {width} classes, got the shape \
                 ({num_rows}, {num_columns})"
            )));
        }
        let listed = match samples {
            Some(samples) => Some(buffer::<u64>(samples, "samples", "uint64", 1)?.to_vec(py)?),
            None => None,
        };
        let samples = match (&listed, first_sample) {
            (Some(samples), None) => Samples::These(samples),
            (None, Some(first)) => Samples::From(first),
            _ => {
                return Err(UsageError::new_err(
                    "expected either samples, one for each row, or first_sample, the sample of the \
                     first row",
                ));
            }
        };
        samples.check(num_rows)?;
        let num_copied = (SCORES_PER_COPY / width).max(1);
        // Without rows there still is one call, which checks the rest.
        for first in (0..num_rows.max(1)).step_by(num_copied) {
            let rows = first..(first + num_copied).min(num_rows);
            let block = copy_rows(object, &matrix, name, rows.clone())?;
            let (selection, samples) = (&mut self.selection, samples.rows(rows));
            let outcome = long_call(py, None, |job| match kind {
                Kind::Scores => selection.update_dense(samples, &block, job),
                Kind::Logits => selection.update_logits(samples, &block, job),
            });
            outcome.inspect_err(|error| {
                // Wrong usage shows in the first block, before anything is taken.
                if !error.is_instance_of::<UsageError>(py) {
                    self.selection.abandon();
                }
            })?;
        }
        Ok(())
    }
}

/// Copies some rows of `object`, whose buffer is `matrix`: during the call other threads could write
/// to Python's memory.
///
/// A part is had by `object[first:last]`, as NumPy arrays allow.
fn copy_rows(
    object: &Bound<'_, PyAny>,
    matrix: &PyBuffer<f32>,
    name: &str,
    rows: Range<usize>,
) -> PyResult<Vec<f32>> {
    let py = object.py();
    let &[num_rows, num_columns] = matrix.shape() else { return Ok(Vec::new()) };
    if rows.len() == num_rows {
        return matrix.to_vec(py);
    }
    let slice = PySlice::new(py, rows.start as isize, rows.end as isize, 1);
    let part = buffer::<f32>(&object.get_item(slice)?, name, "float32", 2)?;
    if part.shape() != [rows.len(), num_columns] {
        return Err(UsageError::new_err(format!(
            "{name}: expected a slice of {} rows to have them, got the shape {:?}",
            rows.len(),
            part.shape()
        )));
    }
    part.to_vec(py)
}

fn positive(name: &str, value: i64) -> PyResult<u32> {
    u32::try_from(value).ok().filter(|&value| value > 0).ok_or_else(|| {
        UsageError::new_err(format!("{name}: expected 1 to {}, got {value}", u32::MAX))
    })
}

fn buffer<T: Element>(
    object: &Bound<'_, PyAny>,
    name: &str,
    kind: &str,
    num_dimensions: usize,
) -> PyResult<PyBuffer<T>> {
    let wrong = || {
        UsageError::new_err(format!(
            "{name}: expected a C-contiguous {kind} buffer of {num_dimensions} dimensions, got {} of \
             another type, shape or layout",
            object.get_type()
        ))
    };
    let buffer = PyBuffer::<T>::get(object).map_err(|_| wrong())?;
    if buffer.dimensions() != num_dimensions || !buffer.is_c_contiguous() {
        return Err(wrong());
    }
    Ok(buffer)
}
