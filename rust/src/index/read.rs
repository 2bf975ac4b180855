//! An index, mapped: looking samples up, reading their images, verifying every byte.
//!
//! Opening maps the parts and parses their footers; nothing else is read until it is asked for. A
//! read of an image takes the tar header before it along and checks name and size, so a shard that
//! was replaced after indexing is an error and never another image.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use arrow_array::cast::AsArray;
use arrow_array::types::UInt64Type;
use arrow_ipc::reader::FileReader;
use rayon::prelude::*;
use xxhash_rust::xxh3::xxh3_64;

use super::format::{KEYS_MAGIC, Manifest, NO_SHARD, SHARDS, checksum, shards_schema};
use super::map::Map;
use super::part::{Part, Row};
use crate::job::Job;
use crate::shard::{self, BLOCK};
use crate::{Error, Result};

/// Shards kept open at once.
const MAX_OPEN: usize = 256;

/// One row of `shards.arrow`.
#[derive(Debug, Clone, PartialEq, Eq)]
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
    keys: Map,
    open: Mutex<Vec<(u32, Arc<File>)>>,
    label_counts: OnceLock<Vec<u64>>,
}

impl Index {
    /// Opens the index in `folder`. `shard_root` stands in for the folder its shards lay in when it
    /// was built.
    pub fn open(folder: impl AsRef<Path>, shard_root: Option<&Path>) -> Result<Self> {
        let folder = folder.as_ref().to_path_buf();
        let manifest = Manifest::read(&folder)?;
        let parts: Vec<Part> =
            manifest.parts.iter().map(|entry| Part::open(&folder, entry)).collect::<Result<_>>()?;
        let mut starts = vec![0];
        for part in &parts {
            starts.push(starts[starts.len() - 1] + part.num_rows() as u64);
        }
        let shards = read_shards(&folder, &manifest)?;
        let keys = Map::open(folder.join(&manifest.keys.file), Some(manifest.keys.size))?;
        let sized = keys.len() as u64 == 16 + 16 * manifest.num_samples;
        if !keys.starts_with(KEYS_MAGIC) || !sized {
            return Err(Error::data(format!(
                "{}: expected the keys of {} samples; build the index again",
                keys.path().display(),
                manifest.num_samples
            )));
        }
        let shard_root = match shard_root {
            Some(root) => root.to_path_buf(),
            None => folder.join(&manifest.shard_root),
        };
        let (open, label_counts) = (Mutex::new(Vec::new()), OnceLock::new());
        Ok(Self { folder, manifest, parts, starts, shards, shard_root, keys, open, label_counts })
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
        if ordinal >= self.num_samples() {
            return Err(Error::usage(format!(
                "{}: there is no sample {ordinal}; ordinals run from 0 to {}",
                self.folder.display(),
                self.num_samples() - 1
            )));
        }
        let part = self.starts.partition_point(|&start| start <= ordinal) - 1;
        Ok((&self.parts[part], (ordinal - self.starts[part]) as usize))
    }

    /// Key and place of a sample.
    pub fn row(&self, ordinal: u64) -> Result<Row<'_>> {
        let (part, row) = self.locate(ordinal)?;
        part.row(row)
    }

    /// The labels of a sample, ascending.
    pub fn labels(&self, ordinal: u64) -> Result<impl ExactSizeIterator<Item = u32> + '_> {
        let (part, row) = self.locate(ordinal)?;
        part.labels(row)
    }

    /// The ordinal of the first sample with `key`.
    pub fn find(&self, key: &str) -> Result<Option<u64>> {
        let hash = xxh3_64(key.as_bytes());
        let (mut low, mut high) = (0, self.num_samples() as usize);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.key_entry(middle).0 < hash {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        while low < self.num_samples() as usize {
            let (its_hash, ordinal) = self.key_entry(low);
            if its_hash != hash {
                break;
            }
            if self.row(ordinal)?.key == key {
                return Ok(Some(ordinal));
            }
            low += 1;
        }
        Ok(None)
    }

    fn key_entry(&self, at: usize) -> (u64, u64) {
        let number = |start: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&self.keys[start..start + 8]);
            u64::from_le_bytes(bytes)
        };
        (number(16 + 16 * at), number(24 + 16 * at))
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

    /// The encoded image of a sample.
    pub fn read(&self, ordinal: u64) -> Result<Vec<u8>> {
        let row = self.row(ordinal)?;
        if row.shard == NO_SHARD {
            return Err(Error::usage(format!(
                "{}: sample {ordinal} ({:?}) has no image: the index was built of records alone; build \
                 it with the shards that hold the images",
                self.folder.display(),
                row.key
            )));
        }
        let path = self.shard_path(row.shard)?;
        let changed = |what: &str| {
            Error::data(format!(
                "{}: sample {ordinal} ({:?}) at byte {}: {what}; the shard was replaced or cut after \
                 the index {} was built, so build the index again",
                path.display(),
                row.key,
                row.offset,
                self.folder.display()
            ))
        };
        let start = row.offset.checked_sub(BLOCK as u64).ok_or_else(|| changed("no header"))?;
        let file = self.shard_file(row.shard, &path)?;
        let mut bytes = vec![0; BLOCK + row.size as usize];
        file.read_exact_at(&mut bytes, start).map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => changed("the file ends before its end"),
            _ => Error::io(&path, error),
        })?;
        if !shard::header_matches(&bytes[..BLOCK], row.key, row.size) {
            return Err(changed("another member stands there"));
        }
        bytes.drain(..BLOCK);
        Ok(bytes)
    }

    /// The encoded images of some samples; `job` advances by samples.
    pub fn read_all(&self, ordinals: &[u64], job: &Job) -> Result<Vec<Vec<u8>>> {
        let read = |&ordinal: &u64| {
            job.check()?;
            let image = self.read(ordinal);
            job.advance(1);
            image
        };
        ordinals.iter().map(read).collect()
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
        Ok(self.shard_root.join(&shard.path))
    }

    fn shard_file(&self, shard: u32, path: &Path) -> Result<Arc<File>> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = open.iter().position(|&(number, _)| number == shard) {
            return Ok(open[place].1.clone());
        }
        let file = File::open(path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Error::usage(format!(
                "the shard {} is not there; put it back, or say where the shards lie now \
                 (shard_root)",
                path.display()
            )),
            _ => Error::io(path, error),
        })?;
        let file = Arc::new(file);
        if open.len() == MAX_OPEN {
            open.remove(0);
        }
        open.push((shard, file.clone()));
        Ok(file)
    }

    /// Reads every byte of the index and the headers of every shard and holds them against what was
    /// recorded; `job` advances by bytes of the index and by bytes of shards.
    pub fn verify(&self, job: &Job) -> Result<()> {
        for (part, entry) in self.parts.iter().zip(&self.manifest.parts) {
            same_checksum(part.path(), part.bytes(), &entry.checksum)?;
            self.verify_rows(part, job)?;
            job.advance(entry.size);
        }
        let shards = Map::open(self.folder.join(SHARDS), Some(self.manifest.shards.size))?;
        same_checksum(shards.path(), &shards, &self.manifest.shards.checksum)?;
        same_checksum(self.keys.path(), &self.keys, &self.manifest.keys.checksum)?;
        job.advance(self.manifest.shards.size + self.manifest.keys.size);
        if self.manifest.computed_fingerprint() != self.manifest.fingerprint {
            return Err(Error::data(format!(
                "{}: the fingerprint of the manifest is not that of its content; build the index \
                 again",
                self.folder.display()
            )));
        }
        (0..self.shards.len()).into_par_iter().try_for_each(|number| {
            let path = self.shard_path(number as u32)?;
            let shard = &self.shards[number];
            let found = shard::summarize(&path, job)?;
            job.advance(found.size);
            if (found.size, found.header_checksum) != (shard.size, shard.header_checksum) {
                return Err(Error::data(format!(
                    "{}: expected the {} bytes that were indexed, found {} bytes{}; build the index \
                     again",
                    path.display(),
                    shard.size,
                    found.size,
                    if found.size == shard.size { " with other tar headers" } else { "" }
                )));
            }
            Ok(())
        })
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
            let labels = part.labels(row)?;
            let known = labels.into_iter().all(|label| u64::from(label) < self.manifest.num_labels);
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

fn read_shards(folder: &Path, manifest: &Manifest) -> Result<Vec<Shard>> {
    let path = folder.join(&manifest.shards.file);
    let map = Map::open(&path, Some(manifest.shards.size))?;
    let bad =
        |what: &str| Error::data(format!("{}: {what}; build the index again", path.display()));
    same_checksum(&path, &map, &manifest.shards.checksum)?;
    let reader = FileReader::try_new(std::io::Cursor::new(&map[..]), None)?;
    if reader.schema().fields() != shards_schema().fields() {
        return Err(bad("its columns are not those of a table of shards"));
    }
    let mut shards = Vec::new();
    for batch in reader {
        let batch = batch?;
        let paths = batch.column(0).as_string::<i32>();
        let number =
            |column: usize, row| batch.column(column).as_primitive::<UInt64Type>().value(row);
        for row in 0..batch.num_rows() {
            shards.push(Shard {
                path: paths.value(row).to_owned(),
                size: number(1, row),
                header_checksum: number(2, row),
                first_sample: number(3, row),
                num_samples: number(4, row),
            });
        }
    }
    Ok(shards)
}
