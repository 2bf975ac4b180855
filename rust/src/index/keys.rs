//! `keys.idx`: from keys to ordinals, eight bytes a sample.
//!
//! An entry is a u64: the ordinal in its lower bits, as many as the largest one needs, and above it the
//! upper bits of the key's hash (XXH3). Entries are sorted. A look-up finds those whose upper bits are
//! those of the wanted hash and compares keys, so what the hash has lost costs time and never truth.

use std::cell::OnceCell;
use std::io::Write;
use std::path::Path;

use rayon::prelude::*;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::format::{FileEntry, KEYS_MAGIC};
use super::part::Part;
use crate::job::Job;
use crate::map::Map;
use crate::publish::Unpublished;
use crate::spill::Memory;
use crate::spill::partitions::{PARTITIONS, Partitions, partition_of, put};
use crate::{Error, Result};

const HEADER: usize = 16;

/// Up to so many samples entries are sorted as they are written, without the lower bits of the hash:
/// only a few thousand of these then have the same upper bits by chance.
const MOST_PACKED: u64 = 1 << 26;

/// Entries are moved near their places by so many of their upper bits, and then sorted there.
const BUCKET_BITS: u32 = 11;

/// And once more by so many.
const NEAR_BITS: u32 = 12;

/// The most entries of one place that are sorted by insertion.
const MOST_NEAR: u32 = 32;

/// Bits of an entry that are an ordinal below `num_samples`.
fn ordinal_bits(num_samples: u64) -> u32 {
    (u64::BITS - num_samples.saturating_sub(1).leading_zeros()).max(1)
}

/// The keys of an index, mapped.
#[derive(Debug)]
pub(super) struct KeyFile {
    map: Map,
    num_samples: u64,
}

impl KeyFile {
    pub(super) fn open(folder: &Path, entry: &FileEntry, num_samples: u64) -> Result<Self> {
        let map = Map::open(folder.join(&entry.file), Some(entry.size))?;
        let sized = num_samples.checked_mul(8).and_then(|bytes| bytes.checked_add(HEADER as u64));
        if !map.starts_with(KEYS_MAGIC) || sized != Some(map.len() as u64) {
            return Err(Error::data(format!(
                "{}: expected the keys of {num_samples} samples; build the index again",
                map.path().display()
            )));
        }
        Ok(Self { map, num_samples })
    }

    /// The file.
    pub(super) fn map(&self) -> &Map {
        &self.map
    }

    fn entry(&self, at: u64) -> u64 {
        let start = HEADER + 8 * at as usize;
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&self.map[start..start + 8]);
        u64::from_le_bytes(bytes)
    }

    /// Ordinals, ascending, among which are all whose key is `key`.
    pub(super) fn candidates(&self, key: &str) -> impl Iterator<Item = u64> + '_ {
        let bits = ordinal_bits(self.num_samples);
        let prefix = xxh3_64(key.as_bytes()) >> bits;
        let (mut low, mut high) = (0, self.num_samples);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.entry(middle) >> bits < prefix {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        (low..self.num_samples)
            .map(|at| self.entry(at))
            .take_while(move |entry| entry >> bits == prefix)
            .map(move |entry| entry & ((1 << bits) - 1))
    }
}

/// What writing the keys found.
#[derive(Debug)]
pub(super) struct Written {
    pub(super) entry: FileEntry,
    /// Samples whose key another sample before them has.
    pub(super) num_doubled: u64,
    /// One such key.
    pub(super) doubled: Option<String>,
}

/// The parts of an index, one of them mapped at a time unless rows are asked for out of order.
pub(super) struct AllParts<'a> {
    folder: &'a Path,
    entries: &'a [FileEntry],
    open: OnceCell<Vec<Part>>,
    starts: Vec<u64>,
}

impl<'a> AllParts<'a> {
    pub(super) fn new(folder: &'a Path, entries: &'a [FileEntry]) -> Self {
        let mut starts = vec![0];
        for entry in entries {
            starts.push(starts[starts.len() - 1] + entry.num_rows);
        }
        Self { folder, entries, open: OnceCell::new(), starts }
    }

    fn num_samples(&self) -> u64 {
        self.starts[self.starts.len() - 1]
    }

    fn key(&self, ordinal: u64) -> Result<&str> {
        if self.open.get().is_none() {
            let open = |entry| Part::open(self.folder, entry);
            let parts = self.entries.iter().map(open).collect::<Result<_>>()?;
            let _ = self.open.set(parts);
        }
        let part = self.starts.partition_point(|&start| start <= ordinal) - 1;
        let parts = self.open.get().map(Vec::as_slice).unwrap_or_default();
        Ok(parts[part].row((ordinal - self.starts[part]) as usize)?.key)
    }
}

/// Writes the keys of `parts` as `name`; looks for doubled ones where `distinct` forbids them.
pub(super) fn write(
    folder: &Path,
    name: &str,
    parts: &AllParts<'_>,
    distinct: bool,
    memory: &Memory,
    job: &Job,
) -> Result<Written> {
    let num_samples = parts.num_samples();
    let path = folder.join(name);
    let mut writer = Writer {
        file: Unpublished::create(&path)?,
        hasher: Xxh3::new(),
        bits: ordinal_bits(num_samples),
        parts,
        distinct,
        num_doubled: 0,
        doubled: None,
    };
    writer.put(KEYS_MAGIC)?;
    writer.put(&num_samples.to_le_bytes())?;

    // All three ways write the same bytes; they differ in the memory that they take.
    let in_memory = num_samples.saturating_mul(32) <= (memory.bytes() / 2) as u64;
    if in_memory && num_samples <= MOST_PACKED {
        writer.take_packed(job)?;
    } else if in_memory {
        writer.take_all(job)?;
    } else {
        writer.take_by_partition(memory, job)?;
    }

    // Published before its entry is made, so that no manifest names a file that is not there.
    let Writer { file, hasher, num_doubled, doubled, .. } = writer;
    file.publish()?;
    let entry = FileEntry {
        file: name.to_owned(),
        num_rows: num_samples,
        size: HEADER as u64 + 8 * num_samples,
        checksum: format!("{:032x}", hasher.digest128()),
    };
    Ok(Written { entry, num_doubled, doubled })
}

fn each_key(
    parts: &AllParts<'_>,
    job: &Job,
    mut take: impl FnMut(u64, u64) -> Result<()>,
) -> Result<()> {
    for (entry, &start) in parts.entries.iter().zip(&parts.starts) {
        let part = Part::open(parts.folder, entry)?;
        job.check()?;
        let mut ordinal = start;
        part.each_key(|key| {
            take(xxh3_64(key), ordinal)?;
            ordinal += 1;
            Ok(())
        })?;
    }
    Ok(())
}

fn packed(hash: u64, ordinal: u64, bits: u32) -> u64 {
    hash >> bits << bits | ordinal
}

/// The entries in order: moved to buckets by their upper bits, each of which fits a processor's
/// cache.
fn sorted(mut entries: Vec<u64>) -> Vec<u64> {
    const BUCKETS: usize = 1 << BUCKET_BITS;
    let bucket = |entry: u64| (entry >> (u64::BITS - BUCKET_BITS)) as usize;

    // A small table is sorted sooner as it is.
    if entries.len() < 64 * BUCKETS {
        entries.sort_unstable();
        return entries;
    }
    let mut places = [0; BUCKETS];
    entries.iter().for_each(|&entry| places[bucket(entry)] += 1);
    let lens = places;
    let mut start = 0;
    for place in &mut places {
        start += std::mem::replace(place, start);
    }
    let mut near = vec![0; entries.len()];
    for entry in entries {
        let place = &mut places[bucket(entry)];
        near[*place] = entry;
        *place += 1;
    }
    let (mut rest, mut buckets) = (near.as_mut_slice(), Vec::with_capacity(BUCKETS));
    for len in lens {
        let (first, others) = rest.split_at_mut(len);
        buckets.push(first);
        rest = others;
    }

    // The buckets do not overlap, so threads sort them side by side, and their order is that of
    // all.
    buckets.into_par_iter().for_each_init(Vec::new, |spare, bucket| sort_bucket(bucket, spare));
    near
}

/// Sorts entries that share their upper bits: moved near their places once more, by the next bits,
/// few are left to compare.
fn sort_bucket(bucket: &mut [u64], spare: &mut Vec<u64>) {
    const PLACES: usize = 1 << NEAR_BITS;

    // The table of places costs more than sorting a small bucket.
    if bucket.len() < PLACES / 4 {
        bucket.sort_unstable();
        return;
    }

    // Hashes are spread evenly, so their bits after the bucket's nearly give an entry's place.
    // Where many share a place, comparing is used, which is never slow.
    let place = |entry: u64| (entry >> (u64::BITS - BUCKET_BITS - NEAR_BITS)) as usize % PLACES;
    let mut places = [0_u32; PLACES];
    bucket.iter().for_each(|&entry| places[place(entry)] += 1);
    if places.iter().any(|&number| number > MOST_NEAR) {
        bucket.sort_unstable();
        return;
    }

    // From how many there are to where each begins.
    let mut start = 0;
    for place in &mut places {
        start += std::mem::replace(place, start);
    }
    spare.clear();
    spare.extend_from_slice(bucket);
    for &entry in &*spare {
        let to = &mut places[place(entry)];
        bucket[*to as usize] = entry;
        *to += 1;
    }
    // Each is a step or two from its place now.
    for at in 1..bucket.len() {
        let entry = bucket[at];
        let mut to = at;
        while to > 0 && bucket[to - 1] > entry {
            bucket[to] = bucket[to - 1];
            to -= 1;
        }
        bucket[to] = entry;
    }
}

struct Writer<'a> {
    file: Unpublished,
    hasher: Xxh3,
    bits: u32,
    parts: &'a AllParts<'a>,
    distinct: bool,
    num_doubled: u64,
    doubled: Option<String>,
}

impl Writer<'_> {
    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.hasher.update(bytes);
        self.file.put(bytes)
    }

    /// Writes all keys of so few samples that entries are sorted as they are written.
    fn take_packed(&mut self, job: &Job) -> Result<()> {
        let bits = self.bits;
        let mut entries = Vec::with_capacity(self.parts.num_samples() as usize);
        each_key(self.parts, job, |hash, ordinal| {
            entries.push(packed(hash, ordinal, bits));
            Ok(())
        })?;
        let entries = sorted(entries);
        if self.distinct {
            self.find_doubled(&entries, |entry| entry >> bits, |entry| entry & ((1 << bits) - 1))?;
        }
        self.put_entries(&entries)
    }

    /// Writes all keys, sorted by whole hashes in memory.
    fn take_all(&mut self, job: &Job) -> Result<()> {
        let mut entries = Vec::with_capacity(self.parts.num_samples() as usize);
        each_key(self.parts, job, |hash, ordinal| {
            entries.push((hash, ordinal));
            Ok(())
        })?;
        self.take(entries)
    }

    /// Writes all keys, a range of hashes after another, which wait on disk.
    fn take_by_partition(&mut self, memory: &Memory, job: &Job) -> Result<()> {
        let mut partitions = Partitions::new(memory)?;
        each_key(self.parts, job, |hash, ordinal| {
            partitions.push(partition_of(hash), |out| {
                put(out, hash);
                put(out, ordinal);
            })
        })?;
        partitions.finish()?;
        for partition in 0..PARTITIONS {
            let mut entries = Vec::new();
            partitions.read(partition, 0..partitions.num_blocks(partition), |mut input| {
                entries.push((input.number()?, input.number()?));
                Ok(input)
            })?;
            self.take(entries)?;
        }
        Ok(())
    }

    /// Writes entries (hash, ordinal) whose hashes are above all that were written.
    fn take(&mut self, mut entries: Vec<(u64, u64)>) -> Result<()> {
        entries.par_sort_unstable();
        if self.distinct {
            self.find_doubled(&entries, |entry| entry.0, |entry| entry.1)?;
        }
        let bits = self.bits;
        let packed = entries.into_iter().map(|(hash, ordinal)| packed(hash, ordinal, bits));
        let mut packed: Vec<u64> = packed.collect();
        // Hashes that differ in their lower bits alone are by ordinal now.
        packed.sort_unstable();
        self.put_entries(&packed)
    }

    fn put_entries(&mut self, entries: &[u64]) -> Result<()> {
        let mut bytes = Vec::with_capacity(8 << 12);
        for some in entries.chunks(1 << 12) {
            bytes.clear();
            some.iter().for_each(|entry| bytes.extend_from_slice(&entry.to_le_bytes()));
            self.put(&bytes)?;
        }
        Ok(())
    }

    /// Compares the keys of entries that are together with one hash, or as much as there is of it.
    fn find_doubled<T: Copy>(
        &mut self,
        entries: &[T],
        hash: impl Fn(T) -> u64,
        ordinal: impl Fn(T) -> u64,
    ) -> Result<()> {
        let alike = entries.chunk_by(|&one, &other| hash(one) == hash(other));
        for some in alike.filter(|some| some.len() > 1) {
            let keys = some.iter().map(|&entry| self.parts.key(ordinal(entry)));
            let mut keys: Vec<&str> = keys.collect::<Result<_>>()?;
            keys.sort_unstable();
            for pair in keys.windows(2).filter(|pair| pair[0] == pair[1]) {
                self.num_doubled += 1;
                self.doubled.get_or_insert_with(|| pair[0].to_owned());
            }
        }
        Ok(())
    }
}

impl Unpublished {
    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.write_all(bytes).map_err(|error| Error::io(self.target(), error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_come_in_order_however_many_share_their_upper_bits() {
        let hashed = |number: u64| xxh3_64(&number.to_le_bytes());
        for (num_hashes, size) in [(u64::MAX, 300_000), (40_000, 300_000), (3, 200_000), (7, 1000)]
        {
            let bits = ordinal_bits(size);
            let entry = |number| packed(hashed(number % num_hashes), number, bits);
            let entries: Vec<u64> = (0..size).map(entry).collect();
            let mut expected = entries.clone();
            expected.sort_unstable();
            assert_eq!(sorted(entries), expected);
        }
    }
}
