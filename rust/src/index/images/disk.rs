//! Reads from shards: those that the page cache answers, and those that are announced to the disk
//! first.
//!
//! Linux returns at once where a range is not in the page cache (`RWF_NOWAIT`), and reads ahead
//! what is announced to it (`POSIX_FADV_WILLNEED`). Where a file system or a system has neither,
//! every read is taken for one that waits at most as long as it must, and is made at once.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, TryLockError};

/// Memory that an index keeps between calls.
pub(in crate::index) const MAX_KEPT: usize = 16 << 20;

/// Reads at `start` into two pieces of memory, one after the other, where that takes no disk;
/// returns whether it did. Whatever else goes wrong is left to [`read`] to find again.
#[cfg(target_os = "linux")]
pub(in crate::index) fn read_cached(file: &File, parts: &mut [&mut [u8]; 2], start: u64) -> bool {
    use rustix::io::{Errno, ReadWriteFlags, preadv2};

    let [first, second] = parts;
    let length = first.len() + second.len();
    let number = if second.is_empty() { 1 } else { 2 };
    let mut into = [io::IoSliceMut::new(first), io::IoSliceMut::new(second)];
    match preadv2(file, &mut into[..number], start, ReadWriteFlags::NOWAIT) {
        Ok(read) => read == length,
        Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => read(file, parts, start).is_ok(),
        Err(_) => false,
    }
}

#[cfg(not(target_os = "linux"))]
pub(in crate::index) fn read_cached(file: &File, parts: &mut [&mut [u8]; 2], start: u64) -> bool {
    read(file, parts, start).is_ok()
}

/// Tells the kernel that nothing is wanted around what is read of a file; only a hint.
pub(in crate::index) fn read_at_random(file: &File) {
    #[cfg(target_os = "linux")]
    let _ = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::Random);
    #[cfg(not(target_os = "linux"))]
    let _ = file;
}

/// Tells the kernel of a read to come; only a hint.
pub(in crate::index) fn announce(file: &File, start: u64, length: usize) {
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{Advice, fadvise};

        let length = std::num::NonZeroU64::new(length as u64);
        let _ = fadvise(file, start, length, Advice::WillNeed);
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (file, start, length);
}

/// The same, and waits for the disk.
pub(in crate::index) fn read(
    file: &File,
    parts: &mut [&mut [u8]; 2],
    start: u64,
) -> io::Result<()> {
    let [first, second] = parts;
    file.read_exact_at(first, start)?;
    if second.is_empty() {
        return Ok(());
    }
    file.read_exact_at(second, start + first.len() as u64)
}

/// Memory kept between calls: one piece of at most [`MAX_KEPT`] bytes.
#[derive(Debug, Default)]
pub(in crate::index) struct Scratch(Mutex<Vec<u8>>);

impl Scratch {
    /// The memory, or none where another thread has it or had it when the process was forked.
    pub(in crate::index) fn take(&self) -> Vec<u8> {
        match self.0.try_lock() {
            Ok(mut kept) => std::mem::take(&mut *kept),
            Err(TryLockError::Poisoned(error)) => std::mem::take(&mut *error.into_inner()),
            Err(TryLockError::WouldBlock) => Vec::new(),
        }
    }

    /// Keeps memory for the next call.
    pub(in crate::index) fn keep(&self, bytes: Vec<u8>) {
        if let Ok(mut kept) = self.0.try_lock()
            && (kept.len()..=MAX_KEPT).contains(&bytes.len())
        {
            *kept = bytes;
        }
    }
}
