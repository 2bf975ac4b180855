//! Runs of samples, and what threads do about them: read, announced, waited for, and checked
//! against the index.

use std::fs::File;
use std::sync::{Arc, Mutex, PoisonError};

use super::disk;
use super::shards::Shards;
use crate::job::Job;
use crate::shard::{self, BLOCK};
use crate::store::Span;
use crate::{Error, Result};

/// Where a sample that is wanted is in its shard: its header and image.
#[derive(Debug)]
pub(in crate::index) struct Extent<'a> {
    pub(in crate::index) shard: u32,
    pub(in crate::index) size: u32,
    pub(in crate::index) start: u64,
    pub(in crate::index) place: usize,
    pub(in crate::index) ordinal: u64,
    pub(in crate::index) key: &'a str,
}

impl Extent<'_> {
    pub(in crate::index) fn end(&self) -> u64 {
        self.start + BLOCK as u64 + u64::from(self.size)
    }

    fn changed(&self, what: &str, shards: &Shards) -> Error {
        let path = match shards.path(self.shard) {
            Ok(path) => path,
            Err(error) => return error,
        };
        Error::data(format!(
            "{}: sample {} ({:?}) at byte {}: {what}; the shard was replaced or cut after the index {} \
             was built, so build the index again",
            path.display(),
            self.ordinal,
            self.key,
            self.start + BLOCK as u64,
            shards.index().display()
        ))
    }
}

/// A run and the memory it is read into.
pub(in crate::index) struct Reading<'a, 'b> {
    pub(in crate::index) wanted: &'a [Extent<'a>],
    /// All bytes of the run, or the header before an image that has memory of its own.
    pub(in crate::index) bytes: &'b mut [u8],
    pub(in crate::index) image: Option<&'b mut [u8]>,
}

impl Reading<'_, '_> {
    /// Bytes of the run.
    pub(in crate::index) fn length(&self) -> usize {
        self.bytes.len() + self.image.as_ref().map_or(0, |image| image.len())
    }

    fn parts(&mut self) -> [&mut [u8]; 2] {
        [self.bytes, self.image.as_deref_mut().unwrap_or_default()]
    }

    /// Takes all bytes of the run.
    pub(in crate::index) fn fill(&mut self, all: &[u8]) {
        let (first, rest) = all.split_at(self.bytes.len());
        self.bytes.copy_from_slice(first);
        if let Some(image) = &mut self.image {
            image.copy_from_slice(rest);
        }
    }

    /// Whether the header of a sample of the run, which was read, is the one of the index.
    pub(in crate::index) fn holds(&self, one: &Extent<'_>) -> bool {
        let at = (one.start - self.wanted[0].start) as usize;
        shard::header_matches(&self.bytes[at..at + BLOCK], one.key.as_bytes(), one.size)
    }

    /// What is asked of a store for the run.
    pub(in crate::index) fn span(&self, shards: &Shards) -> Result<Span> {
        let first = &self.wanted[0];
        let (uri, _, etag) = shards.stored(first.shard)?;
        Ok(Span { uri, range: first.start..first.start + self.length() as u64, etag })
    }

    /// Reads the run from its file, however long it takes.
    fn wait(&mut self, file: &File, shards: &Shards) -> Result<()> {
        let wanted = self.wanted;
        let first = &wanted[0];
        disk::read(file, &mut self.parts(), first.start).map_err(|error| {
            if error.kind() != std::io::ErrorKind::UnexpectedEof {
                let path = shards.path(first.shard);
                return path.map_or_else(|error| error, |path| Error::io(path, error));
            }
            let last = wanted.iter().max_by_key(|one| one.end()).unwrap_or(first);
            last.changed("the file ends before its end", shards)
        })
    }

    /// An error where another member is where a sample of the run was indexed.
    pub(in crate::index) fn check_headers(&self, shards: &Shards) -> Result<()> {
        match self.wanted.iter().find(|one| !self.holds(one)) {
            Some(one) => Err(one.changed("another member stands there", shards)),
            None => Ok(()),
        }
    }
}

/// Something for a thread to do.
pub(in crate::index) enum Task<'a, 'b> {
    /// Reads what is there already; asks for the rest.
    Try(Reading<'a, 'b>),
    /// Asks for a run that is to be read later.
    Announce(&'a [Extent<'a>], usize),
    /// Reads what is most likely in the page cache.
    ReadWarm(Reading<'a, 'b>),
    /// Reads, however long it takes.
    Read(Reading<'a, 'b>),
}

/// What came of some tasks.
#[derive(Default)]
pub(in crate::index) struct Outcome<'a, 'b> {
    /// Runs that were tried, and are yet to be read.
    pub(in crate::index) late: Vec<Reading<'a, 'b>>,
    /// Runs that were not in the page cache.
    pub(in crate::index) num_waited: usize,
}

/// A thread that works on tasks.
struct Worker<'a, 'b, 'i> {
    shards: &'i Shards,
    job: &'i Job,
    /// The shard that was read last, and its file: none of a shard in a store of which no copy is kept.
    last: Option<(u32, Option<Arc<File>>)>,
    outcome: Outcome<'a, 'b>,
}

impl<'a, 'b> Worker<'a, 'b, '_> {
    fn work(&mut self, task: Task<'a, 'b>) -> Result<()> {
        self.job.check()?;
        match task {
            Task::Try(reading) => self.attempt(reading),
            Task::Announce(wanted, length) => {
                if let Some(file) = self.file_of(&wanted[0])? {
                    disk::announce(file, wanted[0].start, length);
                }
                Ok(())
            }
            Task::ReadWarm(reading) => self.read_warm(reading),
            Task::Read(reading) => self.read(reading),
        }
    }

    /// Reads a run that is in the page cache; asks the disk for any other.
    fn attempt(&mut self, mut reading: Reading<'a, 'b>) -> Result<()> {
        let first = &reading.wanted[0];
        match self.file_of(first)? {
            Some(file) if disk::read_cached(file, &mut reading.parts(), first.start) => {
                return reading.check_headers(self.shards);
            }
            Some(file) => disk::announce(file, first.start, reading.length()),
            None => (),
        }
        self.outcome.num_waited += 1;
        self.outcome.late.push(reading);
        Ok(())
    }

    fn read_warm(&mut self, mut reading: Reading<'a, 'b>) -> Result<()> {
        let shards = self.shards;
        match self.file_of(&reading.wanted[0])? {
            Some(file) => reading.wait(file, shards)?,
            None => return self.read(reading),
        }
        reading.check_headers(shards)
    }

    fn read(&mut self, mut reading: Reading<'a, 'b>) -> Result<()> {
        let (shards, job) = (self.shards, self.job);
        let first = &reading.wanted[0];
        match self.file_of(first)? {
            Some(file) if disk::read_cached(file, &mut reading.parts(), first.start) => (),
            Some(file) => {
                reading.wait(file, shards)?;
                self.outcome.num_waited += 1;
            }
            None => {
                let answer = shards.storage().read_span(reading.span(shards)?, job)?;
                reading.fill(&answer);
                self.outcome.num_waited += 1;
            }
        }
        reading.check_headers(shards)
    }

    /// The file of a shard, or of the copy that is kept of one in a store; none where there is no room
    /// for a copy.
    fn file_of(&mut self, one: &Extent<'_>) -> Result<Option<&File>> {
        let file = match self.last.take() {
            Some((shard, file)) if shard == one.shard => file,
            _ => self.shards.file(one.shard, self.job)?,
        };
        Ok(self.last.insert((one.shard, file)).1.as_deref())
    }
}

/// Does some tasks on so many threads.
pub(in crate::index) fn on_threads<'a, 'b>(
    shards: &Shards,
    tasks: Vec<Task<'a, 'b>>,
    num_threads: usize,
    job: &Job,
) -> Result<Outcome<'a, 'b>> {
    // No thread is started for what one can do.
    let num_threads = num_threads.min(tasks.len());
    let new_worker = || Worker { shards, job, last: None, outcome: Outcome::default() };
    if num_threads <= 1 {
        let mut worker = new_worker();
        tasks.into_iter().try_for_each(|task| worker.work(task))?;
        return Ok(worker.outcome);
    }

    // Tasks are taken one by one, for some take much longer than others.
    let tasks = Mutex::new(tasks.into_iter());
    let next = || tasks.lock().unwrap_or_else(PoisonError::into_inner).next();
    let work = || {
        let mut worker = new_worker();
        while let Some(task) = next() {
            worker.work(task)?;
        }
        Ok(worker.outcome)
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..num_threads).map(|_| scope.spawn(work)).collect();
        let mut all = Ok(Outcome::default());
        for thread in threads {
            let found =
                thread.join().unwrap_or_else(|_| Err(Error::data("a reading thread failed")));
            match (&mut all, found) {
                (Ok(all), Ok(one)) => {
                    all.late.extend(one.late);
                    all.num_waited += one.num_waited;
                }
                (Ok(_), Err(error)) => all = Err(error),
                (Err(_), _) => (),
            }
        }
        all
    })
}
