//! An index, mapped: looking samples up, and reading their images.
//!
//! Opening maps the parts and parses their footers; nothing else is read until it is asked for. A
//! read of an image takes the tar header before it along and checks name and size, so a shard that
//! was replaced after indexing is an error and never another image.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::dropped::{self, Dropped};
use super::format::{Manifest, NO_SHARD, open_checked};
use super::images::Fetch;
use super::images::run::Extent;
use super::images::shards::{Shard, Shards};
use super::keys::KeyFile;
use super::part::{self, Part, Row};
use crate::job::Job;
use crate::shard::BLOCK;
use crate::store::{Report, Storage};
use crate::{Error, Result};

/// Samples whose rows are fetched from memory together.
const LOOKED_UP: usize = 32;
/// How often an index is opened again that is replaced meanwhile.
const MAX_TRIES: usize = 5;

/// An index over tar shards; [`Builder`](crate::index::Builder) makes one.
///
/// ```no_run
/// use wsl_core::index::Index;
/// use wsl_core::job::Job;
///
/// let index = Index::open("photos/index", None)?;
/// index.verify(&Job::new())?;
/// println!("{} samples", index.num_samples());
/// let mut fetch = index.fetch(&[3, 1, 4], 2)?;
/// while let Some(chunk) = fetch.next_chunk(&Job::new())? {
///     for (place, image) in chunk.images() {
///         println!("image {place} has {} bytes", image.len());
///     }
/// }
/// # Ok::<(), wsl_core::Error>(())
/// ```
#[derive(Debug)]
pub struct Index {
    folder: PathBuf,
    manifest: Manifest,
    pub(super) parts: Vec<Part>,
    /// Samples before each part.
    starts: Vec<u64>,
    pub(super) shards: Shards,
    pub(super) keys: KeyFile,
    dropped: Vec<Dropped>,
    label_counts: OnceLock<Vec<u64>>,
}

impl Index {
    /// Opens the index in `folder`. `shard_root` replaces the folder its shards were in when it
    /// was built.
    ///
    /// Where the index is replaced or appended to meanwhile, the new one is opened.
    pub fn open(folder: impl AsRef<Path>, shard_root: Option<&Path>) -> Result<Self> {
        Self::open_in(folder, shard_root, &Storage::default())
    }

    /// The same, with shards in stores reached through `storage`.
    pub fn open_in(
        folder: impl AsRef<Path>,
        shard_root: Option<&Path>,
        storage: &Storage,
    ) -> Result<Self> {
        let folder = folder.as_ref();
        let storage = storage.apart();
        let mut manifest = Manifest::read(folder)?;
        for _ in 1..MAX_TRIES {
            let error = match Self::of_manifest(folder, manifest.clone(), shard_root, &storage) {
                Ok(index) => return Ok(index),
                Err(error) => error,
            };
            let now = Manifest::read(folder)?;
            if now.to_text()? == manifest.to_text()? {
                return Err(error);
            }
            manifest = now;
        }
        Self::of_manifest(folder, manifest, shard_root, &storage)
    }

    /// Opens the files that a manifest names.
    pub(super) fn of_manifest(
        folder: &Path,
        manifest: Manifest,
        shard_root: Option<&Path>,
        storage: &Storage,
    ) -> Result<Self> {
        let parts: Vec<Part> =
            manifest.parts.iter().map(|entry| Part::open(folder, entry)).collect::<Result<_>>()?;
        let mut starts = vec![0];
        for part in &parts {
            starts.push(starts[starts.len() - 1] + part.num_rows() as u64);
        }
        let shards = Shards::open(folder, &manifest, shard_root, storage.clone())?;
        let keys = KeyFile::open(folder, &manifest.keys, manifest.num_samples)?;
        let dropped = match &manifest.dropped {
            Some(entry) => {
                let map = open_checked(folder, entry)?;
                dropped::read(map.path(), &map, manifest.num_samples)?
            }
            None => Vec::new(),
        };
        Ok(Self {
            folder: folder.to_path_buf(),
            manifest,
            parts,
            starts,
            shards,
            keys,
            dropped,
            label_counts: OnceLock::new(),
        })
    }

    /// The folder of the index.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The shards, in order.
    pub fn shards(&self) -> &[Shard] {
        self.shards.rows()
    }

    /// Number of samples.
    pub fn num_samples(&self) -> u64 {
        self.manifest.num_samples
    }

    fn locate(&self, ordinal: u64) -> Result<(&Part, usize)> {
        self.place(ordinal).ok_or_else(|| {
            Error::usage(format!(
                "{}: there is no sample {ordinal}; ordinals run from 0 to {}",
                self.folder.display(),
                self.num_samples() - 1
            ))
        })
    }

    #[inline]
    fn place(&self, ordinal: u64) -> Option<(&Part, usize)> {
        if ordinal >= self.num_samples() {
            return None;
        }
        let part = self.starts.partition_point(|&start| start <= ordinal) - 1;
        Some((&self.parts[part], (ordinal - self.starts[part]) as usize))
    }

    /// Makes the processor fetch what [`row`](Self::row) reads of some samples, so that the misses of its
    /// caches overlap.
    fn prefetch_rows(&self, ordinals: &[u64]) {
        let places = || ordinals.iter().filter_map(|&ordinal| self.place(ordinal));
        std::hint::black_box(places().fold(0, |seen, (part, row)| seen ^ part.touch_row(row)));
        places().for_each(|(part, row)| part.prefetch_key(row));
    }

    /// Key and place of a sample.
    pub fn row(&self, ordinal: u64) -> Result<Row<'_>> {
        let (part, row) = self.locate(ordinal)?;
        part.row(row)
    }

    /// The labels of a sample, ascending; none for one that was removed.
    pub fn labels(&self, ordinal: u64) -> Result<impl ExactSizeIterator<Item = u32> + '_> {
        let (part, row) = self.locate(ordinal)?;
        let bytes = if self.is_dropped(ordinal) { &[][..] } else { part.label_bytes(row)? };
        Ok(part::numbers(bytes))
    }

    /// The labels of some samples one after another, and where those of each end.
    pub fn flat_labels(&self, ordinals: &[u64]) -> Result<(Vec<u32>, Vec<i64>)> {
        let mut labels = Vec::with_capacity(ordinals.len());
        let mut offsets = Vec::with_capacity(ordinals.len() + 1);
        offsets.push(0);
        // Where the labels are is looked up for some samples at once, so that their misses overlap.
        let mut spans = Vec::with_capacity(64);
        for some in ordinals.chunks(64) {
            spans.clear();
            for (part, row) in some.iter().filter_map(|&ordinal| self.place(ordinal)) {
                part.prefetch_labels(row);
            }
            for &ordinal in some {
                let (part, row) = self.locate(ordinal)?;
                let bytes = if self.is_dropped(ordinal) { &[][..] } else { part.label_bytes(row)? };
                spans.push(bytes);
            }
            for bytes in &spans {
                labels.extend(part::numbers(bytes));
                offsets.push(labels.len() as i64);
            }
        }
        Ok((labels, offsets))
    }

    /// The samples that were removed, ascending.
    pub fn dropped(&self) -> &[Dropped] {
        &self.dropped
    }

    /// Whether a sample was removed.
    #[inline]
    pub fn is_dropped(&self, ordinal: u64) -> bool {
        !self.dropped.is_empty()
            && self.dropped.binary_search_by_key(&ordinal, |row| row.sample).is_ok()
    }

    /// The ordinal of the first sample with `key`.
    pub fn find(&self, key: &str) -> Result<Option<u64>> {
        for ordinal in self.keys.candidates(key) {
            if self.row(ordinal)?.key == key {
                return Ok(Some(ordinal));
            }
        }
        Ok(None)
    }

    /// The ordinals of all samples with `key`, ascending.
    pub fn find_all(&self, key: &str) -> Result<Vec<u64>> {
        let mut found = Vec::new();
        for ordinal in self.keys.candidates(key) {
            if self.row(ordinal)?.key == key {
                found.push(ordinal);
            }
        }
        Ok(found)
    }

    /// The number of samples with each label; one pass over the index, made once.
    pub fn label_counts(&self, job: &Job) -> Result<&[u64]> {
        if self.label_counts.get().is_none() {
            let mut counts = vec![0; self.manifest.num_labels as usize];
            for ordinal in 0..self.num_samples() {
                if ordinal % 65_536 == 0 {
                    job.check()?;
                }
                for label in self.labels(ordinal)? {
                    let count = counts.get_mut(label as usize).ok_or_else(|| {
                        Error::data(format!(
                            "{}: sample {ordinal} has label {label}, beyond the {} of the vocabulary; \
                             build the index again",
                            self.folder.display(),
                            self.manifest.num_labels
                        ))
                    })?;
                    *count += 1;
                }
            }
            let _ = self.label_counts.set(counts);
        }
        Ok(self.label_counts.get().map(Vec::as_slice).unwrap_or_default())
    }

    /// Where a shard is.
    ///
    /// Nowhere, an empty path, for samples of records alone.
    pub fn shard_path(&self, shard: u32) -> Result<PathBuf> {
        self.shards.path(shard)
    }

    /// Whether any shard is in a store.
    pub fn has_stored_shards(&self) -> bool {
        self.shards.has_stored()
    }

    /// What reading shards in stores took since the index was opened.
    pub fn read_report(&self) -> Report {
        self.shards.storage().tally().report()
    }

    /// Reads the encoded images of some samples by `num_threads` threads; see [`Fetch::next_chunk`].
    /// Those that were removed are passed over.
    pub fn fetch(&self, ordinals: &[u64], num_threads: usize) -> Result<Fetch<'_>> {
        let mut wanted = Vec::with_capacity(ordinals.len());
        for (number, some) in ordinals.chunks(LOOKED_UP).enumerate() {
            self.prefetch_rows(some);
            for (place, &ordinal) in (number * LOOKED_UP..).zip(some) {
                if !self.is_dropped(ordinal) {
                    wanted.push(self.extent(place, ordinal)?);
                }
            }
        }
        Fetch::new(&self.shards, wanted, num_threads)
    }

    fn extent(&self, place: usize, ordinal: u64) -> Result<Extent<'_>> {
        let row = self.row(ordinal)?;
        if row.shard == NO_SHARD {
            return Err(Error::usage(format!(
                "{}: sample {ordinal} ({:?}) has no image: the index was built of records alone; build \
                 it with the shards that hold the images",
                self.folder().display(),
                row.key
            )));
        }
        let (shard, size, key) = (row.shard, row.size, row.key);
        let length = self.shards().get(shard as usize).map(|shard| shard.size);
        let end = row.offset.checked_add(u64::from(size));
        match row.offset.checked_sub(BLOCK as u64) {
            Some(start) if end.is_some_and(|end| length.is_some_and(|length| end <= length)) => {
                Ok(Extent { shard, start, size, place, ordinal, key })
            }
            _ => Err(Error::data(format!(
                "{}: sample {ordinal} points outside its shard; the index is damaged, so build it again",
                self.folder().display()
            ))),
        }
    }
}
