//! An index, mapped: looking samples up, reading their images, verifying every byte.
//!
//! Opening maps the parts and parses their footers; nothing else is read until it is asked for. A
//! read of an image takes the tar header before it along and checks name and size, so a shard that
//! was replaced after indexing is an error and never another image.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};

use arrow_array::Array;
use arrow_array::cast::AsArray;
use arrow_array::types::UInt64Type;
use arrow_ipc::reader::FileReader;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::dropped::{self, Dropped};
use super::format::{FileEntry, Manifest, NO_SHARD, checksum, shards_schema};
use super::images::disk::Scratch;
use super::images::files::OpenFiles;
use super::keys::KeyFile;
use super::part::{self, Part, Row};
use crate::job::Job;
use crate::map::Map;
use crate::shard;
use crate::store::{Report, Storage, is_remote};
use crate::{Error, Result};

/// Samples whose rows are fetched from memory together.
pub(super) const LOOKED_UP: usize = 32;
/// How often an index is opened again that is replaced meanwhile.
const MAX_TRIES: usize = 5;
/// Shards in stores that are verified at once.
const MAX_SCANS: usize = 16;

/// One row of `shards.arrow`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shard {
    /// Its path from the shard root.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// XXH3 of its tar headers.
    pub header_checksum: u64,
    /// The ordinal of its first sample.
    pub first_sample: u64,
    /// Its samples.
    pub num_samples: u64,
    /// The etag that it had when it was indexed, where it lies in a store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etag: Option<String>,
}

/// An index over tar shards.
#[derive(Debug)]
pub struct Index {
    folder: PathBuf,
    manifest: Manifest,
    parts: Vec<Part>,
    /// Samples before each part.
    starts: Vec<u64>,
    shards: Vec<Shard>,
    shard_root: PathBuf,
    /// Whether the shards lie elsewhere than when the index was built.
    is_moved: bool,
    /// Which shards lie in a store; empty where none does.
    in_store: Vec<bool>,
    pub(super) storage: Storage,
    keys: KeyFile,
    dropped: Vec<Dropped>,
    pub(super) open: OpenFiles,
    pub(super) scratch: Scratch,
    /// Whether more than a few runs of the last chunk had to be waited for.
    pub(super) is_cold: AtomicBool,
    label_counts: OnceLock<Vec<u64>>,
}

impl Index {
    /// Opens the index in `folder`. `shard_root` stands in for the folder its shards lay in when it
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
        let mut index = Self::open_newest(folder.as_ref(), shard_root)?;
        index.storage = storage.apart();
        let in_store: Vec<bool> = (0..index.shards.len() as u32)
            .map(|number| {
                index.shard_path(number).is_ok_and(|path| path.to_str().is_some_and(is_remote))
            })
            .collect();
        if in_store.contains(&true) {
            index.in_store = in_store;
        }
        Ok(index)
    }

    fn open_newest(folder: &Path, shard_root: Option<&Path>) -> Result<Self> {
        let mut manifest = Manifest::read(folder)?;
        for _ in 1..MAX_TRIES {
            let error = match Self::of_manifest(folder, manifest.clone(), shard_root) {
                Ok(index) => return Ok(index),
                Err(error) => error,
            };
            let now = Manifest::read(folder)?;
            if now.to_text()? == manifest.to_text()? {
                return Err(error);
            }
            manifest = now;
        }
        Self::of_manifest(folder, manifest, shard_root)
    }

    /// Opens the files that a manifest names.
    pub(super) fn of_manifest(
        folder: &Path,
        manifest: Manifest,
        shard_root: Option<&Path>,
    ) -> Result<Self> {
        let parts: Vec<Part> =
            manifest.parts.iter().map(|entry| Part::open(folder, entry)).collect::<Result<_>>()?;
        let mut starts = vec![0];
        for part in &parts {
            starts.push(starts[starts.len() - 1] + part.num_rows() as u64);
        }
        let shards = read_shards(folder, &manifest)?;
        let keys = KeyFile::open(folder, &manifest.keys, manifest.num_samples)?;
        let dropped = match &manifest.dropped {
            Some(entry) => {
                let map = open_checked(folder, entry)?;
                dropped::read(map.path(), &map, manifest.num_samples)?
            }
            None => Vec::new(),
        };
        let is_moved = shard_root.is_some();
        let shard_root = match shard_root {
            Some(root) => root.to_path_buf(),
            None => folder.join(&manifest.shard_root),
        };
        Ok(Self {
            folder: folder.to_path_buf(),
            manifest,
            parts,
            starts,
            shards,
            shard_root,
            is_moved,
            in_store: Vec::new(),
            storage: Storage::default(),
            keys,
            dropped,
            open: OpenFiles::default(),
            scratch: Scratch::default(),
            is_cold: AtomicBool::new(false),
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
        &self.shards
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
    pub(super) fn prefetch_rows(&self, ordinals: &[u64]) {
        let places = || ordinals.iter().filter_map(|&ordinal| self.place(ordinal));
        std::hint::black_box(places().fold(0, |seen, (part, row)| seen ^ part.touch_row(row)));
        places().for_each(|(part, row)| part.prefetch_key(row));
    }

    /// Key and place of a sample.
    pub fn row(&self, ordinal: u64) -> Result<Row<'_>> {
        let (part, row) = self.locate(ordinal)?;
        part.row(row)
    }

    /// The labels of a sample, ascending; none for one that was taken down.
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
        // Where the labels lie is looked up for some samples at once, so that their misses overlap.
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

    /// The samples that were taken down, ascending.
    pub fn dropped(&self) -> &[Dropped] {
        &self.dropped
    }

    /// Whether a sample was taken down.
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

    /// Where a shard lies.
    ///
    /// Nowhere, an empty path, for samples of records alone.
    pub fn shard_path(&self, shard: u32) -> Result<PathBuf> {
        if shard == NO_SHARD {
            return Ok(PathBuf::new());
        }
        let shard = self.shards.get(shard as usize).ok_or_else(|| {
            Error::data(format!(
                "{}: a sample names shard {shard}, and there are {}; build the index again",
                self.folder.display(),
                self.shards.len()
            ))
        })?;
        match shard.path.split_once("://") {
            None => Ok(self.shard_root.join(&shard.path)),
            Some(("file", path)) => Ok(PathBuf::from(path)),
            // Shards of a store that were moved lie in one folder.
            Some((_, path)) if self.is_moved => {
                Ok(self.shard_root.join(path.rsplit('/').next().unwrap_or(path)))
            }
            Some(_) if is_remote(&shard.path) => Ok(PathBuf::from(&shard.path)),
            Some((scheme, _)) => Err(Error::usage(format!(
                "the shard {} lies in a store of kind {scheme:?}, which is not read; copy the shards \
                 to a local folder or another store and name it (shard_root)",
                shard.path
            ))),
        }
    }

    /// Whether a shard lies in a store.
    #[inline]
    pub(super) fn is_in_store(&self, shard: u32) -> bool {
        self.in_store.get(shard as usize).is_some_and(|&is| is)
    }

    /// Whether any shard lies in a store.
    pub fn has_stored_shards(&self) -> bool {
        !self.in_store.is_empty()
    }

    /// A shard in a store as it was when it was indexed; its etag is known where it was not moved.
    pub(super) fn stored(&self, shard: u32) -> Result<(Arc<str>, u64, Option<Arc<str>>)> {
        let path = self.shard_path(shard)?;
        let uri: Arc<str> = path.to_string_lossy().into();
        let shard = &self.shards[shard as usize];
        let etag = shard.etag.as_deref().filter(|_| !self.is_moved);
        Ok((uri, shard.size, etag.map(Arc::from)))
    }

    /// What reading shards in stores took since the index was opened.
    pub fn read_report(&self) -> Report {
        self.storage.tally().report()
    }

    /// Reads every byte of the index and the headers of every shard and holds them against what was
    /// recorded; `job` advances by bytes of the index and by bytes of shards.
    pub fn verify(&self, job: &Job) -> Result<()> {
        for (part, entry) in self.parts.iter().zip(&self.manifest.parts) {
            same_checksum(part.path(), part.bytes(), &entry.checksum)?;
            self.verify_rows(part, job)?;
            job.advance(entry.size);
        }
        let keys = self.keys.map();
        same_checksum(keys.path(), keys, &self.manifest.keys.checksum)?;
        job.advance(self.manifest.keys.size);
        let others = [Some(&self.manifest.shards), self.manifest.vocabulary.as_ref()];
        for entry in others.into_iter().flatten().chain(&self.manifest.dropped) {
            open_checked(&self.folder, entry)?;
            job.advance(entry.size);
        }
        Manifest::read(&self.folder)?;
        if self.manifest.computed_fingerprint() != self.manifest.fingerprint {
            return Err(Error::data(format!(
                "{}: the fingerprint of the manifest is not that of its content; build the index \
                 again",
                self.folder.display()
            )));
        }
        self.verify_shards(job)
    }

    fn verify_shards(&self, job: &Job) -> Result<()> {
        let verify_all = || {
            let numbers = (0..self.shards.len() as u32).into_par_iter();
            numbers.try_for_each(|number| self.verify_shard(number, job))
        };
        if self.in_store.is_empty() {
            return verify_all();
        }
        // Shards in stores wait for answers.
        let num_threads = self.storage.limits().num_requests.min(MAX_SCANS);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(num_threads).build();
        pool.map_err(|error| Error::usage(format!("{num_threads} threads: {error}")))?
            .install(verify_all)
    }

    fn verify_shard(&self, number: u32, job: &Job) -> Result<()> {
        let path = self.shard_path(number)?;
        let shard = &self.shards[number as usize];
        let (found, etag) = shard::summarize(&path, &self.storage, job)?;
        job.advance(found.size);
        let is_replaced =
            !self.is_moved && shard.etag.is_some() && etag.is_some() && shard.etag != etag;
        if is_replaced || (found.size, found.header_checksum) != (shard.size, shard.header_checksum)
        {
            let differs = match (found.size == shard.size, is_replaced) {
                (false, _) => "",
                (true, true) => " that were written anew",
                (true, false) => " with other tar headers",
            };
            return Err(Error::data(format!(
                "{}: expected the {} bytes that were indexed, found {} bytes{differs}; build the index \
                 again",
                path.display(),
                shard.size,
                found.size,
            )));
        }
        Ok(())
    }

    fn verify_rows(&self, part: &Part, job: &Job) -> Result<()> {
        for row in 0..part.num_rows() {
            if row % 65_536 == 0 {
                job.check()?;
            }
            let place = part.row(row)?;
            let end = place.offset.checked_add(u64::from(place.size));
            let size = match place.shard {
                NO_SHARD => Some(0),
                shard => self.shards.get(shard as usize).map(|shard| shard.size),
            };
            let mut labels = part::numbers(part.label_bytes(row)?);
            let known = labels.all(|label| u64::from(label) < self.manifest.num_labels);
            if !known || end.zip(size).is_none_or(|(end, size)| end > size) {
                return Err(Error::data(format!(
                    "{}: row {row} points outside the shards or the vocabulary; build the index again",
                    part.path().display()
                )));
            }
        }
        Ok(())
    }
}

fn same_checksum(path: &Path, bytes: &[u8], expected: &str) -> Result<()> {
    let found = checksum(bytes);
    if found != expected {
        return Err(Error::data(format!(
            "{}: expected checksum {expected}, found {found}; the file is damaged, so build the index \
             again",
            path.display()
        )));
    }
    Ok(())
}

/// A file of the index, held against its size and checksum.
fn open_checked(folder: &Path, entry: &FileEntry) -> Result<Map> {
    let map = Map::open(folder.join(&entry.file), Some(entry.size))?;
    same_checksum(map.path(), &map, &entry.checksum)?;
    Ok(map)
}

fn read_shards(folder: &Path, manifest: &Manifest) -> Result<Vec<Shard>> {
    let map = open_checked(folder, &manifest.shards)?;
    let path = map.path();
    let bad =
        |what: &str| Error::data(format!("{}: {what}; build the index again", path.display()));
    let reader = FileReader::try_new(std::io::Cursor::new(&map[..]), None)?;
    let with_etags = reader.schema().fields().len() > 5;
    if reader.schema().fields() != shards_schema(with_etags).fields() {
        return Err(bad("its columns are not those of a table of shards"));
    }
    let mut shards = Vec::new();
    for batch in reader {
        let batch = batch?;
        let paths = batch.column(0).as_string::<i32>();
        let number =
            |column: usize, row| batch.column(column).as_primitive::<UInt64Type>().value(row);
        let etags = with_etags.then(|| batch.column(5).as_string::<i32>());
        for row in 0..batch.num_rows() {
            shards.push(Shard {
                path: paths.value(row).to_owned(),
                size: number(1, row),
                header_checksum: number(2, row),
                first_sample: number(3, row),
                num_samples: number(4, row),
                etag: etags
                    .filter(|etags| etags.is_valid(row))
                    .map(|etags| etags.value(row).to_owned()),
            });
        }
    }
    Ok(shards)
}
