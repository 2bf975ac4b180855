//! Building an index: shards are scanned by their headers, joined with their records, and written
//! part by part.
//!
//! Shards are scanned in parallel, a few at a time, and taken in their order, so threads never change
//! a byte. Records (key and labels) are kept in memory while shards are scanned; where they do not
//! fit, rows are written without labels first and joined on disk ([`self::join`]). Nothing is lost
//! without a word: what was left out and why is counted in the manifest, and where its share
//! is above a limit the build is refused.
//!
//! Every finished file is noted in a journal, so that a killed build resumes where it was, and no
//! file takes the name of one that a manifest names: the old index stays whole until the new
//! manifest is there.

pub(super) mod encode;
mod finish;
pub(super) mod join;
pub(super) mod journal;
mod labelling;
mod limits;
pub(super) mod lists;
pub(super) mod records;
pub(super) mod rows;
pub(super) mod scan;
mod tables;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use arrow_array::RecordBatch;
use arrow_schema::ArrowError;
use hashbrown::HashSet;
use rayon::prelude::*;

use self::encode::{BatchEncoder, each_record};
pub use self::finish::Prepared;
use self::journal::{Head, Journal, Kind, Step};
pub use self::limits::LIMITS;
use self::limits::check_limits;
use self::lists::Lists;
use self::records::{Columns, Records};
use self::rows::Rows;
use self::scan::{Scan, scan_shard};
use super::dropped::Dropped;
use super::format::{FileEntry, KeyScope, Manifest, NO_SHARD, PART_ROWS, part_schema, write_table};
use super::format::{join_key, shard_stem};
use super::images::shards::Shard;
use super::mapped::Index;
use super::part::Part;
use super::tables::group::Group;
use crate::count::CountOptions;
use crate::job::Job;
use crate::shard::MAX_SCANS;
use crate::spill::Memory;
use crate::store::{Storage, is_remote};
use crate::vocabulary::Vocabulary;
use crate::{Error, Result, threads};

/// Where the labels of samples come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LabelSource {
    /// Nowhere: the index has no labels.
    None,
    /// The `.cls` members of the shards, a class number each.
    Members,
    /// The records given by [`Builder::add_records`].
    Records,
}

/// How an index is built.
#[derive(Debug, Clone)]
pub struct BuildOptions {
    /// Where labels come from.
    pub labels: LabelSource,
    /// Within what keys name a sample.
    pub key_scope: KeyScope,
    /// Scanning threads; as many as the machine has where `None`.
    pub num_threads: Option<usize>,
    /// The only keys to take.
    pub include: Option<Vec<String>>,
    /// Keys to leave out.
    pub exclude: Vec<String>,
    /// Shares that replace those of [`LIMITS`].
    pub limits: BTreeMap<String, f64>,
    /// How much memory the records may take.
    pub memory: Memory,
    /// Rows of a part, at most [`PART_ROWS`]; those of all parts but the last.
    pub part_rows: usize,
    /// What the build is made of, in the caller's words: a killed build resumes only where they are
    /// the same, and never where they are absent.
    pub resume_key: Option<String>,
    /// Whether the new shards follow those of the index that is there.
    pub append: bool,
    /// How shards in stores are reached.
    pub storage: Storage,
}

/// An index being built; visible only after [`publish`](Self::publish).
///
/// ```
/// use std::collections::BTreeMap;
///
/// use wsl_core::index::format::KeyScope;
/// use wsl_core::index::{BuildOptions, Builder, Index, LabelSource};
/// use wsl_core::job::Job;
/// use wsl_core::spill::Memory;
/// use wsl_core::store::Storage;
///
/// // A shard of one image: a header of tar, the image, and two blocks of zeros at the end.
/// let folder = tempfile::tempdir()?;
/// let mut tar = vec![0_u8; 4 * 512];
/// tar[..5].copy_from_slice(b"a.jpg");
/// tar[124..135].copy_from_slice(b"00000000003");
/// tar[156] = b'0';
/// tar[257..265].copy_from_slice(b"ustar\x0000");
/// tar[148..156].fill(b' ');
/// let sum: u32 = tar[..512].iter().map(|&byte| u32::from(byte)).sum();
/// tar[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
/// tar[512..515].copy_from_slice(b"jpg");
/// let shard = folder.path().join("0.tar");
/// std::fs::write(&shard, tar)?;
///
/// let options = BuildOptions {
///     labels: LabelSource::None,
///     key_scope: KeyScope::Global,
///     num_threads: None,
///     include: None,
///     exclude: Vec::new(),
///     limits: BTreeMap::new(),
///     memory: Memory::unlimited(),
///     part_rows: 1 << 20,
///     resume_key: None,
///     append: false,
///     storage: Storage::default(),
/// };
/// let (out, job) = (folder.path().join("index"), Job::new());
/// let mut builder = Builder::new(&out, options)?;
/// builder.add_shards(&[(shard, "0.tar".to_owned())], &job)?;
/// builder.publish(None, None, "..", serde_json::Value::Null, &job)?;
///
/// let index = Index::open(&out, None)?;
/// assert_eq!(index.find("a")?, Some(0));
/// let mut fetch = index.fetch(&[0], 1)?;
/// let chunk = fetch.next_chunk(&job)?.unwrap();
/// assert_eq!(chunk.images().next(), Some((0, &b"jpg"[..])));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Builder {
    pub(super) folder: PathBuf,
    pub(super) options: BuildOptions,
    lists: Lists,
    /// The manifest that the new one replaces, and whether it is appended to.
    old: Option<Manifest>,
    old_dropped: Vec<Dropped>,
    journal: Journal,
    records: Records,
    counts: BTreeMap<String, u64>,
    rows: Rows,
    pub(super) parts: Vec<FileEntry>,
    /// Files of rows that wait for their labels, and how many have got them.
    scans: Vec<FileEntry>,
    num_labelled: usize,
    pub(super) shards: Vec<Shard>,
    num_shards_noted: usize,
    /// Shards and parts that were there before this process.
    num_shards_kept: usize,
    num_parts_kept: usize,
    /// Samples of the next shard that are done, and the ordinal of its first.
    resume_at: Option<(usize, u64)>,
    pub(super) num_samples: u64,
    /// Records alone that were read, when all were.
    num_records: usize,
    pub(super) highest_class: Option<u32>,
    pub(super) next_number: u64,
    /// A key that no sample has, of records that were joined elsewhere.
    pub(super) unused_key: Option<String>,
}

impl Builder {
    /// Starts an index in `folder`, which is made where it is not there, or resumes one.
    pub fn new(folder: impl AsRef<Path>, options: BuildOptions) -> Result<Self> {
        let folder = folder.as_ref().to_path_buf();
        std::fs::create_dir_all(&folder).map_err(|error| Error::io(&folder, error))?;
        check_limits(&options.limits)?;
        if !(1..=PART_ROWS).contains(&options.part_rows) {
            return Err(Error::usage(format!("part_rows: expected 1 to {PART_ROWS}")));
        }
        let lists = Lists::new(options.key_scope, options.include.as_deref(), &options.exclude)?;
        // What cannot be read any more is replaced, not appended to.
        let old = match Index::open(&folder, None) {
            Ok(index) => Some(index),
            Err(error) if options.append => return Err(error),
            Err(_) => None,
        };
        let (old, old_dropped, old_shards) = match old {
            Some(index) => {
                let (dropped, shards) = (index.dropped().to_vec(), index.shards().to_vec());
                (Some(index.manifest().clone()), dropped, shards)
            }
            None => (Manifest::read(&folder).ok(), Vec::new(), Vec::new()),
        };

        // New files get numbers that the old index has not used: it stays whole until the manifest
        // is replaced.
        let next_number = old.as_ref().map_or(0, first_free_number);
        let base = old.as_ref().filter(|_| options.append);
        let head = options.resume_key.clone().map(|key| Head {
            key,
            base: base.map(|base| base.fingerprint.clone()),
            first_number: next_number,
        });
        let (journal, steps) = Journal::open(&folder, head.as_ref())?;
        let mut builder = Self {
            records: Records::new(options.memory.clone()),
            folder,
            lists,
            old_dropped,
            journal,
            counts: BTreeMap::new(),
            rows: Rows::default(),
            parts: Vec::new(),
            scans: Vec::new(),
            num_labelled: 0,
            shards: Vec::new(),
            num_shards_noted: 0,
            num_shards_kept: 0,
            num_parts_kept: 0,
            resume_at: None,
            num_samples: 0,
            num_records: 0,
            highest_class: None,
            next_number,
            unused_key: None,
            old,
            options,
        };

        // The steps of the journal come after what the index had when they were done.
        builder.begin_with_base(old_shards)?;
        for step in steps {
            builder.redo(step);
        }
        builder.num_parts_kept = builder.parts.len();
        Ok(builder)
    }

    /// Begins with the content of the index that is appended to.
    fn begin_with_base(&mut self, old_shards: Vec<Shard>) -> Result<()> {
        if let Some(base) = self.old.as_ref().filter(|_| self.options.append) {
            if base.key_scope != self.options.key_scope {
                return Err(Error::usage(format!(
                    "{}: the index has keys of another scope; build it anew",
                    self.folder.display()
                )));
            }
            self.parts.clone_from(&base.parts);
            self.counts.clone_from(&base.counts);
            self.num_samples = base.num_samples;
            self.shards = old_shards;
        }
        self.num_shards_kept = self.shards.len();
        self.num_shards_noted = self.shards.len();
        Ok(())
    }

    /// Takes over what a killed build had finished.
    fn redo(&mut self, step: Step) {
        if step.kind != Kind::Scan {
            self.next_number = self.next_number.max(number_of(&step.file) + 1);
        }
        match step.kind {
            Kind::Part => self.parts.push(step.file),
            Kind::Scan => self.scans.push(step.file),
            Kind::Labelled => {
                self.parts.push(step.file);
                self.num_labelled += 1;
                self.counts = step.counts;
                return;
            }
        }
        self.shards.extend(step.shards);
        self.num_shards_noted = self.shards.len();
        self.resume_at = Some((step.num_done, step.first_sample));
        self.counts = step.counts;
        self.highest_class = step.highest_class;
        let files = self.parts.iter().chain(&self.scans);
        self.num_samples = files.map(|file| file.num_rows).sum();
    }

    /// Whether a killed build is resumed.
    pub fn is_resumed(&self) -> bool {
        self.journal.is_resumed
    }

    /// Takes records, their hashtags as labels of `vocabulary`; `job` advances by records.
    ///
    /// Of records with the same key the first counts; the others are counted as doubled. A record
    /// without any label of the vocabulary is a record all the same. Appending, the records are all of
    /// the index's again where `again`, else only those of new shards.
    pub fn add_records(
        &mut self,
        batches: impl IntoIterator<Item = std::result::Result<RecordBatch, ArrowError>>,
        columns: &Columns,
        options: &CountOptions,
        vocabulary: &Vocabulary,
        again: bool,
        job: &Job,
    ) -> Result<()> {
        let mut encoder = BatchEncoder::new(self.thread_pool()?, vocabulary, options)?;
        if !self.scans.is_empty() {
            self.records.spill()?;
        }
        let (scope, Self { records, lists, .. }) = (self.options.key_scope, &mut *self);
        let take = |key: &[u8], labels: &[u32]| records.insert(key, labels);
        let mut fresh = each_record(batches, columns, &mut encoder, (scope, lists), job, take)?;
        fresh.insert("records_doubled".to_owned(), self.records.num_doubled);
        fresh.insert("records_without_sample".to_owned(), 0);
        self.set_counts(fresh, again);
        if !self.records.is_spilled() {
            self.mark_kept(job)?;
        }
        Ok(())
    }

    /// The rows that are there already use up their records.
    fn mark_kept(&mut self, job: &Job) -> Result<()> {
        let mut labels = Vec::new();
        let mut scratch = Vec::new();
        for entry in &self.parts[..self.num_parts_kept] {
            let part = Part::open(&self.folder, entry)?;
            for row in 0..part.num_rows() {
                if row % 65_536 == 0 {
                    job.check()?;
                }
                let found = part.row(row)?;
                let shard = scoped_name(&self.shards, self.options.key_scope, found.shard);
                let key = join_key(&shard, found.key, &mut scratch);
                self.records.table.take(xxhash_rust::xxh3::xxh3_64(key), key, &mut labels)?;
            }
        }
        Ok(())
    }

    pub(super) fn count(&mut self, name: &str) -> &mut u64 {
        self.counts.entry(name.to_owned()).or_insert(0)
    }

    /// Scans shards and writes parts; `paths` pairs where each is with what `shards.arrow` calls
    /// it.
    /// `job` advances by shards.
    pub fn add_shards(&mut self, paths: &[(PathBuf, String)], job: &Job) -> Result<()> {
        self.check_names(paths.iter().map(|(_, name)| name.as_str()))?;
        let pool = self.scanning_pool(paths)?;
        let num_threads = pool.current_num_threads();
        let with_classes = self.options.labels == LabelSource::Members;
        let scope = self.options.key_scope;
        let storage = self.options.storage.clone();
        let storage = &storage;

        // Shards of the journal are done already.
        let num_done = self.shards.len() - self.num_shards_kept;
        job.advance(num_done as u64);
        let left = paths.get(num_done..).unwrap_or_default();

        // A few shards for each thread at a time: they are scanned in any order, and taken in
        // theirs.
        for some in left.chunks(2 * num_threads) {
            let scans: Vec<Result<Scan>> = pool.install(|| {
                some.par_iter()
                    .map(|(path, _)| scan_shard(path, with_classes, scope, storage, job))
                    .collect()
            });
            for ((_, name), scan) in some.iter().zip(scans) {
                job.check()?;
                self.take(name, &scan?)?;
                job.advance(1);
            }
        }
        Ok(())
    }

    /// Shards must have names of their own where keys are distinguished by these; these are the
    /// new ones.
    pub fn check_names<'a>(&'a self, names: impl IntoIterator<Item = &'a str>) -> Result<()> {
        if self.options.key_scope == KeyScope::Global {
            return Ok(());
        }
        let kept = self.shards[..self.num_shards_kept].iter().map(|shard| shard.path.as_str());
        let mut known = HashSet::new();
        for name in kept.chain(names) {
            if !known.insert(shard_stem(name)) {
                return Err(Error::usage(format!(
                    "there are two shards called {:?}; where keys begin anew in every shard, their names \
                     must differ",
                    shard_stem(name)
                )));
            }
        }
        Ok(())
    }

    /// Threads that scan; those of shards in stores wait for answers, so more of them are of use.
    fn scanning_pool(&self, paths: &[(PathBuf, String)]) -> Result<rayon::ThreadPool> {
        let is_waiting = paths.iter().any(|(path, _)| path.to_str().is_some_and(is_remote));
        if self.options.num_threads.is_some() || !is_waiting {
            return self.thread_pool();
        }
        let num_threads = self.options.storage.limits().num_requests.min(MAX_SCANS);
        threads::pool(Some(num_threads))
    }

    pub(super) fn thread_pool(&self) -> Result<rayon::ThreadPool> {
        threads::pool(self.options.num_threads)
    }

    fn take(&mut self, name: &str, scan: &Scan) -> Result<()> {
        let shard = u32::try_from(self.shards.len()).ok().filter(|&shard| shard < NO_SHARD);
        let shard =
            shard.ok_or_else(|| Error::usage("an index holds at most 4,294,967,294 shards"))?;

        // A build that was killed within a shard scans it again, and skips the samples that are in
        // a part.
        let (done, first) = self.resume_at.take().unwrap_or((0, self.num_samples));
        let scoped = if self.options.key_scope == KeyScope::Shard { name } else { "" };
        let (mut labels, mut scratch) = (Vec::new(), Vec::new());
        for sample in done..scan.len() {
            let key = scan.key(sample);
            let joined = join_key(scoped, key, &mut scratch);
            if self.lists.leaves_out(joined, &mut self.counts) {
                continue;
            }
            let (offset, size) = scan.place(sample);
            let known = match self.options.labels {
                LabelSource::None => &[][..],
                LabelSource::Members => scan.class(sample),
                LabelSource::Records if self.records.is_spilled() => &[][..],
                LabelSource::Records => {
                    let hash = xxhash_rust::xxh3::xxh3_64(joined);
                    if !self.records.table.take(hash, joined, &mut labels)? {
                        *self.counts.entry("samples_without_record".to_owned()).or_insert(0) += 1;
                    }
                    &labels[..]
                }
            };
            self.highest_class = self.highest_class.max(known.last().copied());

            // Labels of records on disk come later, and are counted then.
            if known.is_empty() && !self.records.is_spilled() {
                *self.counts.entry("samples_without_labels".to_owned()).or_insert(0) += 1;
            }
            self.rows.push(key, (shard, offset, size), known);
            self.num_samples += 1;
            if self.rows.len() == self.options.part_rows {
                self.write_rows(sample + 1, first)?;
            }
        }
        for (cause, &number) in &scan.left_out {
            *self.count(cause) += number;
        }
        self.shards.push(Shard {
            path: name.to_owned(),
            size: scan.summary.size,
            header_checksum: scan.summary.header_checksum,
            first_sample: first,
            num_samples: self.num_samples - first,
            etag: scan.etag.clone(),
        });
        Ok(())
    }

    /// Adds a sample of records alone, the record `number`.
    pub(super) fn push_record(&mut self, number: usize, key: &str, labels: &[u32]) -> Result<()> {
        if self.lists.leaves_out(key, &mut self.counts) {
            return Ok(());
        }
        if labels.is_empty() {
            *self.count("samples_without_labels") += 1;
        }
        self.rows.push(key, (NO_SHARD, 0, 0), labels);
        self.num_samples += 1;
        if self.rows.len() == self.options.part_rows {
            self.write_rows(number + 1, 0)
        } else {
            Ok(())
        }
    }

    /// Adds the records of a group from `row` on, the first of which is the record `number`.
    pub(super) fn push_group(&mut self, number: usize, group: &Group, row: usize) -> Result<()> {
        if !self.lists.is_empty() {
            return (row..group.len()).try_for_each(|row| {
                let (key, labels) = group.row(row);
                self.push_record(number + row, key, labels)
            });
        }
        let mut row = row;
        while row < group.len() {
            let end = group.len().min(row + self.options.part_rows - self.rows.len());
            let num_empty = self.rows.push_group(group, row..end);
            if num_empty > 0 {
                *self.count("samples_without_labels") += num_empty;
            }
            self.num_samples += (end - row) as u64;
            row = end;
            if self.rows.len() == self.options.part_rows {
                self.write_rows(number + row, 0)?;
            }
        }
        Ok(())
    }

    /// Records alone that a killed build has taken.
    pub(super) fn num_records_done(&self) -> usize {
        self.resume_at.map_or(0, |(num_done, _)| num_done)
    }

    /// Notes that all records of an index of records alone were read, and how many these are.
    pub(super) fn end_records(&mut self, number: usize) {
        self.num_records = number;
    }

    /// Sets counts of records that were read from their beginning; `again` as in
    /// [`add_records`](Self::add_records).
    pub(super) fn set_counts(&mut self, fresh: BTreeMap<String, u64>, again: bool) {
        for (name, number) in fresh {
            let base = self.old.as_ref().filter(|_| self.options.append && !again);
            let before = base.and_then(|old| old.counts.get(&name)).copied().unwrap_or(0);
            self.counts.insert(name, before + number);
        }
    }

    /// Writes the rows so far; `num_done` samples of the shard under way are in them, the first of which
    /// is sample `first`.
    fn write_rows(&mut self, num_done: usize, first: u64) -> Result<()> {
        let kind = if self.records.is_spilled() { Kind::Scan } else { Kind::Part };
        let shards = self.shards[self.num_shards_noted..].to_vec();
        self.num_shards_noted = self.shards.len();
        let file = self.write_file(kind)?;
        self.journal.note(&Step {
            kind,
            file,
            shards,
            num_done,
            first_sample: first,
            counts: self.counts.clone(),
            highest_class: self.highest_class,
        })
    }

    fn write_file(&mut self, kind: Kind) -> Result<FileEntry> {
        // Parts have the same names whether or not rows waited for their labels.
        let name = if kind == Kind::Scan {
            format!("scan-{:05}.arrow", self.scans.len())
        } else {
            self.next_number += 1;
            format!("part-{:05}.arrow", self.next_number - 1)
        };
        let file = write_table(&self.folder, &name, &part_schema(), self.rows.batches())?;
        self.rows.clear();
        if kind == Kind::Scan { &mut self.scans } else { &mut self.parts }.push(file.clone());
        Ok(file)
    }

    /// The highest class number seen, from which the number of classes follows where nobody names them.
    pub fn highest_class(&self) -> Option<u32> {
        self.highest_class
    }
}

/// The name that joins a key with its shard, where keys begin anew in every shard.
fn scoped_name(shards: &[Shard], scope: KeyScope, shard: u32) -> String {
    match scope {
        KeyScope::Global => String::new(),
        KeyScope::Shard => shards.get(shard as usize).map_or(String::new(), |s| s.path.clone()),
    }
}

fn number_of(file: &FileEntry) -> u64 {
    let digits = file.file.split(['-', '.']).nth(1);
    digits.and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

fn first_free_number(manifest: &Manifest) -> u64 {
    manifest.parts.iter().map(number_of).max().map_or(0, |highest| highest + 1)
}
