//! Work that does not fit in memory, on disk for as long as it is needed.
//!
//! Records of one size that must be sorted go into the [`Run`]s of a [`SpillFolder`], through a
//! [`Sorter`] or as their owner likes, and are read back by a [`Merge`] of bounded width.
//!
//! A [`SpillFile`] has no name: it is unlinked as soon as it is open, so nobody else can read or
//! alter it, and the system frees its space when the process ends, however it ends. Blocks are
//! appended from any thread and read back by their place.

mod folder;
mod merge;
pub(crate) mod partitions;
mod run;
mod sorter;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

pub use folder::SpillFolder;
pub use merge::{Merge, Source};
pub use run::{OpenRun, Record, Run, RunReader, RunWriter, Segment, SegmentWriter};
pub use sorter::{FAN_IN, Sorted, SortedReader, SortedSource, Sorter, Spill};

use crate::{Error, Result};

/// How much memory a call may use, and where it may put what does not fit.
///
/// ```
/// use wsl_core::spill::Memory;
///
/// assert!(Memory::limited(Some(64 << 20), None).is_ok());
/// assert!(Memory::limited(Some(1000), None).is_err(), "nothing works in a kilobyte");
/// ```
#[derive(Debug, Clone, Default)]
pub struct Memory {
    /// The limit; none where absent, and then nothing is written to disk.
    pub limit: Option<usize>,
    /// The folder for temporary files; the system's where absent.
    pub spill_dir: Option<PathBuf>,
}

impl Memory {
    /// The least limit that is accepted.
    pub const LEAST: usize = 1 << 20;

    /// No limit.
    pub fn unlimited() -> Self {
        Self::default()
    }

    /// At most `limit` bytes; fails where that is below [`LEAST`](Self::LEAST).
    pub fn limited(limit: Option<usize>, spill_dir: Option<PathBuf>) -> Result<Self> {
        match limit {
            Some(limit) if limit < Self::LEAST => Err(Error::usage(format!(
                "memory_bytes {limit}: at least {} (1 MiB) are needed",
                Self::LEAST
            ))),
            _ => Ok(Self { limit, spill_dir }),
        }
    }

    /// The limit, or all there is.
    pub fn bytes(&self) -> usize {
        self.limit.unwrap_or(usize::MAX)
    }

    /// Where temporary files go.
    pub fn folder(&self) -> PathBuf {
        self.spill_dir.clone().unwrap_or_else(std::env::temp_dir)
    }

    /// A new file for what does not fit.
    pub fn spill_file(&self) -> Result<SpillFile> {
        SpillFile::create(self.folder())
    }
}

/// A temporary file without a name.
#[derive(Debug)]
pub struct SpillFile {
    file: File,
    folder: PathBuf,
    end: AtomicU64,
}

impl SpillFile {
    /// Makes an empty one in `folder`.
    pub fn create(folder: impl AsRef<Path>) -> Result<Self> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let folder = folder.as_ref().to_path_buf();
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = folder.join(format!(".wsl-spill-{}-{number}", std::process::id()));
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(|error| Error::io(&path, error))?;
        fs::remove_file(&path).map_err(|error| Error::io(&path, error))?;
        Ok(Self { file, folder, end: AtomicU64::new(0) })
    }

    /// Adds a block and returns its place.
    pub fn append(&self, bytes: &[u8]) -> Result<u64> {
        let place = self.end.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        self.file.write_all_at(bytes, place).map_err(|error| self.fault("write", error))?;
        Ok(place)
    }

    /// Reads what lies at `place`.
    pub fn read(&self, place: u64, buffer: &mut [u8]) -> Result<()> {
        self.file.read_exact_at(buffer, place).map_err(|error| self.fault("read", error))
    }

    /// Bytes in it.
    pub fn size(&self) -> u64 {
        self.end.load(Ordering::Relaxed)
    }

    fn fault(&self, attempt: &str, error: std::io::Error) -> Error {
        let text = format!(
            "a temporary file could not be {}: {error}; free space there, name another folder with \
             --spill-dir or TMPDIR, or allow more memory",
            if attempt == "write" { "written" } else { "read" }
        );
        Error::io(&self.folder, std::io::Error::new(error.kind(), text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spill_file_has_no_name_and_gives_back_its_blocks() {
        let folder = tempfile::tempdir().unwrap();
        let file = SpillFile::create(folder.path()).unwrap();
        let places = [file.append(b"first").unwrap(), file.append(b"second").unwrap()];
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        let mut buffer = [0; 6];
        file.read(places[1], &mut buffer).unwrap();
        assert_eq!((&buffer, file.size()), (b"second", 11));
        let error = file.read(9, &mut buffer).unwrap_err().to_string();
        assert!(error.contains("temporary file") && error.contains("--spill-dir"), "{error}");
    }

    #[test]
    fn a_limit_too_small_is_refused() {
        assert!(Memory::limited(Some(1), None).is_err());
        assert_eq!(Memory::limited(None, None).unwrap().bytes(), usize::MAX);
    }
}
