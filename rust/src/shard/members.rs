//! Records within the shards themselves: hashtags in `.json` or `.txt` members.
//!
//! A sample's members are together and share its key. Its hashtags are a field of its `.json`
//! member, named by a path of keys with dots between them (`meta.tags`), as a list of texts or one
//! text to be split; or all of its `.txt` member, split. A sample that lacks the member or the field
//! is a record without hashtags, as is one whose field is null.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;

use arrow_array::builder::{ListBuilder, StringBuilder};
use arrow_array::{ArrayRef, RecordBatch};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use serde_json::Value;

use crate::shard::{Member, Scanner, split_name};
use crate::store::Storage;
use crate::{Error, Result};

/// The largest member that is read.
pub const MAX_MEMBER_BYTES: u64 = 1 << 20;

/// The name of the whole `.txt` member instead of a field.
pub const TEXT_MEMBER: &str = ".txt";

/// Rows and bytes that end a batch.
const BATCH_ROWS: usize = 1 << 16;
const BATCH_BYTES: usize = 8 << 20;

/// Where a sample's hashtags are.
#[derive(Debug, Clone)]
enum Place {
    /// A field of the `.json` member, by the keys that lead to it.
    Field(Vec<String>),
    /// The `.txt` member.
    Text,
}

/// What is read, and what the columns are called.
#[derive(Debug, Clone)]
pub struct MemberOptions {
    /// The field of the `.json` members, or [`TEXT_MEMBER`]; also the name of the column.
    pub hashtags: String,
    /// The name of the column of keys.
    pub key_column: String,
    /// Where a text is split; white space where `None`.
    pub separator: Option<String>,
    /// The name of a column of the shards' paths, where it is wanted.
    pub shard_column: Option<String>,
}

/// The records of shards, one after another.
pub struct MemberRecords {
    shards: VecDeque<PathBuf>,
    options: MemberOptions,
    storage: Storage,
    place: Place,
    scanner: Option<(PathBuf, Scanner<'static>)>,
    sample: Option<(String, Option<Tags>)>,
    rows: Vec<(String, Option<Tags>)>,
    /// The shard of each row.
    paths: Vec<Arc<str>>,
    path: Arc<str>,
    num_bytes: usize,
    failed: bool,
}

/// The hashtags of a sample; nulls are kept, to be counted.
type Tags = Vec<Option<String>>;

impl MemberRecords {
    /// Reads `shards` in their order, those in stores through `storage`.
    pub fn new(shards: Vec<PathBuf>, options: MemberOptions, storage: Storage) -> Result<Self> {
        if options.separator.as_deref() == Some("") {
            return Err(Error::usage(
                "separator: expected at least one character; leave it out to split at white space",
            ));
        }
        let place = if options.hashtags == TEXT_MEMBER {
            Place::Text
        } else {
            Place::Field(options.hashtags.split('.').map(str::to_owned).collect())
        };
        Ok(Self {
            shards: shards.into(),
            options,
            storage,
            place,
            scanner: None,
            sample: None,
            rows: Vec::new(),
            paths: Vec::new(),
            path: Arc::from(""),
            num_bytes: 0,
            failed: false,
        })
    }

    /// The columns: the key (text) and the hashtags (list of text), and the shard where it is wanted.
    pub fn schema(options: &MemberOptions) -> SchemaRef {
        let item = Field::new("item", DataType::Utf8, true);
        let mut fields = vec![
            Field::new(&options.key_column, DataType::Utf8, false),
            Field::new(&options.hashtags, DataType::List(Arc::new(item)), true),
        ];
        fields.extend(
            options.shard_column.iter().map(|name| Field::new(name, DataType::Utf8, false)),
        );
        Arc::new(Schema::new(fields))
    }

    fn next_batch(&mut self) -> Result<Option<RecordBatch>> {
        while self.rows.len() < BATCH_ROWS && self.num_bytes < BATCH_BYTES && self.read_member()? {}
        if self.rows.is_empty() {
            return Ok(None);
        }
        let mut keys = StringBuilder::new();
        let mut tags = ListBuilder::new(StringBuilder::new());
        for (key, list) in self.rows.drain(..) {
            keys.append_value(key);
            let is_some = list.is_some();
            list.into_iter().flatten().for_each(|tag| tags.values().append_option(tag));
            tags.append(is_some);
        }
        self.num_bytes = 0;
        let mut columns: Vec<ArrayRef> = vec![Arc::new(keys.finish()), Arc::new(tags.finish())];
        if self.options.shard_column.is_some() {
            let mut paths = StringBuilder::new();
            self.paths.iter().for_each(|path| paths.append_value(path));
            columns.push(Arc::new(paths.finish()));
        }
        self.paths.clear();
        Ok(Some(RecordBatch::try_new(Self::schema(&self.options), columns)?))
    }

    /// Reads one member, and returns whether there may be more.
    fn read_member(&mut self) -> Result<bool> {
        let (path, mut scanner) = match self.scanner.take() {
            Some(open) => open,
            None => match self.shards.pop_front() {
                Some(path) => {
                    let scanner = Scanner::open_in(&path, &self.storage, None)?;
                    self.path = Arc::from(path.to_string_lossy());
                    (path, scanner)
                }
                None => return Ok(false),
            },
        };
        let Some(member) = scanner.next_member()? else {
            self.leave_sample();
            return Ok(true);
        };
        let name = std::str::from_utf8(&member.name).ok().and_then(split_name);
        if let Some((key, extension)) = name {
            // A sample ends where the next key begins.
            if self.sample.as_ref().is_none_or(|(known, _)| known != key) {
                self.leave_sample();
                self.sample = Some((key.to_owned(), None));
            }
            let wanted = if matches!(self.place, Place::Text) { "txt" } else { "json" };
            if extension.eq_ignore_ascii_case(wanted) {
                let tags = self.read_tags(&path, &mut scanner, &member)?;
                self.num_bytes += tags.iter().flatten().flatten().map(String::len).sum::<usize>();
                if let Some(sample) = &mut self.sample {
                    sample.1 = tags;
                }
            }
        }
        self.scanner = Some((path, scanner));
        Ok(true)
    }

    fn leave_sample(&mut self) {
        if let Some(sample) = self.sample.take() {
            self.num_bytes += sample.0.len() + 32;
            self.rows.push(sample);
            self.paths.push(self.path.clone());
        }
    }

    fn read_tags(
        &self,
        path: &std::path::Path,
        scanner: &mut Scanner<'_>,
        member: &Member,
    ) -> Result<Option<Tags>> {
        let fault = |expected: &str| {
            Error::data(format!(
                "{}: the member {:?} at byte {}: expected {expected}",
                path.display(),
                String::from_utf8_lossy(&member.name),
                member.offset
            ))
        };

        // The size comes from the shard, so it is checked before memory is taken for it.
        if member.size > MAX_MEMBER_BYTES {
            return Err(fault(&format!(
                "at most {MAX_MEMBER_BYTES} bytes of hashtags, found {}",
                member.size
            )));
        }
        let content = scanner.content(member, MAX_MEMBER_BYTES)?;
        let Place::Field(keys) = &self.place else {
            let text = String::from_utf8(content).map_err(|_| fault("text in UTF-8"))?;
            return Ok(Some(self.split(&text)));
        };
        let document: Value = serde_json::from_slice(&content)
            .map_err(|error| fault(&format!("a JSON document: {error}")))?;
        let mut value = &document;
        for key in keys {
            match value.get(key) {
                Some(inner) => value = inner,
                None => return Ok(None),
            }
        }
        match value {
            Value::Null => Ok(None),
            Value::String(text) => Ok(Some(self.split(text))),
            Value::Array(items) => {
                let tag = |item: &Value| match item {
                    Value::String(text) => Ok(Some(text.clone())),
                    Value::Null => Ok(None),
                    other => Err(fault(&format!("a list of texts, found {other} in it"))),
                };
                items.iter().map(tag).collect::<Result<_>>().map(Some)
            }
            _ => Err(fault(&format!("a list of texts or one text at {:?}", self.options.hashtags))),
        }
    }

    fn split(&self, text: &str) -> Tags {
        let piece = |piece: &str| Some(piece.to_owned());
        match self.options.separator.as_deref() {
            None => text.split_whitespace().map(piece).collect(),
            Some(_) if text.is_empty() => Vec::new(),
            Some(separator) => text.split(separator).map(piece).collect(),
        }
    }
}

impl Iterator for MemberRecords {
    type Item = Result<RecordBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let batch = self.next_batch();
        self.failed = batch.is_err();
        batch.transpose()
    }
}
