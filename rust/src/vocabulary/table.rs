//! Vocabularies as Arrow tables.

use std::sync::Arc;

use arrow_array::builder::{ListBuilder, StringBuilder};
use arrow_array::cast::AsArray;
use arrow_array::types::{UInt32Type, UInt64Type};
use arrow_array::{Array, ArrayRef, RecordBatch, UInt32Array, UInt64Array};
use arrow_schema::{ArrowError, DataType, Field, Schema, SchemaRef};

use super::{Entry, Labels, Vocabulary};
use crate::{Error, Result};

/// Rows of a batch.
const ROWS: usize = 1 << 20;

impl Vocabulary {
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
        let mut batches = Vec::new();
        let mut entries = self.labels.iter();
        for first in (0..self.len()).step_by(ROWS) {
            let labels = first as u32..self.len().min(first + ROWS) as u32;
            let mut names = StringBuilder::new();
            let mut synsets = StringBuilder::new();
            let mut tags = ListBuilder::new(StringBuilder::new());
            let mut counts = Vec::with_capacity(labels.len());
            for entry in entries.by_ref().take(labels.len()) {
                names.append_value(entry.name);
                synsets.append_option(entry.synset);
                entry.tags.for_each(|tag| tags.values().append_value(tag));
                tags.append(true);
                counts.push(entry.tag_count);
            }
            let columns: Vec<ArrayRef> = vec![
                Arc::new(UInt32Array::from_iter_values(labels)),
                Arc::new(names.finish()),
                Arc::new(synsets.finish()),
                Arc::new(UInt64Array::from(counts)),
                Arc::new(tags.finish()),
            ];
            batches.push(RecordBatch::try_new(Self::schema(), columns)?);
        }
        Ok(batches)
    }

    /// Reads a table of the columns of [`schema`](Self::schema), in any order of columns; texts and
    /// lists may be of any of Arrow's layouts.
    pub fn from_table(
        batches: impl IntoIterator<Item = std::result::Result<RecordBatch, ArrowError>>,
    ) -> Result<Self> {
        let mut labels = Labels::default();
        for batch in batches {
            read_labels(&batch?, &mut labels)?;
        }
        Self::new(labels)
    }
}

fn read_labels(batch: &RecordBatch, all: &mut Labels) -> Result<()> {
    let labels = column(batch, "label")?;
    let labels = labels.as_primitive_opt::<UInt32Type>().ok_or_else(|| wrong(labels, "label"))?;
    let counts = column(batch, "tag_count")?;
    let counts =
        counts.as_primitive_opt::<UInt64Type>().ok_or_else(|| wrong(counts, "tag_count"))?;
    let names = Texts::new(column(batch, "name")?, "name")?;
    let synsets = Texts::new(column(batch, "synset")?, "synset")?;
    let tags = Lists::new(column(batch, "tags")?)?;
    for row in 0..batch.num_rows() {
        let expected = all.len();

        // A label is its row, so that a table in another order is refused and not read wrongly.
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
        let tags = tags.get(row).ok_or_else(|| missing("tags"))?;
        let texts = Texts::new(&tags, "tags")?;
        let of_row: Option<Vec<&str>> = (0..tags.len()).map(|row| texts.get(row)).collect();
        all.push(Entry {
            name: names.get(row).ok_or_else(|| missing("name"))?,
            synset: synsets.get(row),
            tag_count: counts.value(row),
            tags: of_row.ok_or_else(|| missing("tags"))?.into_iter(),
        })?;
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

    /// The texts of a row, as an array.
    fn get(&self, row: usize) -> Option<ArrayRef> {
        self.0.is_valid(row).then(|| match self.0.as_list_opt::<i32>() {
            Some(list) => list.value(row),
            None => self.0.as_list::<i64>().value(row),
        })
    }
}
