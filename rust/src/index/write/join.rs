//! Joining rows with records that do not fit in memory.
//!
//! Records are on disk parted by the hash of their keys. The keys of the rows are parted the same
//! way, in the order of the rows. Then, some partitions at a time, as many as fit in memory, the
//! records become a table and the rows ask it: the labels they get go to disk, one section for each
//! file of rows and partition. At last each file of rows is read with its sections, and its part is
//! written. Every step goes through its input once and in order.

use xxhash_rust::xxh3::xxh3_64;

use super::records::Table;
use crate::Result;
use crate::index::format::PART_ROWS;
use crate::index::format::join_key;
use crate::index::part::Part;
use crate::job::Job;
use crate::spill::Memory;
use crate::spill::partitions::{Input, PARTITIONS, Partitions, partition_of, put, put_bytes};

/// Labels of rows, by file of rows.
pub(in crate::index) struct Labels {
    sections: Partitions,
    /// The first block of each file of rows, for each partition.
    starts: Vec<Vec<usize>>,
    pub(in crate::index) num_doubled: u64,
    pub(in crate::index) num_unused: u64,
    pub(in crate::index) unused_key: Option<String>,
}

/// The keys of rows, waiting for the records.
pub(in crate::index) struct Probes<'a> {
    partitions: Partitions,
    shard_names: &'a dyn Fn(u32) -> String,
    num_files: usize,
}

impl<'a> Probes<'a> {
    /// `shard_names` gives what joins a key with its shard: its name, or nothing.
    pub(in crate::index) fn new(
        memory: &Memory,
        shard_names: &'a dyn Fn(u32) -> String,
    ) -> Result<Self> {
        Ok(Self { partitions: Partitions::new(memory)?, shard_names, num_files: 0 })
    }

    /// Rows that have their labels already and only use up their records.
    pub(in crate::index) fn mark(&mut self, part: &Part, job: &Job) -> Result<()> {
        self.push(part, job, |_| 0)
    }

    /// Rows that ask for labels, the next file of them.
    pub(in crate::index) fn ask(&mut self, part: &Part, job: &Job) -> Result<()> {
        let first = (self.num_files * PART_ROWS) as u64 + 1;
        self.num_files += 1;
        self.push(part, job, |row| first + row as u64)
    }

    fn push(&mut self, part: &Part, job: &Job, number: impl Fn(usize) -> u64) -> Result<()> {
        let mut scratch = Vec::new();
        let mut shard = (u32::MAX, String::new());
        for row in 0..part.num_rows() {
            if row % 65_536 == 0 {
                job.check()?;
            }
            let found = part.row(row)?;
            if shard.0 != found.shard {
                shard = (found.shard, (self.shard_names)(found.shard));
            }
            let key = join_key(&shard.1, found.key, &mut scratch);
            self.partitions.push(partition_of(xxh3_64(key)), |out| {
                put(out, number(row));
                put_bytes(out, key);
            })?;
        }
        Ok(())
    }

    /// Looks every row up among `records`.
    pub(in crate::index) fn join(
        mut self,
        records: &Partitions,
        memory: &Memory,
        job: &Job,
    ) -> Result<Labels> {
        self.partitions.finish()?;
        let mut labels = Labels {
            sections: Partitions::new(memory)?,
            starts: vec![Vec::new(); PARTITIONS],
            num_doubled: 0,
            num_unused: 0,
            unused_key: None,
        };
        let mut next = 0;
        while next < PARTITIONS {
            let first = next;
            let mut bytes = 0;
            // Records in the table take about three times their bytes on disk.
            while next < PARTITIONS
                && (next == first
                    || bytes + 3 * records.num_bytes(next) < memory.bytes() as u64 / 2)
            {
                bytes += 3 * records.num_bytes(next);
                next += 1;
            }
            self.join_some(records, first..next, &mut labels, job)?;
        }
        labels.sections.finish()?;
        Ok(labels)
    }

    fn join_some(
        &self,
        records: &Partitions,
        partitions: std::ops::Range<usize>,
        out: &mut Labels,
        job: &Job,
    ) -> Result<()> {
        let mut table = Table::default();
        let mut labels = Vec::new();

        // The records of these partitions are in memory together; the samples only pass.
        for partition in partitions.clone() {
            job.check()?;
            records.read(partition, 0..records.num_blocks(partition), |mut input| {
                let key = input.bytes()?;
                labels.clear();
                for _ in 0..input.number()? {
                    labels.push(input.number()? as u32);
                }
                out.num_doubled += u64::from(!table.insert(xxh3_64(key), key, &labels));
                Ok(input)
            })?;
        }

        // Samples of the index that is appended to have the number 0: they use up a record, and get
        // no labels.
        for partition in partitions {
            job.check()?;
            let blocks = 0..self.partitions.num_blocks(partition);
            self.partitions.read(partition, blocks, |mut input| {
                let number = input.number()?;
                let key = input.bytes()?;
                if table.take(xxh3_64(key), key, &mut labels)? && number > 0 {
                    out.put(partition, number - 1, &labels)?;
                }
                Ok(input)
            })?;
            out.begin_file(partition, self.num_files)?;
            out.sections.flush(partition)?;
        }
        out.num_unused += table.num_unused();
        out.unused_key = out.unused_key.take().or_else(|| table.unused_key());
        Ok(())
    }
}

impl Labels {
    /// Makes the sections of the files up to `file` begin.
    fn begin_file(&mut self, partition: usize, file: usize) -> Result<()> {
        if self.starts[partition].len() <= file {
            self.sections.flush(partition)?;
            let start = self.sections.num_blocks(partition);
            self.starts[partition].resize(file + 1, start);
        }
        Ok(())
    }

    fn put(&mut self, partition: usize, number: u64, labels: &[u32]) -> Result<()> {
        let (file, row) = (number as usize / PART_ROWS, number % PART_ROWS as u64);
        self.begin_file(partition, file)?;
        self.sections.push(partition, |out| {
            put(out, row);
            put(out, labels.len() as u64);
            labels.iter().for_each(|&label| put(out, u64::from(label)));
        })
    }

    /// The labels of a file's rows.
    pub(in crate::index) fn of_file(&self, file: usize, num_rows: usize) -> Result<FileLabels> {
        let mut found = FileLabels::new(num_rows);
        for (partition, starts) in self.starts.iter().enumerate() {
            self.sections.read(partition, starts[file]..starts[file + 1], |mut input| {
                let row = input.number()? as usize;
                found.take(row, &mut input)?;
                Ok(input)
            })?;
        }
        Ok(found)
    }
}

const NO_RECORD: u32 = u32::MAX;

/// The labels of the rows of one file.
pub(in crate::index) struct FileLabels {
    spans: Vec<(usize, u32)>,
    labels: Vec<u32>,
}

impl FileLabels {
    /// Labels of `num_rows` rows, none of which has a record so far.
    pub(in crate::index) fn new(num_rows: usize) -> Self {
        Self { spans: vec![(0, NO_RECORD); num_rows], labels: Vec::new() }
    }

    /// Takes the labels of a row; those of a row that is not wanted are passed over.
    pub(in crate::index) fn take(&mut self, row: usize, input: &mut Input<'_>) -> Result<()> {
        let (start, number) = (self.labels.len(), input.number()?);
        for _ in 0..number {
            self.labels.push(input.number()? as u32);
        }
        match self.spans.get_mut(row) {
            Some(span) => *span = (start, number as u32),
            None => self.labels.truncate(start),
        }
        Ok(())
    }

    /// The labels of a row; `None` where it has no record.
    pub(in crate::index) fn get(&self, row: usize) -> Option<&[u32]> {
        let (start, number) = self.spans[row];
        (number != NO_RECORD).then(|| &self.labels[start..start + number as usize])
    }
}
