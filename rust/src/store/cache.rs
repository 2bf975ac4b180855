//! Whole shards kept in a local folder, within a limit, for all processes of a machine.
//!
//! Everything is in a folder of our own, `wsl-shards`, within the one that was named, and only
//! names that we give are ever removed: 32 hexadecimal digits and `.shard`, or the same under way.
//! A name is a hash of the shard's URI, etag and size, so a shard that is replaced in its store is
//! another file.
//!
//! Processes share the folder by locks that end with the process that has them (`flock`), so
//! nothing is left locked by a process that was killed:
//!
//! * who fetches a shard has its `.lock`, one of 256; others wait and then find it;
//! * room is made under `room.lock`: what is there and what is under way (a file is as long from
//!   the start as it will be) is added up, and shards used longest ago go until the new one fits;
//! * a file under way is locked as long as somebody writes it: one that is not is left over, and goes.
//!
//! A shard becomes visible by rename when all of it is written and synced. Whoever has one open keeps it:
//! a file that is removed stays readable where it is open.

use std::fs::{self, File, FileTimes};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{FlockOperation, flock};
use xxhash_rust::xxh3::xxh3_128;

use super::{CacheOptions, Object, Storage};
use crate::job::Job;
use crate::{Error, Result, publish};

/// The folder within the one that was named.
const FOLDER: &str = "wsl-shards";
const SHARD: &str = ".shard";
const UNDER_WAY: &str = ".part";
/// How often a lock that another process has is tried.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// The shard as an open file; `None` where others need all the room at the moment.
pub(super) fn fetch(
    storage: &Storage,
    options: &CacheOptions,
    object: &Object,
    job: &Job,
) -> Result<Option<File>> {
    if object.size > options.limit_bytes {
        return Err(Error::usage(format!(
            "{}: the cache of shards may hold {} bytes, and the shard {} has {}; raise cache_bytes (storage, \
             in wsl.yaml) to several shards, or leave the cache out",
            options.folder.display(),
            options.limit_bytes,
            object.uri,
            object.size
        )));
    }
    let folder = options.folder.join(FOLDER);

    // The etag is part of the name: a shard that was replaced in the store is another file here.
    let text = format!("{}\n{}\n{}", object.uri, object.etag, object.size);
    let name = format!("{:032x}", xxh3_128(text.as_bytes()));
    let path = folder.join(format!("{name}{SHARD}"));
    if let Some(file) = open(&path, object.size) {
        return Ok(Some(file));
    }
    fs::create_dir_all(&folder).map_err(|error| Error::io(&folder, error))?;

    // Another process may be fetching it: it is waited for, and then the shard is there.
    let _fetching = lock(&folder.join(format!("{}.lock", &name[..2])), job)?;
    if let Some(file) = open(&path, object.size) {
        return Ok(Some(file));
    }

    // Under another name until it is whole, as processes that are killed leave what they have.
    let unfinished = Unfinished(folder.join(format!("{name}{UNDER_WAY}")));
    let Some(file) = reserve(&folder, &unfinished.0, object.size, options.limit_bytes, job)? else {
        return Ok(None);
    };
    let said = |error| Error::io(&unfinished.0, error);
    storage.fill(object, &file, &unfinished.0, job)?;
    file.sync_all().map_err(said)?;
    fs::rename(&unfinished.0, &path).map_err(|error| Error::io(&path, error))?;
    publish::sync_folder_of(&path)?;
    Ok(Some(file))
}

/// A file that is removed unless it was renamed.
struct Unfinished(PathBuf);

impl Drop for Unfinished {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// A shard that is there, marked as used now.
fn open(path: &Path, size: u64) -> Option<File> {
    let file = File::options().read(true).write(true).open(path).ok()?;
    if file.metadata().ok()?.len() != size {
        return None;
    }
    let _ = file.set_times(FileTimes::new().set_modified(SystemTime::now()));
    Some(file)
}

/// Holds the lock at `path`, however long others have it.
fn lock(path: &Path, job: &Job) -> Result<File> {
    let file = File::options().create(true).truncate(false).write(true).open(path);
    let file = file.map_err(|error| Error::io(path, error))?;
    loop {
        match try_lock(&file) {
            Ok(()) => return Ok(file),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                job.check()?;
                std::thread::sleep(POLL_INTERVAL);
            }
            Err(error) => return Err(Error::io(path, error)),
        }
    }
}

/// Locks a file until it is closed, by all that have it open; an error where somebody else has it.
fn try_lock(file: &File) -> std::io::Result<()> {
    Ok(flock(file, FlockOperation::NonBlockingLockExclusive)?)
}

/// Makes room for `size` bytes and a file of that length at `path`, locked; `None` where there is none.
fn reserve(folder: &Path, path: &Path, size: u64, limit: u64, job: &Job) -> Result<Option<File>> {
    // One at a time: two that each see room for one shard would exceed the limit together.
    let _room = lock(&folder.join("room.lock"), job)?;
    let mut kept: Vec<(SystemTime, u64, PathBuf)> = Vec::new();
    let mut total = size;
    for entry in fs::read_dir(folder).map_err(|error| Error::io(folder, error))?.flatten() {
        let Some(kind) = kind_of(&entry.file_name().to_string_lossy()) else { continue };
        let Ok(metadata) = entry.metadata() else { continue };
        if kind == UNDER_WAY && is_left_over(&entry.path()) {
            let _ = fs::remove_file(entry.path());
            continue;
        }
        total += metadata.len();
        if kind == SHARD {
            let used = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            kept.push((used, metadata.len(), entry.path()));
        }
    }

    // Those not used for longest go first. Another process that reads one keeps its open file.
    kept.sort();
    for (_, length, path) in kept {
        if total <= limit {
            break;
        }
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io(&path, error));
            }
            _ => total -= length,
        }
    }
    if total > limit {
        return Ok(None);
    }

    // The space is taken while the folder is locked, so that the next one counts it.
    let said = |error| Error::io(path, error);
    let file = File::options().read(true).write(true).create(true).truncate(true).open(path);
    let file = file.map_err(said)?;
    try_lock(&file).map_err(said)?;
    take_space(&file, size).map_err(said)?;
    Ok(Some(file))
}

/// Takes the space now, so that a full disk is found before anything is fetched.
fn take_space(file: &File, size: u64) -> std::io::Result<()> {
    if size == 0 {
        return Ok(());
    }
    let taken = rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, size);
    match taken.map_err(std::io::Error::from) {
        Err(error) if error.kind() == std::io::ErrorKind::StorageFull => Err(error),
        // A file system that cannot is written to as it comes.
        Err(_) => file.set_len(size),
        Ok(()) => Ok(()),
    }
}

/// Whether nobody writes a file under way any more.
fn is_left_over(path: &Path) -> bool {
    File::options().write(true).open(path).is_ok_and(|file| try_lock(&file).is_ok())
}

/// Which of our files a name is of; none where it is not ours.
fn kind_of(name: &str) -> Option<&'static str> {
    let kind = [SHARD, UNDER_WAY].into_iter().find(|kind| name.ends_with(kind))?;
    let digits = &name[..name.len() - kind.len()];
    let is_ours = digits.len() == 32 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_ours.then_some(kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(folder: &Path, name: &str, size: usize, age_s: u64) -> PathBuf {
        let path = folder.join(name);
        fs::write(&path, vec![1; size]).unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        let then = SystemTime::now() - Duration::from_secs(age_s);
        file.set_times(FileTimes::new().set_modified(then)).unwrap();
        path
    }

    #[test]
    fn room_is_made_by_age_and_only_of_our_own_files() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let old = put(folder, &format!("{:032x}.shard", 1), 100, 50);
        let new = put(folder, &format!("{:032x}.shard", 2), 100, 10);
        let foreign = put(folder, "precious.shard", 1000, 90);
        let path = folder.join(format!("{:032x}.part", 3));
        let file = reserve(folder, &path, 150, 250, &Job::new()).unwrap();
        assert!(file.is_some() && !old.exists() && new.exists() && foreign.exists());
        assert_eq!(fs::metadata(&path).unwrap().len(), 150);
        // What is under way counts, and is nobody else's to remove.
        let second = folder.join(format!("{:032x}.part", 4));
        assert!(reserve(folder, &second, 150, 250, &Job::new()).unwrap().is_none());
        assert!(path.exists() && !new.exists());
        drop(file);
        assert!(reserve(folder, &second, 150, 250, &Job::new()).unwrap().is_some());
        assert!(!path.exists(), "what a killed process left goes");
    }

    #[test]
    fn a_limit_under_one_shard_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let options = CacheOptions { folder: folder.path().to_path_buf(), limit_bytes: 10 };
        let object = Object {
            uri: "s3://b/a.tar".to_owned(),
            size: 11,
            etag: "x".to_owned(),
            modified_ms: 0,
        };
        let said = fetch(&Storage::default(), &options, &object, &Job::new()).unwrap_err();
        assert!(said.to_string().contains("raise cache_bytes"), "{said}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
