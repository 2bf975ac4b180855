//! The vocabulary: which tag is which label.
//!
//! A label is a number, made once: labels are the ranks of the tags by descending count when the
//! vocabulary is made (ties by byte order), and never change after. Every index, prediction file
//! and model that belongs together carries the same [fingerprint](Vocabulary::fingerprint).
//!
//! Besides its name a label has the raw tags that are merged into it: the name alone here, several
//! where tags of one meaning are brought together, with the synset that says which meaning. A class
//! vocabulary has no counts: its labels are the class numbers of a data set, with their names.
//!
//! Tables of columns `label` (u32), `name` (text), `synset` (text, nullable), `tag_count` (u64),
//! `tags` (list of text) carry it to and from files. What comes in is checked: labels run from 0,
//! names and tags are not empty, no tag leads to two labels.

mod canonical;
mod cover;
mod encoder;

use std::sync::Arc;

use arrow_array::builder::{ListBuilder, StringBuilder};
use arrow_array::cast::AsArray;
use arrow_array::types::{UInt32Type, UInt64Type};
use arrow_array::{Array, ArrayRef, RecordBatch, UInt32Array, UInt64Array};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use hashbrown::HashTable;
use xxhash_rust::xxh3::Xxh3;

use crate::count::HashtagCounts;
use crate::hashtag::{Tag, hash_of};
use crate::job::Job;
use crate::{Error, Result};

pub use canonical::{Coverage, Selection, Share};
pub use cover::Covered;
pub use encoder::Encoder;

/// The most labels a vocabulary can have: labels are 32-bit, and the last number stays free.
pub const MAX_LABELS: usize = u32::MAX as usize;

/// Tags and their labels.
#[derive(Debug, Clone, Default)]
pub struct Vocabulary {
    entries: Vec<Entry>,
    by_tag: HashTable<(u64, u32, u32)>,
}

/// One label.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Entry {
    /// What the label is called.
    pub name: String,
    /// The WordNet synset it stands for, where one is known.
    pub synset: Option<String>,
    /// Occurrences of its tags when the vocabulary was made; 0 for classes.
    pub tag_count: u64,
    /// The normalized raw tags that lead to it.
    pub tags: Vec<String>,
}

impl Vocabulary {
    /// The tags counted at least `min_count` times, the most frequent first, `max_labels` at most.
    pub fn from_counts(
        counts: &mut HashtagCounts,
        min_count: u64,
        max_labels: Option<usize>,
    ) -> Result<Self> {
        let selection = Selection { min_count, max_labels, wordnet: None };
        Ok(Self::from_ranked(counts.ranked(&Job::new())?.iter(), selection)?.0)
    }

    /// Class `i` is called `names[i]`; the names must be distinct and not empty.
    pub fn from_class_names<S: AsRef<str>>(names: &[S]) -> Result<Self> {
        let entry = |name: &S| Entry {
            name: name.as_ref().to_owned(),
            synset: None,
            tag_count: 0,
            tags: vec![name.as_ref().to_owned()],
        };
        Self::from_entries(names.iter().map(entry).collect())
    }

    /// A vocabulary of these entries, the label of each its place.
    pub fn from_entries(entries: Vec<Entry>) -> Result<Self> {
        if entries.len() > MAX_LABELS {
            return Err(Error::usage(format!(
                "a vocabulary holds at most {MAX_LABELS} labels, and there are {}; set max_labels",
                entries.len()
            )));
        }
        let mut by_tag = HashTable::with_capacity(entries.len());
        for (label, entry) in entries.iter().enumerate() {
            if entry.name.is_empty() || entry.tags.is_empty() {
                let what = if entry.name.is_empty() { "name" } else { "list of tags" };
                return Err(Error::data(format!("vocabulary: label {label} has an empty {what}")));
            }
            for (place, tag) in entry.tags.iter().enumerate() {
                let hash = hash_of(tag);
                let same = |&(_, label, place): &(u64, u32, u32)| {
                    entries[label as usize].tags[place as usize] == *tag
                };
                if let Some(&(_, other, _)) = by_tag.find(hash, same) {
                    return Err(Error::data(format!(
                        "vocabulary: the tag {tag:?} leads to label {other} and to label {label}; \
                         a tag can have one label only"
                    )));
                }
                let place = u32::try_from(place)
                    .map_err(|_| Error::data(format!("vocabulary: label {label}: tags abound")))?;
                by_tag.insert_unique(hash, (hash, label as u32, place), |entry| entry.0);
            }
        }
        Ok(Self { entries, by_tag })
    }

    /// Number of labels.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no label.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// All labels, in order.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// What `label` is called.
    pub fn name(&self, label: u32) -> Option<&str> {
        self.entries.get(label as usize).map(|entry| entry.name.as_str())
    }

    /// The label of a normalized tag.
    pub fn encode(&self, tag: &str) -> Option<u32> {
        self.encode_tag(&Tag::new(tag))
    }

    /// The same for a tag that was read.
    pub fn encode_tag(&self, tag: &Tag<'_>) -> Option<u32> {
        let (hash, mut buffer) = (tag.hash(), [0; 16]);
        let text = tag.bytes(&mut buffer);
        let found = self.by_tag.find(hash, |&(its_hash, label, place)| {
            its_hash == hash && self.entries[label as usize].tags[place as usize].as_bytes() == text
        });
        found.map(|&(_, label, _)| label)
    }

    /// A hash of the ordered content, 32 hexadecimal digits (XXH3, 128 bits).
    pub fn fingerprint(&self) -> String {
        let mut hasher = Xxh3::new();
        hasher.update(b"wsl vocabulary 1");
        let mut text = |text: &str| {
            hasher.update(&(text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        };
        for entry in &self.entries {
            text(&entry.name);
            text(if entry.synset.is_some() { "synset" } else { "" });
            text(entry.synset.as_deref().unwrap_or_default());
            text(&entry.tag_count.to_string());
            text(&entry.tags.len().to_string());
            entry.tags.iter().for_each(|tag| text(tag));
        }
        format!("{:032x}", hasher.digest128())
    }

    /// The columns of [`table`](Self::table).
    pub fn schema() -> SchemaRef {
        let tags = Field::new("item", DataType::Utf8, true);
        Arc::new(Schema::new(vec![
            Field::new("label", DataType::UInt32, false),
            Field::new("name", DataType::Utf8, false),
            Field::new("synset", DataType::Utf8, true),
            Field::new("tag_count", DataType::UInt64, false),
            Field::new("tags", DataType::List(Arc::new(tags)), false),
        ]))
    }

    /// The vocabulary as a table, one row a label, in their order.
    pub fn table(&self) -> Result<Vec<RecordBatch>> {
        const ROWS: usize = 1 << 20;
        let mut batches = Vec::new();
        for (number, entries) in self.entries.chunks(ROWS).enumerate() {
            let first = number * ROWS;
            let labels = (first..first + entries.len()).map(|label| label as u32);
            let mut names = StringBuilder::new();
            let mut synsets = StringBuilder::new();
            let mut tags = ListBuilder::new(StringBuilder::new());
            for entry in entries {
                names.append_value(&entry.name);
                synsets.append_option(entry.synset.as_deref());
                entry.tags.iter().for_each(|tag| tags.values().append_value(tag));
                tags.append(true);
            }
            let counts = entries.iter().map(|entry| entry.tag_count);
            let columns: Vec<ArrayRef> = vec![
                Arc::new(UInt32Array::from_iter_values(labels)),
                Arc::new(names.finish()),
                Arc::new(synsets.finish()),
                Arc::new(UInt64Array::from_iter_values(counts)),
                Arc::new(tags.finish()),
            ];
            batches.push(RecordBatch::try_new(Self::schema(), columns)?);
        }
        Ok(batches)
    }

    /// Reads a table of the columns of [`schema`](Self::schema), in any order of columns; texts and
    /// lists may be of any of Arrow's layouts.
    pub fn from_table(
        batches: impl IntoIterator<Item = std::result::Result<RecordBatch, arrow_schema::ArrowError>>,
    ) -> Result<Self> {
        let mut entries = Vec::new();
        for batch in batches {
            read_entries(&batch?, &mut entries)?;
        }
        Self::from_entries(entries)
    }
}

fn read_entries(batch: &RecordBatch, entries: &mut Vec<Entry>) -> Result<()> {
    let labels = column(batch, "label")?;
    let labels = labels.as_primitive_opt::<UInt32Type>().ok_or_else(|| wrong(labels, "label"))?;
    let counts = column(batch, "tag_count")?;
    let counts =
        counts.as_primitive_opt::<UInt64Type>().ok_or_else(|| wrong(counts, "tag_count"))?;
    let names = Texts::new(column(batch, "name")?, "name")?;
    let synsets = Texts::new(column(batch, "synset")?, "synset")?;
    let tags = Lists::new(column(batch, "tags")?)?;
    for row in 0..batch.num_rows() {
        let expected = entries.len();
        if labels.is_null(row) || labels.value(row) as usize != expected {
            return Err(Error::data(format!(
                "vocabulary: row {expected} must be of label {expected}, and is not; labels run \
                 from 0 without gaps"
            )));
        }
        if counts.is_null(row) {
            return Err(Error::data(format!("vocabulary: label {expected} has no tag_count")));
        }
        let missing = |what| Error::data(format!("vocabulary: label {expected} has no {what}"));
        entries.push(Entry {
            name: names.get(row).ok_or_else(|| missing("name"))?.to_owned(),
            synset: synsets.get(row).map(str::to_owned),
            tag_count: counts.value(row),
            tags: tags.get(row).ok_or_else(|| missing("tags"))?,
        });
    }
    Ok(())
}

fn column<'a>(batch: &'a RecordBatch, name: &str) -> Result<&'a ArrayRef> {
    batch.column_by_name(name).ok_or_else(|| {
        let schema = batch.schema();
        let known: Vec<_> = schema.fields().iter().map(|field| field.name().as_str()).collect();
        Error::data(format!(
            "vocabulary: there is no column {name:?}; the table has {}",
            known.join(", ")
        ))
    })
}

fn wrong(array: &ArrayRef, name: &str) -> Error {
    Error::data(format!(
        "vocabulary: column {name:?} is of type {}, which is not what a vocabulary holds there",
        array.data_type()
    ))
}

enum Texts<'a> {
    Small(&'a arrow_array::StringArray),
    Large(&'a arrow_array::LargeStringArray),
    View(&'a arrow_array::StringViewArray),
    Nulls,
}

impl<'a> Texts<'a> {
    fn new(array: &'a ArrayRef, name: &str) -> Result<Self> {
        Ok(match array.data_type() {
            DataType::Utf8 => Self::Small(array.as_string()),
            DataType::LargeUtf8 => Self::Large(array.as_string()),
            DataType::Utf8View => Self::View(array.as_string_view()),
            DataType::Null => Self::Nulls,
            _ => return Err(wrong(array, name)),
        })
    }

    fn get(&self, row: usize) -> Option<&'a str> {
        match self {
            Self::Small(array) => array.is_valid(row).then(|| array.value(row)),
            Self::Large(array) => array.is_valid(row).then(|| array.value(row)),
            Self::View(array) => array.is_valid(row).then(|| array.value(row)),
            Self::Nulls => None,
        }
    }
}

struct Lists(ArrayRef);

impl Lists {
    fn new(array: &ArrayRef) -> Result<Self> {
        match array.data_type() {
            DataType::List(_) | DataType::LargeList(_) => Ok(Self(array.clone())),
            _ => Err(wrong(array, "tags")),
        }
    }

    fn get(&self, row: usize) -> Option<Vec<String>> {
        if self.0.is_null(row) {
            return None;
        }
        let values = match self.0.as_list_opt::<i32>() {
            Some(list) => list.value(row),
            None => self.0.as_list::<i64>().value(row),
        };
        let texts = Texts::new(&values, "tags").ok()?;
        (0..values.len()).map(|row| texts.get(row).map(str::to_owned)).collect()
    }
}
