//! A private folder for the runs of one job, gone with the job however it ends.
//!
//! The folder lies in the spill folder, only its owner may enter it, and a file in it is locked as
//! long as the process lives. The system drops the lock when the process ends, also by a kill; the
//! next job that spills to the same place removes what such a one left.

use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use rustix::fs::{FlockOperation, flock};
use xxhash_rust::xxh3::xxh3_128;

use crate::{Error, Result};

const PREFIX: &str = ".wsl-runs-";
const OWNER: &str = "owner";
/// A folder without an owner is one that is being made, unless it is older than this.
const BEING_MADE: Duration = Duration::from_secs(3600);

/// The folder of one job.
#[derive(Debug)]
pub struct SpillFolder {
    path: PathBuf,
    job: u128,
    next: AtomicU64,
    /// Locked until it is dropped.
    _owner: File,
}

impl SpillFolder {
    /// Makes one in `parent`, after removing those of jobs that were killed.
    pub fn create(parent: &Path) -> Result<Arc<Self>> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        remove_abandoned(parent);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let now = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |time| time.as_nanos());
        let name = format!("{PREFIX}{}-{number}-{:x}", std::process::id(), now as u64);
        let path = parent.join(name);
        let fault = |error| refused(parent, "make a folder", error);
        DirBuilder::new().mode(0o700).create(&path).map_err(fault)?;
        // Locked before it has its name, so that nobody takes the folder for abandoned.
        let begun = path.join("owner.new");
        let owner = File::create(&begun).map_err(fault)?;
        flock(&owner, FlockOperation::NonBlockingLockExclusive)
            .map_err(|error| fault(error.into()))?;
        fs::rename(&begun, path.join(OWNER)).map_err(fault)?;
        let job = xxh3_128(path.to_string_lossy().as_bytes()) ^ now;
        Ok(Arc::new(Self { path, job, next: AtomicU64::new(0), _owner: owner }))
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What tells the files of this job from those of others.
    pub(super) fn job(&self) -> u128 {
        self.job
    }

    /// The number of the next run.
    pub(super) fn next_number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }
}

impl Drop for SpillFolder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Removes the folders of jobs that are no more; what cannot be removed stays.
fn remove_abandoned(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        if entry.file_name().to_string_lossy().starts_with(PREFIX) && is_abandoned(&entry.path()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

fn is_abandoned(folder: &Path) -> bool {
    match File::open(folder.join(OWNER)) {
        Ok(owner) => flock(&owner, FlockOperation::NonBlockingLockExclusive).is_ok(),
        Err(_) => {
            let modified = fs::metadata(folder).and_then(|found| found.modified());
            modified.is_ok_and(|time| time.elapsed().is_ok_and(|age| age > BEING_MADE))
        }
    }
}

/// The error of a spill folder that the system would not let us use.
pub(super) fn refused(path: &Path, attempt: &str, error: std::io::Error) -> Error {
    let text = format!(
        "could not {attempt} for what does not fit in memory: {error}; free space there, name \
         another folder with --spill-dir or TMPDIR, or allow more memory"
    );
    Error::io(path, std::io::Error::new(error.kind(), text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_goes_with_its_job_and_takes_those_of_killed_ones_along() {
        let parent = tempfile::tempdir().unwrap();
        let killed = parent.path().join(".wsl-runs-1-0-0");
        fs::create_dir(&killed).unwrap();
        fs::write(killed.join(OWNER), b"").unwrap();
        fs::write(killed.join("run-00000"), b"left behind").unwrap();
        let being_made = parent.path().join(".wsl-runs-2-0-0");
        fs::create_dir(&being_made).unwrap();
        fs::create_dir(parent.path().join("a folder of somebody else")).unwrap();
        let first = SpillFolder::create(parent.path()).unwrap();
        let second = SpillFolder::create(parent.path()).unwrap();
        assert!(!killed.exists() && being_made.exists());
        assert!(first.path().exists() && first.job() != second.job());
        drop((first, second));
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_place_that_cannot_be_written_to_is_named_with_the_remedy() {
        let parent = tempfile::tempdir().unwrap();
        let error = SpillFolder::create(&parent.path().join("none")).unwrap_err().to_string();
        assert!(error.contains("none: ") && error.contains("--spill-dir"), "{error}");
    }
}
