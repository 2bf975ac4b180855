//! Records by key: in memory while they fit, else parted by the hash of their keys on disk.
//!
//! A record is its key and its labels, in one arena; a table of 16-byte entries leads to them. Of
//! records with the same key the first counts. Where keys begin anew in every shard, a key is joined
//! with the name of its shard.

use std::borrow::Cow;

use arrow_array::cast::AsArray;
use arrow_array::types::{Int32Type, Int64Type, UInt32Type, UInt64Type};
use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_schema::DataType;
use hashbrown::HashTable;
use xxhash_rust::xxh3::xxh3_64;

use crate::spill::Memory;
use crate::spill::partitions::{Input, Partitions, partition_of, put, put_bytes};
use crate::{Error, Result};

const CHUNK: usize = 4 << 20;
const USED: u64 = 1 << 63;

/// Labels by key, in memory.
#[derive(Debug, Default)]
pub(in crate::index) struct Table {
    table: HashTable<Entry>,
    chunks: Vec<Vec<u8>>,
    num_bytes: usize,
}

/// Where a record is: chunk and offset, and whether a sample has used it.
#[derive(Debug, Clone, Copy)]
struct Entry {
    hash: u64,
    place: u64,
}

impl Table {
    fn at(chunks: &[Vec<u8>], place: u64) -> Input<'_> {
        let place = place & !USED;
        Input::new(&chunks[(place >> 32) as usize][(place & 0xffff_ffff) as usize..])
    }

    fn is(chunks: &[Vec<u8>], entry: &Entry, hash: u64, key: &[u8]) -> bool {
        entry.hash == hash && Self::at(chunks, entry.place).bytes().is_ok_and(|found| found == key)
    }

    /// Whether the key is new.
    pub(in crate::index) fn insert(&mut self, hash: u64, key: &[u8], labels: &[u32]) -> bool {
        let Self { table, chunks, num_bytes } = self;
        if table.find(hash, |entry| Self::is(chunks, entry, hash, key)).is_some() {
            return false;
        }
        let wanted = key.len() + 5 * labels.len() + 20;
        if chunks.last().is_none_or(|chunk| chunk.capacity() - chunk.len() < wanted) {
            chunks.push(Vec::with_capacity(wanted.max(CHUNK)));
            *num_bytes += wanted.max(CHUNK);
        }
        let number = (chunks.len() - 1) as u64;
        let Some(chunk) = chunks.last_mut() else { return false };
        let place = number << 32 | chunk.len() as u64;
        put_bytes(chunk, key);
        put(chunk, labels.len() as u64);
        labels.iter().for_each(|&label| put(chunk, u64::from(label)));
        table.insert_unique(hash, Entry { hash, place }, |entry| entry.hash);
        true
    }

    /// Whether there is a record of the key, which is used from now on; its labels go to `labels`.
    pub(in crate::index) fn take(
        &mut self,
        hash: u64,
        key: &[u8],
        labels: &mut Vec<u32>,
    ) -> Result<bool> {
        let Self { table, chunks, .. } = self;
        labels.clear();
        let found = table.find_mut(hash, |entry| Self::is(chunks, entry, hash, key));
        let Some(entry) = found else { return Ok(false) };
        entry.place |= USED;
        let mut input = Self::at(chunks, entry.place);
        input.bytes()?;
        for _ in 0..input.number()? {
            labels.push(input.number()? as u32);
        }
        Ok(true)
    }

    pub(in crate::index) fn num_unused(&self) -> u64 {
        self.table.iter().filter(|entry| entry.place & USED == 0).count() as u64
    }

    /// A key that no sample has used, for a message: that of the least hash, however the table grew.
    pub(in crate::index) fn unused_key(&self) -> Option<String> {
        let key = |entry: &Entry| Self::at(&self.chunks, entry.place).bytes().ok();
        let unused = self.table.iter().filter(|entry| entry.place & USED == 0);
        let least = unused
            .min_by(|one, other| one.hash.cmp(&other.hash).then_with(|| key(one).cmp(&key(other))));
        let key = key(least?)?;
        Some(String::from_utf8_lossy(key).replace('\0', ":"))
    }

    /// Bytes taken, those of the next growth of the table included where it is near.
    fn num_bytes(&self) -> usize {
        let slots = self.table.capacity().max(4);
        let soon = if self.table.len() * 16 > slots * 15 { 3 } else { 1 };
        self.num_bytes + soon * (slots * 8 / 7) * 17
    }
}

/// Records that are read once and asked for by key.
#[derive(Debug, Default)]
pub(in crate::index) struct Records {
    pub(in crate::index) table: Table,
    memory: Memory,
    spilled: Option<Partitions>,
    pub(in crate::index) num_doubled: u64,
}

impl Records {
    pub(in crate::index) fn new(memory: Memory) -> Self {
        Self { memory, ..Self::default() }
    }

    /// Takes a record; the table goes to disk where it would take over half of the memory.
    pub(in crate::index) fn insert(&mut self, key: &[u8], labels: &[u32]) -> Result<()> {
        let hash = xxh3_64(key);
        if let Some(partitions) = &mut self.spilled {
            return put_record(partitions, hash, key, labels);
        }
        self.num_doubled += u64::from(!self.table.insert(hash, key, labels));
        if self.table.num_bytes() > self.memory.bytes() / 2 {
            self.spill()?;
        }
        Ok(())
    }

    /// Whether the records are on disk.
    pub(in crate::index) fn is_spilled(&self) -> bool {
        self.spilled.is_some()
    }

    /// Moves all records to disk.
    pub(in crate::index) fn spill(&mut self) -> Result<()> {
        let mut partitions = Partitions::new(&self.memory)?;
        let table = std::mem::take(&mut self.table);
        let mut labels = Vec::new();
        for chunk in table.chunks {
            let mut rest = Input::new(&chunk);
            while let Ok(key) = rest.bytes() {
                labels.clear();
                for _ in 0..rest.number()? {
                    labels.push(rest.number()? as u32);
                }
                put_record(&mut partitions, xxh3_64(key), key, &labels)?;
            }
        }
        self.spilled = Some(partitions);
        Ok(())
    }

    /// The partitions, complete.
    pub(in crate::index) fn into_partitions(mut self) -> Result<Partitions> {
        if self.spilled.is_none() {
            self.spill()?;
        }
        match self.spilled {
            Some(mut partitions) => {
                partitions.finish()?;
                Ok(partitions)
            }
            None => Err(Error::usage("there are no records")),
        }
    }
}

/// Adds a record to its partition.
pub(in crate::index) fn put_record(
    partitions: &mut Partitions,
    hash: u64,
    key: &[u8],
    labels: &[u32],
) -> Result<()> {
    partitions.push(partition_of(hash), |out| {
        put_bytes(out, key);
        put(out, labels.len() as u64);
        labels.iter().for_each(|&label| put(out, u64::from(label)));
    })
}

/// Which columns of records have what, beside the hashtags.
#[derive(Debug, Clone, Default)]
pub struct Columns {
    /// The key: text or integers.
    pub key: String,
    /// The name of the shard, where keys begin anew in every shard.
    pub shard: Option<String>,
    /// How integer keys are written in the names of members.
    pub key_format: Option<KeyFormat>,
}

/// How an integer is written as a key: text, digits, text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyFormat {
    before: String,
    width: usize,
    after: String,
}

impl KeyFormat {
    /// Parses `{}` or `{:06d}` with text around it.
    pub fn parse(format: &str) -> Result<Self> {
        let wrong = || {
            Error::usage(format!(
                "key format {format:?}: expected one {{}} or {{:06d}} with text around it, such as \
                 'img_{{:09d}}'"
            ))
        };
        let (before, rest) = format.split_once('{').ok_or_else(wrong)?;
        let (inside, after) = rest.split_once('}').ok_or_else(wrong)?;
        if before.contains('}') || after.contains(['{', '}']) {
            return Err(wrong());
        }
        let digits = match inside {
            "" | ":" | ":d" => "0",
            _ => inside.strip_prefix(":0").ok_or_else(wrong)?.trim_end_matches('d'),
        };
        let width = digits.parse().ok().filter(|&width: &usize| width <= 64).ok_or_else(wrong)?;
        Ok(Self { before: before.to_owned(), width, after: after.to_owned() })
    }

    fn write(&self, number: i128) -> String {
        format!("{}{number:0width$}{}", self.before, self.after, width = self.width)
    }
}

/// The keys of a batch of records.
pub(in crate::index) struct Keys<'a> {
    keys: Texts<'a>,
    shards: Option<Texts<'a>>,
    column: &'a str,
}

impl<'a> Keys<'a> {
    /// `joined` is whether the keys are checked against names of members; integers then need a
    /// format.
    pub(in crate::index) fn new(
        batch: &'a RecordBatch,
        columns: &'a Columns,
        joined: bool,
    ) -> Result<Self> {
        let array = column(batch, &columns.key, "keys")?;
        let format = columns.key_format.as_ref();
        let is_text =
            matches!(array.data_type(), DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View);
        if joined && !is_text && format.is_none() && array.data_type().is_integer() {
            return Err(Error::usage(format!(
                "the keys of the records (column {:?}) are integers, and the names of the shards' \
                 members are text; say how they are written there with --key-format (key_format), such \
                 as '{{:09d}}', or '{{}}' for plain digits",
                columns.key
            )));
        }
        let plain = KeyFormat { before: String::new(), width: 0, after: String::new() };
        let keys = Texts::new(array, format.unwrap_or(&plain), &columns.key)?;
        let shards = match &columns.shard {
            Some(name) => Some(Texts::new(column(batch, name, "shards")?, &plain, name)?),
            None => None,
        };
        Ok(Self { keys, shards, column: &columns.key })
    }

    pub(in crate::index) fn get(&self, row: usize) -> Result<Cow<'_, str>> {
        self.keys.get(row).ok_or_else(|| {
            Error::data(format!("a record without a key (column {:?} is null)", self.column))
        })
    }

    /// The name of the record's shard; empty where keys are global.
    pub(in crate::index) fn shard(&self, row: usize) -> Result<Cow<'_, str>> {
        match &self.shards {
            None => Ok(Cow::Borrowed("")),
            Some(shards) => shards
                .get(row)
                .ok_or_else(|| Error::data("a record without the name of its shard (null)")),
        }
    }
}

fn column<'a>(batch: &'a RecordBatch, name: &str, what: &str) -> Result<&'a ArrayRef> {
    batch.column_by_name(name).ok_or_else(|| {
        let schema = batch.schema();
        let known: Vec<_> = schema.fields().iter().map(|field| field.name().as_str()).collect();
        Error::usage(format!(
            "the records have no column {name:?} for their {what}; their columns are: {}",
            known.join(", ")
        ))
    })
}

/// A column as text.
enum Texts<'a> {
    Small(&'a arrow_array::StringArray),
    Large(&'a arrow_array::LargeStringArray),
    View(&'a arrow_array::StringViewArray),
    Int(Vec<Option<String>>),
}

impl<'a> Texts<'a> {
    fn new(array: &'a ArrayRef, format: &KeyFormat, name: &str) -> Result<Self> {
        macro_rules! digits {
            ($kind:ty) => {
                Self::Int(
                    array
                        .as_primitive::<$kind>()
                        .iter()
                        .map(|number| number.map(|number| format.write(i128::from(number))))
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

    fn get(&self, row: usize) -> Option<Cow<'_, str>> {
        match self {
            Self::Small(array) => array.is_valid(row).then(|| array.value(row).into()),
            Self::Large(array) => array.is_valid(row).then(|| array.value(row).into()),
            Self::View(array) => array.is_valid(row).then(|| array.value(row).into()),
            Self::Int(keys) => keys.get(row)?.as_deref().map(Into::into),
        }
    }
}
