//! The shards of an index: where they are, those that are open, and how those in stores are
//! reached.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use arrow_array::Array;
use arrow_array::cast::AsArray;
use arrow_array::types::UInt64Type;
use arrow_ipc::reader::FileReader;
use serde::{Deserialize, Serialize};

use super::disk::Scratch;
use super::files::OpenFiles;
use crate::index::format::{Manifest, NO_SHARD, open_checked, shards_schema};
use crate::job::Job;
use crate::store::{Object, Storage, is_remote};
use crate::{Error, Result};

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
    /// The etag that it had when it was indexed, where it is in a store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etag: Option<String>,
}

/// Chunks in the page cache after which the next is taken to be there.
const MIN_WARM: u32 = 4;

/// The shards of an index.
#[derive(Debug)]
pub(in crate::index) struct Shards {
    /// The folder of the index, for messages.
    index: PathBuf,
    rows: Vec<Shard>,
    root: PathBuf,
    /// Whether the shards are elsewhere than when the index was built.
    is_moved: bool,
    /// Which shards are in a store; empty where none is.
    in_store: Vec<bool>,
    storage: Storage,
    open: OpenFiles,
    scratch: Scratch,
    /// Whether more than a few runs of the last chunk had to be waited for.
    is_cold: AtomicBool,
    /// Chunks in a row of which nothing had to be waited for.
    num_warm: AtomicU32,
}

impl Shards {
    /// The shards of the index in `folder`; `root` replaces the folder they were in when it was
    /// built.
    pub(in crate::index) fn open(
        folder: &Path,
        manifest: &Manifest,
        root: Option<&Path>,
        storage: Storage,
    ) -> Result<Self> {
        let mut shards = Self {
            index: folder.to_path_buf(),
            rows: read_shards(folder, manifest)?,
            root: root.map_or_else(|| folder.join(&manifest.shard_root), Path::to_path_buf),
            is_moved: root.is_some(),
            in_store: Vec::new(),
            storage,
            open: OpenFiles::default(),
            scratch: Scratch::default(),
            is_cold: AtomicBool::new(false),
            num_warm: AtomicU32::new(0),
        };
        let is_in_store =
            |shard| shards.path(shard).is_ok_and(|path| path.to_str().is_some_and(is_remote));
        let in_store: Vec<bool> = (0..shards.rows.len() as u32).map(is_in_store).collect();
        if in_store.contains(&true) {
            shards.in_store = in_store;
        }
        Ok(shards)
    }

    /// The folder of the index.
    pub(in crate::index) fn index(&self) -> &Path {
        &self.index
    }

    /// Their rows in the table of shards.
    pub(in crate::index) fn rows(&self) -> &[Shard] {
        &self.rows
    }

    /// How those in stores are reached.
    pub(in crate::index) fn storage(&self) -> &Storage {
        &self.storage
    }

    /// Whether they are elsewhere than when the index was built.
    pub(in crate::index) fn is_moved(&self) -> bool {
        self.is_moved
    }

    /// Memory that is kept between calls.
    pub(in crate::index) fn scratch(&self) -> &Scratch {
        &self.scratch
    }

    /// Whether more than a few runs of the last chunk had to be waited for.
    pub(in crate::index) fn is_cold(&self) -> bool {
        self.is_cold.load(Ordering::Relaxed)
    }

    /// Whether the last chunks were in the page cache.
    pub(in crate::index) fn is_warm(&self) -> bool {
        self.num_warm.load(Ordering::Relaxed) >= MIN_WARM
    }

    /// Notes how many runs of a chunk had to be waited for, and whether these were more than a few.
    pub(in crate::index) fn note_waits(&self, num_waited: usize, is_cold: bool) {
        let num_warm = self.num_warm.load(Ordering::Relaxed);
        let num_warm = if num_waited == 0 { num_warm.saturating_add(1) } else { 0 };
        self.num_warm.store(num_warm, Ordering::Relaxed);
        self.is_cold.store(is_cold, Ordering::Relaxed);
    }

    /// Where a shard is.
    ///
    /// Nowhere, an empty path, for samples of records alone.
    pub(in crate::index) fn path(&self, shard: u32) -> Result<PathBuf> {
        if shard == NO_SHARD {
            return Ok(PathBuf::new());
        }
        let shard = self.rows.get(shard as usize).ok_or_else(|| {
            Error::data(format!(
                "{}: a sample names shard {shard}, and there are {}; build the index again",
                self.index.display(),
                self.rows.len()
            ))
        })?;
        match shard.path.split_once("://") {
            None => Ok(self.root.join(&shard.path)),
            Some(("file", path)) => Ok(PathBuf::from(path)),
            // Shards of a store that were moved are in one folder.
            Some((_, path)) if self.is_moved => {
                Ok(self.root.join(path.rsplit('/').next().unwrap_or(path)))
            }
            Some(_) if is_remote(&shard.path) => Ok(PathBuf::from(&shard.path)),
            Some((scheme, _)) => Err(Error::usage(format!(
                "the shard {} lies in a store of kind {scheme:?}, which is not read; copy the shards \
                 to a local folder or another store and name it (shard_root)",
                shard.path
            ))),
        }
    }

    /// Whether a shard is in a store.
    #[inline]
    pub(in crate::index) fn is_in_store(&self, shard: u32) -> bool {
        self.in_store.get(shard as usize).is_some_and(|&is| is)
    }

    /// Whether any shard is in a store.
    pub(in crate::index) fn has_stored(&self) -> bool {
        !self.in_store.is_empty()
    }

    /// A shard in a store as it was when it was indexed; its etag is known where it was not moved.
    pub(in crate::index) fn stored(&self, shard: u32) -> Result<(Arc<str>, u64, Option<Arc<str>>)> {
        let path = self.path(shard)?;
        let uri: Arc<str> = path.to_string_lossy().into();
        let shard = &self.rows[shard as usize];
        let etag = shard.etag.as_deref().filter(|_| !self.is_moved);
        Ok((uri, shard.size, etag.map(Arc::from)))
    }

    /// The file of a shard, or of the copy that is kept of one in a store; none where there is no room for a
    /// copy.
    pub(in crate::index) fn file(&self, shard: u32, job: &Job) -> Result<Option<Arc<File>>> {
        match self.is_in_store(shard) {
            true => self.copy_of(shard, job),
            false => self.open.get(shard, || self.path(shard)).map(Some),
        }
    }

    fn copy_of(&self, shard: u32, job: &Job) -> Result<Option<Arc<File>>> {
        let (uri, size, etag) = self.stored(shard)?;
        let object = match etag {
            Some(etag) => {
                Object { uri: uri.to_string(), size, etag: etag.to_string(), modified_ms: 0 }
            }
            None => self.storage.seen(&uri, job)?,
        };
        Ok(self.storage.cached(&object, job)?.map(Arc::new))
    }
}

fn read_shards(folder: &Path, manifest: &Manifest) -> Result<Vec<Shard>> {
    let map = open_checked(folder, &manifest.shards)?;
    let path = map.path();
    let bad =
        |what: &str| Error::data(format!("{}: {what}; build the index again", path.display()));
    let reader = FileReader::try_new(std::io::Cursor::new(&map[..]), None)?;

    // Indexes whose shards are all files have no column of etags.
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
