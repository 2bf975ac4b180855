//! Repeat factors: in memory, or a file of float32 that is mapped.
//!
//! What an epoch needs of them is the sum of each block. For a file the sums are kept beside it, so that
//! an order over a billion samples starts without reading its factors:
//!
//! ```text
//! NAME.sums    "WSLSUMS1", then u64: samples, bytes and time of change (ns) of NAME; the XXH3 of
//!              NAME (128 bits) and of the sums (64 bits); then the sums, f64; all little-endian
//! ```
//!
//! It is made where it is lacking or of another file.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::Xxh3;

use super::{BLOCK, MAX_FACTOR};
use crate::hints::prefetch;
use crate::job::Job;
use crate::map::Map;
use crate::publish::Unpublished;
use crate::{Error, Result};

const MAGIC: &[u8; 8] = b"WSLSUMS1";
const HEADER: usize = 56;
/// Samples whose factors are read at once.
const CHUNK: usize = 1 << 18;

/// A repeat factor for each sample.
///
/// Files are mapped for many look-ups and read for few: a page that is mapped brings its neighbours
/// along, so that a single batch would seem to take half a gigabyte.
#[derive(Debug)]
pub struct Factors {
    values: Bytes,
    sums: Bytes,
    /// Of all sums, and the largest of them.
    total: f64,
    largest_sum: f64,
    /// XXH3 of the factors, little-endian float32.
    pub(super) checksum: u128,
}

/// Numbers as little-endian bytes.
#[derive(Debug)]
enum Bytes {
    Memory(Vec<u8>),
    /// With what is before them in the file.
    Mapped(Map, File, usize),
}

impl Bytes {
    fn len(&self) -> usize {
        match self {
            Self::Memory(bytes) => bytes.len(),
            Self::Mapped(map, _, before) => map.len() - before,
        }
    }

    /// `length` bytes from `start` on; where `few`, a file is read into `buffer`.
    #[inline]
    fn get<'a>(
        &'a self,
        start: usize,
        length: usize,
        few: bool,
        buffer: &'a mut [u8; 4 * BLOCK],
    ) -> Result<&'a [u8]> {
        match self {
            Self::Memory(bytes) => Ok(&bytes[start..start + length]),
            Self::Mapped(map, _, before) if !few => {
                Ok(&map[before + start..before + start + length])
            }
            Self::Mapped(map, file, before) => {
                let bytes = &mut buffer[..length];
                let read = file.read_exact_at(bytes, (before + start) as u64);
                read.map_err(|error| Error::io(map.path(), error))?;
                Ok(bytes)
            }
        }
    }

    /// Makes the processor fetch the lines of `length` bytes.
    #[inline]
    fn prefetch(&self, start: usize, length: usize) {
        let bytes = match self {
            Self::Memory(bytes) => &bytes[..],
            Self::Mapped(map, _, before) => &map[*before..],
        };
        for line in (start..start + length).step_by(64) {
            prefetch(bytes, line);
        }
    }
}

fn floats(bytes: &[u8]) -> impl Iterator<Item = f32> + '_ {
    bytes.chunks_exact(4).map(|bytes| {
        let mut number = [0; 4];
        number.copy_from_slice(bytes);
        f32::from_le_bytes(number)
    })
}

fn doubles(bytes: &[u8]) -> impl Iterator<Item = f64> + '_ {
    bytes.chunks_exact(8).map(|bytes| {
        let mut number = [0; 8];
        number.copy_from_slice(bytes);
        f64::from_le_bytes(number)
    })
}

impl Factors {
    /// Factors in memory, one for each of `num_samples`: finite, from 0 to [`MAX_FACTOR`].
    pub fn in_memory(values: Vec<f32>, num_samples: u64) -> Result<Self> {
        if values.len() as u64 != num_samples {
            return Err(wrong_number(num_samples, values.len() as u64));
        }
        let (mut sums, mut hasher) =
            (Vec::with_capacity(values.len().div_ceil(BLOCK)), Xxh3::new());
        let mut bytes = Vec::new();
        for (number, some) in values.chunks(CHUNK).enumerate() {
            add_sums(some, (number * CHUNK) as u64, &mut sums)?;
            bytes.clear();
            some.iter().for_each(|value| bytes.extend_from_slice(&value.to_le_bytes()));
            hasher.update(&bytes);
        }
        let values = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let (values, sums) = (Bytes::Memory(values), Bytes::Memory(bytes_of(&sums)));
        Self::whole(values, sums, hasher.digest128())
    }

    /// The factors of a file of float32; `job` advances by samples where it has to be read whole.
    pub fn open(path: &Path, num_samples: u64, job: &Job) -> Result<Self> {
        let file = File::open(path).map_err(|error| Error::io(path, error))?;
        let metadata = file.metadata().map_err(|error| Error::io(path, error))?;
        if Some(metadata.len()) != num_samples.checked_mul(4) {
            return Err(wrong_number(num_samples, metadata.len() / 4));
        }
        let time = metadata.mtime() as u64 * 1_000_000_000 + metadata.mtime_nsec() as u64;
        let head = [num_samples, metadata.len(), time];
        let map = Map::open(path, Some(metadata.len()))?;
        let beside = sums_path(path);
        if let Some((checksum, sums)) = open_sums(&beside, head) {
            let values = Bytes::Mapped(map, file, 0);
            return Self::whole(values, sums, checksum);
        }
        let (sums, checksum) = sum_file(path, &file, num_samples, job)?;
        let values = Bytes::Mapped(map, file, 0);
        let written = write_sums(&beside, head, checksum, &sums).ok();
        let sums = match written.and_then(|()| open_sums(&beside, head)) {
            Some((_, mapped)) => mapped,
            // A folder that cannot be written to: they are kept in memory.
            None => Bytes::Memory(bytes_of(&sums)),
        };
        Self::whole(values, sums, checksum)
    }

    fn whole(values: Bytes, sums: Bytes, checksum: u128) -> Result<Self> {
        let mut factors = Self { values, sums, total: 0.0, largest_sum: 0.0, checksum };
        let (mut total, mut largest) = (0.0, 0.0_f64);
        factors.each_sum(|_, sum| {
            total += sum;
            largest = largest.max(sum);
        })?;
        if total < 1.0 {
            return Err(Error::usage(format!(
                "repeat factors: they add up to {total}, so an epoch would be empty; is anything in the \
                 index labelled?"
            )));
        }
        (factors.total, factors.largest_sum) = (total, largest);
        Ok(factors)
    }

    /// All factors added up.
    pub(super) fn total(&self) -> f64 {
        self.total
    }

    /// The largest sum of a block.
    pub(super) fn largest_sum(&self) -> f64 {
        self.largest_sum
    }

    /// The factors of a block, of which there are `number`; `few` means that little is looked up.
    #[inline]
    pub(super) fn block<'a>(
        &'a self,
        block: usize,
        number: usize,
        few: bool,
        buffer: &'a mut Buffer,
    ) -> Result<impl Iterator<Item = f32> + 'a> {
        Ok(floats(self.values.get(4 * BLOCK * block, 4 * number, few, buffer)?))
    }

    /// The sums of the blocks from `first` on, of which there are `number`, at most 32.
    #[inline]
    pub(super) fn sums<'a>(
        &'a self,
        first: usize,
        number: usize,
        few: bool,
        buffer: &'a mut Buffer,
    ) -> Result<impl Iterator<Item = f64> + 'a> {
        Ok(doubles(self.sums.get(8 * first, 8 * number, few, buffer)?))
    }

    /// Makes the processor fetch the factors of a block.
    #[inline]
    pub(super) fn prefetch(&self, block: usize) {
        self.values.prefetch(4 * BLOCK * block, 4 * BLOCK);
    }

    /// Number of blocks.
    pub(super) fn num_blocks(&self) -> usize {
        self.sums.len() / 8
    }

    /// Calls `take` with the sum of every block in turn.
    pub(super) fn each_sum(&self, mut take: impl FnMut(usize, f64)) -> Result<()> {
        match &self.sums {
            Bytes::Memory(bytes) => {
                doubles(bytes).enumerate().for_each(|(block, sum)| take(block, sum));
                Ok(())
            }
            Bytes::Mapped(map, file, before) => {
                let mut bytes = vec![0; 1 << 20];
                let (mut at, mut block) = (*before, 0);
                while at < map.len() {
                    let some = &mut bytes[..(map.len() - at).min(1 << 20)];
                    file.read_exact_at(some, at as u64)
                        .map_err(|error| Error::io(map.path(), error))?;
                    for sum in doubles(some) {
                        take(block, sum);
                        block += 1;
                    }
                    at += some.len();
                }
                Ok(())
            }
        }
    }
}

/// What a look-up in a file is read into.
pub(super) type Buffer = [u8; 4 * BLOCK];

fn wrong_number(expected: u64, found: u64) -> Error {
    Error::usage(format!(
        "repeat factors: expected one for each of {expected} samples, got {found}"
    ))
}

fn sums_path(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".sums");
    path.with_file_name(name)
}

/// Adds the sums of the blocks of `some`, which begin at sample `first`; each is added up in order.
fn add_sums(some: &[f32], first: u64, sums: &mut Vec<f64>) -> Result<()> {
    const LANES: usize = 4;
    if let Some(at) = some.iter().position(|factor| !(0.0..=MAX_FACTOR).contains(factor)) {
        return Err(Error::usage(format!(
            "repeat factors: sample {} has {}; expected a number from 0 to {MAX_FACTOR}",
            first + at as u64,
            some[at]
        )));
    }

    // Several blocks side by side: a sum of floats has to be in order, so one alone would wait for
    // each addition.
    let mut groups = some.chunks_exact(LANES * BLOCK);
    for group in &mut groups {
        let mut totals = [0.0; LANES];
        for at in 0..BLOCK {
            for (lane, total) in totals.iter_mut().enumerate() {
                *total += f64::from(group[lane * BLOCK + at]);
            }
        }
        sums.extend_from_slice(&totals);
    }
    for block in groups.remainder().chunks(BLOCK) {
        sums.push(block.iter().fold(0.0, |total, &factor| total + f64::from(factor)));
    }
    Ok(())
}

fn sum_file(path: &Path, file: &File, num_samples: u64, job: &Job) -> Result<(Vec<f64>, u128)> {
    let mut sums = Vec::with_capacity((num_samples as usize).div_ceil(BLOCK));
    let mut hasher = Xxh3::new();
    let mut bytes = vec![0; 4 * CHUNK];
    let mut values = Vec::with_capacity(CHUNK);
    let mut first = 0;
    while first < num_samples {
        job.check()?;
        let number = (num_samples - first).min(CHUNK as u64) as usize;
        let some = &mut bytes[..4 * number];
        file.read_exact_at(some, 4 * first).map_err(|error| Error::io(path, error))?;
        hasher.update(some);
        values.clear();
        values.extend(floats(some));
        add_sums(&values, first, &mut sums)?;
        first += number as u64;
        job.advance(number as u64);
    }
    Ok((sums, hasher.digest128()))
}

fn write_sums(path: &Path, head: [u64; 3], checksum: u128, sums: &[f64]) -> Result<()> {
    let mut hasher = Xxh3::new();
    for some in sums.chunks(1 << 12) {
        hasher.update(&bytes_of(some));
    }
    let mut file = Unpublished::create(path)?;
    let mut put = |bytes: &[u8]| file.write_all(bytes).map_err(|error| Error::io(path, error));
    put(MAGIC)?;
    head.iter().try_for_each(|number| put(&number.to_le_bytes()))?;
    put(&checksum.to_le_bytes())?;
    put(&hasher.digest().to_le_bytes())?;
    for some in sums.chunks(1 << 12) {
        put(&bytes_of(some))?;
    }
    file.publish()
}

fn bytes_of(sums: &[f64]) -> Vec<u8> {
    sums.iter().flat_map(|sum| sum.to_le_bytes()).collect()
}

/// The sums beside a file of factors, where they are whole and of this very file.
fn open_sums(path: &Path, head: [u64; 3]) -> Option<(u128, Bytes)> {
    // The file only saves time, so whatever is wrong with it, the sums are made anew.
    let file = File::open(path).ok()?;
    let blocks = usize::try_from(head[0]).ok()?.div_ceil(BLOCK);
    let size = blocks.checked_mul(8)?.checked_add(HEADER)?;
    if fs::metadata(path).ok()?.len() != size as u64 {
        return None;
    }
    let mut header = [0; HEADER];
    file.read_exact_at(&mut header, 0).ok()?;
    let expected: Vec<u8> =
        MAGIC.iter().copied().chain(head.iter().flat_map(|number| number.to_le_bytes())).collect();
    if header[..32] != expected[..] {
        return None;
    }
    let checksum = u128::from_le_bytes(header[32..48].try_into().ok()?);
    let digest = u64::from_le_bytes(header[48..56].try_into().ok()?);
    let mut hasher = Xxh3::new();
    let mut bytes = vec![0; 1 << 20];
    let mut at = HEADER;
    while at < size {
        let some = &mut bytes[..(size - at).min(1 << 20)];
        file.read_exact_at(some, at as u64).ok()?;
        hasher.update(some);
        at += some.len();
    }
    if hasher.digest() != digest {
        return None;
    }
    let map = Map::open(path, Some(size as u64)).ok()?;
    Some((checksum, Bytes::Mapped(map, file, HEADER)))
}
