//! Shards scanned elsewhere: what a scan found as a file, so that many machines read the headers of shards.
//!
//! A file has a line of JSON for each shard, in order. It does not depend on options that are
//! applied later (lists of keys, records); [`crate::index::steps`] makes an index of such files.

use std::fs::File;
use std::io::{BufRead, BufReader, Split, Write};
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use crate::index::format::KeyScope;
use crate::index::write::scan::{Scan, scan_shard};
use crate::job::Job;
use crate::publish::Unpublished;
use crate::store::Storage;
use crate::{Error, Result, threads};

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
    let pool = threads::pool(Some(num_threads))?;
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

/// The scans of a file of them, one for each shard in order.
pub(in crate::index) struct Scans<'a> {
    path: &'a Path,
    lines: Split<BufReader<File>>,
    num_left: usize,
    is_over: bool,
}

/// Reads a file that [`save_scans`] wrote of `num_shards` shards.
pub(in crate::index) fn read_scans(path: &Path, num_shards: usize) -> Result<Scans<'_>> {
    let file = File::open(path).map_err(|error| Error::io(path, error))?;
    let lines = BufReader::with_capacity(1 << 20, file).split(b'\n');
    Ok(Scans { path, lines, num_left: num_shards, is_over: false })
}

impl Scans<'_> {
    /// The scans without those of the first `number` shards.
    pub(in crate::index) fn skip_shards(mut self, number: usize) -> Self {
        for _ in 0..number.min(self.num_left) {
            self.num_left -= 1;
            if self.lines.next().is_none() {
                break;
            }
        }
        self
    }

    fn next_scan(&mut self) -> Result<Option<Scan>> {
        let path = self.path;
        let Some(line) = self.lines.next() else {
            if self.num_left == 0 {
                return Ok(None);
            }
            return Err(damaged(path, &format!("{} shards are missing from it", self.num_left)));
        };
        let line = line.map_err(|error| Error::io(path, error))?;
        let Some(left) = self.num_left.checked_sub(1) else {
            return Err(damaged(path, &"there are more shards in it than were named"));
        };
        self.num_left = left;
        let scan: Scan = serde_json::from_slice(&line).map_err(|error| damaged(path, &error))?;
        if !scan.is_whole() {
            return Err(damaged(path, &"its columns do not fit together"));
        }
        Ok(Some(scan))
    }
}

impl Iterator for Scans<'_> {
    type Item = Result<Scan>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_over {
            return None;
        }
        let next = self.next_scan().transpose();
        self.is_over = !matches!(next, Some(Ok(_)));
        next
    }
}

fn damaged(path: &Path, what: &dyn std::fmt::Display) -> Error {
    Error::data(format!(
        "{}: expected the scans of shards: {what}; remove the file and run the command again",
        path.display()
    ))
}
