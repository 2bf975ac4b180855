//! Building an index: shards are scanned by their headers, joined with their records, and written
//! part by part.
//!
//! Shards are scanned in parallel, a few at a time, and taken in their order, so threads never change
//! a byte. Records (key and labels) are held in memory while shards are scanned. Nothing is lost
//! without a word: what was left out and why is counted, stands in the manifest, and where its share
//! is above a limit the build is refused.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::builder::StringBuilder;
use arrow_array::{ArrayRef, ListArray, RecordBatch, StringArray, UInt32Array, UInt64Array};
use arrow_buffer::{Buffer, OffsetBuffer, ScalarBuffer};
use arrow_schema::{ArrowError, DataType, Field};
use hashbrown::HashSet;
use rayon::prelude::*;
use xxhash_rust::xxh3::xxh3_64;

use super::format::{
    BATCH_ROWS, FORMAT, FORMAT_VERSION, FileEntry, KEYS, KEYS_MAGIC, LabelKind, MANIFEST, Manifest,
    PART_ROWS, SHARDS, part_schema, shards_schema, write_bytes, write_table,
};
use super::records::{Keys, Records};
use crate::count::{CountOptions, tag_column};
use crate::hashtag::{RecordReader, Tally};
use crate::job::Job;
use crate::shard::{IMAGE_EXTENSIONS, Scanner, split_name};
use crate::vocabulary::{Encoder, Vocabulary};
use crate::{Error, Result, publish};

/// Longer `.cls` members are refused.
const MAX_CLASS_BYTES: u64 = 64;
/// Classes above this are taken for damage.
const MAX_CLASS: u32 = 100_000_000;

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
    /// Scanning threads; as many as the machine has where `None`.
    pub num_threads: Option<usize>,
    /// Keys to leave out.
    pub exclude: Vec<String>,
    /// Doubled keys, as a share of all samples, above which the build is refused.
    pub max_doubled_share: f64,
}

/// An index being built; visible only after [`publish`](Self::publish).
#[derive(Debug)]
pub struct Builder {
    folder: PathBuf,
    options: BuildOptions,
    pub(super) exclude: HashSet<String>,
    records: Records,
    counts: BTreeMap<String, u64>,
    pub(super) rows: Rows,
    parts: Vec<FileEntry>,
    shards: Shards,
    pub(super) keys: Vec<(u64, u64)>,
    pub(super) num_samples: u64,
    highest_class: Option<u32>,
}

impl Builder {
    /// Starts an index in `folder`, which is made where it is not there.
    pub fn new(folder: impl AsRef<Path>, options: BuildOptions) -> Result<Self> {
        let folder = folder.as_ref().to_path_buf();
        std::fs::create_dir_all(&folder).map_err(|error| Error::io(&folder, error))?;
        let exclude = options.exclude.iter().cloned().collect();
        Ok(Self {
            folder,
            options,
            exclude,
            records: Records::default(),
            counts: BTreeMap::new(),
            rows: Rows::default(),
            parts: Vec::new(),
            shards: Shards::default(),
            keys: Vec::new(),
            num_samples: 0,
            highest_class: None,
        })
    }

    /// Takes records into memory, their hashtags as labels of `vocabulary`; `job` advances by records.
    ///
    /// Of records with the same key the first counts; the others are counted as doubled. A record
    /// without any label of the vocabulary is a record all the same.
    pub fn add_records(
        &mut self,
        batches: impl IntoIterator<Item = std::result::Result<RecordBatch, ArrowError>>,
        key_column: &str,
        options: &CountOptions,
        vocabulary: &Vocabulary,
        job: &Job,
    ) -> Result<()> {
        let mut reader = RecordReader::new(options.separator.as_deref())?;
        let encoder = Encoder::new(vocabulary);
        let mut labels = Vec::new();
        for batch in batches {
            let batch = batch?;
            let tags = tag_column(&batch, options)?;
            let keys = Keys::new(&batch, key_column)?;
            for row in 0..batch.num_rows() {
                if row % 4096 == 0 {
                    job.check()?;
                }
                labels.clear();
                let mut unknown = 0;
                reader.read(&tags, row, &mut Tally::default(), |tag| match encoder.encode(tag) {
                    Some(label) => labels.push(label),
                    None => unknown += 1,
                });
                labels.sort_unstable();
                labels.dedup();
                let key = keys.get(row).ok_or_else(|| {
                    Error::data(format!("a record without a key (column {key_column:?} is null)"))
                })?;
                let known = self.records.insert(&key, &labels);
                *self.count("records") += 1;
                *self.count("hashtags_outside_the_vocabulary") += unknown;
                *self.count("records_doubled") += u64::from(!known);
            }
            job.advance(batch.num_rows() as u64);
        }
        Ok(())
    }

    pub(super) fn count(&mut self, name: &str) -> &mut u64 {
        self.counts.entry(name.to_owned()).or_insert(0)
    }

    /// Scans shards and writes parts; `paths` pairs where each lies with what `shards.arrow` calls it.
    /// `job` advances by shards.
    pub fn add_shards(&mut self, paths: &[(PathBuf, String)], job: &Job) -> Result<()> {
        let pool = self.thread_pool()?;
        let num_threads = pool.current_num_threads();
        let with_classes = self.options.labels == LabelSource::Members;
        for some in paths.chunks(4 * num_threads) {
            let scans: Vec<Result<Scan>> = pool.install(|| {
                some.par_iter().map(|(path, _)| scan_shard(path, with_classes, job)).collect()
            });
            for ((_, name), scan) in some.iter().zip(scans) {
                self.take(name, scan?)?;
                job.advance(1);
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

    fn take(&mut self, name: &str, scan: Scan) -> Result<()> {
        let shard = u32::try_from(self.shards.names.len())
            .map_err(|_| Error::usage("an index holds at most 4,294,967,295 shards"))?;
        let first = self.num_samples;
        for (cause, number) in scan.left_out {
            *self.count(cause) += number;
        }
        for sample in scan.samples {
            if self.exclude.contains(&sample.key) {
                *self.count("samples_excluded") += 1;
                continue;
            }
            let labels = match self.options.labels {
                LabelSource::None => &[][..],
                LabelSource::Members => sample.class.as_slice(),
                LabelSource::Records => match self.records.take(&sample.key) {
                    Some(labels) => labels,
                    None => {
                        *self.counts.entry("samples_without_record".to_owned()).or_insert(0) += 1;
                        &[]
                    }
                },
            };
            self.highest_class = self.highest_class.max(labels.last().copied());
            if labels.is_empty() {
                *self.counts.entry("samples_without_labels".to_owned()).or_insert(0) += 1;
            }
            self.rows.push(&sample.key, (shard, sample.offset, sample.size), labels);
            self.keys.push((xxh3_64(sample.key.as_bytes()), self.num_samples));
            self.num_samples += 1;
            if self.rows.len() == PART_ROWS {
                self.write_part()?;
            }
        }
        self.shards.push(name, &scan.summary, first, self.num_samples - first);
        Ok(())
    }

    pub(super) fn write_part(&mut self) -> Result<()> {
        let name = format!("part-{:05}.arrow", self.parts.len());
        let batches = std::mem::take(&mut self.rows).batches()?;
        self.parts.push(write_table(&self.folder, &name, &part_schema(), &batches)?);
        Ok(())
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
    /// `vocabulary` is absent for an index without labels; `shard_root` is what the names of shards
    /// start from, `provenance` what the manifest keeps of the inputs.
    pub fn publish(
        mut self,
        vocabulary: Option<&Vocabulary>,
        label_kind: Option<LabelKind>,
        shard_root: &str,
        provenance: serde_json::Value,
    ) -> Result<Manifest> {
        let num_labels = vocabulary.map_or(0, Vocabulary::len) as u64;
        if let Some(class) = self.highest_class.filter(|&class| u64::from(class) >= num_labels) {
            return Err(Error::data(format!(
                "{}: there are samples of class {class}, but only {num_labels} classes have a name; \
                 list all of them in the file of class names",
                self.folder.display()
            )));
        }
        if self.num_samples == 0 {
            return Err(Error::data(format!(
                "{}: the shards hold no image, or the records no row, so there is nothing to index; \
                 members are called KEY.jpg, KEY.png and the like",
                self.folder.display()
            )));
        }
        if self.rows.len() > 0 {
            self.write_part()?;
        }
        let shards = self.shards.batch()?;
        let shards = write_table(&self.folder, SHARDS, &shards_schema(), &[shards])?;
        let keys = self.write_keys()?;
        let unused = self.records.num_unused();
        if self.options.labels == LabelSource::Records {
            *self.count("records_without_sample") = unused;
        }
        let mut manifest = Manifest {
            format: FORMAT.to_owned(),
            format_version: FORMAT_VERSION,
            fingerprint: String::new(),
            num_samples: self.num_samples,
            num_labels,
            label_kind,
            vocabulary_fingerprint: vocabulary.map(Vocabulary::fingerprint),
            shard_root: shard_root.to_owned(),
            parts: self.parts,
            shards,
            keys,
            counts: self.counts,
            provenance,
        };
        manifest.fingerprint = manifest.computed_fingerprint();
        let text = serde_json::to_vec_pretty(&manifest)
            .map_err(|error| Error::usage(format!("the manifest cannot be written: {error}")))?;
        publish::write_file(self.folder.join(MANIFEST), &text)?;
        Ok(manifest)
    }

    fn write_keys(&mut self) -> Result<FileEntry> {
        let mut keys = std::mem::take(&mut self.keys);
        keys.par_sort_unstable();
        let doubled = keys.windows(2).filter(|pair| pair[0].0 == pair[1].0).count() as u64;
        if doubled > 0 {
            self.counts.insert("keys_doubled".to_owned(), doubled);
        }
        if doubled as f64 > self.options.max_doubled_share * self.num_samples as f64 {
            return Err(Error::data(format!(
                "{}: {doubled} of {} samples have a key that another sample has; keys must be \
                 distinct over all shards, so rename the members or index the shards apart",
                self.folder.display(),
                self.num_samples
            )));
        }
        let mut bytes = Vec::with_capacity(16 + keys.len() * 16);
        bytes.extend_from_slice(KEYS_MAGIC);
        bytes.extend_from_slice(&(keys.len() as u64).to_le_bytes());
        for (hash, ordinal) in &keys {
            bytes.extend_from_slice(&hash.to_le_bytes());
            bytes.extend_from_slice(&ordinal.to_le_bytes());
        }
        write_bytes(&self.folder, KEYS, keys.len() as u64, &bytes)
    }
}

/// A sample of a shard.
#[derive(Debug)]
struct Sample {
    key: String,
    offset: u64,
    size: u32,
    class: Option<u32>,
}

#[derive(Debug)]
struct Scan {
    samples: Vec<Sample>,
    left_out: BTreeMap<&'static str, u64>,
    summary: crate::shard::Summary,
}

fn scan_shard(path: &Path, with_classes: bool, job: &Job) -> Result<Scan> {
    let mut scanner = Scanner::open(path)?;
    let mut scan = Samples::default();
    let mut number = 0_u64;
    while let Some(member) = scanner.next_member()? {
        number += 1;
        if number.is_multiple_of(1024) {
            job.check()?;
        }
        let Ok(name) = std::str::from_utf8(&member.name) else {
            scan.leave_out("members_with_a_name_not_utf8");
            continue;
        };
        let Some((key, extension)) = split_name(name) else {
            scan.leave_out("members_without_key");
            continue;
        };
        scan.enter(key);
        let extension = extension.to_ascii_lowercase();
        if IMAGE_EXTENSIONS.contains(&extension.as_str()) {
            match u32::try_from(member.size) {
                Ok(size) => scan.image(member.offset, size),
                Err(_) => scan.leave_out("members_over_4_GiB"),
            }
        } else if with_classes && extension == "cls" {
            let content = scanner.content(&member, MAX_CLASS_BYTES)?;
            let class =
                std::str::from_utf8(&content).ok().and_then(|text| text.trim().parse().ok());
            let class = class.filter(|&class| class <= MAX_CLASS).ok_or_else(|| {
                Error::data(format!(
                    "{}: the member {name:?} at byte {}: expected a class number from 0 to \
                     {MAX_CLASS} as text, found {:?}",
                    path.display(),
                    member.offset,
                    String::from_utf8_lossy(&content)
                ))
            })?;
            scan.class(class);
        }
    }
    let (samples, left_out) = scan.finish();
    Ok(Scan { samples, left_out, summary: scanner.summary() })
}

/// The samples of a shard, put together from members that follow one another.
#[derive(Debug, Default)]
struct Samples {
    done: Vec<Sample>,
    key: String,
    image: Option<(u64, u32)>,
    class: Option<u32>,
    left_out: BTreeMap<&'static str, u64>,
}

impl Samples {
    fn enter(&mut self, key: &str) {
        if key != self.key {
            self.leave();
            key.clone_into(&mut self.key);
        }
    }

    fn leave(&mut self) {
        let (image, class) = (self.image.take(), self.class.take());
        match image {
            Some((offset, size)) => {
                self.done.push(Sample { key: self.key.clone(), offset, size, class });
            }
            None if !self.key.is_empty() => self.leave_out("samples_without_image"),
            None => (),
        }
    }

    fn image(&mut self, offset: u64, size: u32) {
        if self.image.is_some() {
            self.leave_out("further_images_of_a_sample");
        } else {
            self.image = Some((offset, size));
        }
    }

    fn class(&mut self, class: u32) {
        self.class = Some(class);
    }

    fn leave_out(&mut self, cause: &'static str) {
        *self.left_out.entry(cause).or_insert(0) += 1;
    }

    fn finish(mut self) -> (Vec<Sample>, BTreeMap<&'static str, u64>) {
        self.leave();
        (self.done, self.left_out)
    }
}

/// Rows of the part under way, laid out as Arrow has them.
#[derive(Debug, Default)]
pub(super) struct Rows {
    keys: Vec<u8>,
    key_ends: Vec<usize>,
    shards: Vec<u32>,
    offsets: Vec<u64>,
    sizes: Vec<u32>,
    labels: Vec<u32>,
    label_ends: Vec<usize>,
}

impl Rows {
    pub(super) fn len(&self) -> usize {
        self.shards.len()
    }

    /// Adds a sample whose image lies at `(shard, offset, size)`.
    pub(super) fn push(&mut self, key: &str, place: (u32, u64, u32), labels: &[u32]) {
        self.keys.extend_from_slice(key.as_bytes());
        self.key_ends.push(self.keys.len());
        self.shards.push(place.0);
        self.offsets.push(place.1);
        self.sizes.push(place.2);
        self.labels.extend_from_slice(labels);
        self.label_ends.push(self.labels.len());
    }

    fn batches(self) -> Result<Vec<RecordBatch>> {
        let starts = (0..self.len()).step_by(BATCH_ROWS);
        starts.map(|start| self.batch(start, (start + BATCH_ROWS).min(self.len()))).collect()
    }

    fn batch(&self, start: usize, end: usize) -> Result<RecordBatch> {
        let (key_offsets, keys) = spans(&self.key_ends, start, end)?;
        let (label_offsets, labels) = spans(&self.label_ends, start, end)?;
        let keys = Buffer::from(&self.keys[keys]);
        let item = Arc::new(Field::new("item", DataType::UInt32, false));
        let labels: ArrayRef = Arc::new(UInt32Array::from(self.labels[labels].to_vec()));
        let columns: Vec<ArrayRef> = vec![
            Arc::new(StringArray::try_new(key_offsets, keys, None)?),
            Arc::new(UInt32Array::from(self.shards[start..end].to_vec())),
            Arc::new(UInt64Array::from(self.offsets[start..end].to_vec())),
            Arc::new(UInt32Array::from(self.sizes[start..end].to_vec())),
            Arc::new(ListArray::try_new(item, label_offsets, labels, None)?),
        ];
        Ok(RecordBatch::try_new(part_schema(), columns)?)
    }
}

/// Arrow's offsets of the rows from `start` to `end`, and the values they span.
fn spans(
    ends: &[usize],
    start: usize,
    end: usize,
) -> Result<(OffsetBuffer<i32>, std::ops::Range<usize>)> {
    let base = if start == 0 { 0 } else { ends[start - 1] };
    let offset = |end: usize| {
        i32::try_from(end - base).map_err(|_| {
            Error::data(format!(
                "the rows {start} to {end} of a part hold over 2 GiB of keys or labels, more than an \
                 index can hold there; shorten the keys"
            ))
        })
    };
    let offsets = std::iter::once(base).chain(ends[start..end].iter().copied()).map(offset);
    let offsets: Vec<i32> = offsets.collect::<Result<_>>()?;
    let last = ends.get(end.wrapping_sub(1)).copied().unwrap_or(base);
    Ok((OffsetBuffer::new(ScalarBuffer::from(offsets)), base..last))
}

/// Rows of `shards.arrow`.
#[derive(Debug, Default)]
struct Shards {
    names: Vec<String>,
    numbers: [Vec<u64>; 4],
}

impl Shards {
    fn push(&mut self, name: &str, summary: &crate::shard::Summary, first: u64, num: u64) {
        self.names.push(name.to_owned());
        let numbers = [summary.size, summary.header_checksum, first, num];
        for (column, number) in self.numbers.iter_mut().zip(numbers) {
            column.push(number);
        }
    }

    fn batch(&self) -> Result<RecordBatch> {
        let mut names = StringBuilder::new();
        self.names.iter().for_each(|name| names.append_value(name));
        let mut columns: Vec<ArrayRef> = vec![Arc::new(names.finish())];
        for column in &self.numbers {
            columns.push(Arc::new(UInt64Array::from(column.clone())));
        }
        Ok(RecordBatch::try_new(shards_schema(), columns)?)
    }
}
