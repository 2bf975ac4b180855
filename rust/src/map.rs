//! Files mapped into memory; with the crate's `hints` the only place of the engine with `unsafe`.
//!
//! Safety contract. A mapped file must not be made shorter or altered while it is mapped. Everything
//! wsl writes is published by rename and never altered after ([`crate::publish`]), so this is true
//! unless somebody else edits an index in place, which is outside the contract. Lengths are checked
//! when a file is opened, and every offset read from it is checked before it is followed.

#![allow(unsafe_code)]

use std::fs::File;
use std::ops::Deref;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use crate::{Error, Result};

/// A file, mapped for reading; it dereferences to its bytes.
#[derive(Debug)]
pub struct Map {
    path: PathBuf,
    bytes: Option<Mmap>,
}

impl Map {
    /// Maps the file at `path`, which must have `expected_size` bytes where that is given.
    pub fn open(path: impl AsRef<Path>, expected_size: Option<u64>) -> Result<Self> {
        Ok(Self::open_after(path, expected_size, |_, _| ())?.0)
    }

    /// The same, after `look` has seen the file and its size: what it reads from the file is not mapped,
    /// and neither are the pages around it.
    pub fn open_after<T>(
        path: impl AsRef<Path>,
        expected_size: Option<u64>,
        look: impl FnOnce(&File, u64) -> T,
    ) -> Result<(Self, T)> {
        let path = path.as_ref().to_path_buf();
        let file = File::open(&path).map_err(|error| Error::io(&path, error))?;
        let size = file.metadata().map_err(|error| Error::io(&path, error))?.len();
        if let Some(expected) = expected_size
            && expected != size
        {
            return Err(Error::data(format!(
                "{}: expected {expected} bytes, as its manifest says, found {size}; the file was cut \
                 short or replaced, so build the index again",
                path.display()
            )));
        }
        let seen = look(&file, size);
        // An empty file cannot be mapped.
        let bytes = if size == 0 {
            None
        } else {
            // SAFETY: the mapping is read-only and private to this value; that nobody alters the file
            // is the contract of this module.
            Some(unsafe { Mmap::map(&file) }.map_err(|error| Error::io(&path, error))?)
        };
        Ok((Self { path, bytes }, seen))
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Deref for Map {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes.as_deref().unwrap_or_default()
    }
}
