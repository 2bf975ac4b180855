//! A bounded number of open shards.

use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, TryLockError};

use hashbrown::HashMap;

use super::disk;
use super::live::LiveMap;
use crate::{Error, Result};

/// Shards kept open at once.
const MAX_OPEN: usize = 256;

/// Files that are open, those used last.
#[derive(Debug, Default)]
pub(in crate::index) struct OpenFiles {
    open: Mutex<Recent>,
}

/// A clock that counts requests, and each file with the time of its last one.
type Recent = (u64, HashMap<u32, (Arc<Opened>, u64)>);

/// Runs read from a file before it is mapped: as much as a mapping costs.
const MIN_RUNS: usize = 32;

/// A file that is open, and mapped once much was read from it.
#[derive(Debug)]
pub(in crate::index) struct Opened {
    file: File,
    num_runs: AtomicUsize,
    map: Mutex<Option<Arc<LiveMap>>>,
}

impl Opened {
    pub(in crate::index) fn new(file: File) -> Self {
        Self { file, num_runs: AtomicUsize::new(0), map: Mutex::default() }
    }

    pub(in crate::index) fn file(&self) -> &File {
        &self.file
    }

    /// The file as a mapping, for so many runs; none before it pays, and where it cannot be had.
    pub(in crate::index) fn map(&self, num_runs: usize) -> Option<Arc<LiveMap>> {
        let known = self.num_runs.fetch_add(num_runs, Ordering::Relaxed);
        if known + num_runs < MIN_RUNS {
            return None;
        }
        // A lock that somebody holds is done without, as below.
        let mut map = self.map.try_lock().ok()?;
        if map.is_none() {
            *map = LiveMap::of(&self.file).map(Arc::new);
            if map.is_none() {
                self.num_runs.store(0, Ordering::Relaxed);
            }
        }
        map.clone()
    }
}

impl OpenFiles {
    /// The file of a shard that lies at `path`, which is asked for where it is not open.
    pub(in crate::index) fn get(
        &self,
        shard: u32,
        path: impl FnOnce() -> Result<PathBuf>,
    ) -> Result<Arc<Opened>> {
        // A lock that somebody holds, or held when the process was forked, is done without.
        let mut guard = match self.open.try_lock() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(error)) => Some(PoisonError::into_inner(error)),
            Err(TryLockError::WouldBlock) => None,
        };
        if let Some((clock, open)) = guard.as_deref_mut() {
            *clock += 1;
            if let Some((file, used)) = open.get_mut(&shard) {
                *used = *clock;
                return Ok(file.clone());
            }
        }
        let path = path()?;
        let mut file = File::open(&path);
        if let (Err(error), Some((_, open))) = (&file, guard.as_deref_mut())
            && matches!(error.raw_os_error(), Some(23 | 24))
        {
            // Too many open files: those kept are given up first.
            open.clear();
            file = File::open(&path);
        }
        let file = file.map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Error::usage(format!(
                "the shard {} is not there; put it back, or say where the shards lie now \
                 (shard_root)",
                path.display()
            )),
            _ => Error::io(&path, error),
        })?;
        disk::read_at_random(&file);
        let file = Arc::new(Opened::new(file));
        if let Some((clock, open)) = guard.as_deref_mut() {
            if open.len() >= MAX_OPEN {
                let oldest =
                    open.iter().min_by_key(|(_, (_, used))| *used).map(|(&shard, _)| shard);
                oldest.map(|shard| open.remove(&shard));
            }
            open.insert(shard, (file.clone(), *clock));
        }
        Ok(file)
    }
}
