//! Thrift's compact protocol: how the metadata of Parquet is written.
//!
//! A structure is a row of fields, each with a number and a kind, until a zero. What is not asked for
//! is passed over. Nothing is taken from a length before the bytes are seen to be there.
//! <https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md>

use super::{Fault, Parsed};
use crate::leb128;

/// Structures within structures; the metadata has five.
const MAX_DEPTH: usize = 32;

/// The kind of a field, as its number in the protocol.
pub(super) mod kind {
    pub(in super::super) const TRUE: u8 = 1;
    pub(in super::super) const FALSE: u8 = 2;
    pub(in super::super) const BYTE: u8 = 3;
    pub(in super::super) const I16: u8 = 4;
    pub(in super::super) const I32: u8 = 5;
    pub(in super::super) const I64: u8 = 6;
    pub(in super::super) const DOUBLE: u8 = 7;
    pub(in super::super) const BYTES: u8 = 8;
    pub(in super::super) const LIST: u8 = 9;
    pub(in super::super) const SET: u8 = 10;
    pub(in super::super) const MAP: u8 = 11;
    pub(in super::super) const STRUCT: u8 = 12;
}

/// Reads structures out of bytes.
#[derive(Debug, Clone)]
pub(super) struct Compact<'a> {
    bytes: &'a [u8],
    at: usize,
    depth: usize,
}

impl<'a> Compact<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0, depth: 0 }
    }

    /// Bytes read.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    fn byte(&mut self) -> Parsed<u8> {
        let byte = *self.bytes.get(self.at).ok_or(Fault::Short)?;
        self.at += 1;
        Ok(byte)
    }

    fn take(&mut self, length: u64) -> Parsed<&'a [u8]> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let length = usize::try_from(length).map_err(|_| Fault::Short)?;
        let taken = rest.get(..length).ok_or(Fault::Short)?;
        self.at += length;
        Ok(taken)
    }

    fn varint(&mut self) -> Parsed<u64> {
        let number = leb128::read(|| self.byte())?;
        number.ok_or(Fault::Wrong("a number of more than 64 bits"))
    }

    /// A signed number of any width.
    pub(super) fn int(&mut self) -> Parsed<i64> {
        let number = self.varint()?;
        Ok((number >> 1) as i64 ^ -((number & 1) as i64))
    }

    /// Text or bytes.
    pub(super) fn bytes(&mut self) -> Parsed<&'a [u8]> {
        let length = self.varint()?;
        self.take(length)
    }

    /// How many items a list has, and of what kind.
    pub(super) fn list(&mut self) -> Parsed<(u64, u8)> {
        let head = self.byte()?;
        let number = if head >> 4 == 15 { self.varint()? } else { u64::from(head >> 4) };
        Ok((number, head & 15))
    }

    /// Calls `take(self, number, kind)` for each field of a structure; it says whether it read the field,
    /// which is passed over otherwise.
    pub(super) fn fields(
        &mut self,
        mut take: impl FnMut(&mut Self, i64, u8) -> Parsed<bool>,
    ) -> Parsed<()> {
        if self.depth == MAX_DEPTH {
            return Err(Fault::Wrong("structures within structures without end"));
        }
        self.depth += 1;
        let mut number = 0_i64;
        loop {
            let head = self.byte()?;
            let kind = head & 15;
            if kind == 0 {
                break;
            }
            number = match head >> 4 {
                0 => self.int()?,
                step => number.saturating_add(i64::from(step)),
            };
            if !take(self, number, kind)? {
                self.skip(kind)?;
            }
        }
        self.depth -= 1;
        Ok(())
    }

    /// Calls `take` for each structure of a list.
    pub(super) fn structs(&mut self, mut take: impl FnMut(&mut Self) -> Parsed<()>) -> Parsed<()> {
        let (number, kind) = self.list()?;
        if kind != kind::STRUCT {
            return Err(Fault::Wrong("a list of something else"));
        }
        (0..number).try_for_each(|_| take(self))
    }

    fn skip(&mut self, kind: u8) -> Parsed<()> {
        match kind {
            kind::TRUE | kind::FALSE => Ok(()),
            kind::LIST | kind::SET => {
                let (number, kind) = self.list()?;
                (0..number).try_for_each(|_| self.skip_item(kind))
            }
            kind::MAP => {
                let number = self.varint()?;
                let kinds = if number > 0 { self.byte()? } else { 0 };
                (0..number).try_for_each(|_| {
                    self.skip_item(kinds >> 4)?;
                    self.skip_item(kinds & 15)
                })
            }
            _ => self.skip_item(kind),
        }
    }

    /// Passes over what takes at least a byte.
    fn skip_item(&mut self, kind: u8) -> Parsed<()> {
        match kind {
            kind::TRUE | kind::FALSE | kind::BYTE => self.byte().map(drop),
            kind::I16 | kind::I32 | kind::I64 => self.varint().map(drop),
            kind::DOUBLE => self.take(8).map(drop),
            kind::BYTES => self.bytes().map(drop),
            kind::STRUCT => self.fields(|_, _, _| Ok(false)),
            kind::LIST | kind::SET | kind::MAP if self.depth < MAX_DEPTH => {
                self.depth += 1;
                self.skip(kind)?;
                self.depth -= 1;
                Ok(())
            }
            _ => Err(Fault::Wrong("a field of an unknown kind")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_or_passed_over_and_nothing_is_read_beyond_the_end() {
        // 1: i32 -3; 2: list of two bytes texts; 4: true; 20: i64 300; end.
        let bytes = [
            0x15, 0x05, 0x19, 0x28, 0x01, b'a', 0x02, b'b', b'c', 0x21, 0x06, 0x28, 0xd8, 0x04,
            0x00,
        ];
        let mut seen = Vec::new();
        let mut compact = Compact::new(&bytes);
        let all = compact.fields(|from, number, kind| {
            seen.push((number, kind));
            if number == 1 || number == 20 {
                seen.push((from.int()?, 0));
                return Ok(true);
            }
            Ok(false)
        });
        assert_eq!(all, Ok(()));
        assert_eq!(compact.at(), bytes.len());
        let expected =
            [(1, kind::I32), (-3, 0), (2, kind::LIST), (4, kind::TRUE), (20, kind::STRUCT - 4)];
        assert_eq!(&seen[..4], &expected[..4]);
        for end in 0..bytes.len() {
            let cut = Compact::new(&bytes[..end]).fields(|_, _, _| Ok(false));
            assert_eq!(cut, Err(Fault::Short), "{end}");
        }
    }

    #[test]
    fn depth_and_numbers_without_end_are_refused() {
        let nested = [0x1c; 100];
        let found = Compact::new(&nested).fields(|_, _, _| Ok(false));
        assert!(matches!(found, Err(Fault::Wrong(_))));
        let lists = [&[0x19][..], &[0x19; 100]].concat();
        let found = Compact::new(&lists).fields(|_, _, _| Ok(false));
        assert!(matches!(found, Err(Fault::Wrong(_))));
        assert!(Compact::new(&[0xff; 20]).int().is_err());
        // A list of 2^60 booleans in a few bytes.
        let long = [0x19, 0xf1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x0f, 1, 1];
        assert_eq!(Compact::new(&long).fields(|_, _, _| Ok(false)), Err(Fault::Short));
    }
}
