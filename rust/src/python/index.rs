//! The binding of the index.

use std::borrow::Cow;
use std::ffi::OsString;
use std::path::PathBuf;

use pyo3::buffer::PyBuffer;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::arrow::import_stream;
use super::buffer;
use super::call::long_call;
use super::exceptions::UsageError;
use super::recipe::{Recipe, Resources};
use super::spool::Spool;
use super::storage::{self, Storage};
use super::vocabulary::Vocabulary;
use crate::epoch::resample::Scheme;
use crate::index::format::LabelKind;
use crate::index::steps::Inputs;
use crate::index::{BuildOptions, Builder, Index as Mapped, Prepared};
use crate::job::Job;

pub(super) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<IndexBuilder>()?;
    module.add_class::<Index>()?;
    module.add_function(wrap_pyfunction!(drop_keys, module)?)?;
    module.add_function(wrap_pyfunction!(scan_shard, module)?)
}

/// Takes the samples with these keys down; how many now, how many before, and unknown keys.
#[pyfunction]
fn drop_keys(
    py: Python<'_>,
    folder: PathBuf,
    keys: Vec<String>,
) -> PyResult<(u64, u64, Vec<String>)> {
    let outcome = long_call(py, None, |_| crate::index::drop::drop_keys(&folder, &keys))?;
    Ok((outcome.num_dropped, outcome.num_known, outcome.unknown))
}

type Members<'a> = Vec<(Cow<'a, [u8]>, u64, u64, u64)>;

/// Name, first header, offset and size of each regular file of a shard; where the end mark is.
#[pyfunction]
#[pyo3(signature = (path, *, storage=None))]
fn scan_shard<'py>(
    py: Python<'py>,
    path: PathBuf,
    storage: Option<PyRef<'_, Storage>>,
) -> PyResult<(Members<'py>, u64)> {
    let storage = storage::given(storage);
    let (members, end) = long_call(py, None, |job| crate::shard::members(&path, &storage, job))?;
    let row = |m: crate::shard::Member| (Cow::Owned(m.name), m.start, m.offset, m.size);
    Ok((members.into_iter().map(row).collect(), end))
}

/// An index being built; visible only after `publish`.
#[pyclass(module = "wsl._core")]
struct IndexBuilder {
    inner: Option<Builder>,
    label_kind: Option<LabelKind>,
    prepared: Option<Prepared>,
}

impl IndexBuilder {
    fn builder(&mut self) -> PyResult<&mut Builder> {
        self.inner
            .as_mut()
            .ok_or_else(|| UsageError::new_err("this index builder is used up; start another"))
    }
}

#[pymethods]
impl IndexBuilder {
    #[new]
    #[pyo3(signature = (folder, recipe, *, resources, resume_key=None, append=false, storage=None))]
    fn new(
        py: Python<'_>,
        folder: PathBuf,
        recipe: Recipe,
        resources: Resources,
        resume_key: Option<String>,
        append: bool,
        storage: Option<PyRef<'_, Storage>>,
    ) -> PyResult<Self> {
        let label_kind = recipe.label_kind()?;
        let options = BuildOptions {
            labels: recipe.label_source()?,
            key_scope: recipe.key_scope()?,
            num_threads: resources.num_threads,
            memory: resources.memory()?,
            include: recipe.include,
            exclude: recipe.exclude,
            limits: recipe.limits,
            part_rows: recipe.part_rows,
            resume_key,
            append,
            storage: storage::given(storage),
        };
        let inner = Some(long_call(py, None, |_| Builder::new(folder, options))?);
        Ok(Self { inner, label_kind, prepared: None })
    }

    /// Whether a killed build is resumed.
    #[getter]
    fn is_resumed(&mut self) -> PyResult<bool> {
        Ok(self.builder()?.is_resumed())
    }

    /// Takes records, their hashtags as labels of `vocabulary`.
    #[pyo3(signature = (stream, recipe, *, vocabulary, again=true, progress=None))]
    fn add_records(
        &mut self,
        py: Python<'_>,
        stream: &Bound<'_, PyAny>,
        recipe: Recipe,
        vocabulary: PyRef<'_, Vocabulary>,
        again: bool,
        progress: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let batches = import_stream(stream)?;
        let (columns, options) = (recipe.columns()?, recipe.counting(None));
        let (builder, labels) = (self.builder()?, &vocabulary.inner);
        long_call(py, progress, |job| {
            builder.add_records(batches, &columns, &options, labels, again, job)
        })
    }

    /// Writes records as samples without an image, their hashtags as labels of `vocabulary`.
    #[pyo3(signature = (stream, recipe, *, vocabulary, progress=None))]
    fn index_records(
        &mut self,
        py: Python<'_>,
        stream: &Bound<'_, PyAny>,
        recipe: Recipe,
        vocabulary: PyRef<'_, Vocabulary>,
        progress: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let batches = import_stream(stream)?;
        let (columns, options) = (recipe.columns()?, recipe.counting(None));
        let (builder, labels) = (self.builder()?, &vocabulary.inner);
        long_call(py, progress, |job| {
            builder.index_records(batches, &columns, &options, labels, job)
        })
    }

    /// The same with the records of Parquet files whose columns are laid out in a common way; False, and
    /// nothing is read, where they are not.
    #[pyo3(signature = (files, recipe, *, vocabulary, progress=None))]
    fn index_parquet(
        &mut self,
        py: Python<'_>,
        files: Vec<PathBuf>,
        recipe: Recipe,
        vocabulary: PyRef<'_, Vocabulary>,
        progress: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<bool> {
        let (builder, labels) = (self.builder()?, &vocabulary.inner);
        long_call(py, progress, |job| {
            let Some(records) = recipe.parquet(&files) else { return Ok(false) };
            builder.index_parquet(&records, labels, job)?;
            Ok(true)
        })
    }

    /// The same with records whose hashtags were spooled as they were counted.
    #[pyo3(signature = (spool, *, vocabulary, progress=None))]
    fn index_spooled(
        &mut self,
        py: Python<'_>,
        spool: PyRef<'_, Spool>,
        vocabulary: PyRef<'_, Vocabulary>,
        progress: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let (builder, spool, labels) = (self.builder()?, &spool.inner, &vocabulary.inner);
        long_call(py, progress, |job| builder.index_spooled(spool, labels, job))
    }

    /// Scans shards, pairs of where each is and what the index calls it.
    #[pyo3(signature = (paths, *, progress=None))]
    fn add_shards(
        &mut self,
        py: Python<'_>,
        paths: Vec<(PathBuf, String)>,
        progress: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let builder = self.builder()?;
        long_call(py, progress, |job| builder.add_shards(&paths, job))
    }

    /// Refuses shards of one name where keys begin anew in every shard.
    fn check_names(&mut self, names: Vec<String>) -> PyResult<()> {
        Ok(self.builder()?.check_names(names.iter().map(String::as_str))?)
    }

    /// Takes over what was counted in files that many processes made.
    #[pyo3(signature = (names, *, records, samples, labels, again=true))]
    fn add_spread(
        &mut self,
        py: Python<'_>,
        names: Vec<String>,
        records: Vec<PathBuf>,
        samples: Vec<PathBuf>,
        labels: Vec<PathBuf>,
        again: bool,
    ) -> PyResult<()> {
        let (builder, inputs) = (self.builder()?, Inputs { records, samples, known: None });
        long_call(py, None, |job| builder.add_spread(&inputs, &labels, &names, again, job))
    }

    /// The same of records that are an index by themselves.
    fn add_rows(&mut self, py: Python<'_>, places: Vec<PathBuf>) -> PyResult<()> {
        let builder = self.builder()?;
        long_call(py, None, |job| builder.add_rows(&places, job))
    }

    /// Takes over the next part of an index, which stays where it is.
    fn add_part(&mut self, py: Python<'_>, path: PathBuf, num_rows: u64) -> PyResult<()> {
        let builder = self.builder()?;
        long_call(py, None, |job| builder.add_part(&path, num_rows, job))
    }

    #[getter]
    fn highest_class(&mut self) -> PyResult<Option<u32>> {
        Ok(self.builder()?.highest_class())
    }

    /// Writes all but the manifest, and returns the bytes that this will have.
    ///
    /// `vocabulary_file` is the name in the folder under which the vocabulary was written.
    #[pyo3(signature = (vocabulary, *, vocabulary_file, shard_root, provenance))]
    fn prepare<'py>(
        &mut self,
        py: Python<'py>,
        vocabulary: Option<PyRef<'_, Vocabulary>>,
        vocabulary_file: &str,
        shard_root: &str,
        provenance: &str,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let provenance = serde_json::from_str(provenance)
            .map_err(|error| UsageError::new_err(format!("provenance: {error}")))?;
        self.builder()?;
        let labels = vocabulary.as_ref().map(|vocabulary| (&vocabulary.inner, vocabulary_file));
        let (builder, kind) = (self.inner.take(), self.label_kind);
        self.prepared = long_call(py, None, |job| {
            builder.map(|b| b.prepare(labels, kind, shard_root, provenance, job)).transpose()
        })?;
        Ok(PyBytes::new(py, self.prepared.as_ref().map_or(&[], Prepared::text)))
    }

    /// Writes the manifest that was prepared: from then on the index is there.
    fn publish(&mut self, py: Python<'_>) -> PyResult<()> {
        let prepared = self.prepared.take();
        let prepared = prepared
            .ok_or_else(|| UsageError::new_err("nothing is prepared; prepare the index first"))?;
        long_call(py, None, |_| prepared.publish())?;
        Ok(())
    }
}

/// A mapped index.
#[pyclass(module = "wsl._core", frozen)]
struct Index {
    inner: Mapped,
}

type Labels<'py> = (Bound<'py, PyBytes>, Bound<'py, PyBytes>);

#[pymethods]
impl Index {
    /// Opens the index in `folder`.
    #[staticmethod]
    #[pyo3(signature = (folder, *, shard_root=None, storage=None))]
    fn open(
        py: Python<'_>,
        folder: PathBuf,
        shard_root: Option<PathBuf>,
        storage: Option<PyRef<'_, Storage>>,
    ) -> PyResult<Self> {
        let (root, storage) = (shard_root.as_deref(), storage::given(storage));
        Ok(Self { inner: long_call(py, None, |_| Mapped::open_in(folder, root, &storage))? })
    }

    /// Requests to stores since it was opened, repeated ones, bytes asked for and bytes that came.
    fn read_report(&self) -> (u64, u64, u64, u64) {
        storage::numbers(self.inner.read_report())
    }

    fn __len__(&self) -> usize {
        self.inner.num_samples() as usize
    }

    /// The manifest as JSON.
    fn manifest(&self) -> PyResult<String> {
        serde_json::to_string(self.inner.manifest())
            .map_err(|error| UsageError::new_err(error.to_string()))
    }

    /// Path, size, first sample and number of samples of each shard.
    fn shards(&self) -> Vec<(String, u64, u64, u64)> {
        let row = |shard: &crate::index::Shard| {
            (shard.path.clone(), shard.size, shard.first_sample, shard.num_samples)
        };
        self.inner.shards().iter().map(row).collect()
    }

    /// Key, path of the shard, offset and size of a sample.
    fn row(&self, ordinal: u64) -> PyResult<(String, OsString, u64, u32)> {
        let row = self.inner.row(ordinal)?;
        // A path object would take a slash from a URI.
        let path = self.inner.shard_path(row.shard)?.into_os_string();
        Ok((row.key.to_owned(), path, row.offset, row.size))
    }

    /// Where each shard is.
    fn shard_paths(&self) -> PyResult<Vec<OsString>> {
        let numbers = 0..self.inner.shards().len() as u32;
        let place = |number| Ok(self.inner.shard_path(number)?.into_os_string());
        Ok(numbers.map(place).collect::<crate::Result<_>>()?)
    }

    /// The keys of samples (int64 ordinals).
    fn keys(&self, py: Python<'_>, ordinals: PyBuffer<i64>) -> PyResult<Vec<String>> {
        let ordinals = buffer::ordinals(py, &ordinals)?;
        let key = |&ordinal: &u64| Ok(self.inner.row(ordinal)?.key.to_owned());
        Ok(py.detach(|| ordinals.iter().map(key).collect::<crate::Result<_>>())?)
    }

    /// The labels of samples: uint32 labels one after another, and int64 offsets, one more than samples.
    fn labels<'py>(&self, py: Python<'py>, ordinals: PyBuffer<i64>) -> PyResult<Labels<'py>> {
        let ordinals = buffer::ordinals(py, &ordinals)?;
        let (labels, offsets) = py.detach(|| self.inner.flat_labels(&ordinals))?;
        Ok((buffer::bytes(py, &labels), buffer::bytes(py, &offsets)))
    }

    /// The encoded images of samples.
    #[pyo3(signature = (ordinals, *, num_threads=1, progress=None))]
    fn read<'py>(
        &self,
        py: Python<'py>,
        ordinals: PyBuffer<i64>,
        num_threads: usize,
        progress: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Vec<Bound<'py, PyBytes>>> {
        let ordinals = buffer::ordinals(py, &ordinals)?;
        let mut images = vec![PyBytes::new(py, b""); ordinals.len()];
        let mut fetch = py.detach(|| self.inner.fetch(&ordinals, num_threads))?;
        // A batch takes well under a tenth of a second; a thread for it would cost more than the read.
        let is_quick =
            progress.is_none() && ordinals.len() <= 4096 && !self.inner.has_stored_shards();
        loop {
            let mut rooms = Vec::new();
            for (place, size) in fetch.single_images() {
                let (image, room) = buffer::room(py, size)?;
                images[place] = image;
                rooms.push(room);
            }
            let chunk = if is_quick {
                py.detach(|| fetch.next_chunk_into(rooms, &Job::new()))?
            } else {
                long_call(py, None, |job| fetch.next_chunk_into(rooms, job))?
            };
            let Some(chunk) = chunk else { return Ok(images) };
            for (place, image) in chunk.images() {
                images[place] = PyBytes::new(py, image);
            }
            if let Some(progress) = progress {
                progress.call1((fetch.num_read(),))?;
            }
            py.check_signals()?;
        }
    }

    /// The ordinal of the first sample with `key`, or None.
    fn find(&self, key: &str) -> PyResult<Option<u64>> {
        Ok(self.inner.find(key)?)
    }

    /// The ordinals of all samples with `key`.
    fn find_all(&self, key: &str) -> PyResult<Vec<u64>> {
        Ok(self.inner.find_all(key)?)
    }

    /// The samples that were removed, ascending: uint64.
    fn dropped<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        let samples: Vec<u64> = self.inner.dropped().iter().map(|row| row.sample).collect();
        buffer::bytes(py, &samples)
    }

    /// The number of samples with each label, uint64.
    fn label_counts<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let counts = long_call(py, None, |job| self.inner.label_counts(job).map(<[u64]>::to_vec))?;
        Ok(buffer::bytes(py, &counts))
    }

    /// Repeat factors, float32, and the threshold; `epoch_length` solves for it where it is given.
    #[pyo3(signature = (scheme, *, threshold=None, epoch_length=None))]
    fn repeat_factors<'py>(
        &self,
        py: Python<'py>,
        scheme: &str,
        threshold: Option<f64>,
        epoch_length: Option<f64>,
    ) -> PyResult<(Bound<'py, PyBytes>, Option<f64>)> {
        let scheme = Scheme::parse(scheme)?;
        let (factors, threshold) = long_call(py, None, |job| {
            let factors = self.inner.repeat_factors(scheme, threshold, epoch_length, job)?;
            let mut all = Vec::with_capacity(self.inner.num_samples() as usize);
            self.inner.each_factor(&factors, job, |factor| {
                all.push(factor);
                Ok(())
            })?;
            Ok((all, factors.threshold))
        })?;
        Ok((buffer::bytes(py, &factors), threshold))
    }

    /// The same into a file of float32, published whole, and the sums beside it; returns the threshold.
    #[pyo3(signature = (path, scheme, *, threshold=None, epoch_length=None))]
    fn write_factors(
        &self,
        py: Python<'_>,
        path: PathBuf,
        scheme: &str,
        threshold: Option<f64>,
        epoch_length: Option<f64>,
    ) -> PyResult<Option<f64>> {
        let scheme = Scheme::parse(scheme)?;
        long_call(py, None, |job| {
            let factors = self.inner.repeat_factors(scheme, threshold, epoch_length, job)?;
            self.inner.write_factors(&factors, &path, job)?;
            Ok(factors.threshold)
        })
    }

    /// Reads every byte and checks it against the checksums.
    #[pyo3(signature = (*, progress=None))]
    fn verify(&self, py: Python<'_>, progress: Option<&Bound<'_, PyAny>>) -> PyResult<()> {
        long_call(py, progress, |job| self.inner.verify(job))
    }
}
