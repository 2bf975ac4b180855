//! The binding of selection.

use std::path::PathBuf;
use std::sync::Mutex;

use pyo3::buffer::{Element, PyBuffer};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::arrow::{Batches, Table, import_stream};
use super::buffer::{borrowed, bytes};
use super::call::long_call;
use super::exceptions::UsageError;
use crate::Error;
use crate::parquet::ParquetPairs;
use crate::selection::{Order, Samples, Selected, Selection};
use crate::spill::Memory;

pub(super) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<TopK>()?;
    module.add_class::<SelectedPairs>()?;
    module.add_class::<SelectedBatches>()?;
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
    threads: Threads,
}

/// The threads of a selection: its own, or all.
struct Threads(Option<rayon::ThreadPool>);

impl Threads {
    fn new(number: Option<i64>) -> PyResult<Self> {
        let Some(number) = number else { return Ok(Self(None)) };
        let number = positive("num_threads", number)? as usize;
        Ok(Self(Some(crate::threads::pool(Some(number))?)))
    }

    fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        match &self.0 {
            Some(pool) => pool.install(work),
            None => work(),
        }
    }
}

#[pymethods]
impl TopK {
    #[new]
    #[pyo3(signature = (
        num_classes, k, p, order="class-first", *, memory_bytes=None, spill_dir=None, num_threads=None
    ))]
    fn new(
        num_classes: i64,
        k: i64,
        p: i64,
        order: &str,
        memory_bytes: Option<usize>,
        spill_dir: Option<PathBuf>,
        num_threads: Option<i64>,
    ) -> PyResult<Self> {
        let num_classes = positive("num_classes", num_classes)?;
        let (k, p) = (positive("k", k)?, positive("p", p)?);
        let (order, threads) = (Order::parse(order)?, Threads::new(num_threads)?);
        let memory = Memory::limited(memory_bytes, spill_dir)?;
        let selection = threads.run(|| Selection::new(num_classes, k, p, order, memory))?;
        Ok(Self { selection, threads })
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

    /// Takes scores from a stream, a row for each pair or each sample; progress counts rows.
    #[pyo3(signature = (stream, *, grouped=true, progress=None))]
    fn update_pairs(
        &mut self,
        py: Python<'_>,
        stream: &Bound<'_, PyAny>,
        grouped: bool,
        progress: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let reader = import_stream(stream)?;
        self.selection.check_schema(&arrow_array::RecordBatchReader::schema(&reader))?;
        let (selection, threads) = (&mut self.selection, &self.threads);
        let outcome = long_call(py, progress, |job| {
            // The stream may need the interpreter, so it is read by this thread alone.
            threads.run(|| {
                if grouped {
                    selection.update_batches(reader, job)
                } else {
                    selection.update_scattered(reader, job)
                }
            })
        });
        // An exception of the caller's may come when the update is through; it counts all the same.
        outcome.inspect_err(|_| self.selection.abandon())
    }

    /// Takes the pairs of Parquet files whose columns are laid out in a common way; False, and nothing is
    /// read, where they are not, or the order is image-first.
    #[pyo3(signature = (files, *, progress=None))]
    fn update_parquet(
        &mut self,
        py: Python<'_>,
        files: Vec<PathBuf>,
        progress: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<bool> {
        let (selection, threads) = (&mut self.selection, &self.threads);
        let outcome = long_call(py, progress, |job| {
            let Some(pairs) = ParquetPairs::open(&files) else { return Ok(false) };
            threads.run(|| selection.update_parquet(&pairs, job))
        });
        // An exception of the caller's may come when the update is through; it counts all the same.
        outcome.inspect_err(|_| self.selection.abandon())
    }

    /// Takes a C-contiguous float32 buffer of scores, a row for each sample.
    #[pyo3(signature = (scores, samples=None, first_sample=None))]
    fn update(
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
        let (selection, other, threads) = (&mut self.selection, &other.selection, &self.threads);
        // A merge is done whole or not at all, so it is not to be interrupted.
        Ok(py.detach(|| threads.run(|| selection.merge(other)))?)
    }

    /// Writes what is in memory to disk now.
    fn spill(&mut self, py: Python<'_>) -> PyResult<()> {
        let (selection, threads) = (&mut self.selection, &self.threads);
        long_call(py, None, |_| threads.run(|| selection.spill()))
    }

    /// Writes the state to a file, whole or not at all.
    fn save(&self, py: Python<'_>, path: PathBuf) -> PyResult<()> {
        long_call(py, None, |_| self.selection.save(path))
    }

    /// Reads a file of `save`, and checks all of it.
    #[staticmethod]
    #[pyo3(signature = (path, *, memory_bytes=None, spill_dir=None, num_threads=None))]
    fn load(
        py: Python<'_>,
        path: PathBuf,
        memory_bytes: Option<usize>,
        spill_dir: Option<PathBuf>,
        num_threads: Option<i64>,
    ) -> PyResult<Self> {
        let threads = Threads::new(num_threads)?;
        let memory = Memory::limited(memory_bytes, spill_dir)?;
        let selection = long_call(py, None, |_| threads.run(|| Selection::load(path, memory)))?;
        Ok(Self { selection, threads })
    }

    /// The selection over all pairs so far.
    #[pyo3(signature = (k=None, p=None))]
    fn finish(
        &mut self,
        py: Python<'_>,
        k: Option<i64>,
        p: Option<i64>,
    ) -> PyResult<SelectedPairs> {
        let k = k.map(|k| positive("k", k)).transpose()?;
        let p = p.map(|p| positive("p", p)).transpose()?;
        let (selection, threads) = (&mut self.selection, &self.threads);
        let selected = long_call(py, None, |job| threads.run(|| selection.finish(k, p, job)))?;
        Ok(SelectedPairs { selected })
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

/// Reads the selected pairs once.
#[pyclass(module = "wsl._core", frozen)]
struct SelectedBatches {
    batches: Mutex<Batches>,
}

#[pymethods]
impl SelectedBatches {
    fn __iter__(this: Bound<'_, Self>) -> Bound<'_, Self> {
        this
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<Table>> {
        let batch = py.detach(|| {
            self.batches
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner)
                .next()
                .transpose()
        })?;
        Ok(batch.map(|batch| Table::new(Selected::schema(), vec![batch])))
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
        let numbers = borrowed(&matrix);
        let (selection, threads) = (&mut self.selection, &self.threads);
        let outcome = long_call(py, None, |job| {
            threads.run(|| match kind {
                Kind::Scores => selection.update(samples, numbers, job),
                Kind::Logits => selection.update_logits(samples, numbers, job),
            })
        });
        outcome.inspect_err(|error| {
            // Wrong usage shows before anything is taken.
            if !error.is_instance_of::<UsageError>(py) {
                self.selection.abandon();
            }
        })
    }
}

/// What a selection came to.
#[pyclass(module = "wsl._core", frozen)]
struct SelectedPairs {
    selected: Selected,
}

#[pymethods]
impl SelectedPairs {
    /// The selected pairs by sample, then the best class first; read as often as wanted.
    fn table(&self) -> Table {
        let selected = self.selected.clone();
        let len = usize::try_from(selected.num_pairs()).ok();
        Table::streamed(Selected::schema(), len, move || match selected.batches() {
            Ok(batches) => Box::new(batches) as Batches,
            Err(error) => Box::new(std::iter::once(Err::<_, Error>(error))),
        })
    }

    /// The same, a table for each batch; an error is raised as what it is.
    fn batches(&self) -> PyResult<SelectedBatches> {
        let batches: Batches = Box::new(self.selected.batches()?);
        Ok(SelectedBatches { batches: Mutex::new(batches) })
    }

    /// Images of every class before the P cut, uint64 in the machine's byte order.
    fn num_before<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        bytes(py, self.selected.num_before())
    }

    /// Images of every class after the P cut, uint64.
    fn num_after<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        bytes(py, self.selected.num_after())
    }

    /// The lowest score of every class before the P cut, float32; NaN where it has no image.
    fn lowest<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        bytes(py, self.selected.lowest())
    }

    /// How many images are selected for how many classes: (classes, images), ascending.
    fn images_by_classes(&self) -> Vec<(u64, u64)> {
        self.selected.images_by_classes().iter().map(|(&a, &b)| (a, b)).collect()
    }

    /// How many pairs are in both.
    fn num_common(&self, py: Python<'_>, other: &Bound<'_, Self>) -> PyResult<u64> {
        let other = &other.get().selected;
        long_call(py, None, |job| self.selected.num_common(other, job))
    }
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
