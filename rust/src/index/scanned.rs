//! Shards scanned elsewhere: what a scan found as a file, so that many machines read the headers of shards
//! and one builds the index of them.
//!
//! A file holds a line of JSON for each shard, in order. It says nothing of options that are applied later
//! (lists of keys, records), and the builder takes a scan from it as it takes its own, so the index is the
//! same to the byte.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::build::Builder;
use super::format::KeyScope;
use super::scan::{Scan, scan_shard};
use crate::job::Job;
use crate::publish::Unpublished;
use crate::store::Storage;
use crate::{Error, Result};

/// Scans shards into the file `out`, which appears whole; `with_classes` reads their `.cls` members.
pub fn save_scans(
    shards: &[PathBuf],
    out: &Path,
    with_classes: bool,
    scope: KeyScope,
    num_threads: usize,
    storage: &Storage,
    job: &Job,
) -> Result<()> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(num_threads).build();
    let pool = pool.map_err(|error| Error::usage(format!("num_threads {num_threads}: {error}")))?;
    let mut file = Unpublished::create(out)?;
    for some in shards.chunks(2 * pool.current_num_threads()) {
        let scans: Vec<Result<Scan>> = pool.install(|| {
            some.par_iter()
                .map(|path| scan_shard(path, with_classes, scope, storage, job))
                .collect()
        });
        for scan in scans {
            let mut line = serde_json::to_vec(&scan?).map_err(|error| damaged(out, &error))?;
            line.push(b'\n');
            file.write_all(&line).map_err(|error| Error::io(out, error))?;
            job.advance(1);
        }
    }
    file.publish()
}

impl Builder {
    /// Takes shards that [`save_scans`] scanned, whose names follow the order of the files and of their
    /// lines; what a killed build had taken is passed over. `job` advances by shards.
    pub fn add_scanned(&mut self, files: &[PathBuf], names: &[String], job: &Job) -> Result<()> {
        let paths: Vec<_> = names.iter().map(|name| (PathBuf::new(), name.clone())).collect();
        self.check_stems(&paths)?;
        let num_done = self.num_shards_done();
        job.advance(num_done as u64);
        let mut left = names.iter().enumerate();
        for path in files {
            let file = File::open(path).map_err(|error| Error::io(path, error))?;
            for line in BufReader::with_capacity(1 << 20, file).split(b'\n') {
                job.check()?;
                let line = line.map_err(|error| Error::io(path, error))?;
                let Some((number, name)) = left.next() else {
                    return Err(damaged(path, &"there are more shards in it than were named"));
                };
                if number < num_done {
                    continue;
                }
                let scan: Scan =
                    serde_json::from_slice(&line).map_err(|error| damaged(path, &error))?;
                if !scan.is_whole() {
                    return Err(damaged(path, &"its columns do not fit together"));
                }
                self.take(name, &scan)?;
                job.advance(1);
            }
        }
        match left.next() {
            Some((_, name)) => Err(Error::usage(format!("the shard {name} was not scanned"))),
            None => Ok(()),
        }
    }
}

fn damaged(path: &Path, what: &dyn std::fmt::Display) -> Error {
    Error::data(format!(
        "{}: expected the scans of shards: {what}; remove the file and run the command again",
        path.display()
    ))
}
