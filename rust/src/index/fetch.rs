//! Reading images: many at once, neighbours together, from a bounded number of open files, or from stores.
//!
//! The samples asked for are sorted by place; those that lie close together come with one read. They
//! come in chunks of a few mebibytes, each read into the same memory, for the caller to copy from.
//!
//! What the page cache holds is copied at once. Of the rest the kernel is first told everything that a
//! chunk lacks, so that the disk works on all of it, and only then is it waited for; once something had
//! to be waited for, the chunk after is announced as well.
//!
//! Shards in stores are asked for by ranges, many at once; there a request costs more than a gap of a
//! mebibyte, so more is read together. Where whole shards are kept in a local folder
//! ([`Storage::cached`](crate::store::Storage::cached)), they are fetched into it and read as files.
//!
//! Files are read with `pread`, or copied out of mappings where all that was read before was in the page
//! cache ([`warm`](super::warm)); a shard that is cut short meanwhile is an error either way and not the end
//! of the process. Nothing here keeps a thread, and no lock is waited for, so an index works in a process
//! that was forked at any moment.

use std::fs::File;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use super::disk;
use super::files::Opened;
use super::format::NO_SHARD;
use super::read::Index;
use super::warm;
use crate::job::Job;
use crate::shard::{self, BLOCK};
use crate::store::{Object, Span};
use crate::{Error, Result};

/// Samples with less between them are read together.
const MAX_GAP: u64 = 4096;
/// Reads of several samples are at most this long.
const MAX_RUN: u64 = 1 << 20;
/// Threads that add to the bytes of a chunk.
const MAX_CHUNKS: usize = 4;
/// Bytes of a chunk for each thread, unless one sample is longer: all of them are kept.
const CHUNK: usize = disk::MAX_KEPT / MAX_CHUNKS;
/// Bytes of a chunk that one thread copies out of mapped shards: they stay in its caches.
const COPIED_CHUNK: usize = 128 << 10;
/// Bytes of a chunk from stores, unless one request is longer.
const STORED_CHUNK: usize = 64 << 20;
/// Where one run in so many has to be waited for, the next chunk is announced.
const RARE: usize = 16;
/// Samples whose rows are fetched from memory ahead.
const LOOKED_UP: usize = 32;

/// One sample that is wanted: its header and image.
#[derive(Debug)]
pub(super) struct Wanted<'a> {
    pub(super) shard: u32,
    size: u32,
    pub(super) start: u64,
    place: usize,
    ordinal: u64,
    key: &'a str,
}

impl Wanted<'_> {
    fn end(&self) -> u64 {
        self.start + BLOCK as u64 + u64::from(self.size)
    }
}

/// Samples that are read together, by number among those wanted.
#[derive(Debug)]
struct Run {
    wanted: Range<usize>,
    length: usize,
}

/// A run and the memory it is read into.
pub(super) struct Reading<'a, 'b> {
    pub(super) wanted: &'a [Wanted<'a>],
    pub(super) bytes: &'b mut [u8],
}

impl Reading<'_, '_> {
    /// Whether the header of a sample of the run, which was read, is the one of the index.
    pub(super) fn holds(&self, one: &Wanted<'_>) -> bool {
        let at = (one.start - self.wanted[0].start) as usize;
        shard::header_matches(&self.bytes[at..at + BLOCK], one.key, one.size)
    }
}

/// Something for a thread to do.
enum Task<'a, 'b> {
    /// Copies out of mapped shards what can be had so; the rest is tried.
    Copy(Vec<Reading<'a, 'b>>),
    /// Reads what is there already; asks for the rest.
    Try(Reading<'a, 'b>),
    /// Asks for a run that is to be read later.
    Announce(&'a [Wanted<'a>], usize),
    /// Reads, however long it takes.
    Wait(Reading<'a, 'b>),
}

/// Images being read, chunk by chunk.
#[derive(Debug)]
pub struct Fetch<'a> {
    index: &'a Index,
    wanted: Vec<Wanted<'a>>,
    runs: Vec<Run>,
    /// The first run from a store; those from files come before.
    first_stored: usize,
    /// Whether runs may be copied out of mapped shards.
    may_copy: bool,
    num_threads: usize,
    /// Runs that are done.
    done: usize,
    /// Whether more than a few runs of a chunk had to be waited for.
    is_cold: bool,
    bytes: Vec<u8>,
}

/// Images of a chunk.
#[derive(Debug)]
pub struct Chunk<'b> {
    wanted: &'b [Wanted<'b>],
    runs: &'b [Run],
    bytes: &'b [u8],
}

impl Chunk<'_> {
    /// The encoded images, each with its place among the ordinals asked for.
    pub fn images(&self) -> impl Iterator<Item = (usize, &[u8])> + '_ {
        let mut begin = 0;
        self.runs.iter().flat_map(move |run| {
            let (wanted, from) = (&self.wanted[run.wanted.clone()], begin);
            begin += run.length;
            wanted.iter().map(move |one| {
                let start = from + (one.start - wanted[0].start) as usize + BLOCK;
                (one.place, &self.bytes[start..start + one.size as usize])
            })
        })
    }
}

impl Index {
    /// Reads the encoded images of some samples by `num_threads` threads; see [`Fetch::next_chunk`].
    /// Those that were taken down are passed over.
    pub fn fetch(&self, ordinals: &[u64], num_threads: usize) -> Result<Fetch<'_>> {
        if num_threads == 0 {
            return Err(Error::usage("num_threads must be at least 1"));
        }
        let mut wanted = Vec::with_capacity(ordinals.len());
        for (number, some) in ordinals.chunks(LOOKED_UP).enumerate() {
            self.prefetch_rows(some);
            for (place, &ordinal) in (number * LOOKED_UP..).zip(some) {
                if !self.is_dropped(ordinal) {
                    wanted.push(self.want(place, ordinal)?);
                }
            }
        }
        let by_ranges = |one: &Wanted<'_>| self.is_in_store(one.shard) && !self.storage.has_cache();
        wanted.sort_unstable_by_key(|one| (by_ranges(one), one.shard, one.start));
        let (local, stored) = wanted.split_at(wanted.partition_point(|one| !by_ranges(one)));
        let mut runs = Vec::with_capacity(wanted.len());
        add_runs(&mut runs, local, 0, together(MAX_GAP, MAX_RUN));
        let first_stored = runs.len();
        let limits = self.storage.limits();
        let near = together(limits.gap_bytes, limits.request_bytes);
        add_runs(&mut runs, stored, local.len(), near);
        self.storage.tally().want(stored.iter().map(|one| u64::from(one.size)).sum());
        Ok(Fetch {
            index: self,
            wanted,
            runs,
            first_stored,
            may_copy: !self.has_stored_shards() && first_stored >= warm::MIN_RUNS,
            num_threads,
            done: 0,
            is_cold: false,
            bytes: self.scratch.take(),
        })
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
}

impl Fetch<'_> {
    /// Samples that were read so far.
    pub fn num_read(&self) -> usize {
        self.runs[..self.done].last().map_or(0, |run| run.wanted.end)
    }

    /// Reads the next chunk; `None` where nothing is left.
    pub fn next_chunk(&mut self, job: &Job) -> Result<Option<Chunk<'_>>> {
        let first = self.done;
        let copies = self.may_copy && self.index.warmth.is_warm();
        let (next, length) = self.chunk_from(first, copies);
        if next == first {
            return Ok(None);
        }
        if self.bytes.len() < length {
            self.bytes.resize(length, 0);
        }
        let mut bytes = std::mem::take(&mut self.bytes);
        let done = if first < self.first_stored {
            self.read(first..next, &mut bytes[..length], copies, job)
        } else {
            self.read_stored(first..next, &mut bytes[..length], job).map(|()| false)
        };
        self.bytes = bytes;
        self.is_cold |= done?;
        self.done = next;
        let runs = &self.runs[first..next];
        Ok(Some(Chunk { wanted: &self.wanted, runs, bytes: &self.bytes[..length] }))
    }

    /// The run after those that make a chunk with `first`, and their bytes.
    fn chunk_from(&self, first: usize, copies: bool) -> (usize, usize) {
        let (end, limit) = match (first < self.first_stored, self.num_threads) {
            (true, 1) if copies => (self.first_stored, COPIED_CHUNK),
            (true, num_threads) => (self.first_stored, CHUNK * num_threads.min(MAX_CHUNKS)),
            (false, _) => (self.runs.len(), STORED_CHUNK),
        };
        let (mut next, mut length) = (first, 0);
        while let Some(run) = self.runs[..end].get(next)
            && (next == first || length + run.length <= limit)
        {
            length += run.length;
            next += 1;
        }
        (next, length)
    }

    /// Reads some runs one after another into `bytes`; says whether more than a few had to be waited for.
    fn read(
        &self,
        runs: Range<usize>,
        mut bytes: &mut [u8],
        copies: bool,
        job: &Job,
    ) -> Result<bool> {
        let mut readings = Vec::with_capacity(runs.len());
        for run in &self.runs[runs.clone()] {
            let (own, rest) = bytes.split_at_mut(run.length);
            readings.push(Reading { wanted: &self.wanted[run.wanted.clone()], bytes: own });
            bytes = rest;
        }
        let mut tasks: Vec<Task<'_, '_>> = if copies {
            pieces(readings, self.num_threads).map(Task::Copy).collect()
        } else {
            readings.into_iter().map(Task::Try).collect()
        };
        if self.is_cold {
            let (after, _) = self.chunk_from(runs.end, false);
            let later = &self.runs[runs.end..after];
            tasks.extend(
                later
                    .iter()
                    .map(|run| Task::Announce(&self.wanted[run.wanted.clone()], run.length)),
            );
        }
        let late = self.on_threads(tasks, job)?;
        if !copies {
            self.index.warmth.note(late.is_empty());
        }
        let waited = late.len() * RARE > runs.len();
        self.on_threads(late.into_iter().map(Task::Wait).collect(), job)?;
        Ok(waited)
    }

    /// Reads some runs out of stores, many at once, one after another into `bytes`.
    fn read_stored(&self, runs: Range<usize>, mut bytes: &mut [u8], job: &Job) -> Result<()> {
        let mut requests: Vec<Span> = Vec::with_capacity(runs.len());
        let mut readings = Vec::with_capacity(runs.len());
        for run in &self.runs[runs] {
            let (own, rest) = bytes.split_at_mut(run.length);
            bytes = rest;
            let reading = Reading { wanted: &self.wanted[run.wanted.clone()], bytes: own };
            requests.push(self.index.span_of(&reading)?);
            readings.push(reading);
        }
        self.index.storage.read_spans(requests, job, |number, answer| {
            let reading = &mut readings[number];
            reading.bytes.copy_from_slice(answer);
            self.index.check_headers(reading)
        })
    }

    /// Does some tasks on all threads; returns what is yet to be waited for.
    fn on_threads<'a, 'b>(
        &self,
        tasks: Vec<Task<'a, 'b>>,
        job: &Job,
    ) -> Result<Vec<Reading<'a, 'b>>> {
        let num_threads = self.num_threads.min(tasks.len());
        if num_threads <= 1 {
            let (mut late, mut last) = (Vec::new(), None);
            for task in tasks {
                self.index.work(task, &mut last, &mut late, job)?;
            }
            return Ok(late);
        }
        let tasks = Mutex::new(tasks.into_iter());
        let work = || -> Result<Vec<Reading<'a, 'b>>> {
            let (mut late, mut last) = (Vec::new(), None);
            loop {
                let task = tasks.lock().unwrap_or_else(PoisonError::into_inner).next();
                match task {
                    Some(task) => self.index.work(task, &mut last, &mut late, job)?,
                    None => return Ok(late),
                }
            }
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..num_threads).map(|_| scope.spawn(work)).collect();
            let mut all = Ok(Vec::new());
            for thread in threads {
                let found =
                    thread.join().unwrap_or_else(|_| Err(Error::data("a reading thread failed")));
                match (&mut all, found) {
                    (Ok(all), Ok(late)) => all.extend(late),
                    (Ok(_), Err(error)) => all = Err(error),
                    (Err(_), _) => (),
                }
            }
            all
        })
    }
}

impl Drop for Fetch<'_> {
    fn drop(&mut self) {
        self.index.scratch.keep(std::mem::take(&mut self.bytes));
    }
}

/// The shard that a thread read last, and its file: none of a shard in a store of which no copy is kept.
type Last = Option<(u32, Option<Arc<Opened>>)>;

impl Index {
    /// Does a task; adds runs that the page cache lacks to `late`.
    fn work<'a, 'b>(
        &self,
        task: Task<'a, 'b>,
        last: &mut Last,
        late: &mut Vec<Reading<'a, 'b>>,
        job: &Job,
    ) -> Result<()> {
        job.check()?;
        match task {
            Task::Copy(readings) => {
                for reading in self.copy(readings)? {
                    self.try_one(reading, last, late, job)?;
                }
            }
            Task::Announce(wanted, length) => {
                if let Some(file) = self.file_of(&wanted[0], last, job)? {
                    disk::announce(file, wanted[0].start, length);
                }
            }
            Task::Try(reading) => self.try_one(reading, last, late, job)?,
            Task::Wait(reading) => {
                match self.file_of(&reading.wanted[0], last, job)? {
                    Some(file) => self.wait(file, reading.wanted, reading.bytes)?,
                    None => {
                        let answer = self.storage.read_span(self.span_of(&reading)?, job)?;
                        reading.bytes.copy_from_slice(&answer);
                    }
                }
                self.check_headers(&reading)?;
            }
        }
        Ok(())
    }

    /// Reads a run that is in the page cache; asks the disk for any other, which comes to `late`.
    fn try_one<'a, 'b>(
        &self,
        reading: Reading<'a, 'b>,
        last: &mut Last,
        late: &mut Vec<Reading<'a, 'b>>,
        job: &Job,
    ) -> Result<()> {
        let first = &reading.wanted[0];
        match self.file_of(first, last, job)? {
            Some(file) if disk::read_cached(file, reading.bytes, first.start) => {
                return self.check_headers(&reading);
            }
            Some(file) => disk::announce(file, first.start, reading.bytes.len()),
            None => (),
        }
        late.push(reading);
        Ok(())
    }

    /// What is asked of a store for a run.
    fn span_of(&self, reading: &Reading<'_, '_>) -> Result<Span> {
        let first = &reading.wanted[0];
        let (uri, _, etag) = self.stored(first.shard)?;
        Ok(Span { uri, range: first.start..first.start + reading.bytes.len() as u64, etag })
    }

    fn wait(&self, file: &File, wanted: &[Wanted<'_>], bytes: &mut [u8]) -> Result<()> {
        let first = &wanted[0];
        disk::read(file, bytes, first.start).map_err(|error| {
            if error.kind() != std::io::ErrorKind::UnexpectedEof {
                let path = self.shard_path(first.shard);
                return path.map_or_else(|error| error, |path| Error::io(path, error));
            }
            let last = wanted.iter().max_by_key(|one| one.end()).unwrap_or(first);
            self.changed(last, "the file ends before its end")
        })
    }

    /// The file of a shard, or of the copy that is kept of one in a store; none where there is no room
    /// for a copy.
    fn file_of<'l>(
        &self,
        one: &Wanted<'_>,
        last: &'l mut Last,
        job: &Job,
    ) -> Result<Option<&'l File>> {
        let file = match last.take() {
            Some((shard, file)) if shard == one.shard => file,
            _ if self.is_in_store(one.shard) => self.copy_of(one.shard, job)?,
            _ => Some(self.open.get(one.shard, || self.shard_path(one.shard))?),
        };
        Ok(last.insert((one.shard, file)).1.as_deref().map(Opened::file))
    }

    fn copy_of(&self, shard: u32, job: &Job) -> Result<Option<Arc<Opened>>> {
        let (uri, size, etag) = self.stored(shard)?;
        let object = match etag {
            Some(etag) => {
                Object { uri: uri.to_string(), size, etag: etag.to_string(), modified_ms: 0 }
            }
            None => self.storage.seen(&uri, job)?,
        };
        Ok(self.storage.cached(&object, job)?.map(|file| Arc::new(Opened::new(file))))
    }

    fn check_headers(&self, reading: &Reading<'_, '_>) -> Result<()> {
        match reading.wanted.iter().find(|one| !reading.holds(one)) {
            Some(one) => Err(self.changed(one, "another member stands there")),
            None => Ok(()),
        }
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

/// Runs in so many pieces, one after another, or fewer.
fn pieces<T>(items: Vec<T>, number: usize) -> impl Iterator<Item = Vec<T>> {
    let each = items.len().div_ceil(number);
    let mut items = items.into_iter();
    std::iter::from_fn(move || {
        let piece: Vec<T> = items.by_ref().take(each).collect();
        (!piece.is_empty()).then_some(piece)
    })
}

/// Adds the runs of some samples, the first of which is number `first` of all that are wanted.
fn add_runs(
    runs: &mut Vec<Run>,
    wanted: &[Wanted<'_>],
    mut first: usize,
    together: impl FnMut(&Wanted<'_>, &Wanted<'_>) -> bool,
) {
    for some in wanted.chunk_by(together) {
        let end = some.iter().map(Wanted::end).max().unwrap_or_default();
        let length = (end - some[0].start) as usize;
        runs.push(Run { wanted: first..first + some.len(), length });
        first += some.len();
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
