//! Hashtags of Parquet files read once: counted, and kept as numbers until they have labels.
//!
//! An index of records needs its hashtags twice: counted, for the vocabulary, and then as labels of that.
//! Reading and looking up the texts is most of the work either time. So each thread numbers tags as it
//! meets them, counts by number, and writes the numbers of its records to a [`SpillFile`]; once the
//! vocabulary is there, a table from numbers to labels is all that a second pass needs.
//!
//! A record is its distinct tags' numbers, of which the last carries [`END`]. The tables of the threads
//! take no more memory than is allowed, and no more than [`MOST_MEMORY`]: where they would, and where
//! the file cannot be written, there is no spool, and who wants the counts reads the records as ever.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use rayon::prelude::*;

use super::lookup::{AHEAD, Lookup, Numbering, REJECTED, UNKNOWN};
use crate::count::{CountOptions, HashtagCounts, Sizes};
use crate::hashtag::{Key, Rejection, Tag, TagColumn, Tally};
use crate::job::Job;
use crate::parquet::{Numbers, ParquetRecords, Piece};
use crate::spill::{Memory, SpillFile};
use crate::vocabulary::Encoder;
use crate::{Result, threads};

/// The last number of a record has this bit.
const END: u32 = 1 << 31;
/// The number that a record without tags has.
const NONE: u32 = END - 1;

/// What takes 1 from a count.
const MINUS_ONE: u32 = u32::MAX;

/// Numbers that are written together.
const BLOCK: usize = 1 << 18;

/// The most that the tables of all threads take, in bytes.
const MOST_MEMORY: usize = 2 << 30;

/// Tags numbered in the order in which a thread met them, which is by and large that of how common they
/// are: what is wanted is often together.
#[derive(Debug)]
struct Numbered {
    /// An open-addressing table, half full at most, of numbers; [`UNKNOWN`] where a place is free.
    places: Vec<u32>,
    /// The key of each number.
    keys: Vec<Key>,
    /// How many records have it; below 0, as it were, while what was looked up is not noted yet.
    counts: Vec<u32>,
    arena: Vec<u8>,
}

impl Numbered {
    fn new() -> Self {
        let places = vec![UNKNOWN; 1 << 10];
        Self { places, keys: Vec::new(), counts: Vec::new(), arena: Vec::new() }
    }

    /// Bytes it takes.
    fn memory(&self) -> usize {
        4 * (self.places.capacity() + self.counts.capacity())
            + self.keys.capacity() * size_of::<Key>()
            + self.arena.capacity()
    }

    fn add(&mut self, tag: &Tag<'_>) -> u32 {
        if 2 * (self.keys.len() + 1) > self.places.len() {
            self.places = vec![UNKNOWN; 2 * self.places.len()];
            for (number, key) in (0..).zip(&self.keys) {
                let place = self.free_place(key.tag(&self.arena).hash());
                self.places[place] = number;
            }
        }
        let number = self.keys.len() as u32;
        let place = self.free_place(tag.hash());
        self.places[place] = number;
        self.keys.push(tag.stored(&mut self.arena));
        self.counts.push(0);
        number
    }

    fn free_place(&self, hash: u64) -> usize {
        let mask = self.places.len() - 1;
        let mut place = hash as usize & mask;
        while self.places[place] != UNKNOWN {
            place = (place + 1) & mask;
        }
        place
    }

    /// All tags in the order of their numbers.
    fn tags(&self) -> impl ExactSizeIterator<Item = Tag<'_>> {
        self.keys.iter().map(|key| key.tag(&self.arena))
    }
}

impl Numbering for Numbered {
    fn touch<'t>(&self, tags: impl Iterator<Item = &'t Tag<'t>>) {
        let (mut seen, mut numbers) = (0, [0; AHEAD]);
        let mask = self.places.len() - 1;
        for (number, tag) in numbers.iter_mut().zip(tags) {
            *number = self.places[tag.hash() as usize & mask];
        }
        for number in numbers {
            seen ^= self.keys.get(number as usize).map_or(0, |key| key.place(8));
            seen ^= self.counts.get(number as usize).map_or(0, |&count| count as usize);
        }
        std::hint::black_box(seen);
    }

    #[inline]
    fn note(&mut self, number: u32, times: u32) {
        let count = &mut self.counts[number as usize];
        *count = count.wrapping_add(times);
    }

    #[inline]
    fn number(&mut self, tag: &Tag<'_>) -> u32 {
        let mask = self.places.len() - 1;
        let mut place = tag.hash() as usize & mask;
        loop {
            let number = self.places[place];
            match self.keys.get(number as usize) {
                Some(key) if key.is(tag, &self.arena) => return number,
                Some(_) => place = (place + 1) & mask,
                None => return self.add(tag),
            }
        }
    }
}

/// The numbers of one row group: whose they are, and where its blocks are.
#[derive(Debug, Clone, Default)]
struct Spooled {
    thread: usize,
    /// Places and how many numbers are there.
    blocks: Vec<(u64, usize)>,
}

/// Hashtags by the numbers that threads gave them, on disk.
#[derive(Debug)]
pub struct Spool {
    pub(in crate::index) records: ParquetRecords,
    file: SpillFile,
    threads: Vec<Numbered>,
    groups: Vec<Spooled>,
}

/// What the threads of a pass share.
struct Pass<'a> {
    records: &'a ParquetRecords,
    file: &'a SpillFile,
    next: AtomicUsize,
    memory: AtomicU64,
    most_memory: u64,
    is_given_up: AtomicBool,
}

impl Spool {
    /// Reads the hashtags of `records`; their counts and what was spooled, or none where that would take
    /// too much memory or its file cannot be written. `job` advances by records.
    ///
    /// The file goes to the folder that `memory` names, which limits the tables too.
    pub fn read(
        records: ParquetRecords,
        options: &CountOptions,
        memory: &Memory,
        job: &Job,
    ) -> Result<Option<(HashtagCounts, Self)>> {
        // Counts have 32 bits here. Where that is too few, who calls reads the records twice
        // instead.
        if records.tags.num_records() >= u64::from(u32::MAX) {
            return Ok(None);
        }
        let pool = threads::pool(options.num_threads)?;
        let num_threads = pool.current_num_threads();
        let Ok(file) = memory.spill_file() else { return Ok(None) };
        let pass = Pass {
            records: &records,
            file: &file,
            next: AtomicUsize::new(0),
            memory: AtomicU64::new(0),
            most_memory: (memory.bytes() / 2).min(MOST_MEMORY) as u64,
            is_given_up: AtomicBool::new(false),
        };
        let mut threads = (0..num_threads).map(Reader::new).collect::<Result<Vec<_>>>()?;
        pool.install(|| threads.par_iter_mut().try_for_each(|thread| thread.read(&pass, job)))?;

        // The tables of all threads were too large for memory, or the numbers for the disk.
        if pass.is_given_up.into_inner() {
            return Ok(None);
        }

        // A thread numbers its tags by itself, so counts are added up by tag, and each group is
        // noted with the thread whose numbers it has.
        let mut counts = HashtagCounts::new(memory.clone());
        let mut groups = vec![Spooled::default(); records.tags.num_chunks()];
        for thread in &mut threads {
            thread.lookup.hand_over(&mut thread.numbered);
            let Numbered { counts: numbers, .. } = &thread.numbered;
            let numbers = numbers.iter().map(|&number| u64::from(number));
            let counted = thread.numbered.tags().zip(numbers);
            counts.adopt(counted, &thread.tally, &thread.sizes, job)?;
            for (group, spooled) in thread.groups.drain(..) {
                groups[group] = spooled;
            }
        }
        let threads = threads.into_iter().map(|thread| thread.numbered).collect();
        Ok(Some((counts, Self { records, file, threads, groups })))
    }

    /// The same tags by their labels.
    pub(in crate::index) fn labels(&self, encoder: &Encoder) -> SpooledLabels<'_> {
        let labels = |numbered: &Numbered| {
            let (mut labels, mut some) = (Vec::with_capacity(numbered.keys.len()), Vec::new());
            for keys in numbered.keys.chunks(AHEAD) {
                some.clear();
                some.extend(keys.iter().map(|key| key.tag(&numbered.arena)));
                encoder.touch(some.iter());
                labels.extend(some.iter().map(|tag| encoder.encode(tag).unwrap_or(UNKNOWN)));
            }
            labels
        };
        SpooledLabels { spool: self, labels: self.threads.iter().map(labels).collect() }
    }
}

/// Records of a spool by their labels.
pub(in crate::index) struct SpooledLabels<'a> {
    spool: &'a Spool,
    /// For each thread of the spool the label of each number.
    labels: Vec<Vec<u32>>,
}

impl SpooledLabels<'_> {
    /// Calls `take` with the labels of each record of a row group, [`UNKNOWN`] for tags without one.
    pub(in crate::index) fn read(
        &self,
        group: usize,
        job: &Job,
        mut take: impl FnMut(&[u32]),
    ) -> Result<()> {
        let Spooled { thread, blocks } = &self.spool.groups[group];
        let labels = self.labels[*thread].as_slice();
        let (mut bytes, mut some, mut ends) = (Vec::new(), Vec::new(), Vec::<usize>::new());
        for &(place, length) in blocks {
            job.check()?;
            bytes.resize(4 * length, 0);
            self.spool.file.read(place, &mut bytes)?;
            // Records do not continue over the end of a block.
            let numbers = bytes
                .chunks_exact(4)
                .map(|number| u32::from_le_bytes([number[0], number[1], number[2], number[3]]));
            some.clear();
            some.extend(
                numbers.clone().map(|number| {
                    labels.get((number & !END) as usize).copied().unwrap_or(REJECTED)
                }),
            );
            // No branch on where records end, for that is anybody's guess.
            ends.resize(length + 1, 0);
            let mut num_records = 0;
            for (end, number) in (1..).zip(numbers) {
                ends[num_records] = end;
                num_records += (number >> 31) as usize;
            }
            let mut start = 0;
            for &end in &ends[..num_records] {
                take(&some[start..end]);
                start = end;
            }
        }
        Ok(())
    }
}

/// One thread that reads row groups.
struct Reader {
    number: usize,
    lookup: Lookup,
    numbered: Numbered,
    /// The numbers of the entries of the dictionary.
    entries: Vec<u32>,
    out: Vec<u32>,
    bytes: Vec<u8>,
    /// What it takes by the books of the pass.
    memory: u64,
    tally: Tally,
    sizes: Sizes,
    groups: Vec<(usize, Spooled)>,
}

impl Reader {
    fn new(number: usize) -> Result<Self> {
        Ok(Self {
            number,
            lookup: Lookup::new()?,
            numbered: Numbered::new(),
            entries: Vec::new(),
            out: Vec::new(),
            bytes: Vec::new(),
            memory: 0,
            tally: Tally::default(),
            sizes: Sizes::default(),
            groups: Vec::new(),
        })
    }

    /// Reads row groups until none is left or the pass is given up.
    fn read(&mut self, pass: &Pass<'_>, job: &Job) -> Result<()> {
        // Groups are taken one by one, for threads need not be equally fast.
        while !pass.is_given_up.load(Ordering::Relaxed) {
            let group = pass.next.fetch_add(1, Ordering::Relaxed);
            if group >= pass.records.tags.num_chunks() {
                break;
            }
            let mut tags = pass.records.tags.read(group)?;
            let mut spooled = Spooled { thread: self.number, blocks: Vec::new() };
            while let Some(piece) = tags.next_piece()? {
                job.check()?;
                match piece {
                    Piece::Dictionary(entries) => {
                        let numbers =
                            self.lookup.numbers(&entries, entries.range(0), &mut self.numbered);
                        std::mem::swap(numbers, &mut self.entries);
                        // No record has been seen with them.
                        let known = self.entries.iter().filter(|&&number| number < REJECTED);
                        known.for_each(|&number| self.numbered.note(number, MINUS_ONE));
                    }
                    Piece::Numbers(numbers) => {
                        self.take_numbers(&numbers);
                        job.advance(numbers.records().len() as u64);
                    }
                    Piece::Texts(column) => {
                        self.take_texts(&column);
                        job.advance(column.len() as u64);
                        tags.reuse(column);
                    }
                }

                // Blocks are written while the group is read, so that a large group takes no more
                // memory.
                if !self.hold(pass) || (self.out.len() >= BLOCK && !self.write(pass, &mut spooled))
                {
                    return Ok(());
                }
            }
            self.tally.rejected[Rejection::Null as usize] += tags.num_nulls();
            if !self.write(pass, &mut spooled) {
                return Ok(());
            }
            self.groups.push((group, spooled));
        }
        Ok(())
    }

    /// Whether the tables of all threads are within their limit.
    fn hold(&mut self, pass: &Pass<'_>) -> bool {
        let memory = self.numbered.memory() as u64;
        if memory != self.memory {
            let more = memory.wrapping_sub(self.memory);
            let all = pass.memory.fetch_add(more, Ordering::Relaxed).wrapping_add(more);
            self.memory = memory;
            if all > pass.most_memory {
                pass.is_given_up.store(true, Ordering::Relaxed);
            }
        }
        !pass.is_given_up.load(Ordering::Relaxed)
    }

    /// Writes what is there of a row group; whether it could be.
    fn write(&mut self, pass: &Pass<'_>, spooled: &mut Spooled) -> bool {
        self.bytes.clear();
        self.bytes.extend(self.out.iter().flat_map(|number| number.to_le_bytes()));
        let Ok(place) = pass.file.append(&self.bytes) else {
            pass.is_given_up.store(true, Ordering::Relaxed);
            return false;
        };
        spooled.blocks.push((place, self.out.len()));
        self.out.clear();
        true
    }

    fn take_texts(&mut self, column: &TagColumn) {
        let first = column.range(0).start;
        let texts = first..column.range(column.len() - 1).end;
        let num_texts = texts.len();
        let codes = std::mem::take(self.lookup.numbers(column, texts, &mut self.numbered));
        let records = (0..column.len()).map(|row| column.range(row));
        let records = records.map(|texts| &codes[texts.start - first..texts.end - first]);
        self.take(num_texts, records.map(|numbers| numbers.iter().copied()), false);
        self.lookup.take_back(codes);
    }

    fn take_numbers(&mut self, records: &Numbers) {
        let entries = std::mem::take(&mut self.entries);
        let label = |&number: &u32| entries[number as usize];
        let numbers = records.records().map(|numbers| numbers.iter().map(label));
        self.take(records.num_texts() as usize, numbers, true);
        self.entries = entries;
    }

    /// Keeps the numbers of records, each once, and counts them, or those that are twice back where
    /// they are counted already.
    #[inline]
    fn take(
        &mut self,
        num_texts: usize,
        records: impl ExactSizeIterator<Item = impl ExactSizeIterator<Item = u32>>,
        is_new: bool,
    ) {
        let Self { numbered, out, tally, sizes, .. } = self;
        let counts = numbered.counts.as_mut_slice();

        // Room for every text and for the mark of each empty record, so that no push has to grow
        // it.
        let (mut end, mut num_kept_in_all, mut num_rejected) = (out.len(), 0, 0);
        out.resize(end + num_texts + records.len(), NONE);
        tally.num_records += records.len() as u64;
        for record in records {
            let first = end;
            // A bit for each number: most are found new to their record by it.
            let mut seen = 0_u64;
            for number in record {
                let bit = 1 << (number & 63);

                // The tag is in the record already. It was counted with all others of its text,
                // once too often.
                if seen & bit != 0 && out[first..end].contains(&number) {
                    if !is_new {
                        counts[number as usize] = counts[number as usize].wrapping_sub(1);
                    }
                    continue;
                }
                if number >= REJECTED {
                    tally.rejected[(number - REJECTED) as usize] += 1;
                    num_rejected += 1;
                    continue;
                }
                seen |= bit;
                if is_new {
                    counts[number as usize] = counts[number as usize].wrapping_add(1);
                }
                out[end] = number;
                end += 1;
            }
            let num_kept = end - first;
            num_kept_in_all += num_kept;
            sizes.add(num_kept as u64, 1);
            if num_kept == 0 {
                out[end] = NONE;
                end += 1;
            }
            out[end - 1] |= END;
        }

        // Kept, rejected and duplicate tags add up to the texts read.
        out.truncate(end);
        tally.num_hashtags += num_kept_in_all as u64;
        tally.num_duplicates += (num_texts - num_kept_in_all - num_rejected) as u64;
    }
}
