//! Samples that were removed: they keep their ordinals and have neither image nor labels any more.
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

use super::format::{FileEntry, MANIFEST, write_table};
use crate::{Error, Result};

/// A sample that was removed.
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

/// Reads `dropped.arrow`, whose bytes have been checked against its checksum.
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

/// The name of a file that replaces `old`, which readers may have open: `stem-N.extension`.
pub(super) fn next_name(stem: &str, extension: &str, old: Option<&FileEntry>) -> String {
    let Some(old) = old else { return format!("{stem}.{extension}") };
    let number = old.file.strip_prefix(stem).and_then(|rest| rest.strip_prefix('-'));
    let number = number.and_then(|rest| rest.strip_suffix(extension)?.strip_suffix('.'));
    let next = number.and_then(|number| number.parse::<u64>().ok()).unwrap_or(0) + 1;
    debug_assert_ne!(old.file, MANIFEST);
    format!("{stem}-{next}.{extension}")
}
