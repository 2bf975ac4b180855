//! Counts as a file, to be made apart and joined.
//!
//! Little-endian: the magic `WSLCOUNT`, the format version (u32); records, duplicates (u64) and the
//! rejected tags by cause (number of causes as u32, then u64 each); the number of sizes (u64), then
//! size and records (u64 each) by ascending size; the number of tags (u64), then length (u8), bytes
//! and count (LEB128) of each, in the order of their [hashes](crate::hashtag::hash_of), ties by
//! bytes; last the XXH3 hash (128 bits) of all before it. Equal counts make equal files.
//!
//! A file is data from outside: no length in it is trusted, order and sums must be right, and what
//! is wrong with it is an error.

use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::path::Path;

use xxhash_rust::xxh3::Xxh3;

use super::HashtagCounts;
use super::run::encode;
use super::waiting::partition_of;
use crate::hashtag::{MAX_BYTES, Rejection, Tag};
use crate::job::Job;
use crate::publish::Unpublished;
use crate::spill::Memory;
use crate::{Error, Result, leb128};

const MAGIC: [u8; 8] = *b"WSLCOUNT";
const FORMAT_VERSION: u32 = 2;

/// Tags read between two looks at the [`Job`] and the memory.
const TAGS_PER_CHECK: u64 = 1 << 14;

impl HashtagCounts {
    /// Writes the counts to `path`, whole or not at all.
    pub fn save(&mut self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let num_distinct = self.num_distinct()?;
        let mut file = Unpublished::create(path)?;
        let mut out = Hashed { file: &mut file, hasher: Xxh3::new() };
        let fault = |error| Error::io(path, error);
        self.write_head(&mut out, num_distinct).map_err(fault)?;
        let mut entry = Vec::new();
        let mut sum = 0;
        self.for_each(true, |tag, count| {
            sum += count;
            entry.clear();
            encode(&mut entry, tag.bytes(&mut [0; 16]), count);
            out.write(&entry).map_err(fault)
        })?;
        self.check_sum(sum)?;
        let digest = out.hasher.digest128();
        out.file.write_all(&digest.to_le_bytes()).map_err(fault)?;
        file.publish()
    }

    fn write_head(
        &self,
        out: &mut Hashed<'_, impl Write>,
        num_distinct: u64,
    ) -> std::io::Result<()> {
        out.write(&MAGIC)?;
        out.write(&FORMAT_VERSION.to_le_bytes())?;
        out.number(self.tally.num_records)?;
        out.number(self.tally.num_duplicates)?;
        out.write(&(self.tally.rejected.len() as u32).to_le_bytes())?;
        for number in self.tally.rejected {
            out.number(number)?;
        }
        out.number(self.sizes.iter().count() as u64)?;
        for (size, records) in self.sizes.iter() {
            out.number(size)?;
            out.number(records)?;
        }
        out.number(num_distinct)
    }

    /// Reads a file of [`save`](Self::save), and checks all of it.
    pub fn load(path: impl AsRef<Path>, memory: Memory, job: &Job) -> Result<Self> {
        let path = path.as_ref();
        let file = File::open(path).map_err(|error| Error::io(path, error))?;
        let mut input =
            Input { file: BufReader::with_capacity(1 << 18, file), path, hasher: Xxh3::new() };
        if input.bytes::<8>()? != MAGIC {
            return Err(input.fault("it is no file of hashtag counts (the magic is missing)"));
        }
        let version = u32::from_le_bytes(input.bytes()?);
        if version != FORMAT_VERSION {
            return Err(input.fault(&format!(
                "it is of format version {version}, and this wsl reads version {FORMAT_VERSION}"
            )));
        }

        // The sums come first, so that what follows can be checked against them as it is read.
        let mut counts = Self::new(memory);
        input.read_tally(&mut counts)?;
        let num_sized = input.read_sizes(&mut counts)?;
        input.read_tags(&mut counts, job)?;
        if counts.tally.num_hashtags != num_sized {
            return Err(input.fault(&format!(
                "its counts add up to {} and its records hold {num_sized} hashtags",
                counts.tally.num_hashtags
            )));
        }
        input.check_end()?;
        Ok(counts)
    }
}

struct Hashed<'a, W: Write> {
    file: &'a mut W,
    hasher: Xxh3,
}

impl<W: Write> Hashed<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.hasher.update(bytes);
        self.file.write_all(bytes)
    }

    fn number(&mut self, number: u64) -> std::io::Result<()> {
        self.write(&number.to_le_bytes())
    }
}

struct Input<'a> {
    file: BufReader<File>,
    path: &'a Path,
    hasher: Xxh3,
}

impl Input<'_> {
    fn fault(&self, fault: &str) -> Error {
        Error::data(format!(
            "{}: the hashtag counts cannot be read: {fault}; count again or restore the file",
            self.path.display()
        ))
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<()> {
        self.file.read_exact(buffer).map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => self.fault("it is cut short"),
            _ => Error::io(self.path, error),
        })
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        self.hasher.update(&bytes);
        Ok(bytes)
    }

    fn number(&mut self) -> Result<u64> {
        self.bytes().map(u64::from_le_bytes)
    }

    fn sum(&self, a: u64, b: Option<u64>) -> Result<u64> {
        b.and_then(|b| a.checked_add(b)).ok_or_else(|| self.fault("its numbers overflow 64 bits"))
    }

    fn read_tally(&mut self, counts: &mut HashtagCounts) -> Result<()> {
        counts.tally.num_records = self.number()?;
        counts.tally.num_duplicates = self.number()?;
        let causes = u32::from_le_bytes(self.bytes()?);
        if causes as usize != Rejection::ALL.len() {
            return Err(self.fault(&format!("it knows {causes} causes of rejection")));
        }
        let mut all = counts.tally.num_duplicates;
        for cause in 0..Rejection::ALL.len() {
            counts.tally.rejected[cause] = self.number()?;
            all = self.sum(all, Some(counts.tally.rejected[cause]))?;
        }
        Ok(())
    }

    /// Reads the histogram and returns how many tags it counts.
    fn read_sizes(&mut self, counts: &mut HashtagCounts) -> Result<u64> {
        let (mut num_records, mut num_hashtags, mut previous) = (0, 0, None);
        for _ in 0..self.number()? {
            let (size, records) = (self.number()?, self.number()?);
            if records == 0 || previous.is_some_and(|previous| previous >= size) {
                return Err(self.fault("its tags per record are not in order"));
            }
            previous = Some(size);
            num_records = self.sum(num_records, Some(records))?;
            num_hashtags = self.sum(num_hashtags, size.checked_mul(records))?;
            counts.sizes.add(size, records);
        }
        if num_records != counts.tally.num_records {
            return Err(self.fault(&format!(
                "it tells of {} records and sorts {num_records} by their tags",
                counts.tally.num_records
            )));
        }
        Ok(num_hashtags)
    }

    fn read_tags(&mut self, counts: &mut HashtagCounts, job: &Job) -> Result<()> {
        let mut previous = (0, Vec::new());
        for number in 0..self.number()? {
            if number.is_multiple_of(TAGS_PER_CHECK) {
                job.check()?;
                counts.spill_above_limit()?;
            }
            let [length] = self.bytes()?;
            let mut tag = [0; MAX_BYTES];
            let Some(tag) = tag.get_mut(..usize::from(length)).filter(|tag| !tag.is_empty()) else {
                return Err(self.fault(&format!("a tag is {length} bytes long")));
            };
            self.fill(tag)?;
            self.hasher.update(tag);
            if std::str::from_utf8(tag).is_err() {
                return Err(self.fault("a tag is not UTF-8"));
            }

            // Strictly ascending, so that no tag comes twice.
            let key = Tag::of_bytes(tag);
            if (previous.0, previous.1.as_slice()) >= (key.hash(), &*tag) && number > 0 {
                return Err(self.fault("its tags are not in order"));
            }
            previous.0 = key.hash();
            previous.1.clear();
            previous.1.extend_from_slice(tag);

            // A tag counts once in a record, so no count can exceed their number.
            let count = self.count()?;
            if count == 0 || count > counts.tally.num_records {
                return Err(self.fault(&format!("a tag is on {count} records")));
            }
            counts.tally.num_hashtags = self.sum(counts.tally.num_hashtags, Some(count))?;
            counts.table[partition_of(key.hash())].add(&key, count);
        }
        Ok(())
    }

    fn count(&mut self) -> Result<u64> {
        let count = leb128::read(|| self.bytes().map(|[byte]| byte))?;
        count.ok_or_else(|| self.fault("a count has more than 64 bits"))
    }

    fn check_end(&mut self) -> Result<()> {
        let expected = self.hasher.digest128();
        if u128::from_le_bytes(self.bytes()?) != expected {
            return Err(self.fault("its checksum is wrong"));
        }
        match self.file.read(&mut [0]) {
            Ok(0) => Ok(()),
            Ok(_) => Err(self.fault("something follows its end")),
            Err(error) => Err(Error::io(self.path, error)),
        }
    }
}
