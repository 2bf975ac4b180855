//! Runs of small numbers: how Parquet writes levels and the numbers of dictionary entries.
//!
//! A run is either one number and how often it comes, or groups of eight numbers packed into as many
//! bits as the largest one needs. Runs are read piece by piece, for a few bytes can stand for any number
//! of numbers.
//! <https://parquet.apache.org/docs/file-format/data-pages/encodings/>

use super::{Fault, Parsed};
use crate::leb128;

/// Bytes that must follow those of the runs, so that eight are read at once wherever a number begins.
pub(super) const PADDING: usize = 8;

/// Where the reading of runs is; their bytes lie elsewhere.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Runs {
    at: usize,
    end: usize,
    width: u32,
    run: Run,
    /// Numbers left in the run.
    left: u64,
}

#[derive(Debug, Clone, Copy)]
enum Run {
    Same(u32),
    /// The bit at which the next number begins.
    Packed(u64),
}

impl Default for Run {
    fn default() -> Self {
        Self::Same(0)
    }
}

impl Runs {
    /// Runs of numbers of `width` bits, 32 at most, in the bytes from `start` to `end`.
    pub(super) fn new(start: usize, end: usize, width: u32) -> Self {
        Self { at: start, end, width, run: Run::default(), left: 0 }
    }

    /// Whether the next `wanted` numbers are `number`, one run of it; they are read if so.
    pub(super) fn skip_same(&mut self, bytes: &[u8], number: u32, wanted: u64) -> Parsed<bool> {
        if self.left == 0 {
            self.begin(bytes)?;
        }
        let same = self.left >= wanted && matches!(self.run, Run::Same(found) if found == number);
        if same {
            self.left -= wanted;
        }
        Ok(same)
    }

    /// Reads the next `wanted` numbers to the end of `out`. [`PADDING`] bytes follow the runs in `bytes`.
    pub(super) fn read(&mut self, bytes: &[u8], wanted: usize, out: &mut Vec<u32>) -> Parsed<()> {
        let first = out.len();
        out.resize(first + wanted, 0);
        self.fill(bytes, &mut out[first..]).map(|_| ())
    }

    /// Reads as many of the next numbers as `out` has room for, and returns the largest.
    pub(super) fn fill(&mut self, bytes: &[u8], out: &mut [u32]) -> Parsed<u32> {
        let (mut rest, mut most) = (out, 0);
        while !rest.is_empty() {
            if self.left == 0 {
                self.begin(bytes)?;
            }
            let number = self.left.min(rest.len() as u64);
            let (some, others) = rest.split_at_mut(number as usize);
            match self.run {
                Run::Same(same) => {
                    some.fill(same);
                    most = most.max(same);
                }
                Run::Packed(bit) => {
                    let next = bit + number * u64::from(self.width);
                    if next.div_ceil(8) > self.end as u64 {
                        return Err(Fault::Short);
                    }
                    unpack(bytes, bit, self.width, some);
                    most = some.iter().fold(most, |most, &number| most.max(number));
                    self.run = Run::Packed(next);
                }
            }
            self.left -= number;
            rest = others;
        }
        Ok(most)
    }

    /// Reads the head of the next run.
    #[inline]
    fn begin(&mut self, bytes: &[u8]) -> Parsed<()> {
        let first = *bytes.get(..self.end).and_then(|all| all.get(self.at)).ok_or(Fault::Short)?;
        let head = if first < 0x80 {
            self.at += 1;
            u64::from(first)
        } else {
            self.long_head(bytes)?
        };
        let length = head >> 1;
        if length == 0 {
            return Err(Fault::Wrong("a run of no numbers"));
        }
        if head & 1 == 1 {
            // The last run may be cut short where nothing is wanted of it.
            self.run = Run::Packed(8 * self.at as u64);
            self.left = 8 * length;
            let size = length as usize * self.width as usize;
            self.at = self.at.saturating_add(size).min(self.end);
            return Ok(());
        }
        let size = self.width.div_ceil(8);
        let stored = bytes.get(self.at..).and_then(|rest| rest.first_chunk());
        let end = self.at + size as usize;
        let stored = stored.filter(|_| end <= self.end).ok_or(Fault::Short)?;
        self.run = Run::Same((u64::from_le_bytes(*stored) & ((1 << (8 * size)) - 1)) as u32);
        self.left = length;
        self.at = end;
        Ok(())
    }

    /// A head of several bytes.
    fn long_head(&mut self, bytes: &[u8]) -> Parsed<u64> {
        let bytes = bytes.get(..self.end).ok_or(Fault::Short)?;
        let head = leb128::read(|| {
            let byte = *bytes.get(self.at).ok_or(Fault::Short)?;
            self.at += 1;
            Ok(byte)
        })?;
        // 32 bits are all that the format has; more would overflow in the caller.
        let head = head.filter(|head| head >> 35 == 0);
        head.ok_or(Fault::Wrong("a run of more than 2^32 numbers"))
    }
}

/// Unpacks numbers whose bits lie within `bytes`, with [`PADDING`] bytes behind them.
fn unpack(bytes: &[u8], bit: u64, width: u32, out: &mut [u32]) {
    let (mut bit, mut rest) = (bit, out);
    if bit.is_multiple_of(8) && rest.len() >= 8 && width > 0 {
        let size = rest.len() / 8 * width as usize;
        let start = (bit / 8) as usize;
        if let Some(packed) = bytes.get(start..start + size + PADDING) {
            let (eights, others) = rest.as_chunks_mut();
            unpack_eights(packed, width, eights);
            (bit, rest) = (bit + 8 * size as u64, others);
        }
    }
    let mask = (1_u64 << width) - 1;
    for number in rest {
        let start = (bit / 8) as usize;
        let word = bytes.get(start..).and_then(|rest| rest.first_chunk()).copied();
        *number = ((word.map_or(0, u64::from_le_bytes) >> (bit % 8)) & mask) as u32;
        bit += u64::from(width);
    }
}

/// Unpacks whole groups of eight numbers, with [`PADDING`] bytes behind them; the code for each width
/// knows all of its shifts.
fn unpack_eights(packed: &[u8], width: u32, out: &mut [[u32; 8]]) {
    macro_rules! of_width {
        ($($width:literal)*) => {
            match width {
                $($width => eights::<$width>(packed, out),)*
                _ => {}
            }
        };
    }
    of_width!(
        1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32
    );
}

fn eights<const WIDTH: usize>(packed: &[u8], out: &mut [[u32; 8]]) {
    for (number, out) in out.iter_mut().enumerate() {
        *out = eight::<WIDTH>(&packed[number * WIDTH..number * WIDTH + WIDTH + PADDING]);
    }
}

/// Eight numbers, each out of the eight bytes where it begins.
#[inline(always)]
fn eight<const WIDTH: usize>(group: &[u8]) -> [u32; 8] {
    let mask = (1_u64 << WIDTH) - 1;
    std::array::from_fn(|number| {
        let bit = number * WIDTH;
        let start = bit / 8;
        let mut word = [0; 8];
        word.copy_from_slice(&group[start..start + 8]);
        ((u64::from_le_bytes(word) >> (bit % 8)) & mask) as u32
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The plain twin of the reader: writes numbers in runs of given lengths.
    fn write(pieces: &[(bool, Vec<u32>)], width: u32) -> (Vec<u8>, Vec<u32>) {
        let (mut bytes, mut numbers) = (Vec::new(), Vec::new());
        let head = |bytes: &mut Vec<u8>, mut value: u64| {
            while value >= 0x80 {
                bytes.push(value as u8 | 0x80);
                value >>= 7;
            }
            bytes.push(value as u8);
        };
        for (packed, values) in pieces {
            if *packed {
                let mut values = values.clone();
                values.resize(values.len().next_multiple_of(8), 0);
                head(&mut bytes, (values.len() as u64 / 8) << 1 | 1);
                let mut bits = Vec::new();
                for value in &values {
                    bits.extend((0..width).map(|bit| value >> bit & 1 == 1));
                }
                bytes.extend(bits.chunks(8).map(|byte| {
                    byte.iter().enumerate().fold(0, |all, (bit, &on)| all | u8::from(on) << bit)
                }));
                numbers.extend(values);
            } else {
                let value = values[0];
                head(&mut bytes, (values.len() as u64) << 1);
                bytes.extend(&value.to_le_bytes()[..width.div_ceil(8) as usize]);
                numbers.extend(std::iter::repeat_n(value, values.len()));
            }
        }
        (bytes, numbers)
    }

    proptest! {
        #[test]
        fn runs_are_read_as_they_were_written_in_pieces_of_any_size(
            width in 0_u32..=32,
            pieces in prop::collection::vec((any::<bool>(), prop::collection::vec(any::<u32>(), 1..40)), 0..8),
            step in 1_usize..50,
            front in 0_usize..3,
        ) {
            let mask = ((1_u64 << width) - 1) as u32;
            let pieces: Vec<_> = pieces
                .into_iter()
                .map(|(packed, values)| (packed, values.into_iter().map(|v| v & mask).collect()))
                .collect();
            let (written, numbers) = write(&pieces, width);
            let mut bytes = vec![7; front];
            bytes.extend(&written);
            let end = bytes.len();
            bytes.extend([0xff; PADDING]);
            let mut runs = Runs::new(front, end, width);
            let mut found = Vec::new();
            while found.len() < numbers.len() {
                let wanted = step.min(numbers.len() - found.len());
                prop_assert_eq!(runs.read(&bytes, wanted, &mut found), Ok(()));
            }
            prop_assert_eq!(&found, &numbers);
            prop_assert_eq!(runs.read(&bytes, 1, &mut found), Err(Fault::Short));
        }

        #[test]
        fn any_bytes_give_numbers_or_a_fault(
            bytes in prop::collection::vec(any::<u8>(), PADDING..60), width in 0_u32..=32
        ) {
            let mut out = Vec::new();
            let mut runs = Runs::new(0, bytes.len() - PADDING, width);
            for _ in 0..20 {
                if runs.read(&bytes, 100, &mut out).is_err() {
                    break;
                }
            }
            prop_assert!(out.len() <= 2000);
        }
    }

    #[test]
    fn a_run_of_one_number_is_passed_over_at_once() {
        let (mut bytes, _) = write(&[(false, vec![3; 10]), (false, vec![1; 5])], 2);
        let end = bytes.len();
        bytes.extend([0; PADDING]);
        let mut runs = Runs::new(0, end, 2);
        assert_eq!(runs.skip_same(&bytes, 3, 9), Ok(true));
        assert_eq!(runs.skip_same(&bytes, 3, 2), Ok(false));
        let mut out = Vec::new();
        assert_eq!(runs.read(&bytes, 3, &mut out), Ok(()));
        assert_eq!(out, [3, 1, 1]);
    }
}
