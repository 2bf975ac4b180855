//! Records that are an index by themselves: rows of a group of tables in their order, and parts out of them.
//!
//! A file has the rows that are taken, [`SECTION_ROWS`] to a section, so that who makes a part
//! reads no more of it than a section on either side.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use arrow_array::RecordBatch;
use arrow_schema::ArrowError;

use super::part::{check_num_rows, write_rows};
use super::sections::{Sections, SectionsWriter, read_each};
use super::{About, Taking};
use crate::count::CountOptions;
use crate::index::format::NO_SHARD;
use crate::index::tables::group::GroupEncoder;
use crate::index::write::encode::BatchEncoder;
use crate::index::write::records::{Columns, Keys};
use crate::index::write::rows::Rows;
use crate::job::Job;
use crate::parquet::ParquetRecords;
use crate::spill::partitions::{Input, put, put_bytes};
use crate::store::Storage;
use crate::vocabulary::Vocabulary;
use crate::{Result, threads};

/// Rows of a section; the last of a file may have fewer.
const SECTION_ROWS: u64 = 1 << 14;

/// Writes records as rows, their hashtags as labels of `vocabulary`, as `out`; `job` advances by records.
pub fn save_rows(
    batches: impl IntoIterator<Item = std::result::Result<RecordBatch, ArrowError>>,
    columns: &Columns,
    options: &CountOptions,
    vocabulary: &Vocabulary,
    taking: &Taking,
    out: &Path,
    job: &Job,
) -> Result<()> {
    let mut encoder = BatchEncoder::new(threads::pool(options.num_threads)?, vocabulary, options)?;
    let mut writer = Writer::create(out, taking)?;
    for batch in batches {
        let batch = batch?;
        let keys = Keys::new(&batch, columns, false)?;
        encoder.encode(&batch, job, |row, labels| writer.push(&keys.get(row)?, labels))?;
        job.advance(batch.num_rows() as u64);
    }
    writer.publish(encoder.num_unknown())
}

/// The same with the records of Parquet files.
pub fn save_parquet_rows(
    records: &ParquetRecords,
    num_threads: Option<usize>,
    vocabulary: &Vocabulary,
    taking: &Taking,
    out: &Path,
    job: &Job,
) -> Result<()> {
    let mut encoder = GroupEncoder::new(threads::pool(num_threads)?, records, None, vocabulary)?;
    let mut writer = Writer::create(out, taking)?;
    loop {
        let groups = encoder.next_groups(job)?;
        if groups.is_empty() {
            break;
        }
        for group in groups {
            for row in 0..group.len() {
                let (key, labels) = group.row(row);
                writer.push(key, labels)?;
            }
            job.advance(group.len() as u64);
        }
    }
    let num_unknown = encoder.num_unknown();
    writer.publish(num_unknown)
}

/// A file of rows being written.
struct Writer<'a> {
    file: SectionsWriter,
    taking: &'a Taking,
    section: Vec<u8>,
    num_records: u64,
    num_rows: u64,
    num_without_labels: u64,
    counts: BTreeMap<String, u64>,
}

impl<'a> Writer<'a> {
    fn create(out: &Path, taking: &'a Taking) -> Result<Self> {
        Ok(Self {
            file: SectionsWriter::create(out)?,
            taking,
            section: Vec::new(),
            num_records: 0,
            num_rows: 0,
            num_without_labels: 0,
            counts: BTreeMap::new(),
        })
    }

    fn push(&mut self, key: &str, labels: &[u32]) -> Result<()> {
        self.num_records += 1;
        if self.taking.lists.leaves_out(key, &mut self.counts) {
            return Ok(());
        }
        put_bytes(&mut self.section, key.as_bytes());
        put(&mut self.section, labels.len() as u64);
        labels.iter().for_each(|&label| put(&mut self.section, u64::from(label)));
        self.num_without_labels += u64::from(labels.is_empty());
        self.num_rows += 1;
        if self.num_rows.is_multiple_of(SECTION_ROWS) { self.end_section() } else { Ok(()) }
    }

    fn end_section(&mut self) -> Result<()> {
        self.file.put(&self.section)?;
        self.file.end_section();
        self.section.clear();
        Ok(())
    }

    fn publish(mut self, num_unknown: u64) -> Result<()> {
        if !self.section.is_empty() {
            self.end_section()?;
        }
        let Self { file, num_records, num_rows, num_without_labels, counts, .. } = self;
        file.publish(&About::Rows {
            num_records,
            num_unknown,
            num_rows,
            num_without_labels,
            counts,
        })
    }
}

/// Writes a part as `out`: of each file of rows those that are wanted.
pub fn write_alone(
    wanted: &[(PathBuf, Range<u64>)],
    storage: &Storage,
    out: &Path,
    job: &Job,
) -> Result<()> {
    check_num_rows(wanted.iter().map(|(_, rows)| rows))?;
    let mut rows = Rows::default();
    for (place, range) in wanted {
        push_rows(&Sections::open(place, storage, job)?, range, &mut rows, job)?;
    }
    write_rows(&rows, out)
}

fn push_rows(file: &Sections, wanted: &Range<u64>, rows: &mut Rows, job: &Job) -> Result<()> {
    let About::Rows { num_rows, .. } = file.about else {
        return Err(file.damaged("it holds no rows"));
    };
    if wanted.is_empty() || wanted.end > num_rows {
        let what = format!("expected the rows {} to {}", wanted.start, wanted.end);
        return Err(file.damaged(&what));
    }

    // Only whole sections can be checked, so some rows before and after those wanted are read too.
    let first = wanted.start / SECTION_ROWS;
    let sections = first as usize..wanted.end.div_ceil(SECTION_ROWS) as usize;
    let bounds = file.bounds(sections.clone(), job)?;
    let (mut row, mut labels, before) = (first * SECTION_ROWS, Vec::new(), rows.len());
    read_each(&[(file, &bounds)], &(0..sections.len()), job, |_, bytes| {
        let mut input = Input::new(bytes);
        while !input.is_empty() {
            let key = std::str::from_utf8(input.bytes()?);
            labels.clear();
            for _ in 0..input.number()? {
                labels.push(input.number()? as u32);
            }
            if wanted.contains(&row) {
                let key = key.map_err(|_| file.damaged("a key is not UTF-8"))?;
                rows.push(key, (NO_SHARD, 0, 0), &labels);
            }
            row += 1;
        }
        Ok(())
    })?;

    // A damaged file must not give an index with fewer rows than its manifest counts.
    if (rows.len() - before) as u64 == wanted.end - wanted.start {
        return Ok(());
    }
    Err(file.damaged("it holds fewer rows than it says"))
}
