//! The state of a selection as a file, to resume from or to join with others.
//!
//! Little-endian: the magic `WSLTOPKP`, the format version (u32); order (u32, 0 class-first, 1
//! image-first), number of classes, K and P (u32 each), pairs seen (u64); for every class the number
//! of its entries (u32, at most K), then the entries, the best first: key (u32, smaller for a higher
//! score) and sample (u64). Image-first then has the open row: the number of its classes (u32), and
//! where it is not 0 the sample (u64), then key and class (u32 each); and the samples seen: the
//! number of blocks (u64), then of each the samples' high 48 bits (u64, ascending), their number
//! (u32), and their low 16 bits as ascending u16, or as 1,024 words of bits where more than 4,096.
//! Last the XXH3 hash (128 bits) of all before it.
//!
//! Selections over the same pairs make the same file (an open row, the last sample of a stream of
//! pairs, apart). A file is data from outside: no length in it is trusted, memory grows with what
//! was read, and orders and ranges must be right.

use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::path::Path;

use xxhash_rust::xxh3::Xxh3;

use super::entry::{Entry, descending, score_of};
use super::sample_set::{Block, MAX_LISTED, SampleSet, WORDS};
use super::top_p::{Candidate, OpenRow};
use super::{MAX_CLASSES, MAX_PAIRS, Order, Selection};
use crate::publish::Unpublished;
use crate::spill::{Memory, Record};
use crate::{Error, Result};

const MAGIC: [u8; 8] = *b"WSLTOPKP";
const FORMAT_VERSION: u32 = 1;
/// Entries read at a time.
const ENTRIES_PER_READ: usize = 4096;
/// Bytes that are hashed and written at a time.
const BYTES_PER_WRITE: usize = 1 << 16;

impl Selection {
    /// Writes the state to `path`, whole or not at all: of every class the K best.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        self.check_usable()?;
        let path = path.as_ref();
        let file = Unpublished::create(path)?;
        let mut out = Output { file, path, hasher: Xxh3::new(), buffer: Vec::new() };
        out.write(&MAGIC)?;
        let order = u32::from(self.order == Order::ImageFirst);
        for number in [FORMAT_VERSION, order, self.num_classes, self.k, self.p] {
            out.write(&number.to_le_bytes())?;
        }
        out.write(&self.num_pairs.to_le_bytes())?;
        self.write_classes(&mut out)?;
        if self.order == Order::ImageFirst {
            self.write_open_row(&mut out)?;
            self.write_seen(&mut out)?;
        }
        out.publish()
    }

    fn write_classes(&self, out: &mut Output<'_>) -> Result<()> {
        let mut next = 0;
        let classes = &self.classes;
        for part in 0..classes.parts.len() {
            classes.visit_part(part, self.k as usize, &[], &mut |class, entries| {
                (next..class).try_for_each(|_| out.write(&0u32.to_le_bytes()))?;
                next = class + 1;
                out.write(&(entries.len() as u32).to_le_bytes())?;
                entries.iter().try_for_each(|entry| {
                    let mut bytes = [0; Entry::BYTES];
                    entry.put(&mut bytes);
                    out.write(&bytes)
                })
            })?;
        }
        (next..classes.num_classes()).try_for_each(|_| out.write(&0u32.to_le_bytes()))
    }

    fn write_open_row(&self, out: &mut Output<'_>) -> Result<()> {
        let Some(open) = &self.open else { return out.write(&0u32.to_le_bytes()) };
        out.write(&(open.candidates.len() as u32).to_le_bytes())?;
        out.write(&open.sample.to_le_bytes())?;
        for candidate in &open.candidates {
            out.write(&candidate.key.to_le_bytes())?;
            out.write(&candidate.class.to_le_bytes())?;
        }
        Ok(())
    }

    fn write_seen(&self, out: &mut Output<'_>) -> Result<()> {
        let blocks = self.seen.blocks();
        out.write(&(blocks.len() as u64).to_le_bytes())?;
        for (high, block) in blocks {
            out.write(&high.to_le_bytes())?;
            let (number, bytes): (u32, Vec<u8>) = match block {
                Block::List(list) => {
                    (list.len() as u32, list.iter().flat_map(|low| low.to_le_bytes()).collect())
                }
                Block::Bits(words) => (
                    words.iter().map(|word| word.count_ones()).sum(),
                    words.iter().flat_map(|word| word.to_le_bytes()).collect(),
                ),
            };
            out.write(&number.to_le_bytes())?;
            out.write(&bytes)?;
        }
        Ok(())
    }

    /// Reads a file of [`save`](Self::save) into a selection within `memory`, and checks all of it.
    pub fn load(path: impl AsRef<Path>, memory: Memory) -> Result<Self> {
        let path = path.as_ref();
        let file = File::open(path).map_err(|error| Error::io(path, error))?;
        let mut input =
            Input { file: BufReader::with_capacity(1 << 18, file), path, hasher: Xxh3::new() };
        let mut selection = input.read_head(memory)?;
        for class in 0..selection.num_classes {
            input.read_entries(class as usize, &mut selection)?;
        }
        selection.flush()?;
        if selection.order == Order::ImageFirst {
            selection.open = input.read_open_row(selection.num_classes)?;
            selection.seen = input.read_seen()?;
        }
        input.check_end()?;
        selection.check_loaded(&input)?;
        Ok(selection)
    }

    /// Whether the parts of a file that was read fit each other.
    fn check_loaded(&self, input: &Input<'_>) -> Result<()> {
        // The file has a checksum, but may come from elsewhere: what contradicts itself is refused.
        let unseen = |sample| input.fault(&format!("it keeps sample {sample} and has not seen it"));
        let mut num_kept = 0;
        if let Some(open) = &self.open {
            num_kept = open.candidates.len() as u64;
            if !self.seen.contains(open.sample) {
                return Err(unseen(open.sample));
            }
        }
        if self.order == Order::ImageFirst {
            self.classes.for_each(&mut |_, entry| {
                if self.seen.contains(entry.sample()) {
                    Ok(())
                } else {
                    Err(unseen(entry.sample()))
                }
            })?;
        }
        let classes = 0..self.classes.num_classes();
        num_kept += classes.map(|class| self.classes.num_best(class)).sum::<u64>();
        if num_kept > self.num_pairs {
            let seen = self.num_pairs;
            return Err(input.fault(&format!("it keeps {num_kept} pairs and has seen {seen}")));
        }
        Ok(())
    }
}

/// A state being written.
struct Output<'a> {
    file: Unpublished,
    path: &'a Path,
    hasher: Xxh3,
    buffer: Vec<u8>,
}

impl Output<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() < BYTES_PER_WRITE { Ok(()) } else { self.flush() }
    }

    fn flush(&mut self) -> Result<()> {
        self.hasher.update(&self.buffer);
        self.file.write_all(&self.buffer).map_err(|error| Error::io(self.path, error))?;
        self.buffer.clear();
        Ok(())
    }

    fn publish(mut self) -> Result<()> {
        self.flush()?;
        let digest = self.hasher.digest128().to_le_bytes();
        self.file.write_all(&digest).map_err(|error| Error::io(self.path, error))?;
        self.file.publish()
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
            "{}: the state of the selection cannot be read: {fault}; select again or restore the file",
            self.path.display()
        ))
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<()> {
        self.file.read_exact(buffer).map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => self.fault("it is cut short"),
            _ => Error::io(self.path, error),
        })?;
        self.hasher.update(buffer);
        Ok(())
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn small(&mut self) -> Result<u32> {
        self.bytes().map(u32::from_le_bytes)
    }

    fn number(&mut self) -> Result<u64> {
        self.bytes().map(u64::from_le_bytes)
    }

    /// The selection with all its options and none of its classes.
    fn read_head(&mut self, memory: Memory) -> Result<Selection> {
        if self.bytes::<8>()? != MAGIC {
            return Err(self.fault("it is no state of a selection (the magic is missing)"));
        }
        let version = self.small()?;
        if version != FORMAT_VERSION {
            return Err(self.fault(&format!(
                "it is of format version {version}, and this wsl reads version {FORMAT_VERSION}"
            )));
        }
        let order = match self.small()? {
            0 => Order::ClassFirst,
            1 => Order::ImageFirst,
            other => return Err(self.fault(&format!("it has an unknown order, {other}"))),
        };
        let (num_classes, k, p) = (self.small()?, self.small()?, self.small()?);

        // Checked before memory is taken for so many classes.
        if num_classes == 0 || num_classes > MAX_CLASSES || k == 0 || p == 0 {
            return Err(self.fault(&format!("it has {num_classes} classes, K = {k} and P = {p}")));
        }
        let mut selection = Selection::new(num_classes, k, p, order, memory)?;
        selection.num_pairs = self.number()?;
        if selection.num_pairs > MAX_PAIRS {
            return Err(self.fault(&format!("it has seen {} pairs", selection.num_pairs)));
        }
        Ok(selection)
    }

    fn check_key(&self, key: u32) -> Result<()> {
        let score = score_of(key);
        if score.is_finite() && descending(score) == key {
            return Ok(());
        }
        Err(self.fault(&format!("a score in it is {score}")))
    }

    fn read_entries(&mut self, class: usize, selection: &mut Selection) -> Result<()> {
        let (number, k) = (self.small()?, selection.k);
        if number > k {
            return Err(self.fault(&format!("a class has {number} entries, and K is {k}")));
        }

        // Read piece by piece: a damaged file may claim any number, and memory is taken for what is
        // there.
        let mut left = number as usize;
        let mut last: Option<Entry> = None;
        let mut buffer = vec![0; left.min(ENTRIES_PER_READ) * Entry::BYTES];
        while left > 0 {
            let some = left.min(ENTRIES_PER_READ);
            left -= some;
            self.fill(&mut buffer[..some * Entry::BYTES])?;
            for bytes in buffer[..some * Entry::BYTES].chunks_exact(Entry::BYTES) {
                let entry = Entry::get(bytes);
                self.check_key(entry.key())?;
                if last.is_some_and(|last| entry < last) {
                    return Err(self.fault("the entries of a class are not in order"));
                }
                last = Some(entry);
                selection.offer(class, entry)?;
            }
        }
        match last.filter(|_| number == k) {
            Some(last) => {
                // All K are there, so the cut is known at once.
                selection.flush()?;
                selection.classes.raise_cut(class, last);
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn read_open_row(&mut self, num_classes: u32) -> Result<Option<OpenRow>> {
        let number = self.small()?;
        if number == 0 {
            return Ok(None);
        }
        if number > num_classes {
            return Err(self.fault(&format!("a row has {number} of {num_classes} classes")));
        }
        let sample = self.number()?;
        let mut candidates = Vec::new();
        for _ in 0..number {
            let (key, class) = (self.small()?, self.small()?);
            self.check_key(key)?;
            if class >= num_classes {
                return Err(self.fault(&format!("a row has class {class} of {num_classes}")));
            }
            candidates.push(Candidate { key, class });
        }
        Ok(Some(OpenRow { sample, candidates }))
    }

    fn read_seen(&mut self) -> Result<SampleSet> {
        let mut seen = SampleSet::default();
        let mut previous = None;
        for _ in 0..self.number()? {
            let (high, number) = (self.number()?, self.small()? as usize);
            if high >> 48 != 0 || previous.is_some_and(|previous| previous >= high) {
                return Err(self.fault("its samples are not in order"));
            }
            previous = Some(high);
            if number == 0 || number > 1 << 16 {
                return Err(self.fault(&format!("a block has {number} samples")));
            }
            let block = if number <= MAX_LISTED {
                self.read_list(number)?
            } else {
                self.read_bits(number)?
            };
            seen.put_block(high, block);
        }
        Ok(seen)
    }

    fn read_list(&mut self, number: usize) -> Result<Block> {
        let mut buffer = [0; MAX_LISTED * 2];
        self.fill(&mut buffer[..number * 2])?;
        let (pairs, _) = buffer[..number * 2].as_chunks::<2>();
        let list: Vec<u16> = pairs.iter().map(|&pair| u16::from_le_bytes(pair)).collect();
        if !list.is_sorted_by(|a, b| a < b) {
            return Err(self.fault("its samples are not in order"));
        }
        Ok(Block::List(list))
    }

    fn read_bits(&mut self, number: usize) -> Result<Block> {
        let mut buffer = [0; WORDS * 8];
        self.fill(&mut buffer)?;
        let (words, _) = buffer.as_chunks::<8>();
        let words: Box<[u64]> = words.iter().map(|&word| u64::from_le_bytes(word)).collect();
        if words.iter().map(|word| word.count_ones() as usize).sum::<usize>() != number {
            return Err(self.fault("a block has another number of samples than it says"));
        }
        Ok(Block::Bits(words))
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
