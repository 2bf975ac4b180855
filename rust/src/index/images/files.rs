//! A bounded number of open shards.

use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, TryLockError};

use hashbrown::HashMap;

use super::disk;
use crate::{Error, Result};

/// Shards kept open at once.
const MAX_OPEN: usize = 256;

/// Files that are open, those used last.
#[derive(Debug, Default)]
pub(in crate::index) struct OpenFiles {
    open: Mutex<Recent>,
}

/// A clock that counts requests, and each file with the time of its last one.
type Recent = (u64, HashMap<u32, (Arc<File>, u64)>);

impl OpenFiles {
    /// The file of a shard that is at `path`, which is asked for where it is not open.
    pub(in crate::index) fn get(
        &self,
        shard: u32,
        path: impl FnOnce() -> Result<PathBuf>,
    ) -> Result<Arc<File>> {
        // A lock that another thread has, or had when the process was forked, is done without.
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

        // Only where the file is not open: making its path costs an allocation.
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
        let file = Arc::new(file);
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
