//! The files of an index, and how their bytes are laid out.
//!
//! ```text
//! manifest.json        format version, counts, parts with rows, sizes and checksums, fingerprint
//! shards.arrow         one row a shard: path, size, header_checksum, first_sample, num_samples, and
//!                      etag where shards are in a store
//! part-00000.arrow     one row a sample: key, shard, offset, size, labels
//! keys.idx             one u64 a sample, sorted: the upper bits of its key's hash, and its ordinal
//! vocabulary.parquet   the labels; absent where the index has none
//! dropped.arrow        what was removed: sample, shard, key; absent while nothing was
//! ```
//!
//! Tables are uncompressed Arrow IPC files; parts have record batches of 65,536 rows (the last of a
//! part may be shorter), so row r of a part is in batch r / 65,536. They are mapped and read in
//! place: opening parses the footer and the headers of the batches, lookups follow raw buffers with
//! every offset checked. The manifest is written last, so an index exists whole or not at all.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_ipc::writer::{FileWriter, IpcWriteOptions};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

use crate::map::Map;
use crate::publish::Unpublished;
use crate::{Error, Result};

/// The value of `format` in a manifest.
pub const FORMAT: &str = "wsl-index";
/// The version this engine writes and reads.
pub const FORMAT_VERSION: u32 = 2;
/// Rows of a record batch.
pub const BATCH_ROWS: usize = 65_536;
/// Rows of a part; the last may have fewer.
pub const PART_ROWS: usize = 16 * BATCH_ROWS;
/// The shard of samples that have no image; their offset and size are 0.
pub const NO_SHARD: u32 = u32::MAX;
/// The name of the manifest.
pub const MANIFEST: &str = "manifest.json";
/// The name of the table of shards.
pub const SHARDS: &str = "shards.arrow";
/// The name of the vocabulary.
pub const VOCABULARY: &str = "vocabulary.parquet";
/// What `keys.idx` begins with; the number of entries follows as u64.
pub const KEYS_MAGIC: &[u8; 8] = b"WSLKEYS2";

/// A file of an index.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Name within the folder of the index.
    pub file: String,
    /// Rows, where it is a table; entries, where it is `keys.idx`.
    pub num_rows: u64,
    /// Bytes.
    pub size: u64,
    /// XXH3, 128 bits, in hexadecimal.
    pub checksum: String,
}

/// What labels are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LabelKind {
    /// Hashtags of records; an image has any number of them.
    Hashtag,
    /// The class numbers of a data set.
    Class,
}

/// Within what keys name a sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyScope {
    /// The whole set: a key is there once.
    #[default]
    Global,
    /// The shard: keys begin anew in every shard, and records name the shard they belong to.
    Shard,
}

impl KeyScope {
    /// The scope called `global` or `shard`.
    pub fn parse(name: &str) -> Result<Self> {
        match name {
            "global" => Ok(Self::Global),
            "shard" => Ok(Self::Shard),
            _ => Err(Error::usage(format!("key scope {name:?}: expected global or shard"))),
        }
    }
}

/// What names a shard in records: the last part of its path, without `.tar`.
pub(super) fn shard_stem(path: &str) -> &str {
    let base = path.rsplit(['/', '\\']).next().unwrap_or(path);
    base.strip_suffix(".tar").or_else(|| base.strip_suffix(".parquet")).unwrap_or(base)
}

/// The key that records and samples are joined by.
pub(super) fn join_key<'a>(shard: &str, key: &'a str, scratch: &'a mut Vec<u8>) -> &'a [u8] {
    if shard.is_empty() {
        return key.as_bytes();
    }
    scratch.clear();
    scratch.extend_from_slice(shard_stem(shard).as_bytes());
    scratch.push(0);
    scratch.extend_from_slice(key.as_bytes());
    scratch
}

/// A line `SHARD:KEY`.
pub(super) fn split_scoped(line: &str) -> Result<(&str, &str)> {
    line.split_once(':').ok_or_else(|| {
        Error::usage(format!(
            "the key {line:?}: keys begin anew in every shard of this index, so a list of keys has \
             lines SHARD:KEY, such as 00012:000120007"
        ))
    })
}

/// The content of `manifest.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: String,
    /// [`FORMAT_VERSION`].
    pub format_version: u32,
    /// A hash of format version, vocabulary and parts: equal for equal content, wherever it is.
    pub fingerprint: String,
    /// Samples in all parts.
    pub num_samples: u64,
    /// Labels in the vocabulary.
    pub num_labels: u64,
    /// What labels are; `None` for an index without labels.
    pub label_kind: Option<LabelKind>,
    /// The fingerprint of the vocabulary; `None` without labels.
    pub vocabulary_fingerprint: Option<String>,
    /// The version of Unicode that hashtags were normalized by; absent without hashtags, and in older indexes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unicode_version: Option<String>,
    /// Within what keys name a sample.
    pub key_scope: KeyScope,
    /// The folder that paths of shards start from; relative to the index where it is not absolute.
    pub shard_root: String,
    /// The parts, in order.
    pub parts: Vec<FileEntry>,
    /// `shards.arrow`.
    pub shards: FileEntry,
    /// `keys.idx`.
    pub keys: FileEntry,
    /// `vocabulary.parquet`; `None` without labels.
    pub vocabulary: Option<FileEntry>,
    /// The samples that were removed; `None` while there are none.
    pub dropped: Option<FileEntry>,
    /// What was counted while the index was built.
    pub counts: BTreeMap<String, u64>,
    /// Inputs and options the index was built from, as the builder recorded them.
    pub provenance: serde_json::Value,
}

impl Manifest {
    /// Reads the manifest of the index in `folder`.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(MANIFEST);
        let text = fs::read(&path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Error::usage(format!(
                "{} is not an index: it has no {MANIFEST}; build one with 'wsl index build'",
                folder.display()
            )),
            _ => Error::io(&path, error),
        })?;
        let bad = |what: String| Error::data(format!("{}: {what}", path.display()));
        let tree: serde_json::Value = serde_json::from_slice(&text).map_err(|error| {
            bad(format!("expected the manifest of an index as JSON, found: {error}"))
        })?;

        // Format and version come before the other keys: a newer index may have keys that this one
        // does not know.
        if tree.get("format").and_then(|format| format.as_str()) != Some(FORMAT) {
            return Err(bad(format!("expected \"format\": \"{FORMAT}\"; this is no index of wsl")));
        }
        let version = tree.get("format_version").cloned().unwrap_or_default();
        if version != FORMAT_VERSION {
            return Err(bad(format!(
                "the index is of format version {version}, and this wsl reads version \
                 {FORMAT_VERSION}; build it again with 'wsl index build --overwrite'"
            )));
        }
        check_text(&text).map_err(bad)?;
        let manifest: Self = serde_json::from_value(tree).map_err(|error| {
            bad(format!("the manifest is damaged: {error}; build the index again"))
        })?;
        manifest.check().map_err(bad)?;
        Ok(manifest)
    }

    fn check(&self) -> std::result::Result<(), String> {
        for entry in self.files() {
            if entry.file.contains(['/', '\\']) || entry.file.is_empty() {
                return Err(format!("{:?} is no name of a file of an index", entry.file));
            }
        }
        let total = self.parts.iter().try_fold(0_u64, |sum, part| sum.checked_add(part.num_rows));
        if total != Some(self.num_samples) {
            return Err("its parts do not hold num_samples rows; build the index again".to_owned());
        }
        if self.num_labels > u64::from(u32::MAX) {
            return Err(format!("num_labels {} is more than labels can be", self.num_labels));
        }
        Ok(())
    }

    /// Every file of the index beside the manifest.
    pub fn files(&self) -> impl Iterator<Item = &FileEntry> {
        let others = [Some(&self.shards), Some(&self.keys), self.vocabulary.as_ref()];
        self.parts.iter().chain(others.into_iter().flatten()).chain(&self.dropped)
    }

    /// The text of `manifest.json`; its last entry is a checksum of all before it.
    pub fn to_text(&self) -> Result<Vec<u8>> {
        let mut text = serde_json::to_vec_pretty(self)
            .map_err(|error| Error::usage(format!("the manifest cannot be written: {error}")))?;
        text.truncate(text.len() - 2);
        text.extend_from_slice(b",\n");
        let sum = checksum(&text);
        text.extend_from_slice(CHECKSUM_KEY);
        text.extend_from_slice(format!("{sum}\"\n}}\n").as_bytes());
        Ok(text)
    }

    /// Publishes the manifest in `folder`.
    pub fn write(&self, folder: &Path) -> Result<()> {
        crate::publish::write_file(folder.join(MANIFEST), &self.to_text()?)
    }

    /// The fingerprint that the content of the other fields asks for.
    pub fn computed_fingerprint(&self) -> String {
        let mut hasher = Xxh3::new();
        hasher.update(format!("wsl index {}\n", self.format_version).as_bytes());
        hasher.update(self.vocabulary_fingerprint.as_deref().unwrap_or("none").as_bytes());
        for part in &self.parts {
            hasher.update(b"\n");
            hasher.update(part.checksum.as_bytes());
        }
        format!("{:032x}", hasher.digest128())
    }
}

fn check_text(text: &[u8]) -> std::result::Result<(), String> {
    let at = text.windows(CHECKSUM_KEY.len()).rposition(|window| window == CHECKSUM_KEY);
    let Some(at) = at else {
        return Err("the manifest has no checksum; build the index again".to_owned());
    };
    let expected = format!("{}\"\n}}\n", checksum(&text[..at]));
    if &text[at + CHECKSUM_KEY.len()..] != expected.as_bytes() {
        return Err(
            "the manifest is not as it was written (its checksum does not hold); build the \
                    index again"
                .to_owned(),
        );
    }
    Ok(())
}

/// How the last line of the manifest begins.
const CHECKSUM_KEY: &[u8] = b"  \"checksum\": \"";

/// The columns of a part.
pub fn part_schema() -> SchemaRef {
    let label = Field::new("item", DataType::UInt32, false);
    Arc::new(Schema::new(vec![
        Field::new("key", DataType::Utf8, false),
        Field::new("shard", DataType::UInt32, false),
        Field::new("offset", DataType::UInt64, false),
        Field::new("size", DataType::UInt32, false),
        Field::new("labels", DataType::List(Arc::new(label)), false),
    ]))
}

/// The columns of `shards.arrow`; `etag` is there where a shard is in a store.
pub fn shards_schema(with_etags: bool) -> SchemaRef {
    let mut fields = vec![
        Field::new("path", DataType::Utf8, false),
        Field::new("size", DataType::UInt64, false),
        Field::new("header_checksum", DataType::UInt64, false),
        Field::new("first_sample", DataType::UInt64, false),
        Field::new("num_samples", DataType::UInt64, false),
    ];
    fields.extend(with_etags.then(|| Field::new("etag", DataType::Utf8, true)));
    Arc::new(Schema::new(fields))
}

/// Writes `batches` as an Arrow IPC file named `name` in `folder`, whole or not at all.
pub fn write_table(
    folder: &Path,
    name: &str,
    schema: &SchemaRef,
    batches: impl IntoIterator<Item = Result<RecordBatch>>,
) -> Result<FileEntry> {
    let path = folder.join(name);
    let sink =
        Sink { file: Unpublished::create(&path)?, hasher: Xxh3::new(), size: 0, fault: None };
    let mut writer = FileWriter::try_new_with_options(sink, schema, IpcWriteOptions::default())?;
    let mut num_rows = 0;
    for batch in batches {
        let batch = batch?;
        num_rows += batch.num_rows() as u64;
        if let Err(error) = writer.write(&batch) {
            return Err(writer.get_mut().fault(&path).unwrap_or_else(|| error.into()));
        }
    }
    if let Err(error) = writer.finish() {
        return Err(writer.get_mut().fault(&path).unwrap_or_else(|| error.into()));
    }
    let sink = writer.into_inner()?;
    let (size, checksum) = (sink.size, format!("{:032x}", sink.hasher.digest128()));
    sink.file.publish()?;
    Ok(FileEntry { file: name.to_owned(), num_rows, size, checksum })
}

/// A file under way, its size and checksum.
struct Sink {
    file: Unpublished,
    hasher: Xxh3,
    size: u64,
    /// The system's own error: Arrow's errors keep only its text.
    fault: Option<std::io::Error>,
}

impl Sink {
    fn fault(&mut self, path: &Path) -> Option<Error> {
        self.fault.take().map(|error| Error::io(path, error))
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match self.file.write(bytes) {
            Ok(written) => {
                self.hasher.update(&bytes[..written]);
                self.size += written as u64;
                Ok(written)
            }
            Err(error) => {
                let kept = error.raw_os_error().map(std::io::Error::from_raw_os_error);
                self.fault = kept;
                Err(error)
            }
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush().inspect_err(|error| {
            self.fault = error.raw_os_error().map(std::io::Error::from_raw_os_error);
        })
    }
}

/// The entry of a file of the folder that somebody else wrote.
pub fn entry_of(folder: &Path, file: &str, name: &str, num_rows: u64) -> Result<FileEntry> {
    let path = folder.join(file);
    let bytes = fs::read(&path).map_err(|error| Error::io(&path, error))?;
    let size = bytes.len() as u64;
    Ok(FileEntry { file: name.to_owned(), num_rows, size, checksum: checksum(&bytes) })
}

/// XXH3, 128 bits, in hexadecimal.
pub fn checksum(bytes: &[u8]) -> String {
    format!("{:032x}", xxh3_128(bytes))
}

/// An error where bytes of an index are not those that were written.
pub(super) fn same_checksum(path: &Path, bytes: &[u8], expected: &str) -> Result<()> {
    let found = checksum(bytes);
    if found != expected {
        return Err(Error::data(format!(
            "{}: expected checksum {expected}, found {found}; the file is damaged, so build the index \
             again",
            path.display()
        )));
    }
    Ok(())
}

/// A file of the index, checked against its size and checksum.
pub(super) fn open_checked(folder: &Path, entry: &FileEntry) -> Result<Map> {
    let map = Map::open(folder.join(&entry.file), Some(entry.size))?;
    same_checksum(map.path(), &map, &entry.checksum)?;
    Ok(map)
}
