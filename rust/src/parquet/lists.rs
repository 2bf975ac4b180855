//! A chunk of a column of lists of texts, put together to records again; one text a record is a list too.
//!
//! Beside its texts a page has two levels for each: a repetition level of 0 begins a record, and a
//! definition level below the highest says that there is no text: a null in a list, an empty list, or a
//! null for a list. They are read some thousand at a time, for a few bytes can stand for any number of
//! them, and so are the texts.
//!
//! Records may go on over the end of a page, from numbers of dictionary entries to texts even. So the
//! last record of each piece is carried, as bytes, to where it ends.

use std::path::Path;

use arrow_buffer::Buffer;

use super::pages::{Content, Encoding, Page, Pages, span};
use super::runs::Runs;
use super::{Chunk, Fault, Levels, Parsed, damaged};
use crate::Result;
use crate::hashtag::{TagColumn, VIEW_INLINE as INLINE};

/// Levels read at a time.
const PIECE: u64 = 1 << 14;

/// The largest record that is carried over pieces.
const MAX_CARRIED: usize = 256 << 20;

/// For each length up to [`INLINE`] the bits of a view that are within it, those of the length included.
const WITHIN: [u128; INLINE + 1] = {
    let mut within = [0; INLINE + 1];
    let mut length = 0;
    while length < INLINE {
        within[length] = (1 << (32 + 8 * length)) - 1;
        length += 1;
    }
    within[INLINE] = u128::MAX;
    within
};

/// Some of a chunk, in its order.
#[derive(Debug)]
pub(crate) enum Piece {
    /// The dictionary, whose entries are the texts of one record of this column; it comes first.
    Dictionary(TagColumn),
    /// Records by their texts.
    Texts(TagColumn),
    /// Records by the numbers of their dictionary entries.
    Numbers(Numbers),
}

/// Records by the numbers of their dictionary entries, all of which are there.
#[derive(Debug, Default)]
pub(crate) struct Numbers {
    /// Where the numbers of each record begin, and where those of the last one end.
    pub(crate) starts: Vec<i32>,
    pub(crate) numbers: Vec<u32>,
}

impl Numbers {
    /// Texts of all records.
    pub(crate) fn num_texts(&self) -> u64 {
        let ends = self.starts.first().zip(self.starts.last());
        ends.map_or(0, |(first, last)| (last - first) as u64)
    }

    /// The numbers of each record.
    pub(crate) fn records(&self) -> impl ExactSizeIterator<Item = &[u32]> {
        self.starts.windows(2).map(|pair| &self.numbers[pair[0] as usize..pair[1] as usize])
    }
}

/// The part of a page that is not read yet.
#[derive(Debug)]
struct Rest {
    at: u64,
    bytes: Buffer,
    /// Bytes of the page without its padding.
    size: usize,
    repetition: Runs,
    definition: Runs,
    num_values: u64,
    texts: Texts,
}

#[derive(Debug)]
enum Texts {
    /// Where the next one begins.
    Plain(usize),
    Numbers(Runs),
}

/// The record under way when a piece ended.
#[derive(Debug, Default)]
struct Carried {
    is_open: bool,
    bytes: Vec<u8>,
    ends: Vec<i64>,
}

impl Carried {
    fn begin(&mut self) {
        self.is_open = true;
    }

    fn push(&mut self, text: &[u8]) -> Parsed<()> {
        if self.bytes.len() + text.len() > MAX_CARRIED || self.ends.len() > MAX_CARRIED / 16 {
            return Err(Fault::Wrong("a record has over 256 MiB of hashtags"));
        }
        self.bytes.extend_from_slice(text);
        self.ends.push(self.bytes.len() as i64);
        Ok(())
    }

    /// The record, complete.
    fn take(&mut self) -> Option<TagColumn> {
        if !std::mem::take(&mut self.is_open) {
            return None;
        }
        let (bytes, ends) = (std::mem::take(&mut self.bytes), std::mem::take(&mut self.ends));
        Some(TagColumn::of_one_record(bytes, ends))
    }
}

/// Reads a chunk.
pub(crate) struct ListReader<'a> {
    path: &'a Path,
    pages: Pages<'a>,
    levels: Levels,
    /// Records that are to come, and values.
    num_rows: u64,
    num_values: u64,
    rest: Option<Rest>,
    entries: Option<TagColumn>,
    num_entries: usize,
    carried: Carried,
    waiting: Option<Piece>,
    num_nulls: u64,
    repetition: Vec<u32>,
    definition: Vec<u32>,
    spare: Vec<u128>,
    spare_page: Vec<u8>,
}

impl<'a> ListReader<'a> {
    pub(super) fn new(path: &'a Path, chunk: Chunk) -> Result<Self> {
        Ok(Self {
            path,
            pages: Pages::new(path, &chunk)?,
            levels: chunk.levels,
            num_rows: chunk.num_rows,
            num_values: chunk.num_values,
            rest: None,
            entries: None,
            num_entries: 0,
            carried: Carried::default(),
            waiting: None,
            num_nulls: 0,
            repetition: Vec::new(),
            definition: Vec::new(),
            spare: Vec::new(),
            spare_page: Vec::new(),
        })
    }

    /// Nulls in lists so far; they are in no piece.
    pub(crate) fn num_nulls(&self) -> u64 {
        self.num_nulls
    }

    /// Takes back a column that is done with, whose memory is used again.
    pub(crate) fn reuse(&mut self, column: TagColumn) {
        self.spare = column.into_views();
    }

    /// The next piece; `None` at the end, where all records were there.
    pub(crate) fn next_piece(&mut self) -> Result<Option<Piece>> {
        loop {
            if let Some(piece) = self.waiting.take() {
                return Ok(Some(piece));
            }
            if self.rest.as_ref().is_some_and(|rest| rest.num_values == 0) {
                let rest = self.rest.take();
                let bytes = rest.and_then(|rest| rest.bytes.into_vec().ok());
                self.spare_page = bytes.unwrap_or_default();
            }
            let Some(rest) = &self.rest else {
                if self.num_values > 0 {
                    if let Some(entries) = self.open_page()? {
                        return Ok(Some(Piece::Dictionary(entries)));
                    }
                    continue;
                }
                if self.num_rows > 0 {
                    let what = "the chunk ends there with fewer records than the footer says";
                    return Err(damaged(self.path, self.pages.at(), what));
                }
                return Ok(self.carried.take().map(Piece::Texts));
            };
            let at = rest.at;
            let piece = self.read_piece().map_err(|fault| damaged(self.path, at, fault.said()))?;
            let carried = piece.0.map(Piece::Texts);
            if carried.is_some() {
                self.waiting = piece.1;
                return Ok(carried);
            }
            if piece.1.is_some() {
                return Ok(piece.1);
            }
        }
    }

    /// Opens the next page; returns the entries of a dictionary.
    fn open_page(&mut self) -> Result<Option<TagColumn>> {
        let page = self.pages.next_page(std::mem::take(&mut self.spare_page))?;
        let at = page.at;
        self.take_page(page).map_err(|fault| damaged(self.path, at, fault.said()))
    }

    fn take_page(&mut self, page: Page) -> Parsed<Option<TagColumn>> {
        let size = page.size;
        if page.content == Content::Dictionary {
            page.check_dictionary(self.entries.is_none())?;
            let (mut views, mut at) = (Vec::new(), 0);
            read_views(&page.bytes, size, &mut at, page.num_values as usize, &mut views)?;
            self.num_entries = views.len();
            let starts = vec![0, views.len() as i32];
            let entries = TagColumn::of_views(starts, views, Buffer::from_vec(page.bytes));
            self.entries = Some(entries.clone());
            return Ok(Some(entries));
        }
        let num_values = u64::from(page.num_values);
        if num_values > self.num_values {
            return Err(Fault::Wrong("it has more values than the footer says"));
        }
        self.num_values -= num_values;
        let highest = self.levels.highest();
        let width = u32::BITS - highest.leading_zeros();
        let (repetition, definition, start) = match page.content {
            Content::DataV2(repetition, definition) => {
                let end = repetition + definition;
                (Runs::new(0, repetition, 1), Runs::new(repetition, end, width), end)
            }
            _ => {
                // Levels that can only be 0 are not written.
                let levels = |wanted, at| match wanted {
                    true => span(&page.bytes[..size], at),
                    false => Ok((at, at)),
                };
                let (first, end) = levels(self.levels.is_list, 0)?;
                let (second, start) = levels(highest > 0, end)?;
                (Runs::new(first, end, 1), Runs::new(second, start, width), start)
            }
        };
        let texts = match page.encoding {
            Encoding::Plain => Texts::Plain(start),
            Encoding::Dictionary => Texts::Numbers(page.numbers(start)?),
        };
        let bytes = Buffer::from_vec(page.bytes);
        self.rest =
            Some(Rest { at: page.at, bytes, size, repetition, definition, num_values, texts });
        Ok(None)
    }

    /// Reads on in the page: the record that was under way if it is complete now, and those that begin
    /// and end here.
    fn read_piece(&mut self) -> Parsed<(Option<TagColumn>, Option<Piece>)> {
        let Some(mut rest) = self.rest.take() else { return Ok((None, None)) };
        let found = self.read_levels(&mut rest).and_then(|starts| match rest.texts {
            Texts::Plain(at) => self.read_texts(&mut rest, at, starts),
            Texts::Numbers(runs) => self.read_numbers(&mut rest, runs, starts),
        });
        self.rest = Some(rest);
        found
    }

    /// Where among the next texts the records begin, and last how many texts there are.
    fn read_levels(&mut self, rest: &mut Rest) -> Parsed<Vec<i32>> {
        let wanted = rest.num_values.min(PIECE);
        rest.num_values -= wanted;
        self.repetition.clear();
        if self.levels.is_list {
            rest.repetition.read(&rest.bytes, wanted as usize, &mut self.repetition)?;
        } else {
            self.repetition.resize(wanted as usize, 0);
        }
        let highest = self.levels.highest();
        let mut starts = vec![0_i32; wanted as usize + 1];
        let (mut num_records, mut num_texts) = (0, 0);
        if highest == 0 || rest.definition.skip_same(&rest.bytes, highest, wanted)? {
            for (place, &level) in self.repetition.iter().enumerate() {
                starts[num_records] = place as i32;
                num_records += usize::from(level == 0);
            }
            num_texts = wanted as i32;
        } else {
            self.definition.clear();
            rest.definition.read(&rest.bytes, wanted as usize, &mut self.definition)?;
            let null = if self.levels.text_nullable { highest - 1 } else { u32::MAX };
            for (&level, &definition) in self.repetition.iter().zip(&self.definition) {
                if definition > highest {
                    return Err(Fault::Wrong("a level is higher than there are"));
                }
                starts[num_records] = num_texts;
                num_records += usize::from(level == 0);
                num_texts += i32::from(definition == highest);
                self.num_nulls += u64::from(definition == null);
            }
        }
        starts[num_records] = num_texts;
        starts.truncate(num_records + 1);
        if self.repetition.first().is_some_and(|&level| level != 0) && !self.carried.is_open {
            return Err(Fault::Wrong("it begins within a record, and there is none before it"));
        }
        let left = self.num_rows.checked_sub(num_records as u64);
        self.num_rows = left.ok_or(Fault::Wrong("there are more records than the footer says"))?;
        Ok(starts)
    }

    fn read_texts(
        &mut self,
        rest: &mut Rest,
        mut at: usize,
        starts: Vec<i32>,
    ) -> Parsed<(Option<TagColumn>, Option<Piece>)> {
        let mut views = std::mem::take(&mut self.spare);
        views.clear();
        let num_texts = starts.last().map_or(0, |&number| number as usize);
        read_views(&rest.bytes, rest.size, &mut at, num_texts, &mut views)?;
        rest.texts = Texts::Plain(at);
        let all = TagColumn::of_views(vec![0, num_texts as i32], views, rest.bytes.clone());
        let text = |place: usize| all.text(place).unwrap_or_default();
        let (complete, inner) = self.carry(&starts, text)?;
        let Some(starts) = inner else {
            self.spare = all.into_views();
            return Ok((complete, None));
        };
        Ok((complete, Some(Piece::Texts(all.with_starts(starts)))))
    }

    fn read_numbers(
        &mut self,
        rest: &mut Rest,
        mut runs: Runs,
        starts: Vec<i32>,
    ) -> Parsed<(Option<TagColumn>, Option<Piece>)> {
        let num_texts = starts.last().map_or(0, |&number| number as usize);
        let mut numbers = Vec::with_capacity(num_texts);
        if num_texts > 0 {
            runs.read(&rest.bytes, num_texts, &mut numbers)?;
        }
        rest.texts = Texts::Numbers(runs);
        if numbers.iter().fold(0, |most, &number| most.max(number)) as usize >= self.num_entries
            && num_texts > 0
        {
            return Err(Fault::Wrong("it names an entry that the dictionary does not have"));
        }
        let entries = self.entries.clone();
        let text = |place: usize| {
            let entries = entries.as_ref()?;
            entries.text(numbers[place] as usize)
        };
        let (complete, inner) = self.carry(&starts, |place| text(place).unwrap_or_default())?;
        let piece = inner.map(|starts| Piece::Numbers(Numbers { starts, numbers }));
        Ok((complete, piece))
    }

    /// Carries the record under way on, and the last one over; returns the first if it is complete, and
    /// the starts of those that begin and end here.
    fn carry<'t>(
        &mut self,
        starts: &[i32],
        text: impl Fn(usize) -> &'t [u8],
    ) -> Parsed<(Option<TagColumn>, Option<Vec<i32>>)> {
        let (first, last) = (starts[0] as usize, starts[starts.len() - 1] as usize);
        (0..first).try_for_each(|place| self.carried.push(text(place)))?;
        let Some((_, begun)) = starts.split_last().filter(|(_, begun)| !begun.is_empty()) else {
            return Ok((None, None));
        };
        let complete = self.carried.take();
        let from = begun[begun.len() - 1] as usize;
        self.carried.begin();
        (from..last).try_for_each(|place| self.carried.push(text(place)))?;
        Ok((complete, (begun.len() > 1).then(|| begun.to_vec())))
    }
}

/// Reads texts, each behind a length of four bytes, as views: that is how a short one lies there already.
fn read_views(
    bytes: &[u8],
    size: usize,
    at: &mut usize,
    number: usize,
    views: &mut Vec<u128>,
) -> Parsed<()> {
    views.reserve(number.min(size / 4));
    for _ in 0..number {
        let found = bytes.get(*at..*at + 16).and_then(|found| found.try_into().ok());
        let found = u128::from_le_bytes(found.ok_or(Fault::Short)?);
        let length = found as u32 as usize;
        let start = *at + 4;
        let end = start + length;
        if end > size {
            return Err(Fault::Short);
        }
        let outside = found & u128::from(u64::MAX) | (start as u128) << 96;
        let inside = found & WITHIN[length.min(INLINE)];
        views.push(if length <= INLINE { inside } else { outside });
        *at = end;
    }
    Ok(())
}
