//! Building an index: shards are scanned by their headers, joined with their records, and written
//! part by part.
//!
//! Shards are scanned in parallel, a few at a time, and taken in their order, so threads never change
//! a byte. Records (key and labels) are held in memory while shards are scanned; where they do not
//! fit, rows are written without labels first and joined on disk ([`super::join`]). Nothing is lost
//! without a word: what was left out and why is counted, stands in the manifest, and where its share
//! is above a limit the build is refused.
//!
//! Every finished file is noted in a journal, so that a killed build goes on where it was, and no file
//! takes the name of one that a manifest names: the old index stays whole until the new manifest is
//! there.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use arrow_array::RecordBatch;
use arrow_schema::ArrowError;
use hashbrown::HashSet;
use rayon::prelude::*;

use super::dropped::{Dropped, next_name};
use super::encode::BatchEncoder;
use super::format::{
    FORMAT, FORMAT_VERSION, FileEntry, KeyScope, LabelKind, MANIFEST, Manifest, NO_SHARD,
    PART_ROWS, entry_of, part_schema, shards_schema, write_table,
};
use super::join::Probes;
use super::journal::{Head, JOURNAL, Journal, Kind, Step};
use super::keys::{self, AllParts};
use super::part::Part;
use super::read::{Index, Shard};
use super::records::{Columns, Keys, Records, join_key, shard_stem};
use super::rows::{Rows, shards_batch};
use super::scan::{Scan, scan_shard};
use super::takedown::{self, split_scoped};
use crate::count::CountOptions;
use crate::job::Job;
use crate::spill::Memory;
use crate::vocabulary::Vocabulary;
use crate::{Error, Result, publish};

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

/// Shares above which a build is refused, by the name of the count, and of which count they are.
pub const LIMITS: [(&str, &str, f64); 5] = [
    ("keys_doubled", "samples", 0.0),
    ("samples_split", "samples", 0.0),
    ("samples_without_record", "samples", 0.99),
    ("records_without_sample", "records", 0.99),
    ("records_doubled", "records", 1.0),
];

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
    /// Shares that stand in for those of [`LIMITS`].
    pub limits: BTreeMap<String, f64>,
    /// How much memory the records may take.
    pub memory: Memory,
    /// Rows of a part, at most [`PART_ROWS`]; those of all parts but the last.
    pub part_rows: usize,
    /// What the build is made of, in the caller's words: a killed build goes on only where they are
    /// the same, and never where they are absent.
    pub resume_key: Option<String>,
    /// Whether the new shards follow those of the index that is there.
    pub append: bool,
}

/// Lists of keys to take and to leave out.
#[derive(Debug)]
struct Lists {
    include: Option<HashSet<Vec<u8>>>,
    exclude: HashSet<Vec<u8>>,
}

impl Lists {
    fn new(options: &BuildOptions) -> Result<Self> {
        let line = |line: &String| match options.key_scope {
            KeyScope::Global => Ok(line.clone().into_bytes()),
            KeyScope::Shard => {
                let (shard, key) = split_scoped(line)?;
                Ok(join_key(shard, key, &mut Vec::new()).to_vec())
            }
        };
        let set = |lines: &Vec<String>| lines.iter().map(line).collect::<Result<HashSet<_>>>();
        let include = options.include.as_ref().map(set).transpose()?;
        Ok(Self { include, exclude: set(&options.exclude)? })
    }

    fn cause(&self, key: &[u8]) -> Option<&'static str> {
        if self.exclude.contains(key) {
            return Some("excluded");
        }
        self.include.as_ref().filter(|include| !include.contains(key)).map(|_| "not_included")
    }

    /// Whether a sample is left out, which is counted.
    fn leaves_out(&self, key: impl AsRef<[u8]>, counts: &mut BTreeMap<String, u64>) -> bool {
        let cause = self.cause(key.as_ref());
        if let Some(cause) = cause {
            *counts.entry(format!("samples_{cause}")).or_insert(0) += 1;
        }
        cause.is_some()
    }
}

/// An index being built; visible only after [`publish`](Self::publish).
#[derive(Debug)]
pub struct Builder {
    folder: PathBuf,
    options: BuildOptions,
    lists: Lists,
    /// The manifest that the new one replaces, and whether it is appended to.
    old: Option<Manifest>,
    old_dropped: Vec<Dropped>,
    journal: Journal,
    records: Records,
    counts: BTreeMap<String, u64>,
    rows: Rows,
    parts: Vec<FileEntry>,
    /// Files of rows that wait for their labels, and how many have got them.
    scans: Vec<FileEntry>,
    num_labelled: usize,
    shards: Vec<Shard>,
    num_shards_noted: usize,
    /// Shards and parts that were there before this process.
    num_shards_kept: usize,
    num_parts_kept: usize,
    /// Samples of the next shard that are done, and the ordinal of its first.
    resume_at: Option<(usize, u64)>,
    num_samples: u64,
    highest_class: Option<u32>,
    next_number: u64,
}

impl Builder {
    /// Starts an index in `folder`, which is made where it is not there, or goes on with one.
    pub fn new(folder: impl AsRef<Path>, options: BuildOptions) -> Result<Self> {
        let folder = folder.as_ref().to_path_buf();
        std::fs::create_dir_all(&folder).map_err(|error| Error::io(&folder, error))?;
        check_limits(&options.limits)?;
        if !(1..=PART_ROWS).contains(&options.part_rows) {
            return Err(Error::usage(format!("part_rows: expected 1 to {PART_ROWS}")));
        }
        let lists = Lists::new(&options)?;
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
            highest_class: None,
            next_number,
            old,
            options,
        };
        if let Some(base) = builder.old.as_ref().filter(|_| builder.options.append) {
            if base.key_scope != builder.options.key_scope {
                return Err(Error::usage(format!(
                    "{}: the index has keys of another scope; build it anew",
                    builder.folder.display()
                )));
            }
            builder.parts.clone_from(&base.parts);
            builder.counts.clone_from(&base.counts);
            builder.num_samples = base.num_samples;
            builder.shards = old_shards;
        }
        builder.num_shards_kept = builder.shards.len();
        builder.num_shards_noted = builder.shards.len();
        for step in steps {
            builder.redo(step);
        }
        builder.num_parts_kept = builder.parts.len();
        Ok(builder)
    }

    /// Takes over what a killed build had finished.
    fn redo(&mut self, step: Step) {
        self.next_number = self.next_number.max(number_of(&step.file) + 1);
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

    /// Whether a killed build goes on.
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
        if columns.shard.is_some() != (self.options.key_scope == KeyScope::Shard) {
            return Err(Error::usage(
                "records need a column that names their shard where keys begin anew in every shard, and \
                 only there",
            ));
        }
        if !self.scans.is_empty() {
            self.records.spill()?;
        }
        let mut fresh: BTreeMap<String, u64> = BTreeMap::new();
        let mut scratch = Vec::new();
        let Self { records, lists, .. } = self;
        for batch in batches {
            let batch = batch?;
            let keys = Keys::new(&batch, columns, true)?;
            encoder.encode(&batch, job, |row, labels| {
                let (shard, key) = (keys.shard(row)?, keys.get(row)?);
                let key = join_key(&shard, &key, &mut scratch);
                if let Some(cause) = lists.cause(key) {
                    *fresh.entry(format!("records_{cause}")).or_insert(0) += 1;
                    return Ok(());
                }
                records.insert(key, labels)
            })?;
            *fresh.entry("records".to_owned()).or_insert(0) += batch.num_rows() as u64;
            job.advance(batch.num_rows() as u64);
        }
        fresh.insert("hashtags_outside_the_vocabulary".to_owned(), encoder.num_unknown());
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

    fn count(&mut self, name: &str) -> &mut u64 {
        self.counts.entry(name.to_owned()).or_insert(0)
    }

    /// Scans shards and writes parts; `paths` pairs where each lies with what `shards.arrow` calls it.
    /// `job` advances by shards.
    pub fn add_shards(&mut self, paths: &[(PathBuf, String)], job: &Job) -> Result<()> {
        self.check_stems(paths)?;
        let pool = self.thread_pool()?;
        let num_threads = pool.current_num_threads();
        let with_classes = self.options.labels == LabelSource::Members;
        let scope = self.options.key_scope;
        let num_done = self.shards.len() - self.num_shards_kept;
        job.advance(num_done as u64);
        let left = paths.get(num_done..).unwrap_or_default();
        for some in left.chunks(2 * num_threads) {
            let scans: Vec<Result<Scan>> = pool.install(|| {
                some.par_iter()
                    .map(|(path, _)| scan_shard(path, with_classes, scope, job))
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

    /// Shards must have names of their own where these stand for them.
    fn check_stems(&self, paths: &[(PathBuf, String)]) -> Result<()> {
        if self.options.key_scope == KeyScope::Global {
            return Ok(());
        }
        let kept = self.shards[..self.num_shards_kept].iter().map(|shard| shard.path.as_str());
        let mut known = HashSet::new();
        for path in kept.chain(paths.iter().map(|(_, name)| name.as_str())) {
            if !known.insert(shard_stem(path)) {
                return Err(Error::usage(format!(
                    "there are two shards called {:?}; where keys begin anew in every shard, their names \
                     must differ",
                    shard_stem(path)
                )));
            }
        }
        Ok(())
    }

    pub(super) fn thread_pool(&self) -> Result<rayon::ThreadPool> {
        let num_threads = match self.options.num_threads {
            Some(0) => return Err(Error::usage("num_threads must be at least 1")),
            Some(number) => number,
            None => std::thread::available_parallelism().map_or(1, usize::from),
        };
        let pool = rayon::ThreadPoolBuilder::new().num_threads(num_threads).build();
        pool.map_err(|error| Error::usage(format!("num_threads {num_threads}: {error}")))
    }

    fn take(&mut self, name: &str, scan: &Scan) -> Result<()> {
        let shard = u32::try_from(self.shards.len()).ok().filter(|&shard| shard < NO_SHARD);
        let shard =
            shard.ok_or_else(|| Error::usage("an index holds at most 4,294,967,294 shards"))?;
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
            if known.is_empty() && !self.records.is_spilled() {
                *self.counts.entry("samples_without_labels".to_owned()).or_insert(0) += 1;
            }
            self.rows.push(key, (shard, offset, size), known);
            self.num_samples += 1;
            if self.rows.len() == self.options.part_rows {
                self.write_rows(sample + 1, first)?;
            }
        }
        for (&cause, &number) in &scan.left_out {
            *self.count(cause) += number;
        }
        self.shards.push(Shard {
            path: name.to_owned(),
            size: scan.summary.size,
            header_checksum: scan.summary.header_checksum,
            first_sample: first,
            num_samples: self.num_samples - first,
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

    /// Records alone that a killed build has taken.
    pub(super) fn num_records_done(&self) -> usize {
        self.resume_at.map_or(0, |(num_done, _)| num_done)
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
        let stem = if kind == Kind::Scan { "scan" } else { "part" };
        let name = format!("{stem}-{:05}.arrow", self.next_number);
        self.next_number += 1;
        let file = write_table(&self.folder, &name, &part_schema(), self.rows.batches())?;
        self.rows.clear();
        if kind == Kind::Scan { &mut self.scans } else { &mut self.parts }.push(file.clone());
        Ok(file)
    }

    /// Gives the rows that wait for them their labels; returns a key of records that no sample has.
    fn label_scans(&mut self, job: &Job) -> Result<Option<String>> {
        if !self.records.is_spilled() {
            return Ok(None);
        }
        let (shards, scope) = (std::mem::take(&mut self.shards), self.options.key_scope);
        let names = |shard| scoped_name(&shards, scope, shard);
        let mut probes = Probes::new(&self.options.memory, &names)?;
        for entry in &self.parts[..self.num_parts_kept] {
            probes.mark(&Part::open(&self.folder, entry)?, job)?;
        }
        for entry in &self.scans[self.num_labelled..] {
            probes.ask(&Part::open(&self.folder, entry)?, job)?;
        }
        let records = std::mem::take(&mut self.records).into_partitions()?;
        let labels = probes.join(&records, &self.options.memory, job)?;
        drop(records);
        self.shards = shards;
        *self.count("records_doubled") += labels.num_doubled;
        *self.count("records_without_sample") += labels.num_unused;
        let waiting = self.scans[self.num_labelled..].to_vec();
        for (file, entry) in waiting.iter().enumerate() {
            job.check()?;
            let scan = Part::open(&self.folder, entry)?;
            let found = labels.of_file(file, scan.num_rows())?;
            let (mut num_without, mut num_empty) = (0, 0);
            for row in 0..scan.num_rows() {
                let place = scan.row(row)?;
                let of_row = found.get(row);
                num_without += u64::from(of_row.is_none());
                let of_row = of_row.unwrap_or_default();
                num_empty += u64::from(of_row.is_empty());
                self.rows.push(place.key, (place.shard, place.offset, place.size), of_row);
            }
            for (name, number) in
                [("samples_without_record", num_without), ("samples_without_labels", num_empty)]
            {
                if number > 0 {
                    *self.count(name) += number;
                }
            }
            let file = self.write_file(Kind::Labelled)?;
            self.num_labelled += 1;
            // The counts of the join are made again by whoever goes on.
            let mut counts = self.counts.clone();
            counts.insert("records_doubled".to_owned(), 0);
            counts.insert("records_without_sample".to_owned(), 0);
            let (shards, num_done, first_sample) = (Vec::new(), 0, 0);
            let highest_class = self.highest_class;
            let kind = Kind::Labelled;
            let step = Step { kind, file, shards, num_done, first_sample, counts, highest_class };
            self.journal.note(&step)?;
        }
        Ok(labels.unused_key)
    }

    /// The highest class number seen, from which the number of classes follows where nobody names them.
    pub fn highest_class(&self) -> Option<u32> {
        self.highest_class
    }

    /// Samples so far.
    pub fn num_samples(&self) -> u64 {
        self.num_samples
    }

    /// Writes what is left, and the manifest last of all: from then on the index is there.
    ///
    /// `vocabulary` is absent for an index without labels; its file is `vocabulary_file`, a name in the
    /// folder that becomes `vocabulary.parquet`. `shard_root` is what the names of shards start from,
    /// `provenance` what the manifest keeps of the inputs.
    pub fn publish(
        mut self,
        vocabulary: Option<(&Vocabulary, &str)>,
        label_kind: Option<LabelKind>,
        shard_root: &str,
        provenance: serde_json::Value,
        job: &Job,
    ) -> Result<Manifest> {
        let num_labels = vocabulary.map_or(0, |(vocabulary, _)| vocabulary.len()) as u64;
        self.check_content(num_labels)?;
        if self.rows.len() > 0 {
            self.write_rows(0, 0)?;
        }
        let mut unused_key = None;
        if self.options.labels == LabelSource::Records && !self.records.is_spilled() {
            let unused = self.records.table.num_unused();
            unused_key = self.records.table.unused_key();
            // Appending only records of new shards, those of older ones were counted before.
            *self.count("records_without_sample") += unused;
            self.records = Records::default();
        }
        let unused_key = self.label_scans(job)?.or(unused_key);
        let old = self.old.clone();
        let name = next_name("shards", "arrow", old.as_ref().map(|old| &old.shards));
        let batch = shards_batch(&self.shards);
        let shards = write_table(&self.folder, &name, &shards_schema(), [batch])?;
        let keys = self.write_keys(old.as_ref(), job)?;
        self.refuse_shares(unused_key.as_deref())?;
        let vocabulary_file = vocabulary.map(|(labels, file)| {
            let name = super::format::VOCABULARY;
            entry_of(&self.folder, file, name, labels.len() as u64)
        });
        let mut manifest = Manifest {
            format: FORMAT.to_owned(),
            format_version: FORMAT_VERSION,
            fingerprint: String::new(),
            num_samples: self.num_samples,
            num_labels,
            label_kind,
            vocabulary_fingerprint: vocabulary.map(|(vocabulary, _)| vocabulary.fingerprint()),
            key_scope: self.options.key_scope,
            shard_root: shard_root.to_owned(),
            parts: std::mem::take(&mut self.parts),
            shards,
            keys,
            vocabulary: vocabulary_file.transpose()?,
            dropped: old
                .as_ref()
                .filter(|_| self.options.append)
                .and_then(|old| old.dropped.clone()),
            counts: std::mem::take(&mut self.counts),
            provenance,
        };
        manifest.fingerprint = manifest.computed_fingerprint();
        if !self.options.append && !self.old_dropped.is_empty() {
            let fresh = Index::of_manifest(&self.folder, manifest.clone(), None)?;
            manifest.dropped = takedown::carry_over(&self.folder, &self.old_dropped, &fresh)?;
            if let Some(entry) = &manifest.dropped {
                manifest.counts.insert("samples_dropped".to_owned(), entry.num_rows);
            }
        }
        self.make_visible(&manifest, vocabulary.map(|(_, file)| file))?;
        Ok(manifest)
    }

    fn check_content(&self, num_labels: u64) -> Result<()> {
        if let Some(class) = self.highest_class.filter(|&class| u64::from(class) >= num_labels) {
            return Err(Error::data(format!(
                "{}: there are samples of class {class}, but only {num_labels} classes have a name; \
                 list all of them in the file of class names",
                self.folder.display()
            )));
        }
        if self.num_samples == 0 {
            return Err(Error::data(format!(
                "{}: the shards hold no image, or the records no row, or the lists leave none, so there \
                 is nothing to index; members are called KEY.jpg, KEY.png and the like",
                self.folder.display()
            )));
        }
        Ok(())
    }

    /// Both renames come after every byte is written.
    fn make_visible(&self, manifest: &Manifest, vocabulary: Option<&str>) -> Result<()> {
        use std::io::Write;

        let target = self.folder.join(MANIFEST);
        let mut file = publish::Unpublished::create(&target)?;
        file.write_all(&manifest.to_text()?).map_err(|error| Error::io(&target, error))?;
        file.sync()?;
        if let Some(name) = vocabulary.filter(|&name| name != super::format::VOCABULARY) {
            let (from, to) = (self.folder.join(name), self.folder.join(super::format::VOCABULARY));
            std::fs::rename(from, &to).map_err(|error| Error::io(&to, error))?;
        }
        file.publish()?;
        remove_leftovers(&self.folder, manifest);
        Ok(())
    }

    fn write_keys(&mut self, old: Option<&Manifest>, job: &Job) -> Result<FileEntry> {
        let name = next_name("keys", "idx", old.map(|old| &old.keys));
        let distinct = self.options.key_scope == KeyScope::Global;
        let all = AllParts::new(&self.folder, &self.parts);
        let memory = &self.options.memory;
        let written = keys::write(&self.folder, &name, &all, distinct, memory, job)?;
        if distinct && written.num_doubled > 0 {
            self.counts.insert("keys_doubled".to_owned(), written.num_doubled);
            self.check_share("keys_doubled", written.doubled.as_deref())?;
        } else if distinct {
            self.counts.remove("keys_doubled");
        }
        Ok(written.entry)
    }

    fn refuse_shares(&self, unused_key: Option<&str>) -> Result<()> {
        for (name, _, _) in LIMITS {
            let key = if name == "records_without_sample" { unused_key } else { None };
            self.check_share(name, key)?;
        }
        Ok(())
    }

    /// An error where the share of what `name` counts is above its limit.
    fn check_share(&self, name: &str, example: Option<&str>) -> Result<()> {
        let Some(&(_, of, default)) = LIMITS.iter().find(|limit| limit.0 == name) else {
            return Ok(());
        };
        let number = self.counts.get(name).copied().unwrap_or(0);
        let total = match of {
            "samples" => self.num_samples,
            other => self.counts.get(other).copied().unwrap_or(0),
        };
        let limit = self.options.limits.get(name).copied().unwrap_or(default);
        if number as f64 <= limit * total as f64 {
            return Ok(());
        }
        let what = match name {
            "keys_doubled" => {
                "samples have a key that another sample has; keys must be distinct, so \
                               rename the members, index the shards apart, or say --key-scope shard"
            }
            "samples_split" => {
                "samples have members that do not stand together; readers of shards would \
                                take them for two, so pack the shards again"
            }
            "samples_without_record" => {
                "samples have no record of their key; are keys written the same \
                                         way in the records and in the shards?"
            }
            "records_without_sample" => {
                "records have a key that no sample has; are keys written the same \
                                         way in the records and in the shards?"
            }
            _ => "records have a key that an earlier record has",
        };
        let example = example.map_or(String::new(), |key| format!(" (such as {key:?})"));
        Err(Error::data(format!(
            "{}: {number} of {total} {what}{example} A share up to {limit} is allowed; raise it with \
             --limit {name}=SHARE",
            self.folder.display()
        )))
    }
}

/// The name that joins a key with its shard, where keys begin anew in every shard.
fn scoped_name(shards: &[Shard], scope: KeyScope, shard: u32) -> String {
    match scope {
        KeyScope::Global => String::new(),
        KeyScope::Shard => shards.get(shard as usize).map_or(String::new(), |s| s.path.clone()),
    }
}

fn check_limits(limits: &BTreeMap<String, f64>) -> Result<()> {
    for (name, share) in limits {
        if !LIMITS.iter().any(|limit| limit.0 == name) {
            let known: Vec<_> = LIMITS.iter().map(|limit| limit.0).collect();
            return Err(Error::usage(format!(
                "there is no limit {name:?}; those there are: {}",
                known.join(", ")
            )));
        }
        if !(0.0..=1.0).contains(share) {
            return Err(Error::usage(format!(
                "the limit {name}={share}: expected a share from 0 to 1"
            )));
        }
    }
    Ok(())
}

fn number_of(file: &FileEntry) -> u64 {
    let digits = file.file.split(['-', '.']).nth(1);
    digits.and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

fn first_free_number(manifest: &Manifest) -> u64 {
    manifest.parts.iter().map(number_of).max().map_or(0, |highest| highest + 1)
}

/// Removes what belongs to older states of the index, and what killed builds left.
fn remove_leftovers(folder: &Path, manifest: &Manifest) {
    let kept: HashSet<&str> = manifest.files().map(|entry| entry.file.as_str()).collect();
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    let _ = std::fs::remove_file(folder.join(JOURNAL));
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        // A temporary file is called after its target: .tmp-PROCESS-TARGET.
        let target =
            name.strip_prefix(publish::TEMPORARY_PREFIX).and_then(|rest| rest.split_once('-'));
        let target = target.map_or(name, |(_, target)| target);
        let ours = ["part-", "scan-", "shards", "keys", "dropped", "building", MANIFEST];
        let is_ours = ours.iter().any(|prefix| target.starts_with(prefix));
        if is_ours && !kept.contains(name) && name != MANIFEST {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}
