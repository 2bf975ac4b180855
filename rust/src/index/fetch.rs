//! Reading images: many at once, neighbours together, from a bounded number of open files, or from stores.
//!
//! The samples asked for are sorted by place; those that lie close together come with one read. Files
//! are read with `pread` and never mapped: a shard that is cut short while it is read is an error and
//! not the end of the process. Nothing here keeps a thread, and no lock is waited for, so an index
//! works in a process that was forked at any moment.
//!
//! Shards in stores are asked for by ranges, many at once; there a request costs more than a gap of a
//! mebibyte, so more is read together, and the images are copied out of the answers. Where whole shards
//! are kept in a local folder ([`Storage::cached`](crate::store::Storage::cached)), they are fetched into
//! it and read as files.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::format::NO_SHARD;
use super::read::Index;
use crate::job::Job;
use crate::shard::{self, BLOCK};
use crate::store::{Object, Span};
use crate::{Error, Result};

/// Samples with less between them are read together.
const MAX_GAP: u64 = 4096;
/// Reads of several samples are at most this long.
const MAX_RUN: u64 = 1 << 20;

/// The images of some samples, in the order that they were asked for.
#[derive(Debug)]
pub struct Fetched {
    bytes: Vec<u8>,
    spans: Vec<(usize, usize)>,
}

impl Fetched {
    /// The encoded images; empty for a sample that was taken down.
    pub fn images(&self) -> impl ExactSizeIterator<Item = &[u8]> + '_ {
        self.spans.iter().map(|&(start, end)| &self.bytes[start..end])
    }
}

/// One sample that is wanted: its header and image.
struct Wanted<'a> {
    shard: u32,
    start: u64,
    size: u32,
    place: usize,
    ordinal: u64,
    key: &'a str,
}

impl Wanted<'_> {
    fn end(&self) -> u64 {
        self.start + BLOCK as u64 + u64::from(self.size)
    }
}

/// Samples read together.
struct Run<'a, 'b> {
    wanted: &'a [Wanted<'a>],
    bytes: &'b mut [u8],
}

impl Index {
    /// The encoded images of some samples, read by `num_threads` threads; `job` advances by samples.
    pub fn fetch(&self, ordinals: &[u64], num_threads: usize, job: &Job) -> Result<Fetched> {
        if num_threads == 0 {
            return Err(Error::usage("num_threads must be at least 1"));
        }
        let mut wanted = Vec::with_capacity(ordinals.len());
        for (place, &ordinal) in ordinals.iter().enumerate() {
            if !self.is_dropped(ordinal) {
                wanted.push(self.want(place, ordinal)?);
            }
        }
        wanted.sort_unstable_by_key(|one| (one.shard, one.start));
        let (stored, wanted): (Vec<Wanted<'_>>, Vec<Wanted<'_>>) = if self.storage.has_cache() {
            (Vec::new(), wanted)
        } else {
            wanted.into_iter().partition(|one| self.is_in_store(one.shard))
        };
        let mut spans = vec![(0, 0); ordinals.len()];
        let mut lengths = Vec::new();
        let mut total = 0;
        for some in wanted.chunk_by(together(MAX_GAP, MAX_RUN)) {
            let start = some[0].start;
            let end = some.iter().map(Wanted::end).max().unwrap_or(start);
            for one in some {
                let image = total + (one.start - start) as usize + BLOCK;
                spans[one.place] = (image, image + one.size as usize);
            }
            lengths.push((some.len(), (end - start) as usize));
            total += (end - start) as usize;
        }
        let mut bytes = vec![0; total];
        let (mut rest, mut left) = (&mut bytes[..], &wanted[..]);
        let mut runs = Vec::with_capacity(lengths.len());
        for (number, length) in lengths {
            let (bytes, after) = rest.split_at_mut(length);
            let (some, others) = left.split_at(number);
            runs.push(Run { wanted: some, bytes });
            (rest, left) = (after, others);
        }
        self.read_runs(runs, num_threads, job)?;
        self.read_stored(&stored, &mut bytes, &mut spans, job)?;
        Ok(Fetched { bytes, spans })
    }

    /// Reads images of shards in stores; they follow `bytes`, and `spans` says where.
    fn read_stored(
        &self,
        stored: &[Wanted<'_>],
        bytes: &mut Vec<u8>,
        spans: &mut [(usize, usize)],
        job: &Job,
    ) -> Result<()> {
        let limits = self.storage.limits();
        let mut end = bytes.len();
        for one in stored {
            spans[one.place] = (end, end + one.size as usize);
            end += one.size as usize;
        }
        self.storage.tally().want((end - bytes.len()) as u64);
        bytes.resize(end, 0);
        let groups: Vec<&[Wanted<'_>]> =
            stored.chunk_by(together(limits.gap_bytes, limits.request_bytes)).collect();
        let mut requests: Vec<Span> = Vec::with_capacity(groups.len());
        let mut last = None;
        for group in &groups {
            let first = &group[0];
            if last.as_ref().is_none_or(|(shard, _)| *shard != first.shard) {
                last = Some((first.shard, self.stored(first.shard)?));
            }
            let Some((_, (uri, _, etag))) = &last else { continue };
            let end = group.iter().map(Wanted::end).max().unwrap_or(first.start);
            requests.push(Span { uri: uri.clone(), range: first.start..end, etag: etag.clone() });
        }
        self.storage.read_spans(requests, job, |number, answer| {
            let group = groups[number];
            for one in group {
                let at = (one.start - group[0].start) as usize;
                self.check_header(one, &answer[at..at + BLOCK])?;
                let (start, end) = spans[one.place];
                let image = at + BLOCK;
                bytes[start..end].copy_from_slice(&answer[image..image + one.size as usize]);
            }
            job.advance(group.len() as u64);
            Ok(())
        })
    }

    fn check_header(&self, one: &Wanted<'_>, header: &[u8]) -> Result<()> {
        if shard::header_matches(header, one.key, one.size) {
            Ok(())
        } else {
            Err(self.changed(one, "another member stands there"))
        }
    }

    /// The file of a shard, or of the copy that is kept of one in a store; none where there is no room
    /// for a copy.
    fn file_of(&self, shard: u32, path: &Path, job: &Job) -> Result<Option<Arc<File>>> {
        if !self.is_in_store(shard) {
            return self.open.get(shard, path).map(Some);
        }
        let (uri, size, etag) = self.stored(shard)?;
        let object = match etag {
            Some(etag) => {
                Object { uri: uri.to_string(), size, etag: etag.to_string(), modified_ms: 0 }
            }
            None => self.storage.seen(&uri, job)?,
        };
        Ok(self.storage.cached(&object, job)?.map(Arc::new))
    }

    fn want(&self, place: usize, ordinal: u64) -> Result<Wanted<'_>> {
        let row = self.row(ordinal)?;
        if row.shard == NO_SHARD {
            return Err(Error::usage(format!(
                "{}: sample {ordinal} ({:?}) has no image: the index was built of records alone; build \
                 it with the shards that hold the images",
                self.folder().display(),
                row.key
            )));
        }
        let (shard, size, key) = (row.shard, row.size, row.key);
        let length = self.shards().get(shard as usize).map(|shard| shard.size);
        let end = row.offset.checked_add(u64::from(size));
        match row.offset.checked_sub(BLOCK as u64) {
            Some(start) if end.is_some_and(|end| length.is_some_and(|length| end <= length)) => {
                Ok(Wanted { shard, start, size, place, ordinal, key })
            }
            _ => Err(Error::data(format!(
                "{}: sample {ordinal} points outside its shard; the index is damaged, so build it again",
                self.folder().display()
            ))),
        }
    }

    fn read_runs(&self, runs: Vec<Run<'_, '_>>, num_threads: usize, job: &Job) -> Result<()> {
        if num_threads == 1 || runs.len() < 2 {
            let mut file = None;
            return runs.into_iter().try_for_each(|run| self.read_run(run, &mut file, job));
        }
        let runs = Mutex::new(runs.into_iter());
        let work = || {
            let mut file = None;
            loop {
                let run = runs.lock().unwrap_or_else(PoisonError::into_inner).next();
                match run {
                    Some(run) => self.read_run(run, &mut file, job)?,
                    None => return Ok(()),
                }
            }
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..num_threads).map(|_| scope.spawn(work)).collect();
            let joined = threads.into_iter().map(|thread| {
                thread.join().unwrap_or_else(|_| Err(Error::data("a reading thread failed")))
            });
            joined.fold(Ok(()), Result::and)
        })
    }

    fn read_run(
        &self,
        run: Run<'_, '_>,
        last: &mut Option<(u32, PathBuf, Option<Arc<File>>)>,
        job: &Job,
    ) -> Result<()> {
        job.check()?;
        let first = &run.wanted[0];
        if last.as_ref().is_none_or(|(shard, _, _)| *shard != first.shard) {
            let path = self.shard_path(first.shard)?;
            let file = self.file_of(first.shard, &path, job)?;
            *last = Some((first.shard, path, file));
        }
        match last {
            Some((_, path, Some(file))) => {
                file.read_exact_at(run.bytes, first.start).map_err(|error| match error.kind() {
                    std::io::ErrorKind::UnexpectedEof => {
                        let last = run.wanted.iter().max_by_key(|one| one.end()).unwrap_or(first);
                        self.changed(last, "the file ends before its end")
                    }
                    _ => Error::io(&*path, error),
                })?;
            }
            _ => {
                let (uri, _, etag) = self.stored(first.shard)?;
                let range = first.start..first.start + run.bytes.len() as u64;
                let answer = self.storage.read_span(Span { uri, range, etag }, job)?;
                run.bytes.copy_from_slice(&answer);
            }
        }
        for one in run.wanted {
            let at = (one.start - first.start) as usize;
            self.check_header(one, &run.bytes[at..at + BLOCK])?;
        }
        job.advance(run.wanted.len() as u64);
        Ok(())
    }

    fn changed(&self, one: &Wanted<'_>, what: &str) -> Error {
        let path = match self.shard_path(one.shard) {
            Ok(path) => path,
            Err(error) => return error,
        };
        Error::data(format!(
            "{}: sample {} ({:?}) at byte {}: {what}; the shard was replaced or cut after the index {} \
             was built, so build the index again",
            path.display(),
            one.ordinal,
            one.key,
            one.start + BLOCK as u64,
            self.folder().display()
        ))
    }
}

/// Whether a sample is read together with the one before it: at most `max_gap` bytes lie between them,
/// and all that is read together is at most `max_run` long.
fn together(max_gap: u64, max_run: u64) -> impl FnMut(&Wanted<'_>, &Wanted<'_>) -> bool {
    let mut start = None;
    move |one, other| {
        let from = *start.get_or_insert(one.start);
        let near = one.shard == other.shard && other.start <= one.end().saturating_add(max_gap);
        let joined = near && other.end() - from <= max_run;
        if !joined {
            start = None;
        }
        joined
    }
}
