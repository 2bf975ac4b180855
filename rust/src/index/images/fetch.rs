//! Reading images: many at once, neighbours together, from a bounded number of open files, or from stores.
//!
//! The samples asked for are sorted by place; those that are close together come with one read.
//! They come in chunks of a few mebibytes, each read into the same memory, for the caller to copy
//! from.
//!
//! What is in the page cache is read at once; after some chunks that were, by a plain `pread`,
//! which is the cheapest. Of the rest all that a chunk lacks is first announced to the kernel, so
//! that the disk works on all of it, and only then is it waited for; after a chunk that had to be
//! waited for, what comes later is announced as well, in this call and in the next ones.
//!
//! Shards in stores are asked for by ranges, many at once; there a request costs more than a gap of a
//! mebibyte, so more is read together. Where whole shards are kept in a local folder
//! ([`Storage::cached`](crate::store::Storage::cached)), they are fetched into it and read as files.
//!
//! Files are read with `pread`, so that a shard that is cut short meanwhile is an error and not the end of
//! the process. Nothing here keeps a thread, and no lock is waited for, so an index works in a process that
//! was forked at any moment.

use std::ops::Range;

use super::disk;
use super::run::{Extent, Reading, Task, on_threads};
use super::shards::Shards;
use crate::job::Job;
use crate::shard::BLOCK;
use crate::store::Span;
use crate::{Error, Result};

/// Samples with less between them are read together.
const MAX_GAP: u64 = 4096;
/// Reads of several samples are at most this long.
const MAX_RUN: u64 = 1 << 20;
/// Threads that add to the bytes of a chunk.
const MAX_CHUNKS: usize = 4;
/// Bytes of a chunk for each thread, unless one sample is longer: all of them are kept.
const CHUNK: usize = disk::MAX_KEPT / MAX_CHUNKS;
/// Bytes of a chunk from stores, unless one request is longer.
const STORED_CHUNK: usize = 64 << 20;
/// Bytes of a chunk for each thread where runs have to be waited for: while they are used, the disk
/// continues.
const COLD_CHUNK: usize = 1 << 20;
/// Bytes that are announced to the disk beyond such a chunk.
const AHEAD: usize = 16 << 20;
/// Where one run in so many has to be waited for, what comes after is announced to the disk.
const RARE: usize = 16;
/// Images of fewer bytes are read with their header and copied to where the caller wants them: a read into two
/// pieces of memory costs about as much more.
const MIN_SINGLE: usize = 4 << 10;

/// Samples that are read together, by number among those wanted.
#[derive(Debug)]
struct Run {
    wanted: Range<usize>,
    length: usize,
}

impl Run {
    /// Whether it is one image that is worth being read to where the caller wants it.
    fn is_single(&self) -> bool {
        self.wanted.len() == 1 && self.length >= MIN_SINGLE
    }
}

/// Images being read, chunk by chunk.
#[derive(Debug)]
pub struct Fetch<'a> {
    shards: &'a Shards,
    wanted: Vec<Extent<'a>>,
    runs: Vec<Run>,
    /// The first run from a store; those from files come before.
    first_stored: usize,
    num_threads: usize,
    /// Runs that are done.
    done: usize,
    /// Runs that were announced to the disk.
    announced: usize,
    /// How the next chunk is read, and the first run after it.
    next: Option<(Way, usize)>,
    bytes: Vec<u8>,
}

/// How a chunk is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// What is in the page cache at once, the rest after all of it was announced to the disk.
    Try,
    /// After it was announced to the disk, with more that follows.
    Wait,
    /// Out of stores.
    Request,
}

/// Images of a chunk.
#[derive(Debug)]
pub struct Chunk<'b> {
    wanted: &'b [Extent<'b>],
    runs: &'b [Run],
    bytes: &'b [u8],
    /// Whether single images are where the caller wanted them.
    is_split: bool,
}

impl Chunk<'_> {
    /// The encoded images, each with its place among the ordinals asked for; not those that were read to
    /// where the caller wanted them.
    pub fn images(&self) -> impl Iterator<Item = (usize, &[u8])> + '_ {
        let mut begin = 0;
        self.runs.iter().flat_map(move |run| {
            let is_apart = self.is_split && run.is_single();
            let (wanted, from) = (&self.wanted[run.wanted.clone()], begin);
            begin += if is_apart { BLOCK } else { run.length };
            wanted.iter().filter(move |_| !is_apart).map(move |one| {
                let start = from + (one.start - wanted[0].start) as usize + BLOCK;
                (one.place, &self.bytes[start..start + one.size as usize])
            })
        })
    }
}

impl<'a> Fetch<'a> {
    /// Reads what is wanted by `num_threads` threads.
    pub(in crate::index) fn new(
        shards: &'a Shards,
        mut wanted: Vec<Extent<'a>>,
        num_threads: usize,
    ) -> Result<Self> {
        if num_threads == 0 {
            return Err(Error::usage("num_threads must be at least 1"));
        }
        let by_ranges =
            |one: &Extent<'_>| shards.is_in_store(one.shard) && !shards.storage().has_cache();

        // Files come first, stores last, each by place: neighbours are read together, and those of
        // stores go their own way.
        // One number compares faster than two.
        let place = |one: &Extent<'_>| u128::from(one.shard) << 64 | u128::from(one.start);
        if shards.has_stored() {
            wanted.sort_unstable_by_key(|one| (by_ranges(one), place(one)));
        } else {
            wanted.sort_unstable_by_key(place);
        }
        let (local, stored) = wanted.split_at(wanted.partition_point(|one| !by_ranges(one)));

        // A request to a store costs more than a seek, so it pays to read across wider gaps there.
        let mut runs = Vec::with_capacity(wanted.len());
        add_runs(&mut runs, local, 0, together(MAX_GAP, MAX_RUN));
        let first_stored = runs.len();
        let limits = shards.storage().limits();
        let near = together(limits.gap_bytes, limits.request_bytes);
        add_runs(&mut runs, stored, local.len(), near);
        shards.storage().tally().want(stored.iter().map(|one| u64::from(one.size)).sum());
        Ok(Fetch {
            shards,
            wanted,
            runs,
            first_stored,
            num_threads,
            done: 0,
            announced: 0,
            next: None,
            bytes: shards.scratch().take(),
        })
    }
}

impl Fetch<'_> {
    /// Samples that were read so far.
    pub fn num_read(&self) -> usize {
        self.runs[..self.done].last().map_or(0, |run| run.wanted.end)
    }

    /// The images of the next chunk that are read by themselves: the place of each among the ordinals asked
    /// for, and its bytes.
    pub fn single_images(&mut self) -> Vec<(usize, usize)> {
        let (way, next) = self.plan();
        if way == Way::Request {
            return Vec::new();
        }
        let single = self.runs[self.done..next].iter().filter(|run| run.is_single());
        let one = |run: &Run| &self.wanted[run.wanted.start];
        single.map(one).map(|one| (one.place, one.size as usize)).collect()
    }

    /// Reads the next chunk; `None` where nothing is left.
    pub fn next_chunk(&mut self, job: &Job) -> Result<Option<Chunk<'_>>> {
        self.next_chunk_into(Vec::new(), job)
    }

    /// The same, its [single images](Self::single_images) into `rooms`, which are as long, unless there are none.
    /// What an error leaves in them is of no use.
    pub fn next_chunk_into(
        &mut self,
        rooms: Vec<&mut [u8]>,
        job: &Job,
    ) -> Result<Option<Chunk<'_>>> {
        let first = self.done;
        let (way, next) = self.plan();
        self.next = None;
        if next == first {
            return Ok(None);
        }
        let is_split = !rooms.is_empty();
        let in_bytes = |run: &Run| if is_split && run.is_single() { BLOCK } else { run.length };
        let length = self.runs[first..next].iter().map(in_bytes).sum();
        if self.bytes.len() < length {
            self.bytes.resize(length, 0);
        }

        // The memory goes back whatever comes of the reading, so that the next chunk need not make
        // it anew.
        let mut bytes = std::mem::take(&mut self.bytes);
        let done = match way {
            Way::Request => self.read_stored(first..next, &mut bytes[..length], job),
            _ => self.read(first..next, &mut bytes[..length], rooms, way, job),
        };
        self.bytes = bytes;
        done?;
        self.done = next;
        let runs = &self.runs[first..next];
        Ok(Some(Chunk { wanted: &self.wanted, runs, bytes: &self.bytes[..length], is_split }))
    }

    /// How the next chunk is read, and the first run after it.
    fn plan(&mut self) -> (Way, usize) {
        if let Some(next) = self.next {
            return next;
        }
        let way = match self.done < self.first_stored {
            false => Way::Request,
            true if self.shards.is_cold() => Way::Wait,
            true => Way::Try,
        };
        *self.next.insert((way, self.chunk_from(self.done, self.limit(way))))
    }

    /// Bytes of a chunk.
    fn limit(&self, way: Way) -> usize {
        let num_threads = self.num_threads.min(MAX_CHUNKS);
        match way {
            Way::Try => CHUNK * num_threads,
            Way::Wait => COLD_CHUNK * num_threads,
            Way::Request => STORED_CHUNK,
        }
    }

    /// The run after those that make a chunk of at most `limit` bytes with `first`.
    fn chunk_from(&self, first: usize, limit: usize) -> usize {
        let is_local = first < self.first_stored;
        let end = if is_local { self.first_stored } else { self.runs.len() };
        let (mut next, mut length) = (first, 0);
        while let Some(run) = self.runs[..end].get(next)
            && (next == first || length + run.length <= limit)
        {
            length += run.length;
            next += 1;
        }
        next
    }

    /// Reads some runs one after another into `bytes`, and single images into `rooms` where there are some.
    fn read(
        &mut self,
        runs: Range<usize>,
        mut bytes: &mut [u8],
        rooms: Vec<&mut [u8]>,
        way: Way,
        job: &Job,
    ) -> Result<()> {
        // What follows is announced to the disk too, so that it works on while this chunk is used.
        let known = self.announced.max(runs.start);
        if way == Way::Wait {
            self.announced = self.chunk_from(runs.end, AHEAD).min(self.first_stored);
        }

        // The memory is cut up before the threads start, so that each writes to a piece of its own.
        let mut rooms = rooms.into_iter();
        let mut readings = Vec::with_capacity(runs.len());
        for run in &self.runs[runs.clone()] {
            let image = if run.is_single() { rooms.next() } else { None };
            let length = if image.is_some() { BLOCK } else { run.length };
            let (own, rest) = bytes.split_at_mut(length);
            readings.push(Reading { wanted: &self.wanted[run.wanted.clone()], bytes: own, image });
            bytes = rest;
        }
        let announce = |run: &Run| Task::Announce(&self.wanted[run.wanted.clone()], run.length);
        let tasks: Vec<Task<'_, '_>> = match way {
            Way::Wait => {
                let later = self.runs.get(known..self.announced).unwrap_or_default();
                later.iter().map(announce).chain(readings.into_iter().map(Task::Read)).collect()
            }
            _ => {
                let is_warm = self.shards.is_warm();
                // One in so many is tried all the same: that shows when the page cache has them no more.
                let readings = readings.into_iter().enumerate();
                readings
                    .map(|(number, reading)| {
                        let is_sure = is_warm && number % RARE != 0 && reading.image.is_none();
                        if is_sure { Task::ReadWarm(reading) } else { Task::Try(reading) }
                    })
                    .collect()
            }
        };

        // What a try did not find in the page cache was announced by it, and is waited for only
        // now.
        let outcome = on_threads(self.shards, tasks, self.num_threads, job)?;
        self.shards.note_waits(outcome.num_waited, outcome.num_waited * RARE > runs.len());
        let late = outcome.late.into_iter().map(Task::Read).collect();
        on_threads(self.shards, late, self.num_threads, job)?;
        Ok(())
    }

    /// Reads some runs out of stores, many at once, one after another into `bytes`.
    fn read_stored(&self, runs: Range<usize>, mut bytes: &mut [u8], job: &Job) -> Result<()> {
        let mut requests: Vec<Span> = Vec::with_capacity(runs.len());
        let mut readings = Vec::with_capacity(runs.len());
        for run in &self.runs[runs] {
            let (own, rest) = bytes.split_at_mut(run.length);
            bytes = rest;
            let wanted = &self.wanted[run.wanted.clone()];
            let reading = Reading { wanted, bytes: own, image: None };
            requests.push(reading.span(self.shards)?);
            readings.push(reading);
        }
        self.shards.storage().read_spans(requests, job, |number, answer| {
            let reading = &mut readings[number];
            reading.fill(answer);
            reading.check_headers(self.shards)
        })
    }
}

impl Drop for Fetch<'_> {
    fn drop(&mut self) {
        self.shards.scratch().keep(std::mem::take(&mut self.bytes));
    }
}

/// Adds the runs of some samples, the first of which is number `first` of all that are wanted.
fn add_runs(
    runs: &mut Vec<Run>,
    wanted: &[Extent<'_>],
    mut first: usize,
    together: impl FnMut(&Extent<'_>, &Extent<'_>) -> bool,
) {
    for some in wanted.chunk_by(together) {
        let end = some.iter().map(Extent::end).max().unwrap_or_default();
        let length = (end - some[0].start) as usize;
        runs.push(Run { wanted: first..first + some.len(), length });
        first += some.len();
    }
}

/// Whether a sample is read together with the one before it: at most `max_gap` bytes are between
/// them, and all that is read together is at most `max_run` long.
fn together(max_gap: u64, max_run: u64) -> impl FnMut(&Extent<'_>, &Extent<'_>) -> bool {
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
