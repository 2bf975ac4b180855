//! Records in memory while shards are scanned: labels by key.

use arrow_array::cast::AsArray;
use arrow_array::types::{Int32Type, Int64Type, UInt32Type, UInt64Type};
use arrow_array::{Array, RecordBatch};
use arrow_schema::DataType;
use hashbrown::HashTable;
use xxhash_rust::xxh3::xxh3_64;

use crate::{Error, Result};

/// Records by key, in memory.
#[derive(Debug, Default)]
pub(super) struct Records {
    table: HashTable<Record>,
    keys: Vec<u8>,
    labels: Vec<u32>,
}

#[derive(Debug)]
struct Record {
    hash: u64,
    key: std::ops::Range<usize>,
    labels: std::ops::Range<usize>,
    used: bool,
}

impl Records {
    /// Whether the key is new.
    pub(super) fn insert(&mut self, key: &str, labels: &[u32]) -> bool {
        let Self { table, keys, labels: all } = self;
        let hash = xxh3_64(key.as_bytes());
        let same = |record: &Record| &keys[record.key.clone()] == key.as_bytes();
        if table.find(hash, same).is_some() {
            return false;
        }
        let (key_start, label_start) = (keys.len(), all.len());
        keys.extend_from_slice(key.as_bytes());
        all.extend_from_slice(labels);
        let record = Record {
            hash,
            key: key_start..keys.len(),
            labels: label_start..all.len(),
            used: false,
        };
        table.insert_unique(hash, record, |record| record.hash);
        true
    }

    /// The labels of the record, which is used from now on.
    pub(super) fn take(&mut self, key: &str) -> Option<&[u32]> {
        let Self { table, keys, labels } = self;
        let same = |record: &Record| &keys[record.key.clone()] == key.as_bytes();
        let record = table.find_mut(xxh3_64(key.as_bytes()), same)?;
        record.used = true;
        Some(&labels[record.labels.clone()])
    }

    pub(super) fn num_unused(&self) -> u64 {
        self.table.iter().filter(|record| !record.used).count() as u64
    }
}

/// The keys of a batch of records; integers are read as their decimal digits.
pub(super) enum Keys<'a> {
    Small(&'a arrow_array::StringArray),
    Large(&'a arrow_array::LargeStringArray),
    View(&'a arrow_array::StringViewArray),
    Int(Vec<Option<String>>),
}

impl<'a> Keys<'a> {
    pub(super) fn new(batch: &'a RecordBatch, name: &str) -> Result<Self> {
        let array = batch.column_by_name(name).ok_or_else(|| {
            let schema = batch.schema();
            let known: Vec<_> = schema.fields().iter().map(|field| field.name().as_str()).collect();
            Error::usage(format!(
                "the records have no column {name:?} for their keys; their columns are: {}",
                known.join(", ")
            ))
        })?;
        macro_rules! digits {
            ($kind:ty) => {
                Self::Int(
                    array
                        .as_primitive::<$kind>()
                        .iter()
                        .map(|n| n.map(|n| n.to_string()))
                        .collect(),
                )
            };
        }
        Ok(match array.data_type() {
            DataType::Utf8 => Self::Small(array.as_string()),
            DataType::LargeUtf8 => Self::Large(array.as_string()),
            DataType::Utf8View => Self::View(array.as_string_view()),
            DataType::Int32 => digits!(Int32Type),
            DataType::Int64 => digits!(Int64Type),
            DataType::UInt32 => digits!(UInt32Type),
            DataType::UInt64 => digits!(UInt64Type),
            kind => {
                return Err(Error::usage(format!(
                    "the keys of records must be text or integers, and column {name:?} is of type \
                     {kind}"
                )));
            }
        })
    }

    pub(super) fn get(&self, row: usize) -> Option<std::borrow::Cow<'_, str>> {
        match self {
            Self::Small(array) => array.is_valid(row).then(|| array.value(row).into()),
            Self::Large(array) => array.is_valid(row).then(|| array.value(row).into()),
            Self::View(array) => array.is_valid(row).then(|| array.value(row).into()),
            Self::Int(keys) => keys.get(row)?.as_deref().map(Into::into),
        }
    }
}
