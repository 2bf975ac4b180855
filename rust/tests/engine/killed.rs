//! A build that is killed at one of its writes, and is run again.
//!
//! The test's program runs itself as the process that is killed. It puts functions of its own before those of the C
//! library that change files (`write`, `rename` and the like): they count, and at the chosen one the process
//! ends by SIGKILL, as if the machine had taken it. The engine itself knows nothing of this.

#![cfg(all(target_os = "linux", target_env = "gnu"))]
#![allow(unsafe_code)]

use std::ffi::{c_char, c_int, c_void};
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

use wsl_core::index::Index;
use wsl_core::job::Job;
use wsl_core::spill::Memory;

use crate::index::{Laid, content, files, samples};

/// The write that ends the process, from 1; none is counted before it is set.
static KILL_AT: AtomicU64 = AtomicU64::new(0);
static NUM_WRITES: AtomicU64 = AtomicU64::new(0);

/// Comes before a change of a file.
fn count() {
    let kill_at = KILL_AT.load(Ordering::Relaxed);
    if kill_at > 0 && NUM_WRITES.fetch_add(1, Ordering::Relaxed) + 1 == kill_at {
        // SAFETY: a signal to this process, which ends it.
        unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
    }
}

/// A system call, and its result as the C library gives it.
macro_rules! call {
    ($number:expr, $($argument:expr),*) => {{
        count();
        // SAFETY: the arguments are those that the caller gave for this very call.
        unsafe { libc::syscall($number, $($argument),*) }
    }};
}

// SAFETY of the names: each does what the C library's function of its name does, by the same system call.
#[unsafe(no_mangle)]
extern "C" fn write(file: c_int, bytes: *const c_void, length: usize) -> isize {
    call!(libc::SYS_write, file, bytes, length) as isize
}

#[unsafe(no_mangle)]
extern "C" fn fsync(file: c_int) -> c_int {
    call!(libc::SYS_fsync, file) as c_int
}

#[unsafe(no_mangle)]
extern "C" fn fdatasync(file: c_int) -> c_int {
    call!(libc::SYS_fdatasync, file) as c_int
}

#[unsafe(no_mangle)]
extern "C" fn rename(from: *const c_char, to: *const c_char) -> c_int {
    call!(libc::SYS_renameat2, libc::AT_FDCWD, from, libc::AT_FDCWD, to, 0) as c_int
}

#[unsafe(no_mangle)]
extern "C" fn unlink(path: *const c_char) -> c_int {
    call!(libc::SYS_unlinkat, libc::AT_FDCWD, path, 0) as c_int
}

const FOLDER: &str = "WSL_TEST_KILLED_FOLDER";
const SHARDS: [usize; 3] = [7, 9, 6];

/// What is built, in a folder where it is laid out already.
struct Case {
    /// Shards of the index that is there before.
    num_before: usize,
    append: bool,
    /// Whether the records go to disk.
    is_spilled: bool,
}

const CASES: [Case; 3] = [
    Case { num_before: 0, append: false, is_spilled: false },
    Case { num_before: 2, append: false, is_spilled: true },
    Case { num_before: 1, append: true, is_spilled: false },
];

impl Case {
    fn lay(&self, folder: &Path) -> Laid {
        let mut laid = Laid::new(folder, samples(&SHARDS));
        if self.is_spilled {
            laid.memory = Memory::limited(Some(Memory::LEAST), None).unwrap();
        }
        laid
    }
}

/// The process that is killed; nothing where this is run as any other test.
#[test]
fn the_build_that_is_killed() {
    let Ok(folder) = std::env::var(FOLDER) else { return };
    let number = |name: &str| std::env::var(name).unwrap().parse::<u64>().unwrap();
    let case = &CASES[number("WSL_TEST_KILLED_CASE") as usize];
    let laid = case.lay(Path::new(&folder));
    KILL_AT.store(number("WSL_TEST_KILLED_AT"), Ordering::Relaxed);
    laid.build(SHARDS.len(), case.append).unwrap();
    KILL_AT.store(0, Ordering::Relaxed);
    let num_writes = NUM_WRITES.load(Ordering::Relaxed);
    fs::write(Path::new(&folder).join("num-writes"), num_writes.to_string()).unwrap();
}

/// Builds in a process of its own; whether it was killed.
fn build_and_kill(case: usize, folder: &Path, kill_at: u64) -> bool {
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "killed::the_build_that_is_killed", "--test-threads=1"])
        .env(FOLDER, folder)
        .env("WSL_TEST_KILLED_CASE", case.to_string())
        .env("WSL_TEST_KILLED_AT", kill_at.to_string())
        .stdout(std::process::Stdio::null())
        .status()
        .unwrap();
    assert!(status.success() || status.signal() == Some(libc::SIGKILL), "{status}");
    !status.success()
}

/// Kills a build at some of its writes: the old index stays whole, and what comes of going on is what comes
/// of a build that nobody killed, to the byte.
fn kill_everywhere(number: usize, every: usize) {
    let case = &CASES[number];
    let folder = tempfile::tempdir().unwrap();
    let laid = case.lay(folder.path());
    let put_back = || {
        let _ = fs::remove_dir_all(laid.index());
        if case.num_before > 0 {
            laid.build(case.num_before, false).unwrap();
        }
    };
    put_back();
    assert!(!build_and_kill(number, folder.path(), u64::MAX), "nothing kills it");
    let expected = files(&laid.index());
    let num_writes: u64 =
        fs::read_to_string(folder.path().join("num-writes")).unwrap().parse().unwrap();
    assert!(num_writes > 40, "only {num_writes} writes were seen");
    let (before, after) = (laid.shards[..case.num_before].concat(), laid.shards.concat());
    let mut has_waiting_rows = false;
    for kill_at in (1..=num_writes).step_by(every) {
        put_back();
        assert!(build_and_kill(number, folder.path(), kill_at), "write {kill_at}");
        has_waiting_rows |= files(&laid.index()).keys().any(|name| name.starts_with("scan-"));
        let is_done = match Index::open(laid.index(), None) {
            Ok(index) => {
                index.verify(&Job::new()).unwrap();
                let found = content(&index).unwrap();
                assert!(found == before || found == after, "another index, killed at {kill_at}");
                found == after
            }
            Err(error) => {
                assert_eq!(case.num_before, 0, "killed at {kill_at}: {error}");
                false
            }
        };
        laid.build(SHARDS.len(), case.append && !is_done).unwrap();
        let found = files(&laid.index());
        if is_done {
            // Built anew over what is there, so that parts have other numbers.
            let index = Index::open(laid.index(), None).unwrap();
            index.verify(&Job::new()).unwrap();
            assert!(content(&index).unwrap() == after, "killed at {kill_at}");
            assert_eq!(found.len(), expected.len(), "killed at {kill_at}: files are left over");
        } else {
            assert!(found == expected, "killed at {kill_at}: other files");
        }
    }
    assert_eq!(has_waiting_rows, case.is_spilled, "rows wait for records that are on disk");
}

#[test]
fn a_first_build_goes_on_after_every_kill() {
    kill_everywhere(0, 1);
}

#[test]
fn a_build_over_an_older_index_with_records_on_disk_goes_on() {
    kill_everywhere(1, 7);
}

#[test]
fn an_appending_build_goes_on() {
    kill_everywhere(2, 2);
}
