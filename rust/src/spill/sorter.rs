//! Sorting more records than fit in memory.
//!
//! Records collect in a buffer; a full one is sorted and written as a run. In the end the runs and
//! what is in memory are read as one, any number of times. Never more than [`FAN_IN`] runs are read
//! together: as many are joined into one before.

use std::sync::Arc;

use super::merge::{Merge, Source};
use super::run::{Record, Run, RunReader, RunWriter};
use super::{Memory, SpillFolder};
use crate::Result;
use crate::radix;

/// Runs that are read together at most.
pub const FAN_IN: usize = 64;

/// How a job spills: its folder, made when it is needed, and the size of its blocks.
#[derive(Debug, Clone)]
pub struct Spill {
    memory: Memory,
    folder: Arc<std::sync::Mutex<Option<Arc<SpillFolder>>>>,
}

impl Spill {
    /// A job that has not spilled yet.
    pub fn new(memory: Memory) -> Self {
        Self { memory, folder: Arc::default() }
    }

    /// The limit of memory.
    pub fn limit(&self) -> Option<usize> {
        self.memory.limit
    }

    /// The folder of the job.
    pub fn folder(&self) -> Result<Arc<SpillFolder>> {
        let mut folder = self.folder.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match &*folder {
            Some(folder) => Ok(folder.clone()),
            None => {
                let made = SpillFolder::create(&self.memory.folder())?;
                *folder = Some(made.clone());
                Ok(made)
            }
        }
    }

    /// Bytes of a block: small where many of them would fill the memory.
    pub fn block_bytes(&self) -> usize {
        (self.memory.bytes() / (8 * FAN_IN)).clamp(1 << 10, 1 << 16)
    }
}

/// Takes records in any order.
#[derive(Debug)]
pub struct Sorter<R> {
    spill: Spill,
    capacity: usize,
    buffer: Vec<R>,
    scratch: Vec<R>,
    runs: Vec<Arc<Run>>,
}

impl<R: Record> Sorter<R> {
    /// A sorter that keeps `memory_bytes` in memory at most, without a limit where absent.
    pub fn new(spill: Spill, memory_bytes: Option<usize>) -> Self {
        let capacity = memory_bytes.map_or(usize::MAX, |bytes| (bytes / size_of::<R>()).max(16));
        Self { spill, capacity, buffer: Vec::new(), scratch: Vec::new(), runs: Vec::new() }
    }

    /// Takes one record.
    #[inline]
    pub fn push(&mut self, record: R) -> Result<()> {
        if self.buffer.len() == self.buffer.capacity() {
            if self.buffer.len() >= self.capacity {
                self.write()?;
            } else {
                let more = self.buffer.len().max(1024).min(self.capacity - self.buffer.len());
                self.buffer.reserve_exact(more);
            }
        }
        self.buffer.push(record);
        Ok(())
    }

    fn sort(&mut self) {
        radix::sort_where_they_lie(&mut self.buffer, &mut self.scratch, &R::leading);
    }

    fn write(&mut self) -> Result<()> {
        self.sort();
        let folder = self.spill.folder()?;
        let writer = RunWriter::create::<R>(&folder, self.spill.block_bytes())?;
        let mut segment = writer.segment::<R>(0);
        segment.push_all(&self.buffer)?;
        let segment = segment.finish()?;
        self.runs.push(Arc::new(writer.finish(vec![segment])?));
        self.buffer.clear();
        if self.runs.len() == FAN_IN {
            self.runs = vec![join::<R>(&self.spill, &self.runs)?];
        }
        Ok(())
    }

    /// What was taken, sorted.
    pub fn finish(mut self) -> Result<Sorted<R>> {
        self.sort();
        Ok(Sorted { runs: self.runs, buffers: vec![Arc::new(self.buffer)] })
    }
}

fn join<R: Record>(spill: &Spill, runs: &[Arc<Run>]) -> Result<Arc<Run>> {
    let writer = RunWriter::create::<R>(&spill.folder()?, spill.block_bytes())?;
    let mut segment = writer.segment::<R>(0);
    let opened = runs.iter().map(|run| run.open()).collect::<Result<Vec<_>>>()?;
    let mut merge = Merge::new(opened.iter().map(|run| run.reader::<R>(0)).collect());
    while let Some(record) = merge.next_record()? {
        segment.push(record)?;
    }
    let segment = segment.finish()?;
    Ok(Arc::new(writer.finish(vec![segment])?))
}

/// Sorted records in runs and in memory; a clone shares them.
#[derive(Debug, Clone)]
pub struct Sorted<R> {
    runs: Vec<Arc<Run>>,
    buffers: Vec<Arc<Vec<R>>>,
}

impl<R: Record> Sorted<R> {
    /// The records of several, sorted together.
    pub fn join(parts: Vec<Self>, spill: &Spill) -> Result<Self> {
        let mut joined = Self { runs: Vec::new(), buffers: Vec::new() };
        for part in parts {
            joined.runs.extend(part.runs);
            joined.buffers.extend(part.buffers);
        }
        joined.buffers.retain(|buffer| !buffer.is_empty());
        while joined.runs.len() > FAN_IN {
            let rest = joined.runs.split_off(FAN_IN);
            let first = join::<R>(spill, &joined.runs)?;
            joined.runs = rest;
            joined.runs.push(first);
        }
        Ok(joined)
    }

    /// Reads all of it in order; may be called any number of times.
    pub fn read(&self) -> Result<SortedReader<R>> {
        let mut sources = Vec::with_capacity(self.runs.len() + self.buffers.len());
        for run in &self.runs {
            sources.push(SortedSource::Run(run.open()?.reader(0)));
        }
        sources.extend(self.buffers.iter().map(|buffer| SortedSource::Buffer(buffer.clone(), 0)));
        Ok(Merge::new(sources))
    }
}

/// Reads [`Sorted`] records.
pub type SortedReader<R> = Merge<R, SortedSource<R>>;

/// A run, or what stayed in memory.
#[derive(Debug)]
pub enum SortedSource<R> {
    /// On disk.
    Run(RunReader<R>),
    /// In memory, from this place on.
    Buffer(Arc<Vec<R>>, usize),
}

impl<R: Record> Source<R> for SortedSource<R> {
    #[inline]
    fn next_record(&mut self) -> Result<Option<R>> {
        match self {
            Self::Run(reader) => reader.next_record(),
            Self::Buffer(records, place) => {
                let record = records.get(*place).copied();
                *place += 1;
                Ok(record)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_fits_is_sorted_and_read_as_often_as_wanted() {
        let parent = tempfile::tempdir().unwrap();
        let memory = Memory { limit: Some(1), spill_dir: Some(parent.path().into()) };
        let spill = Spill::new(memory);
        let mut state = 1_u64;
        let mut records: Vec<u64> = (0..40_000)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                state >> 50
            })
            .collect();
        // Runs of 16 records: they are joined several times.
        let parts = records.chunks(17_000).map(|part| {
            let mut sorter = Sorter::new(spill.clone(), Some(1));
            part.iter().for_each(|&record| sorter.push(record).unwrap());
            sorter.finish().unwrap()
        });
        let sorted = Sorted::join(parts.collect(), &spill).unwrap();
        records.sort_unstable();
        for _ in 0..2 {
            let mut reader = sorted.read().unwrap();
            for &record in &records {
                assert_eq!(reader.next_record().unwrap(), Some(record));
            }
            assert_eq!(reader.next_record().unwrap(), None);
        }
        assert!(sorted.runs.len() > 1 && sorted.runs.len() <= FAN_IN);
        drop((sorted, spill));
        assert_eq!(std::fs::read_dir(parent.path()).unwrap().count(), 0);
    }
}
