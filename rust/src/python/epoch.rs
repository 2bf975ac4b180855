//! The binding of the epoch order and of label noise.

use std::path::PathBuf;

use pyo3::buffer::PyBuffer;
use pyo3::prelude::*;
use pyo3::types::PyByteArray;

use super::buffer;
use super::call::long_call;
use super::exceptions::UsageError;
use crate::epoch::noise::{LabelNoise as Noise, NoiseTally};
use crate::epoch::{EpochOrder as Order, Factors, Window};
use crate::job::Job;

pub(super) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<EpochOrder>()?;
    module.add_class::<LabelNoise>()
}

/// The stream of all epochs over some samples.
#[pyclass(module = "wsl._core", frozen)]
struct EpochOrder {
    inner: Order,
}

#[pymethods]
impl EpochOrder {
    /// `factors` are a float32 array, or `factors_file` a file of them; `window` shards are drawn at a
    /// time, which begin at `first_samples` (int64).
    #[new]
    #[pyo3(signature = (num_samples, factors, seed, *, factors_file=None, window=None, first_samples=None))]
    fn new(
        py: Python<'_>,
        num_samples: u64,
        factors: Option<PyBuffer<f32>>,
        seed: u64,
        factors_file: Option<PathBuf>,
        window: Option<usize>,
        first_samples: Option<PyBuffer<i64>>,
    ) -> PyResult<Self> {
        let factors = factors.map(|factors| buffer::values(py, &factors)).transpose()?;
        let first_samples = first_samples.map(|first| buffer::ordinals(py, &first)).transpose()?;
        let quick = factors.is_none() && factors_file.is_none();
        let make = |job: &Job| {
            let factors = match (factors, factors_file) {
                (Some(values), _) => Some(Factors::in_memory(values, num_samples)?),
                (None, Some(path)) => Some(Factors::open(&path, num_samples, job)?),
                (None, None) => None,
            };
            let shards = first_samples.unwrap_or_default();
            let window = window.map(|size| Window::new(size, &shards, num_samples)).transpose()?;
            Order::new(num_samples, factors, seed, window)
        };
        // Without factors there is nothing to wait for.
        let inner = if quick { make(&Job::new())? } else { long_call(py, None, make)? };
        Ok(Self { inner })
    }

    /// The samples at positions `start` to `stop`, int64.
    fn take<'py>(
        &self,
        py: Python<'py>,
        start: u64,
        stop: u64,
    ) -> PyResult<Bound<'py, PyByteArray>> {
        let length = usize::try_from(stop.saturating_sub(start))
            .map_err(|_| UsageError::new_err("so many positions do not fit in memory"))?;
        let mut samples = Vec::new();
        samples.try_reserve_exact(length).map_err(|_| {
            UsageError::new_err(format!("{length} positions of an order do not fit in memory"))
        })?;
        samples.resize(length, 0_u64);
        py.detach(|| self.inner.fill(start, &mut samples))?;
        Ok(buffer::writable(py, &samples))
    }

    /// Positions in an epoch.
    fn epoch_length(&self, py: Python<'_>, epoch: u64) -> PyResult<u64> {
        Ok(py.detach(|| self.inner.epoch_length(epoch))?)
    }

    #[getter]
    fn num_samples(&self) -> u64 {
        self.inner.num_samples()
    }

    /// A hash of everything that determines the order.
    #[getter]
    fn fingerprint(&self) -> String {
        self.inner.fingerprint()
    }
}

/// Replaces a share of labels by others.
#[pyclass(module = "wsl._core", frozen)]
struct LabelNoise {
    inner: Noise,
}

#[pymethods]
impl LabelNoise {
    #[new]
    fn new(py: Python<'_>, counts: PyBuffer<u64>, share: f64, seed: u64) -> PyResult<Self> {
        Ok(Self { inner: Noise::new(&buffer::values(py, &counts)?, share, seed)? })
    }

    /// The labels of `samples` (int64), given as uint32 labels and int64 offsets, with noise: uint32
    /// labels at the same offsets; labels seen, replaced, and to be replaced but left.
    fn apply<'py>(
        &self,
        py: Python<'py>,
        samples: PyBuffer<i64>,
        labels: PyBuffer<u32>,
        offsets: PyBuffer<i64>,
    ) -> PyResult<(Bound<'py, PyByteArray>, (u64, u64, u64))> {
        let samples = buffer::ordinals(py, &samples)?;
        let mut labels = buffer::values(py, &labels)?;
        let offsets = buffer::ordinals(py, &offsets)?;
        let fits = offsets.len() == samples.len() + 1
            && offsets.windows(2).all(|pair| pair[0] <= pair[1])
            && offsets.last().is_some_and(|&end| end <= labels.len() as u64);
        if !fits {
            return Err(UsageError::new_err(
                "label noise: expected ascending offsets into the labels, one more than samples",
            ));
        }
        let mut tally = NoiseTally::default();
        for (&sample, pair) in samples.iter().zip(offsets.windows(2)) {
            let row = &mut labels[pair[0] as usize..pair[1] as usize];
            self.inner.apply(sample, row, &mut tally)?;
        }
        let numbers = (tally.num_labels, tally.num_replaced, tally.num_stayed);
        Ok((buffer::writable(py, &labels), numbers))
    }
}
