//! A chunk of a column, page by page, unpacked.
//!
//! The file is read from the front of the chunk to its end, a few hundred kilobytes at a time. A page
//! is held against what its header says of it before its content is looked at, and memory for it is
//! bounded.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::runs::{PADDING, Runs};
use super::thrift::{Compact, kind};
use super::{Chunk, Codec, Fault, Parsed, damaged};
use crate::{Error, Result};

/// The largest page that is read, packed and unpacked; writers make them of a megabyte.
pub(super) const MAX_PAGE_BYTES: usize = 256 << 20;

/// The largest header of a page; statistics in it hold the least and the greatest text.
const MAX_HEADER_BYTES: usize = 4 << 20;
const HEADER_BYTES: usize = 512;

/// Entries of a dictionary; writers stop at a mebibyte or so of them.
const MAX_ENTRIES: u32 = 1 << 24;

/// Bytes asked of the file at a time.
const READ_BYTES: usize = 256 << 10;

/// Bytes behind those of a page, so that 16 are read at once wherever a text begins.
const PAGE_PADDING: usize = 16;
const _: () = assert!(PAGE_PADDING >= PADDING);

/// What a page holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    Dictionary,
    Data,
    /// Data of the second version, with so many bytes of repetition and of definition levels in front.
    DataV2(usize, usize),
}

/// How the texts of a page are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoding {
    Plain,
    Dictionary,
}

/// A page, unpacked.
#[derive(Debug)]
pub(super) struct Page {
    /// Where its header lies in the file.
    pub(super) at: u64,
    pub(super) content: Content,
    pub(super) encoding: Encoding,
    pub(super) num_values: u32,
    /// Its content, and [`PAGE_PADDING`] zero bytes behind it.
    pub(super) bytes: Vec<u8>,
    /// Bytes of the content.
    pub(super) size: usize,
}

impl Page {
    /// The runs of numbers of dictionary entries from `start` on.
    pub(super) fn numbers(&self, start: usize) -> Parsed<Runs> {
        // Where all are null there need not be a width.
        if start == self.size {
            return Ok(Runs::new(start, self.size, 0));
        }
        let width = u32::from(self.bytes[start]);
        if width > 32 {
            return Err(Fault::Wrong("its numbers have more than 32 bits"));
        }
        Ok(Runs::new(start + 1, self.size, width))
    }

    /// Refuses a dictionary that is not the first one, or too large.
    pub(super) fn check_dictionary(&self, is_first: bool) -> Parsed<()> {
        if !is_first {
            return Err(Fault::Wrong("it is a second dictionary"));
        }
        if self.num_values > MAX_ENTRIES {
            return Err(Fault::Wrong("its dictionary has over 16 million entries"));
        }
        Ok(())
    }
}

/// The bytes behind a length of four bytes at `at`: from where to where.
pub(super) fn span(bytes: &[u8], at: usize) -> Parsed<(usize, usize)> {
    let start = at + 4;
    let length = bytes.get(at..start).and_then(|length| length.try_into().ok());
    let length = u32::from_le_bytes(length.ok_or(Fault::Short)?) as usize;
    let end = start.checked_add(length).filter(|&end| end <= bytes.len()).ok_or(Fault::Short)?;
    Ok((start, end))
}

/// What the header of a page says.
#[derive(Debug, Default)]
struct Header {
    kind: Option<i64>,
    unpacked: Option<i64>,
    packed: Option<i64>,
    num_values: Option<i64>,
    encoding: Option<i64>,
    level_encodings: [Option<i64>; 2],
    level_bytes: [Option<i64>; 2],
    is_plain: bool,
}

/// Reads the pages of a chunk.
pub(super) struct Pages<'a> {
    path: &'a Path,
    file: File,
    codec: Codec,
    /// Bytes read and not yet used: those of `ahead` from `used` to `filled`.
    ahead: Vec<u8>,
    used: usize,
    filled: usize,
    /// Where the bytes behind those lie in the file, and where the chunk ends.
    next: u64,
    end: u64,
    zstd: zstd_safe::DCtx<'static>,
    snappy: snap::raw::Decoder,
}

impl<'a> Pages<'a> {
    pub(super) fn new(path: &'a Path, chunk: &Chunk) -> Result<Self> {
        let file = File::open(path).map_err(|error| Error::io(path, error))?;
        Ok(Self {
            path,
            file,
            codec: chunk.codec,
            ahead: Vec::new(),
            used: 0,
            filled: 0,
            next: chunk.start,
            end: chunk.end,
            zstd: zstd_safe::DCtx::create(),
            snappy: snap::raw::Decoder::new(),
        })
    }

    /// Goes on with another chunk, maybe of another file, in the same memory.
    pub(super) fn restart(&mut self, path: &'a Path, chunk: &Chunk) -> Result<()> {
        if path != self.path {
            self.file = File::open(path).map_err(|error| Error::io(path, error))?;
        }
        (self.path, self.codec) = (path, chunk.codec);
        (self.used, self.filled) = (0, 0);
        (self.next, self.end) = (chunk.start, chunk.end);
        Ok(())
    }

    /// Where the next page begins.
    pub(super) fn at(&self) -> u64 {
        self.next - (self.filled - self.used) as u64
    }

    /// The next page, unpacked into `bytes`; those of other kinds are passed over.
    pub(super) fn next_page(&mut self, bytes: Vec<u8>) -> Result<Page> {
        loop {
            let (path, at) = (self.path, self.at());
            let fault = |fault: Fault| damaged(path, at, fault.said());
            let (header, length) = match self.header()? {
                Ok(found) => found,
                Err(found) => return Err(fault(found)),
            };
            self.used += length;
            let packed = size(header.packed).map_err(fault)?;
            if !self.fill(packed)? {
                return Err(fault(Fault::Short));
            }
            let body = self.used..self.used + packed;
            self.used = body.end;
            let Some(content) = header.content().map_err(fault)? else { continue };
            let mut page = Page {
                at,
                content,
                encoding: header.encoding(content).map_err(fault)?,
                num_values: header.num_values().map_err(fault)?,
                bytes,
                size: size(header.unpacked).map_err(fault)?,
            };
            let unpacked = self.unpack(body, header.is_plain, &mut page);
            unpacked.map_err(fault)?;
            return Ok(page);
        }
    }

    /// The header of the next page and its length.
    fn header(&mut self) -> Result<Parsed<(Header, usize)>> {
        let mut wanted = HEADER_BYTES;
        loop {
            let whole = self.fill(wanted)?;
            let mut from = Compact::new(&self.ahead[self.used..self.filled]);
            match Header::read(&mut from) {
                Err(Fault::Short) if whole && wanted < MAX_HEADER_BYTES => wanted *= 4,
                found => return Ok(found.map(|header| (header, from.at()))),
            }
        }
    }

    /// Makes `wanted` bytes ready behind `used`, or all that the chunk has left; whether they are there.
    fn fill(&mut self, wanted: usize) -> Result<bool> {
        let there = self.filled - self.used;
        if there >= wanted {
            return Ok(true);
        }
        self.ahead.copy_within(self.used..self.filled, 0);
        (self.used, self.filled) = (0, there);
        let left = self.end.saturating_sub(self.next);
        let more = left.min((wanted - there).max(READ_BYTES) as u64) as usize;
        if self.ahead.len() < there + more {
            self.ahead.resize(there + more, 0);
        }
        let read = self.file.read_exact_at(&mut self.ahead[there..there + more], self.next);
        read.map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => {
                damaged(self.path, self.next, "the file ends there")
            }
            _ => Error::io(self.path, error),
        })?;
        self.next += more as u64;
        self.filled = there + more;
        Ok(self.filled >= wanted)
    }

    /// Unpacks the content of a page from `ahead`.
    fn unpack(
        &mut self,
        body: std::ops::Range<usize>,
        is_plain: bool,
        page: &mut Page,
    ) -> Parsed<()> {
        let packed = &self.ahead[body];
        let levels = match page.content {
            Content::DataV2(repetition, definition) => repetition + definition,
            _ => 0,
        };
        if levels > page.size || levels > packed.len() {
            return Err(Fault::Wrong("its levels are longer than itself"));
        }
        let (front, packed) = packed.split_at(levels);
        let wanted = page.size - levels;
        let codec = if is_plain || packed.is_empty() { Codec::Plain } else { self.codec };
        // Seen before memory is taken for it.
        let told = match codec {
            Codec::Plain => Some(packed.len()),
            Codec::Snappy => snap::raw::decompress_len(packed).ok(),
            Codec::Zstd => match zstd_safe::get_frame_content_size(packed) {
                Ok(told) => told.map_or(Some(wanted), |told| usize::try_from(told).ok()),
                Err(_) => None,
            },
        };
        if told != Some(wanted) {
            return Err(Fault::Wrong("its size is another than it says"));
        }
        page.bytes.resize(page.size + PAGE_PADDING, 0);
        page.bytes[page.size..].fill(0);
        page.bytes[..levels].copy_from_slice(front);
        let out = &mut page.bytes[levels..page.size];
        let unpacked = match codec {
            Codec::Plain => {
                out.copy_from_slice(packed);
                Some(wanted)
            }
            Codec::Snappy => self.snappy.decompress(packed, out).ok(),
            Codec::Zstd => self.zstd.decompress(out, packed).ok(),
        };
        if unpacked != Some(wanted) {
            return Err(Fault::Wrong("it cannot be unpacked"));
        }
        Ok(())
    }
}

/// A size in bytes that a page can have.
fn size(number: Option<i64>) -> Parsed<usize> {
    let size = number.and_then(|number| usize::try_from(number).ok());
    size.filter(|&size| size <= MAX_PAGE_BYTES)
        .ok_or(Fault::Wrong("its size is none, or over 256 MiB"))
}

impl Header {
    fn read(from: &mut Compact<'_>) -> Parsed<Self> {
        let mut header = Self::default();
        from.fields(|from, number, kind| {
            match (number, kind) {
                (1, kind::I32) => header.kind = Some(from.int()?),
                (2, kind::I32) => header.unpacked = Some(from.int()?),
                (3, kind::I32) => header.packed = Some(from.int()?),
                // Of data, of a dictionary, and of data of the second version.
                (5 | 7 | 8, kind::STRUCT) => {
                    let second = number == 8;
                    from.fields(|from, number, kind| {
                        header.read_field(from, second, number, kind)
                    })?;
                }
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        Ok(header)
    }

    fn read_field(
        &mut self,
        from: &mut Compact<'_>,
        second: bool,
        number: i64,
        kind: u8,
    ) -> Parsed<bool> {
        let place = match (second, number, kind) {
            (_, 1, kind::I32) => &mut self.num_values,
            (false, 2, kind::I32) | (true, 4, kind::I32) => &mut self.encoding,
            (false, 3, kind::I32) => &mut self.level_encodings[0],
            (false, 4, kind::I32) => &mut self.level_encodings[1],
            (true, 5, kind::I32) => &mut self.level_bytes[1],
            (true, 6, kind::I32) => &mut self.level_bytes[0],
            (true, 7, kind::FALSE) => {
                self.is_plain = true;
                return Ok(true);
            }
            _ => return Ok(false),
        };
        *place = Some(from.int()?);
        Ok(true)
    }

    /// What the page holds; nothing that is wanted where that is `None`.
    fn content(&self) -> Parsed<Option<Content>> {
        match self.kind {
            Some(0) if self.level_encodings.iter().any(|&encoding| encoding != Some(3)) => {
                Err(Fault::Wrong("its levels are written in another way than runs"))
            }
            Some(0) => Ok(Some(Content::Data)),
            Some(1) => Ok(None),
            Some(2) => Ok(Some(Content::Dictionary)),
            Some(3) => {
                let [repetition, definition] = self.level_bytes;
                Ok(Some(Content::DataV2(size(repetition)?, size(definition)?)))
            }
            _ => Err(Fault::Wrong("it is of an unknown kind")),
        }
    }

    fn encoding(&self, content: Content) -> Parsed<Encoding> {
        match (self.encoding, content) {
            (Some(0), _) | (Some(2), Content::Dictionary) => Ok(Encoding::Plain),
            (Some(2 | 8), Content::Data | Content::DataV2(..)) => Ok(Encoding::Dictionary),
            _ => Err(Fault::Wrong("its texts are written in a way that the footer does not name")),
        }
    }

    fn num_values(&self) -> Parsed<u32> {
        let number = self.num_values.and_then(|number| u32::try_from(number).ok());
        number.ok_or(Fault::Wrong("it has no number of values"))
    }
}
