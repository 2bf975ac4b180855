//! Samples that were taken down: they keep their ordinals and have neither image nor labels any more.
//!
//! `dropped.arrow` has a row for each: `sample`, the path of its `shard`, its `key`; ascending by sample.
//! The parts stay as they are, so neither the fingerprint nor an ordinal changes.

use std::path::Path;
use std::sync::Arc;

use arrow_array::builder::StringBuilder;
use arrow_array::cast::AsArray;
use arrow_array::types::UInt64Type;
use arrow_array::{ArrayRef, RecordBatch, UInt64Array};
use arrow_ipc::reader::FileReader;
use arrow_schema::{DataType, Field, Schema, SchemaRef};

use super::format::{FileEntry, KeyScope, MANIFEST, Manifest, NO_SHARD, write_table};
use super::read::Index;
use super::records::shard_stem;
use crate::{Error, Result};

/// A sample that was taken down.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Dropped {
    /// Its ordinal.
    pub sample: u64,
    /// The path of its shard; empty without one.
    pub shard: String,
    /// Its key.
    pub key: String,
}

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("sample", DataType::UInt64, false),
        Field::new("shard", DataType::Utf8, false),
        Field::new("key", DataType::Utf8, false),
    ]))
}

/// Reads `dropped.arrow`, whose bytes have been held against its checksum.
pub(super) fn read(path: &Path, bytes: &[u8], num_samples: u64) -> Result<Vec<Dropped>> {
    let bad = || Error::data(format!("{}: not a table of dropped samples", path.display()));
    let reader = FileReader::try_new(std::io::Cursor::new(bytes), None)?;
    if reader.schema().fields() != schema().fields() {
        return Err(bad());
    }
    let mut rows: Vec<Dropped> = Vec::new();
    for batch in reader {
        let batch = batch?;
        let samples = batch.column(0).as_primitive::<UInt64Type>();
        let (shards, keys) =
            (batch.column(1).as_string::<i32>(), batch.column(2).as_string::<i32>());
        for row in 0..batch.num_rows() {
            let sample = samples.value(row);
            if sample >= num_samples || rows.last().is_some_and(|last| last.sample >= sample) {
                return Err(bad());
            }
            let text = |array: &arrow_array::StringArray| array.value(row).to_owned();
            rows.push(Dropped { sample, shard: text(shards), key: text(keys) });
        }
    }
    Ok(rows)
}

/// Writes rows, ascending by sample.
pub(super) fn write(folder: &Path, name: &str, rows: &[Dropped]) -> Result<FileEntry> {
    let (mut shards, mut keys) = (StringBuilder::new(), StringBuilder::new());
    for row in rows {
        shards.append_value(&row.shard);
        keys.append_value(&row.key);
    }
    let samples: UInt64Array = rows.iter().map(|row| row.sample).collect::<Vec<_>>().into();
    let columns: Vec<ArrayRef> =
        vec![Arc::new(samples), Arc::new(shards.finish()), Arc::new(keys.finish())];
    let batch = RecordBatch::try_new(schema(), columns)?;
    write_table(folder, name, &schema(), [Ok(batch)])
}

/// What dropping keys came to.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Samples taken down now.
    pub num_dropped: u64,
    /// Samples that were taken down before.
    pub num_known: u64,
    /// Keys that no sample has.
    pub unknown: Vec<String>,
}

/// Takes the samples with these keys down, in the index in `folder`.
///
/// Where keys begin anew in every shard, a key is `SHARD:KEY`, SHARD being the file's name without
/// `.tar`. The manifest is replaced last; readers that are open keep what they have.
pub fn drop_keys(folder: &Path, keys: &[String]) -> Result<Outcome> {
    let index = Index::open(folder, None)?;
    let mut outcome = Outcome::default();
    let mut rows = index.dropped().to_vec();
    for key in keys {
        let samples = find(&index, key)?;
        if samples.is_empty() {
            outcome.unknown.push(key.clone());
        }
        for sample in samples {
            if index.is_dropped(sample) {
                outcome.num_known += 1;
                continue;
            }
            let row = index.row(sample)?;
            let shard = index.shards().get(row.shard as usize).filter(|_| row.shard != NO_SHARD);
            let shard = shard.map_or(String::new(), |shard| shard.path.clone());
            rows.push(Dropped { sample, shard, key: row.key.to_owned() });
        }
    }
    rows.sort();
    rows.dedup();
    outcome.num_dropped = (rows.len() - index.dropped().len()) as u64;
    if outcome.num_dropped > 0 {
        let mut manifest = index.manifest().clone();
        let old = manifest.dropped.clone();
        let name = next_name("dropped", "arrow", old.as_ref());
        manifest.dropped = Some(write(folder, &name, &rows)?);
        manifest.counts.insert("samples_dropped".to_owned(), rows.len() as u64);
        manifest.write(folder)?;
        if let Some(old) = old {
            let _ = std::fs::remove_file(folder.join(old.file));
        }
    }
    Ok(outcome)
}

/// The samples that a line of a list of keys names.
fn find(index: &Index, key: &str) -> Result<Vec<u64>> {
    match index.manifest().key_scope {
        KeyScope::Global => index.find_all(key),
        KeyScope::Shard => {
            let (stem, key) = split_scoped(key)?;
            let mut found = index.find_all(key)?;
            let mut fault = None;
            found.retain(|&sample| match index.row(sample) {
                Ok(row) => {
                    let shard = index.shards().get(row.shard as usize);
                    shard.is_some_and(|shard| shard_stem(&shard.path) == stem)
                }
                Err(error) => {
                    fault = Some(error);
                    false
                }
            });
            fault.map_or(Ok(found), Err)
        }
    }
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

/// What was taken down before an index was built anew, as far as its keys are there again.
pub(super) fn carry_over(
    folder: &Path,
    old: &[Dropped],
    fresh: &Index,
) -> Result<Option<FileEntry>> {
    let mut rows = Vec::new();
    for row in old {
        for sample in fresh.find_all(&row.key)? {
            let place = fresh.row(sample)?;
            let shard =
                fresh.shards().get(place.shard as usize).filter(|_| place.shard != NO_SHARD);
            let shard = shard.map_or("", |shard| shard.path.as_str());
            let same = shard_stem(shard) == shard_stem(&row.shard);
            if fresh.manifest().key_scope == KeyScope::Global || same {
                rows.push(Dropped { sample, shard: shard.to_owned(), key: row.key.clone() });
            }
        }
    }
    rows.sort();
    rows.dedup();
    if rows.is_empty() {
        return Ok(None);
    }
    let name =
        next_name("dropped", "arrow", Manifest::read(folder).ok().and_then(|m| m.dropped).as_ref());
    write(folder, &name, &rows).map(Some)
}

/// The name of a file that stands in for `old`, which readers may have open: `stem-N.extension`.
pub(super) fn next_name(stem: &str, extension: &str, old: Option<&FileEntry>) -> String {
    let Some(old) = old else { return format!("{stem}.{extension}") };
    let number = old.file.strip_prefix(stem).and_then(|rest| rest.strip_prefix('-'));
    let number = number.and_then(|rest| rest.strip_suffix(extension)?.strip_suffix('.'));
    let next = number.and_then(|number| number.parse::<u64>().ok()).unwrap_or(0) + 1;
    debug_assert_ne!(old.file, MANIFEST);
    format!("{stem}-{next}.{extension}")
}
