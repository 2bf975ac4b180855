//! Sorted runs of records of one size, in files of their own.
//!
//! A run has one or more segments, each sorted by itself and read by itself, so that threads can
//! write and merge a run together. Little-endian, the file is: the magic `WSLSRUN1`, the job (u128),
//! the number of the run (u64), bytes of a record and records of a block (u32 each), the number of
//! records (u64) and the XXH3 hash of all that (u64); then the blocks in the order in which they
//! were written, each followed by its XXH3 hash under a seed of job, run, segment and place. Where
//! the blocks of a segment lie is kept in memory.
//!
//! What is read back is what was written, or the run is refused by name: one that is missing, of
//! another job, another run's under its name, cut short, longer or altered.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::folder::{SpillFolder, refused};
use crate::{Error, Result};

const MAGIC: [u8; 8] = *b"WSLSRUN1";
const HEADER: usize = 56;
const HASH: usize = 8;
/// The most bytes of a record.
const MAX_RECORD: usize = 32;

/// Something of a fixed size with an order.
pub trait Record: Copy + Ord + Send + Sync + 'static {
    /// Its size in a file, at most 32.
    const BYTES: usize;
    /// A number that orders first: of two records the one with the smaller number is the smaller.
    fn leading(&self) -> u64;
    /// Writes it to `out`, which is as long as [`BYTES`](Self::BYTES).
    fn put(self, out: &mut [u8]);
    /// Reads what [`put`](Self::put) wrote.
    fn get(bytes: &[u8]) -> Self;
}

/// A finished run.
#[derive(Debug)]
pub struct Run {
    folder: Arc<SpillFolder>,
    path: PathBuf,
    number: u64,
    record_bytes: usize,
    records_per_block: usize,
    segments: Vec<Segment>,
    size: u64,
}

/// Where the blocks of a segment lie.
#[derive(Debug, Clone, Default)]
pub struct Segment {
    blocks: Vec<u64>,
    num_records: u64,
}

impl Run {
    /// Records of a segment.
    pub fn num_records(&self, segment: usize) -> u64 {
        self.segments[segment].num_records
    }

    /// Opens the file, and checks that it is this run's.
    pub fn open(self: &Arc<Self>) -> Result<OpenRun> {
        let file = File::open(&self.path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => self.fault("it is missing"),
            _ => refused(&self.path, "read a run", error),
        })?;
        let size = file.metadata().map_err(|error| refused(&self.path, "read a run", error))?.len();
        let mut header = [0; HEADER];
        let read = file.read_exact_at(&mut header, 0);
        if read.is_ok() && header != self.header() {
            return Err(self.fault(self.what_is_wrong(&header)));
        }
        if size < self.size {
            return Err(self.fault(&format!("it is cut short: {size} of {} bytes", self.size)));
        }
        if size > self.size {
            return Err(self.fault("something follows its end"));
        }
        read.map_err(|error| refused(&self.path, "read a run", error))?;
        Ok(OpenRun { run: self.clone(), file: Arc::new(file) })
    }

    fn header(&self) -> [u8; HEADER] {
        let total: u64 = self.segments.iter().map(|segment| segment.num_records).sum();
        let mut header = [0; HEADER];
        header[..8].copy_from_slice(&MAGIC);
        header[8..24].copy_from_slice(&self.folder.job().to_le_bytes());
        header[24..32].copy_from_slice(&self.number.to_le_bytes());
        header[32..36].copy_from_slice(&(self.record_bytes as u32).to_le_bytes());
        header[36..40].copy_from_slice(&(self.records_per_block as u32).to_le_bytes());
        header[40..48].copy_from_slice(&total.to_le_bytes());
        let hash = xxh3_64(&header[..48]);
        header[48..].copy_from_slice(&hash.to_le_bytes());
        header
    }

    fn what_is_wrong(&self, found: &[u8; HEADER]) -> &'static str {
        let expected = self.header();
        if found[..8] != MAGIC || xxh3_64(&found[..48]).to_le_bytes() != found[48..] {
            "its header is damaged"
        } else if found[8..24] != expected[8..24] {
            "it is of another job"
        } else {
            "it is another run of this job, so one is there twice and this one is missing"
        }
    }

    fn fault(&self, fault: &str) -> Error {
        Error::data(format!(
            "{}: a run of this job on disk cannot be used: {fault}; leave the spill folder alone \
             while a job runs, look after its disk, and start again",
            self.path.display()
        ))
    }

    fn seed(&self, segment: usize, block: usize) -> u64 {
        seed(self.folder.job(), self.number, segment, block)
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

fn seed(job: u128, number: u64, segment: usize, block: usize) -> u64 {
    let mut bytes = [0; 40];
    bytes[..16].copy_from_slice(&job.to_le_bytes());
    bytes[16..24].copy_from_slice(&number.to_le_bytes());
    bytes[24..32].copy_from_slice(&(segment as u64).to_le_bytes());
    bytes[32..].copy_from_slice(&(block as u64).to_le_bytes());
    xxh3_64(&bytes)
}

/// A run being written, by any number of threads.
#[derive(Debug)]
pub struct RunWriter {
    run: Run,
    file: File,
    end: AtomicU64,
}

impl RunWriter {
    /// Starts the next run of the job.
    pub fn create<R: Record>(folder: &Arc<SpillFolder>, block_bytes: usize) -> Result<Self> {
        let number = folder.next_number();
        let path = folder.path().join(format!("run-{number:06}"));
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(|error| refused(&path, "write a run", error))?;
        let run = Run {
            folder: folder.clone(),
            path,
            number,
            record_bytes: R::BYTES,
            records_per_block: (block_bytes / R::BYTES).max(1),
            segments: Vec::new(),
            size: 0,
        };
        Ok(Self { run, file, end: AtomicU64::new(HEADER as u64) })
    }

    /// Starts the segment that will be the `number`-th.
    pub fn segment<R: Record>(&self, number: usize) -> SegmentWriter<'_> {
        let capacity = self.run.records_per_block * R::BYTES + HASH;
        SegmentWriter {
            writer: self,
            number,
            segment: Segment::default(),
            buffer: Vec::with_capacity(capacity),
        }
    }

    fn append(&self, bytes: &[u8]) -> Result<u64> {
        let place = self.end.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        self.file
            .write_all_at(bytes, place)
            .map_err(|error| refused(&self.run.path, "write a run", error))?;
        Ok(place)
    }

    /// The run of these segments, in their order.
    pub fn finish(mut self, segments: Vec<Segment>) -> Result<Run> {
        self.run.segments = segments;
        self.run.size = self.end.load(Ordering::Relaxed);
        self.file
            .write_all_at(&self.run.header(), 0)
            .map_err(|error| refused(&self.run.path, "write a run", error))?;
        Ok(self.run)
    }
}

/// Writes one segment.
#[derive(Debug)]
pub struct SegmentWriter<'a> {
    writer: &'a RunWriter,
    number: usize,
    segment: Segment,
    buffer: Vec<u8>,
}

impl SegmentWriter<'_> {
    /// Adds a record, which is not smaller than the one before.
    #[inline]
    pub fn push<R: Record>(&mut self, record: R) -> Result<()> {
        self.push_all(std::slice::from_ref(&record))
    }

    /// Adds records in their order, none smaller than the one before.
    pub fn push_all<R: Record>(&mut self, mut records: &[R]) -> Result<()> {
        let size = self.writer.run.records_per_block * R::BYTES;
        while !records.is_empty() {
            let place = self.buffer.len();
            let (some, rest) = records.split_at(records.len().min((size - place) / R::BYTES));
            self.buffer.resize(place + some.len() * R::BYTES, 0);
            let bytes = self.buffer[place..].chunks_exact_mut(R::BYTES);
            bytes.zip(some).for_each(|(out, record)| record.put(out));
            self.segment.num_records += some.len() as u64;
            if self.buffer.len() == size {
                self.flush()?;
            }
            records = rest;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let seed = self.writer.run.seed(self.number, self.segment.blocks.len());
        let hash = xxh3_64_with_seed(&self.buffer, seed);
        self.buffer.extend_from_slice(&hash.to_le_bytes());
        self.segment.blocks.push(self.writer.append(&self.buffer)?);
        self.buffer.clear();
        Ok(())
    }

    /// The segment, to be given to [`RunWriter::finish`].
    pub fn finish(mut self) -> Result<Segment> {
        self.flush()?;
        Ok(self.segment)
    }
}

/// A run whose file was opened and is the right one.
#[derive(Debug, Clone)]
pub struct OpenRun {
    run: Arc<Run>,
    file: Arc<File>,
}

impl OpenRun {
    /// Reads a segment from its start.
    pub fn reader<R: Record>(&self, segment: usize) -> RunReader<R> {
        RunReader {
            open: self.clone(),
            segment,
            next_block: 0,
            left: self.run.segments[segment].num_records,
            bytes: Vec::new(),
            place: 0,
            record: std::marker::PhantomData,
        }
    }
}

/// Reads a segment record by record.
#[derive(Debug)]
pub struct RunReader<R> {
    open: OpenRun,
    segment: usize,
    next_block: usize,
    /// Records not read from the file yet.
    left: u64,
    bytes: Vec<u8>,
    place: usize,
    record: std::marker::PhantomData<R>,
}

impl<R: Record> RunReader<R> {
    /// The next record.
    #[inline]
    pub fn next_record(&mut self) -> Result<Option<R>> {
        if self.place == self.bytes.len() && !self.read_block()? {
            return Ok(None);
        }
        let record = R::get(&self.bytes[self.place..self.place + R::BYTES]);
        self.place += R::BYTES;
        Ok(Some(record))
    }

    /// Passes over the next `number` records.
    pub fn skip(&mut self, number: u64) -> Result<()> {
        let mut number = number as usize * R::BYTES;
        loop {
            let some = number.min(self.bytes.len() - self.place);
            self.place += some;
            number -= some;
            if number == 0 || !self.read_block()? {
                return Ok(());
            }
        }
    }

    fn read_block(&mut self) -> Result<bool> {
        if self.left == 0 {
            return Ok(false);
        }
        debug_assert!(R::BYTES <= MAX_RECORD);
        let run = &self.open.run;
        let some = self.left.min(run.records_per_block as u64) as usize;
        let place = run.segments[self.segment].blocks[self.next_block];
        self.bytes.resize(some * R::BYTES + HASH, 0);
        self.open
            .file
            .read_exact_at(&mut self.bytes, place)
            .map_err(|error| refused(&run.path, "read a run", error))?;
        let (records, hash) = self.bytes.split_at(some * R::BYTES);
        let expected = xxh3_64_with_seed(records, run.seed(self.segment, self.next_block));
        if hash != expected.to_le_bytes() {
            return Err(run.fault(&format!("the checksum at byte {place} is wrong")));
        }
        self.bytes.truncate(some * R::BYTES);
        self.place = 0;
        self.left -= some as u64;
        self.next_block += 1;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    impl Record for u64 {
        const BYTES: usize = 8;
        fn leading(&self) -> u64 {
            *self
        }
        fn put(self, out: &mut [u8]) {
            out.copy_from_slice(&self.to_le_bytes());
        }
        fn get(bytes: &[u8]) -> Self {
            bytes.iter().rev().fold(0, |number, &byte| number << 8 | Self::from(byte))
        }
    }

    fn run_of(folder: &Arc<SpillFolder>, parts: &[std::ops::Range<u64>]) -> Arc<Run> {
        let writer = RunWriter::create::<u64>(folder, 64).unwrap();
        let segments = parts.iter().enumerate().map(|(number, part)| {
            let mut segment = writer.segment::<u64>(number);
            let records: Vec<u64> = part.clone().collect();
            let (some, others) = records.split_at(records.len() / 4);
            some.iter().for_each(|&record| segment.push(record).unwrap());
            others.chunks(11).for_each(|records| segment.push_all(records).unwrap());
            segment.finish().unwrap()
        });
        let segments = segments.collect();
        Arc::new(writer.finish(segments).unwrap())
    }

    fn read(run: &Arc<Run>, segment: usize) -> Result<Vec<u64>> {
        let mut reader = run.open()?.reader(segment);
        let mut found = Vec::new();
        while let Some(record) = reader.next_record()? {
            found.push(record);
        }
        Ok(found)
    }

    #[test]
    fn segments_give_back_their_records_and_skip_over_blocks() {
        let parent = tempfile::tempdir().unwrap();
        let folder = SpillFolder::create(parent.path()).unwrap();
        let run = run_of(&folder, &[0..21, 5..5, 7..8]);
        assert_eq!(read(&run, 0).unwrap(), (0..21).collect::<Vec<_>>());
        assert!(read(&run, 1).unwrap().is_empty());
        assert_eq!(read(&run, 2).unwrap(), [7]);
        let open = run.open().unwrap();
        let mut reader = open.reader::<u64>(0);
        for (skipped, expected) in [(0, 0), (6, 7), (8, 16), (3, 20)] {
            reader.skip(skipped).unwrap();
            assert_eq!(reader.next_record().unwrap(), Some(expected));
        }
        assert_eq!(reader.next_record().unwrap(), None);
        let path = run.path.clone();
        drop(reader);
        drop(open);
        drop(run);
        assert!(!path.exists());
    }

    #[test]
    fn a_run_that_is_not_what_was_written_is_refused_by_name() {
        let parent = tempfile::tempdir().unwrap();
        let folder = SpillFolder::create(parent.path()).unwrap();
        let other_job = SpillFolder::create(parent.path()).unwrap();
        let parts = [0..21, 30..40];
        let (run, second) = (run_of(&folder, &parts), run_of(&folder, &parts));
        let foreign = run_of(&other_job, &parts);
        let good = fs::read(&run.path).unwrap();
        let refuse = |content: Option<&[u8]>, expected: &str| {
            match content {
                Some(content) => fs::write(&run.path, content).unwrap(),
                None => fs::remove_file(&run.path).unwrap(),
            }
            let found = read(&run, 0).and_then(|_| read(&run, 1)).unwrap_err().to_string();
            let name = run.path.display().to_string();
            assert!(found.starts_with(&name) && found.contains(expected), "{found}");
        };
        refuse(Some(&fs::read(&second.path).unwrap()), "one is there twice");
        refuse(Some(&fs::read(&foreign.path).unwrap()), "of another job");
        refuse(Some(&good[..good.len() - 1]), "cut short");
        refuse(Some(&good[..3]), "cut short");
        refuse(Some(&[good.as_slice(), b"x"].concat()), "follows its end");
        for place in 0..good.len() {
            let mut altered = good.clone();
            altered[place] ^= 4;
            refuse(Some(&altered), if place < HEADER { "header is damaged" } else { "checksum" });
        }
        refuse(None, "missing");
    }
}
