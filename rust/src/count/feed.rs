//! What feeds one thread out of Parquet files: one chunk after another, whichever is next for anyone.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::dictionary::Dictionary;
use super::local::Local;
use crate::Result;
use crate::hashtag::TagColumn;
use crate::job::Job;
use crate::parquet::{ListReader, ParquetTags, Piece};

/// The chunks that a thread takes, and where it is in one.
pub(super) struct Feed<'a> {
    tags: &'a ParquetTags,
    /// The next chunk that nobody has taken.
    next: &'a AtomicUsize,
    reader: Option<ListReader<'a>>,
    /// What `Local` is counting.
    column: Option<TagColumn>,
    /// That of the chunk under way, or of the last one while its counts are not handed over.
    dictionary: Option<Dictionary>,
}

impl<'a> Feed<'a> {
    pub(super) fn new(tags: &'a ParquetTags, next: &'a AtomicUsize) -> Self {
        Self { tags, next, reader: None, column: None, dictionary: None }
    }

    /// Lets a thread count until too much waits or nothing is left, which is returned; `job`
    /// advances by records.
    pub(super) fn fill(&mut self, local: &mut Local, job: &Job) -> Result<bool> {
        while !local.is_full() {
            if let Some(column) = &self.column {
                local.count(column, job)?;
                if local.is_under_way() {
                    break;
                }
                if let (Some(reader), Some(column)) = (&mut self.reader, self.column.take()) {
                    reader.reuse(column);
                }
            }
            job.check()?;
            if !self.advance(local, job)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Takes the next step; whether there was one.
    fn advance(&mut self, local: &mut Local, job: &Job) -> Result<bool> {
        if let Some(reader) = &mut self.reader {
            match reader.next_piece()? {
                Some(Piece::Dictionary(entries)) => {
                    self.dictionary = Some(local.dictionary(&entries))
                }
                Some(Piece::Texts(column)) => {
                    local.take(0..column.len());
                    self.column = Some(column);
                }
                Some(Piece::Numbers(numbers)) => {
                    if let Some(dictionary) = &mut self.dictionary {
                        local.count_numbers(dictionary, &numbers);
                    }
                    job.advance(numbers.records().len() as u64);
                }
                None => {
                    local.note_nulls(reader.num_nulls());
                    self.reader = None;
                }
            }
            return Ok(true);
        }

        // The counts of a chunk's dictionary go to the table before the next chunk has another.
        if let Some(dictionary) = &mut self.dictionary {
            if local.hand_over_dictionary(dictionary) {
                self.dictionary = None;
            }
            return Ok(true);
        }

        // Chunks are taken one by one, for threads need not be equally fast.
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        if number >= self.tags.num_chunks() {
            return Ok(false);
        }
        self.reader = Some(self.tags.read(number)?);
        Ok(true)
    }
}
