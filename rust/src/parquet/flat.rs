//! Columns of numbers, one in each row: scored pairs.
//!
//! The pages of the three columns end at different rows, so rows are taken as far as all of them reach. Of
//! each piece the scores are laid out, and the classes or the numbers of their dictionary entries; a sample
//! is looked up where somebody wants it, in a plain page by its place, else by the number of its entry.

use std::path::Path;

use super::pages::{Content, Encoding, Page, Pages, span};
use super::runs::Runs;
use super::{Chunk, Fault, Kind, PAIR_COLUMNS, Parsed, damaged};
use crate::{Error, Result};

/// The most rows of a piece.
pub(crate) const PIECE: usize = 1 << 12;

/// What stands for a class that does not fit 32 bits.
const TOO_LARGE: u32 = u32::MAX;

/// The pairs of a row group, piece by piece.
pub(crate) struct PairReader<'a> {
    samples: FlatReader<'a>,
    classes: FlatReader<'a>,
    scores: FlatReader<'a>,
    num_rows: u64,
    class_numbers: Vec<u32>,
    score_numbers: Vec<f32>,
}

/// Some pairs, in the order of the file.
pub(crate) struct Pairs<'p> {
    /// The class of each pair, or the number of its entry among [`entries`](Self::entries).
    pub(crate) numbers: &'p [u32],
    pub(crate) scores: &'p [f32],
    samples: &'p FlatReader<'p>,
    class_column: &'p FlatReader<'p>,
}

impl Pairs<'_> {
    /// The sample of a pair.
    #[inline]
    pub(crate) fn sample(&self, place: usize) -> u64 {
        self.samples.bits(place)
    }

    /// The classes that the numbers stand for, where they are not classes; none changes within a row group.
    #[inline]
    pub(crate) fn entries(&self) -> Option<&[u32]> {
        (!self.class_column.is_plain).then_some(&self.class_column.short_entries)
    }

    /// The class of each pair; that of one which does not fit 32 bits is beyond all others.
    pub(crate) fn classes(&self) -> impl Iterator<Item = u32> {
        let entries = self.entries();
        self.numbers.iter().map(move |&number| entries.map_or(number, |all| all[number as usize]))
    }

    /// The class of a pair, however large.
    pub(crate) fn class(&self, place: usize) -> u64 {
        self.class_column.bits(place)
    }
}

impl<'a> PairReader<'a> {
    pub(super) fn new(path: &'a Path, chunks: &[Chunk; 3]) -> Result<Self> {
        let column = |number: usize| FlatReader::new(path, PAIR_COLUMNS[number], &chunks[number]);
        Ok(Self {
            samples: column(0)?,
            classes: column(1)?,
            scores: column(2)?,
            num_rows: chunks[0].num_rows,
            class_numbers: Vec::new(),
            score_numbers: Vec::new(),
        })
    }

    /// Goes on with another row group, in the same memory.
    pub(super) fn restart(&mut self, path: &'a Path, chunks: &[Chunk; 3]) -> Result<()> {
        let columns = [&mut self.samples, &mut self.classes, &mut self.scores];
        self.num_rows = chunks[0].num_rows;
        columns.into_iter().zip(chunks).try_for_each(|(column, chunk)| column.restart(path, chunk))
    }

    /// The next pairs, at most `most` of them; none at the end.
    pub(crate) fn next_pairs(&mut self, most: usize) -> Result<Option<Pairs<'_>>> {
        if self.num_rows == 0 {
            return Ok(None);
        }
        let columns = [&mut self.samples, &mut self.classes, &mut self.scores];
        let mut length = usize::try_from(self.num_rows).unwrap_or(most).min(most).min(PIECE);
        for column in columns {
            length = length.min(column.available()?);
        }
        self.num_rows -= length as u64;
        for column in [&mut self.samples, &mut self.classes, &mut self.scores] {
            column.take(length)?;
        }
        self.samples.check_signs()?;
        self.classes.check_signs()?;
        if self.classes.is_plain {
            self.classes.classes(&mut self.class_numbers);
        }
        self.scores.floats(&mut self.score_numbers);
        let is_plain = self.classes.is_plain;
        Ok(Some(Pairs {
            numbers: if is_plain { &self.class_numbers } else { &self.classes.numbers },
            scores: &self.score_numbers,
            samples: &self.samples,
            class_column: &self.classes,
        }))
    }
}

/// The part of a page that is not taken yet.
#[derive(Debug)]
struct Rest {
    at: u64,
    num_values: usize,
    definition: Runs,
    values: Values,
}

#[derive(Debug, Clone, Copy)]
enum Values {
    /// Where the next one begins.
    Plain(usize),
    Numbers(Runs),
}

/// Reads a column of one chunk.
pub(crate) struct FlatReader<'a> {
    path: &'a Path,
    name: &'static str,
    pages: Pages<'a>,
    kind: Kind,
    is_nullable: bool,
    num_values: u64,
    rest: Option<Rest>,
    /// The bytes of the page under way.
    bytes: Vec<u8>,
    size: usize,
    /// The dictionary: each entry as its bits, and what 32 bits hold of it.
    entries: Option<Vec<u64>>,
    short_entries: Vec<u32>,
    has_negative_entries: bool,
    /// What was taken last: where it lies in a plain page, or the numbers of its entries.
    taken: std::ops::Range<usize>,
    numbers: Vec<u32>,
    is_plain: bool,
}

impl<'a> FlatReader<'a> {
    fn new(path: &'a Path, name: &'static str, chunk: &Chunk) -> Result<Self> {
        Ok(Self {
            path,
            name,
            pages: Pages::new(path, chunk)?,
            kind: chunk.kind,
            is_nullable: chunk.levels.text_nullable,
            num_values: chunk.num_values,
            rest: None,
            bytes: Vec::new(),
            size: 0,
            entries: None,
            short_entries: Vec::new(),
            has_negative_entries: false,
            taken: 0..0,
            numbers: Vec::new(),
            is_plain: false,
        })
    }

    fn restart(&mut self, path: &'a Path, chunk: &Chunk) -> Result<()> {
        self.pages.restart(path, chunk)?;
        (self.path, self.kind) = (path, chunk.kind);
        (self.is_nullable, self.num_values) = (chunk.levels.text_nullable, chunk.num_values);
        (self.rest, self.entries, self.has_negative_entries) = (None, None, false);
        Ok(())
    }

    fn width(&self) -> usize {
        if matches!(self.kind, Kind::I64 | Kind::U64) { 8 } else { 4 }
    }

    /// How many values the page under way has left; one at least.
    fn available(&mut self) -> Result<usize> {
        loop {
            if let Some(rest) = self.rest.as_ref().filter(|rest| rest.num_values > 0) {
                return Ok(rest.num_values);
            }
            if self.num_values == 0 {
                let what = "the chunk ends there with fewer rows than the footer says";
                return Err(damaged(self.path, self.pages.at(), what));
            }
            let page = self.pages.next_page(std::mem::take(&mut self.bytes))?;
            let at = page.at;
            self.open(page).map_err(|fault| damaged(self.path, at, fault.said()))?;
        }
    }

    fn open(&mut self, page: Page) -> Parsed<()> {
        let (size, num_values) = (page.size, page.num_values as usize);
        if page.content == Content::Dictionary {
            self.read_entries(&page)?;
            self.bytes = page.bytes;
            return Ok(());
        }
        let left = self.num_values.checked_sub(num_values as u64);
        self.num_values = left.ok_or(Fault::Wrong("it has more values than the footer says"))?;
        let (definition, start) = match page.content {
            Content::DataV2(repetition, definition) => {
                let end = repetition + definition;
                (Runs::new(repetition, end, 1), end)
            }
            _ if self.is_nullable => {
                let (first, end) = span(&page.bytes[..size], 0)?;
                (Runs::new(first, end, 1), end)
            }
            _ => (Runs::default(), 0),
        };
        let values = match page.encoding {
            Encoding::Plain => {
                let bytes = num_values.checked_mul(self.width());
                if !self.is_nullable && bytes.is_none_or(|bytes| bytes > size - start) {
                    return Err(Fault::Short);
                }
                Values::Plain(start)
            }
            Encoding::Dictionary if self.entries.is_none() => {
                return Err(Fault::Wrong("it names entries, and there is no dictionary before it"));
            }
            Encoding::Dictionary => Values::Numbers(page.numbers(start)?),
        };
        self.rest = Some(Rest { at: page.at, num_values, definition, values });
        (self.bytes, self.size) = (page.bytes, size);
        Ok(())
    }

    fn read_entries(&mut self, page: &Page) -> Parsed<()> {
        page.check_dictionary(self.entries.is_none())?;
        let width = self.width();
        let bytes = page.bytes[..page.size].get(..page.num_values as usize * width);
        let entries = bytes.ok_or(Fault::Short)?.chunks_exact(width);
        let entries: Vec<u64> = entries.map(|entry| bits_of(self.kind, entry)).collect();
        let is_signed = matches!(self.kind, Kind::I32 | Kind::I64);
        self.has_negative_entries = is_signed && entries.iter().any(|&entry| (entry as i64) < 0);
        self.short_entries = entries.iter().map(|&entry| narrow(entry)).collect();
        self.entries = Some(entries);
        Ok(())
    }

    /// Takes the next values, as many as are [`available`](Self::available) at most.
    fn take(&mut self, wanted: usize) -> Result<()> {
        let Some(mut rest) = self.rest.take() else { return Ok(()) };
        let taken = self.take_from(&mut rest, wanted);
        let at = rest.at;
        self.rest = Some(rest);
        match taken.map_err(|fault| damaged(self.path, at, fault.said()))? {
            true => Ok(()),
            false => Err(Error::data(format!(
                "the scored pairs: column {:?} is null in a row of the page at byte {at} of {}; every pair \
                 needs a sample, a class and a score",
                self.name,
                self.path.display()
            ))),
        }
    }

    /// Whether they are all there.
    fn take_from(&mut self, rest: &mut Rest, wanted: usize) -> Parsed<bool> {
        if self.is_nullable && !rest.definition.skip_same(&self.bytes, 1, wanted as u64)? {
            self.numbers.clear();
            rest.definition.read(&self.bytes, wanted, &mut self.numbers)?;
            if self.numbers.iter().any(|&level| level != 1) {
                return Ok(false);
            }
        }
        rest.num_values -= wanted;
        self.is_plain = matches!(rest.values, Values::Plain(_));
        match &mut rest.values {
            Values::Plain(start) => {
                self.taken = *start..*start + wanted * self.width();
                if self.taken.end > self.size {
                    return Err(Fault::Short);
                }
                *start = self.taken.end;
            }
            Values::Numbers(runs) => {
                self.numbers.resize(wanted, 0);
                let most = runs.fill(&self.bytes, &mut self.numbers)?;
                if most as usize >= self.entries.as_ref().map_or(0, Vec::len) {
                    return Err(Fault::Wrong(
                        "it names an entry that the dictionary does not have",
                    ));
                }
            }
        }
        Ok(true)
    }

    /// A value that was taken, as its bits.
    #[inline]
    fn bits(&self, place: usize) -> u64 {
        if !self.is_plain {
            let entries = self.entries.as_deref().unwrap_or_default();
            return self
                .numbers
                .get(place)
                .and_then(|&number| entries.get(number as usize))
                .copied()
                .unwrap_or(0);
        }
        let width = self.width();
        let value = self.bytes[self.taken.clone()].get(place * width..(place + 1) * width);
        value.map_or(0, |value| bits_of(self.kind, value))
    }

    fn len(&self) -> usize {
        if self.is_plain { self.taken.len() / self.width() } else { self.numbers.len() }
    }

    /// Refuses negative integers.
    fn check_signs(&self) -> Result<()> {
        let has_negative = match (self.kind, self.is_plain) {
            (Kind::I32 | Kind::I64, false) => self.has_negative_entries,
            (Kind::I32, true) => signs(&self.bytes[self.taken.clone()], 4),
            (Kind::I64, true) => signs(&self.bytes[self.taken.clone()], 8),
            _ => false,
        };
        let negative =
            || (0..self.len()).map(|place| self.bits(place) as i64).find(|&value| value < 0);
        match has_negative.then(negative).flatten() {
            Some(value) => Err(Error::data(format!(
                "the scored pairs: column {:?} holds {value}; expected numbers from 0 on",
                self.name
            ))),
            None => Ok(()),
        }
    }

    /// The classes that were taken out of a plain page; [`TOO_LARGE`] for those beyond 32 bits.
    fn classes(&self, out: &mut Vec<u32>) {
        out.clear();
        let bytes = &self.bytes[self.taken.clone()];
        match self.kind {
            Kind::U32 => {
                out.extend(bytes.chunks_exact(4).map(|value| bits_of(Kind::U32, value) as u32))
            }
            kind => {
                let values = bytes.chunks_exact(self.width());
                out.extend(values.map(|value| narrow(bits_of(kind, value))));
            }
        }
    }

    fn floats(&self, out: &mut Vec<f32>) {
        out.clear();
        if self.is_plain {
            let values = self.bytes[self.taken.clone()].chunks_exact(4);
            out.extend(
                values.map(|value| f32::from_le_bytes([value[0], value[1], value[2], value[3]])),
            );
        } else {
            let bits = self.numbers.iter().map(|&number| self.short_entries[number as usize]);
            out.extend(bits.map(f32::from_bits));
        }
    }
}

fn narrow(bits: u64) -> u32 {
    u32::try_from(bits).unwrap_or(TOO_LARGE)
}

/// The bits of a value, sign-extended where it has a sign.
#[inline]
fn bits_of(kind: Kind, value: &[u8]) -> u64 {
    let four = || value.first_chunk::<4>().copied().unwrap_or_default();
    match kind {
        Kind::I32 => i64::from(i32::from_le_bytes(four())) as u64,
        Kind::I64 | Kind::U64 => {
            value.first_chunk::<8>().map_or(0, |bits| u64::from_le_bytes(*bits))
        }
        Kind::Bytes | Kind::U32 | Kind::F32 => u64::from(u32::from_le_bytes(four())),
    }
}

/// Whether a number of `width` bytes has the bit of its sign.
fn signs(bytes: &[u8], width: usize) -> bool {
    bytes.chunks_exact(width).fold(0, |all, value| all | value[width - 1]) & 0x80 != 0
}
