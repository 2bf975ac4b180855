//! The join of a range of buckets: records become a table, and samples ask it.
//!
//! As many buckets at a time as fit in memory, as on one machine ([`crate::index::write::join`]); the labels of a
//! group of shards are together in the order of buckets, whatever was joined at a time.

use std::ops::Range;
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::xxh3_64;

use super::sections::{Bounds, Sections, SectionsWriter, open_all, read_each};
use super::{About, NUM_BUCKETS};
use crate::index::write::records::Table;
use crate::job::Job;
use crate::spill::partitions::{Input, put};
use crate::spill::{Memory, SpillFile};
use crate::store::Storage;
use crate::{Error, Result};

/// The files of a join, in the order of their groups.
#[derive(Debug, Clone, Default)]
pub struct Inputs {
    /// Of records: of those with one key the first counts.
    pub records: Vec<PathBuf>,
    /// Of samples.
    pub samples: Vec<PathBuf>,
    /// Of samples that have their labels already and only use up their records.
    pub known: Option<PathBuf>,
}

/// Joins `buckets` of all files, and writes the labels of samples as `out`.
pub fn join(
    inputs: &Inputs,
    buckets: Range<usize>,
    memory: &Memory,
    storage: &Storage,
    out: &Path,
    job: &Job,
) -> Result<()> {
    if buckets.is_empty() || buckets.end > NUM_BUCKETS {
        return Err(Error::usage(format!(
            "buckets {} to {}: expected some of 0 to {NUM_BUCKETS}",
            buckets.start, buckets.end
        )));
    }

    // Every worker reads its buckets of every file, so that records and samples of a key meet in
    // one.
    let open = |places: &[PathBuf], is_kind: fn(&About) -> bool| {
        let files = open_all(places, storage, job)?.into_iter();
        files
            .map(|file| Opened::new(file, is_kind, buckets.clone(), job))
            .collect::<Result<Vec<_>>>()
    };
    let files = Files {
        records: open(&inputs.records, |about| matches!(about, About::Records { .. }))?,
        samples: open(&inputs.samples, |about| matches!(about, About::Samples { .. }))?,
        known: open(inputs.known.as_slice(), |about| matches!(about, About::Known {}))?,
    };
    let mut joined = Joined::default();
    let mut writer = SectionsWriter::create(out)?;

    // Labels are written by groups of shards. Where not all buckets fit in memory at a time, those
    // of a group come in several turns, and wait on disk until all are there.
    let some = files.fitting(0, buckets.len(), memory);
    if some.end == buckets.len() {
        joined.join(&files, some, job, |_, labels| {
            writer.put(labels)?;
            writer.end_section();
            Ok(())
        })?;
    } else {
        let mut waiting = Waiting::new(memory, files.samples.len())?;
        let mut some = some;
        while !some.is_empty() {
            joined.join(&files, some.clone(), job, |group, labels| waiting.push(group, labels))?;
            some = files.fitting(some.end, buckets.len(), memory);
        }
        waiting.write(&mut writer)?;
    }
    writer.publish(&joined.about())
}

/// A file of the join, and where its share of the buckets is.
struct Opened {
    file: Sections,
    bounds: Bounds,
}

impl Opened {
    fn new(
        file: Sections,
        is_kind: fn(&About) -> bool,
        buckets: Range<usize>,
        job: &Job,
    ) -> Result<Self> {
        if !is_kind(&file.about) || file.len() != NUM_BUCKETS {
            return Err(file.damaged("it holds other things, or is not parted into buckets"));
        }
        let bounds = file.bounds(buckets, job)?;
        Ok(Self { file, bounds })
    }
}

/// Calls `take` with the number of each file and each entry's bytes on, in the order of the files; `take`
/// returns what it leaves over.
fn read(
    files: &[Opened],
    buckets: &Range<usize>,
    job: &Job,
    mut take: impl for<'a> FnMut(usize, Input<'a>) -> Result<Input<'a>>,
) -> Result<()> {
    let files: Vec<_> = files.iter().map(|one| (&one.file, &one.bounds)).collect();
    read_each(&files, buckets, job, |number, bytes| {
        let mut input = Input::new(bytes);
        while !input.is_empty() {
            input = take(number, input)?;
        }
        Ok(())
    })
}

struct Files {
    records: Vec<Opened>,
    samples: Vec<Opened>,
    known: Vec<Opened>,
}

impl Files {
    /// As many buckets from `first` on as fit in memory, one at least, of `number`.
    fn fitting(&self, first: usize, number: usize, memory: &Memory) -> Range<usize> {
        let (mut next, mut bytes) = (first, 0);
        while next < number {
            // Records in the table take about three times their bytes in files.
            bytes += 3 * self.records.iter().map(|one| one.bounds.num_bytes(next)).sum::<u64>();
            if next > first && bytes >= memory.bytes() as u64 / 2 {
                break;
            }
            next += 1;
        }
        first..next
    }
}

/// What the join has counted.
#[derive(Debug, Default)]
struct Joined {
    num_doubled: u64,
    num_unused: u64,
    unused_key: Option<String>,
    num_without_record: u64,
    num_without_labels: u64,
}

impl Joined {
    fn join(
        &mut self,
        files: &Files,
        buckets: Range<usize>,
        job: &Job,
        mut take: impl FnMut(usize, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let (mut table, mut labels) = (Table::default(), Vec::new());

        // In this order: the first record of a key counts, and samples of the index that is
        // appended to use up theirs before new samples do.
        read(&files.records, &buckets, job, |_, mut input| {
            let key = input.bytes()?;
            labels.clear();
            for _ in 0..input.number()? {
                labels.push(input.number()? as u32);
            }
            self.num_doubled += u64::from(!table.insert(xxh3_64(key), key, &labels));
            Ok(input)
        })?;
        read(&files.known, &buckets, job, |_, mut input| {
            input.number()?;
            let key = input.bytes()?;
            table.take(xxh3_64(key), key, &mut labels)?;
            Ok(input)
        })?;
        // Groups come in their order; one without samples in these buckets has no labels.
        let (mut out, mut group) = (Vec::new(), 0);
        read(&files.samples, &buckets, job, |of, mut input| {
            while group < of {
                take(group, &out)?;
                out.clear();
                group += 1;
            }
            let number = input.number()?;
            let key = input.bytes()?;
            if table.take(xxh3_64(key), key, &mut labels)? {
                put(&mut out, number);
                put(&mut out, labels.len() as u64);
                labels.iter().for_each(|&label| put(&mut out, u64::from(label)));
            } else {
                self.num_without_record += 1;
            }
            self.num_without_labels += u64::from(labels.is_empty());
            Ok(input)
        })?;
        while group < files.samples.len() {
            take(group, &out)?;
            out.clear();
            group += 1;
        }

        // What is left in the table now is records without a sample.
        self.num_unused += table.num_unused();
        self.unused_key = self.unused_key.take().or_else(|| table.unused_key());
        Ok(())
    }

    fn about(self) -> About {
        let Self { num_doubled, num_unused, unused_key, num_without_record, num_without_labels } =
            self;
        About::Labels {
            num_doubled,
            num_unused,
            unused_key,
            num_without_record,
            num_without_labels,
        }
    }
}

/// Labels that wait on disk for those of the buckets after them.
struct Waiting {
    file: SpillFile,
    /// The pieces of each group.
    pieces: Vec<Vec<(u64, usize)>>,
}

impl Waiting {
    fn new(memory: &Memory, num_groups: usize) -> Result<Self> {
        Ok(Self { file: memory.spill_file()?, pieces: vec![Vec::new(); num_groups] })
    }

    fn push(&mut self, group: usize, labels: &[u8]) -> Result<()> {
        if !labels.is_empty() {
            self.pieces[group].push((self.file.append(labels)?, labels.len()));
        }
        Ok(())
    }

    fn write(&self, writer: &mut SectionsWriter) -> Result<()> {
        let mut bytes = Vec::new();
        for pieces in &self.pieces {
            for &(place, length) in pieces {
                bytes.resize(length, 0);
                self.file.read(place, &mut bytes)?;
                writer.put(&bytes)?;
            }
            writer.end_section();
        }
        Ok(())
    }
}
