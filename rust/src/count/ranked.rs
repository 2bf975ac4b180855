//! Tags in the order of their ranks: by descending count, ties by bytes.
//!
//! Where memory allows, the table is sorted by reference. Otherwise what the runs hold is sorted
//! piece by piece, each piece a run in the order of ranks, and those are read as one.

use std::sync::Arc;

use arrow_array::builder::StringBuilder;
use arrow_array::{ArrayRef, RecordBatch, UInt64Array};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use rayon::prelude::*;

use super::run::{FAN_IN, Segment, SegmentMerge, SegmentWriter, by_rank};
use crate::hashtag::{Key, Tag};
use crate::job::Job;
use crate::spill::Memory;
use crate::{Error, Result};

/// Rows of a batch.
const BATCH_ROWS: usize = 1 << 16;

/// Tags and counts by rank, of any number; made by [`HashtagCounts::ranked`].
///
/// [`HashtagCounts::ranked`]: super::HashtagCounts::ranked
#[derive(Debug, Clone)]
pub struct Ranked {
    content: Content,
    num_rows: u64,
}

#[derive(Debug, Clone)]
enum Content {
    Table { rows: Arc<Vec<(Key, u64)>>, arena: Arc<Vec<u8>> },
    Runs(Arc<Vec<Segment>>),
}

impl Ranked {
    /// Number of tags.
    pub fn len(&self) -> u64 {
        self.num_rows
    }

    /// Whether there is no tag.
    pub fn is_empty(&self) -> bool {
        self.num_rows == 0
    }

    /// All tags from the first rank on.
    pub fn iter(&self) -> RankedIter {
        let merge = match &self.content {
            Content::Table { .. } => None,
            Content::Runs(runs) => Some(SegmentMerge::new(runs, by_rank)),
        };
        RankedIter { ranked: self.clone(), merge, place: 0, ended: false }
    }

    /// Calls `take(tag, count)` for all tags from the first rank on.
    pub fn each(&self, mut take: impl FnMut(&str, u64) -> Result<()>) -> Result<()> {
        let (mut tags, mut taken) = (self.iter(), Ok(()));
        while taken.is_ok() && tags.advance(|tag, count| taken = take(tag, count))? {}
        taken
    }

    /// The columns of [`batches`](Self::batches).
    pub fn schema() -> SchemaRef {
        Arc::new(Schema::new(vec![
            Field::new("hashtag", DataType::Utf8, false),
            Field::new("count", DataType::UInt64, false),
        ]))
    }

    /// The same as record batches.
    pub fn batches(&self) -> impl Iterator<Item = Result<RecordBatch>> + Send + use<> {
        let mut tags = self.iter();
        std::iter::from_fn(move || tags.next_batch().transpose())
    }
}

/// Reads [`Ranked`] from the first rank on.
pub struct RankedIter {
    ranked: Ranked,
    merge: Option<SegmentMerge>,
    place: usize,
    ended: bool,
}

impl RankedIter {
    /// Calls `each(tag, count)` for the next tag, and says whether there was one.
    fn advance(&mut self, each: impl FnOnce(&str, u64)) -> Result<bool> {
        if let Content::Table { rows, arena } = &self.ranked.content {
            let Some(&(key, count)) = rows.get(self.place) else { return Ok(false) };
            self.place += 1;
            each(key.hashed_tag(0, arena).text(&mut [0; 16]), count);
            return Ok(true);
        }
        let Some(merge) = &mut self.merge else { return Ok(false) };
        let Some(entry) = merge.next()? else { return Ok(false) };
        let tag = std::str::from_utf8(entry.tag())
            .map_err(|_| Error::data("a temporary file holds a hashtag that is not UTF-8"))?;
        each(tag, entry.count());
        Ok(true)
    }

    fn next_batch(&mut self) -> Result<Option<RecordBatch>> {
        let mut tags = StringBuilder::new();
        let mut counts = Vec::new();
        while counts.len() < BATCH_ROWS {
            let more = self.advance(|tag, count| {
                tags.append_value(tag);
                counts.push(count);
            })?;
            if !more {
                break;
            }
        }
        if counts.is_empty() {
            return Ok(None);
        }
        let columns: Vec<ArrayRef> =
            vec![Arc::new(tags.finish()), Arc::new(UInt64Array::from(counts))];
        Ok(Some(RecordBatch::try_new(Ranked::schema(), columns)?))
    }
}

impl Iterator for RankedIter {
    type Item = Result<(String, u64)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let mut found = None;
        match self.advance(|tag, count| found = Some((tag.to_owned(), count))) {
            Ok(_) => found.map(Ok),
            Err(error) => {
                self.ended = true;
                Some(Err(error))
            }
        }
    }
}

/// Bytes that sorting takes for each tag, above its own bytes where it is long.
pub(super) const BYTES_PER_TAG: usize = 2 * size_of::<(Key, u64)>();

/// Takes tags in any order and gives them back ranked.
pub(super) struct Ranker<'a> {
    memory: &'a Memory,
    rows: Vec<(Key, u64)>,
    arena: Vec<u8>,
    runs: Vec<Segment>,
    num_rows: u64,
}

impl<'a> Ranker<'a> {
    /// For a table of so many tags.
    pub(super) fn new(memory: &'a Memory, num_tags: usize) -> Self {
        let rows = Vec::with_capacity(num_tags);
        Self { memory, rows, arena: Vec::new(), runs: Vec::new(), num_rows: 0 }
    }

    pub(super) fn push(&mut self, tag: &Tag<'_>, count: u64) -> Result<()> {
        let used = self.rows.len() * size_of::<(Key, u64)>() + self.arena.len();
        // Half, for a vector that grows is there twice.
        if used >= self.memory.bytes() / 2 {
            self.spill()?;
        }
        self.rows.push((tag.stored(&mut self.arena), count));
        self.num_rows += 1;
        Ok(())
    }

    fn sort(&mut self) {
        let arena = &self.arena;
        self.rows.par_sort_unstable_by(|&(a, a_count), &(b, b_count)| {
            b_count.cmp(&a_count).then_with(|| a.compare(b, arena))
        });
    }

    fn spill(&mut self) -> Result<()> {
        self.sort();
        let mut writer = SegmentWriter::new(Arc::new(self.memory.spill_file()?));
        for &(key, count) in &self.rows {
            writer.push(key.tag(&self.arena).bytes(&mut [0; 16]), count)?;
        }
        self.runs.push(writer.finish()?);
        self.rows.clear();
        self.arena.clear();
        if self.runs.len() == FAN_IN { self.join_runs() } else { Ok(()) }
    }

    fn join_runs(&mut self) -> Result<()> {
        let mut writer = SegmentWriter::new(Arc::new(self.memory.spill_file()?));
        let mut merge = SegmentMerge::new(&self.runs, by_rank);
        while let Some(entry) = merge.next()? {
            writer.push(entry.tag(), entry.count())?;
        }
        self.runs = vec![writer.finish()?];
        Ok(())
    }

    pub(super) fn finish(mut self, job: &Job) -> Result<Ranked> {
        job.check()?;
        let content = if self.runs.is_empty() {
            self.sort();
            Content::Table { rows: Arc::new(self.rows), arena: Arc::new(self.arena) }
        } else {
            self.spill()?;
            Content::Runs(Arc::new(self.runs))
        };
        Ok(Ranked { content, num_rows: self.num_rows })
    }
}
