//! Making files visible whole or not at all.
//!
//! A file is written beside its final place under a temporary name, synced, renamed over the final
//! name, and the folder is synced. A reader that has the old file mapped keeps its pages: a
//! published file is replaced, never altered. A crash leaves at most a `.tmp-*` file behind.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// What the names of unfinished files begin with.
pub const TEMPORARY_PREFIX: &str = ".tmp-";

/// A file being written that nobody can see under its final name yet.
///
/// Dropped without [`publish`](Self::publish), it is removed.
#[derive(Debug)]
pub struct Unpublished {
    temporary: PathBuf,
    target: PathBuf,
    writer: Option<BufWriter<File>>,
}

impl Unpublished {
    /// Starts a file that will become `target`; its folder must exist.
    pub fn create(target: impl AsRef<Path>) -> Result<Self> {
        let target = target.as_ref().to_path_buf();
        let name = target.file_name().and_then(|name| name.to_str()).ok_or_else(|| {
            Error::usage(format!("{}: a file cannot be written under this name", target.display()))
        })?;
        let temporary =
            target.with_file_name(format!("{TEMPORARY_PREFIX}{}-{name}", std::process::id()));
        let file = File::create(&temporary).map_err(|error| Error::io(&temporary, error))?;
        Ok(Self { temporary, target, writer: Some(BufWriter::with_capacity(1 << 18, file)) })
    }

    /// The name that it will have.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// The file, for writing at places of one's own.
    pub fn file(&self) -> Option<&File> {
        self.writer.as_ref().map(BufWriter::get_ref)
    }

    /// Syncs the file, so that publishing it writes nothing any more.
    pub fn sync(&mut self) -> Result<()> {
        let Some(writer) = &mut self.writer else { return Ok(()) };
        writer
            .flush()
            .and_then(|()| writer.get_ref().sync_all())
            .map_err(|error| Error::io(&self.temporary, error))
    }

    /// Syncs the file, gives it its final name and syncs the folder.
    pub fn publish(mut self) -> Result<()> {
        let result = self.finish();
        if result.is_err() {
            let _ = fs::remove_file(&self.temporary);
        }
        result
    }

    fn finish(&mut self) -> Result<()> {
        let Some(writer) = self.writer.take() else { return Ok(()) };
        let file =
            writer.into_inner().map_err(|error| Error::io(&self.temporary, error.into_error()))?;
        file.sync_all().map_err(|error| Error::io(&self.temporary, error))?;
        fs::rename(&self.temporary, &self.target)
            .map_err(|error| Error::io(&self.target, error))?;
        sync_folder_of(&self.target)
    }
}

impl Write for Unpublished {
    fn write(&mut self, buffer: &[u8]) -> std::io::Result<usize> {
        match &mut self.writer {
            Some(writer) => writer.write(buffer),
            None => Err(std::io::Error::other("the file is already published")),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.writer.as_mut().map_or(Ok(()), Write::flush)
    }
}

impl Drop for Unpublished {
    fn drop(&mut self) {
        if self.writer.take().is_some() {
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// Writes `bytes` to `target`, whole or not at all.
///
/// ```
/// let folder = tempfile::tempdir().unwrap();
/// let target = folder.path().join("a.txt");
/// wsl_core::publish::write_file(&target, b"whole")?;
/// assert_eq!(std::fs::read(&target).unwrap(), b"whole");
/// # Ok::<(), wsl_core::Error>(())
/// ```
pub fn write_file(target: impl AsRef<Path>, bytes: &[u8]) -> Result<()> {
    let target = target.as_ref();
    let mut file = Unpublished::create(target)?;
    file.write_all(bytes).map_err(|error| Error::io(target, error))?;
    file.publish()
}

/// Makes the names in the folder of `path` survive a loss of power.
pub fn sync_folder_of(path: &Path) -> Result<()> {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(|error| Error::io(folder, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_invisible_until_it_is_published() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("a.bin");
        let mut file = Unpublished::create(&target).unwrap();
        file.write_all(b"whole").unwrap();
        assert!(!target.exists());
        file.publish().unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"whole");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn an_abandoned_file_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let mut file = Unpublished::create(folder.path().join("a.bin")).unwrap();
        file.write_all(b"half").unwrap();
        drop(file);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
