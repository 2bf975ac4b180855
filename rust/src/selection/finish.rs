//! The end of a selection: its pairs by sample, each cut to its P best classes.
//!
//! The K best of every class are sorted by sample, on disk where they do not fit, and read as often
//! as somebody asks: in memory there is one sample at a time.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::Arc;

use arrow_array::{ArrayRef, Float32Array, RecordBatch, UInt32Array, UInt64Array};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use rayon::prelude::*;

use super::entry::{Entry, little, score_of};
use super::top_p::{SelectedPair, doubled};
use super::{Order, Selection};
use crate::job::Job;
use crate::spill::{Record, Sorted, SortedReader, Sorter};
use crate::{Error, Result};

/// Rows of a record batch of [`Selected::batches`].
const ROWS_PER_BATCH: usize = 1 << 16;
/// Entries between two looks at whether the caller asked to stop.
const ENTRIES_PER_CHECK: u64 = 1 << 16;

/// An image that a class took, in 20 bytes; by sample, then the best class first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Chosen {
    sample_high: u32,
    sample_low: u32,
    key: u32,
    class: u32,
    /// From 1.
    rank: u32,
}

impl Chosen {
    #[inline]
    fn sample(self) -> u64 {
        u64::from(self.sample_high) << 32 | u64::from(self.sample_low)
    }

    #[inline]
    fn number(self) -> u128 {
        u128::from(self.sample()) << 64 | u128::from(self.key) << 32 | u128::from(self.class)
    }

    fn pair(self) -> SelectedPair {
        let score = score_of(self.key);
        SelectedPair { sample: self.sample(), class: self.class, rank: self.rank, score }
    }
}

impl Ord for Chosen {
    #[inline]
    fn cmp(&self, other: &Self) -> Ordering {
        self.number().cmp(&other.number()).then(self.rank.cmp(&other.rank))
    }
}

impl PartialOrd for Chosen {
    #[inline]
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Record for Chosen {
    const BYTES: usize = 20;

    #[inline]
    fn put(self, out: &mut [u8]) {
        out[..8].copy_from_slice(&self.sample().to_le_bytes());
        out[8..12].copy_from_slice(&self.key.to_le_bytes());
        out[12..16].copy_from_slice(&self.class.to_le_bytes());
        out[16..].copy_from_slice(&self.rank.to_le_bytes());
    }

    #[inline]
    fn get(bytes: &[u8]) -> Self {
        let sample = little(&bytes[..8]);
        let small = |at: usize| little(&bytes[at..at + 4]) as u32;
        Self {
            sample_high: (sample >> 32) as u32,
            sample_low: sample as u32,
            key: small(8),
            class: small(12),
            rank: small(16),
        }
    }
}

/// What a selection came to.
#[derive(Debug, Clone)]
pub struct Selected {
    chosen: Sorted<Chosen>,
    p: usize,
    num_before: Vec<u64>,
    num_after: Vec<u64>,
    lowest: Vec<f32>,
    images_by_classes: BTreeMap<u64, u64>,
}

impl Selected {
    /// For every class, how many images it took before the P cut. Where the images were cut first
    /// it is the same as [`num_after`](Self::num_after).
    pub fn num_before(&self) -> &[u64] {
        &self.num_before
    }

    /// For every class, how many images are selected for it.
    pub fn num_after(&self) -> &[u64] {
        &self.num_after
    }

    /// For every class, the score of the last image that it took, before the P cut; NaN where it
    /// took none.
    pub fn lowest(&self) -> &[f32] {
        &self.lowest
    }

    /// How many images are selected for how many classes.
    pub fn images_by_classes(&self) -> &BTreeMap<u64, u64> {
        &self.images_by_classes
    }

    /// Selected pairs.
    pub fn num_pairs(&self) -> u64 {
        self.num_after.iter().sum()
    }

    /// The columns of [`batches`](Self::batches).
    pub fn schema() -> SchemaRef {
        Arc::new(Schema::new(vec![
            Field::new("sample", DataType::UInt64, false),
            Field::new("class", DataType::UInt32, false),
            Field::new("score", DataType::Float32, false),
            Field::new("rank", DataType::UInt32, false),
        ]))
    }

    /// The selected pairs by ascending sample, then the best class first; may be read any number of
    /// times.
    pub fn pairs(&self) -> Result<Pairs> {
        Ok(Pairs { images: Images::new(&self.chosen, self.p)?, place: 0 })
    }

    /// The same as record batches.
    pub fn batches(&self) -> Result<impl Iterator<Item = Result<RecordBatch>> + Send + use<>> {
        let mut pairs = self.pairs()?;
        Ok(std::iter::from_fn(move || {
            let rows: Result<Vec<_>> = pairs.by_ref().take(ROWS_PER_BATCH).collect();
            match rows {
                Ok(rows) if rows.is_empty() => None,
                Ok(rows) => Some(batch(&rows)),
                Err(error) => Some(Err(error)),
            }
        }))
    }

    /// How many pairs are in both.
    pub fn num_common(&self, other: &Self, job: &Job) -> Result<u64> {
        let (mut own, mut others) = (Images::new(&self.chosen, self.p)?, other.pairs()?.images);
        let mut number = 0;
        let (mut a, mut b) = (own.next()?, others.next()?);
        while a && b {
            match own.sample().cmp(&others.sample()) {
                Ordering::Less => a = own.next()?,
                Ordering::Greater => b = others.next()?,
                Ordering::Equal => {
                    let is_common =
                        |pair: &&Chosen| others.kept().iter().any(|o| o.class == pair.class);
                    number += own.kept().iter().filter(is_common).count() as u64;
                    (a, b) = (own.next()?, others.next()?);
                    if number.is_multiple_of(ENTRIES_PER_CHECK) {
                        job.check()?;
                    }
                }
            }
        }
        Ok(number)
    }

    fn count(&mut self, job: &Job) -> Result<()> {
        let mut images = Images::new(&self.chosen, self.p)?;
        let mut seen = 0;
        while images.next()? {
            images.check_distinct()?;
            let kept = images.kept();
            kept.iter().for_each(|pair| self.num_after[pair.class as usize] += 1);
            *self.images_by_classes.entry(kept.len() as u64).or_insert(0) += 1;
            seen += 1;
            if seen % ENTRIES_PER_CHECK == 0 {
                job.check()?;
            }
        }
        Ok(())
    }
}

fn batch(pairs: &[SelectedPair]) -> Result<RecordBatch> {
    let columns: Vec<ArrayRef> = vec![
        Arc::new(UInt64Array::from_iter_values(pairs.iter().map(|pair| pair.sample))),
        Arc::new(UInt32Array::from_iter_values(pairs.iter().map(|pair| pair.class))),
        Arc::new(Float32Array::from_iter_values(pairs.iter().map(|pair| pair.score))),
        Arc::new(UInt32Array::from_iter_values(pairs.iter().map(|pair| pair.rank))),
    ];
    Ok(RecordBatch::try_new(Selected::schema(), columns)?)
}

/// Goes through the chosen pairs, one image after another.
#[derive(Debug)]
struct Images {
    chosen: SortedReader<Chosen>,
    p: usize,
    ahead: Option<Chosen>,
    pairs: Vec<Chosen>,
}

impl Images {
    fn new(chosen: &Sorted<Chosen>, p: usize) -> Result<Self> {
        let mut chosen = chosen.read()?;
        let ahead = chosen.next_record()?;
        Ok(Self { chosen, p, ahead, pairs: Vec::new() })
    }

    /// Goes to the next image, and says whether there is one.
    fn next(&mut self) -> Result<bool> {
        self.pairs.clear();
        let Some(first) = self.ahead else { return Ok(false) };
        while let Some(pair) = self.ahead.filter(|pair| pair.sample() == first.sample()) {
            self.pairs.push(pair);
            self.ahead = self.chosen.next_record()?;
        }
        Ok(true)
    }

    fn sample(&self) -> u64 {
        self.pairs.first().map_or(0, |pair| pair.sample())
    }

    /// The P best of the image's pairs.
    fn kept(&self) -> &[Chosen] {
        &self.pairs[..self.pairs.len().min(self.p)]
    }

    /// A class that took an image twice was given two scores for it.
    fn check_distinct(&self) -> Result<()> {
        if self.pairs.len() < 2 {
            return Ok(());
        }
        let mut classes: Vec<_> = self.pairs.iter().map(|pair| pair.class).collect();
        classes.sort_unstable();
        match classes.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(doubled(self.sample(), pair[0])),
            None => Ok(()),
        }
    }
}

/// The selected pairs, read one by one.
#[derive(Debug)]
pub struct Pairs {
    images: Images,
    place: usize,
}

impl Iterator for Pairs {
    type Item = Result<SelectedPair>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.place >= self.images.kept().len() {
            self.place = 0;
            match self.images.next() {
                Ok(true) => {}
                Ok(false) => return None,
                Err(error) => return Some(Err(error)),
            }
        }
        self.place += 1;
        Some(Ok(self.images.kept()[self.place - 1].pair()))
    }
}

/// What one thread finds in its parts.
struct Found {
    sorter: Sorter<Chosen>,
    /// Class, images it took, the lowest score.
    classes: Vec<(usize, u64, f32)>,
}

impl Selection {
    /// The selection over all pairs so far, with K and P of the state or other ones; the state
    /// stays as it is and can take more.
    ///
    /// Class-first, `k` may be smaller and `p` anything; image-first, `k` may be smaller. Others
    /// are a usage error. The result is that of a selection that had them from the start. A data
    /// error names the first doubled pair among the `k` best of a class.
    pub fn finish(&mut self, k: Option<u32>, p: Option<u32>, job: &Job) -> Result<Selected> {
        self.check_usable()?;
        let (k, p) = self.check_cuts(k, p)?;
        let mut open = self.open_pairs()?;
        open.sort_unstable_by_key(|(class, _)| *class);
        job.check()?;
        self.make_room()?;
        let num_threads = rayon::current_num_threads().min(self.classes.parts.len()).max(1);
        let memory = self.classes.spill.limit().map(|limit| limit / 2 / num_threads);
        let found = (0..num_threads).into_par_iter().map(|thread| {
            let sorter = Sorter::new(self.classes.spill.clone(), memory);
            let mut found = Found { sorter, classes: Vec::new() };
            // Every thread takes each so-many-th part, since frequent classes stand together.
            for part in (thread..self.classes.parts.len()).step_by(num_threads) {
                self.choose(part, k as usize, &open, &mut found, job)?;
            }
            Ok((found.sorter.finish()?, found.classes))
        });
        let found = found.collect::<Result<Vec<_>>>()?;
        let none = vec![0; self.num_classes as usize];
        let (sorted, classes): (Vec<_>, Vec<_>) = found.into_iter().unzip();
        let mut selected = Selected {
            chosen: Sorted::join(sorted, &self.classes.spill)?,
            p: p as usize,
            num_before: none.clone(),
            num_after: none,
            lowest: vec![f32::NAN; self.num_classes as usize],
            images_by_classes: BTreeMap::new(),
        };
        for (class, number, lowest) in classes.into_iter().flatten() {
            selected.num_before[class] = number;
            selected.lowest[class] = lowest;
        }
        selected.count(job)?;
        Ok(selected)
    }

    fn choose(
        &self,
        part: usize,
        k: usize,
        open: &[(u32, Entry)],
        found: &mut Found,
        job: &Job,
    ) -> Result<()> {
        self.classes.visit_part(part, k, open, &mut |class, rank, entry| {
            if rank == 0 {
                job.check()?;
                found.classes.push((class, 0, 0.0));
            }
            if let Some(last) = found.classes.last_mut() {
                (last.1, last.2) = (rank as u64 + 1, entry.score());
            }
            found.sorter.push(Chosen {
                sample_high: (entry.sample() >> 32) as u32,
                sample_low: entry.sample() as u32,
                key: entry.key(),
                class: class as u32,
                rank: rank as u32 + 1,
            })
        })
    }

    /// Where memory is limited and the entries take much of it, they go to disk.
    fn make_room(&mut self) -> Result<()> {
        let limited = self.classes.spill.limit().is_some();
        if limited && (!self.classes.runs.is_empty() || self.classes.is_half_full()) {
            self.spill()?;
            self.classes.release();
        }
        Ok(())
    }

    fn check_cuts(&self, k: Option<u32>, p: Option<u32>) -> Result<(u32, u32)> {
        let (k, p) = (k.unwrap_or(self.k), p.unwrap_or(self.p));
        if k == 0 || p == 0 {
            return Err(Error::usage(format!(
                "finish: expected k and p of at least 1, got {k} and {p}"
            )));
        }
        if k > self.k {
            return Err(Error::usage(format!(
                "finish: expected k of at most {}, which the state was made with and keeps, got {k}; \
                 select again with a larger K",
                self.k
            )));
        }
        if self.order == Order::ImageFirst && p != self.p {
            return Err(Error::usage(format!(
                "finish: expected p = {}, got {p}: image-first cuts the images to P before anything \
                 is kept; select again with another P, or class-first, which can finish with any",
                self.p
            )));
        }
        Ok((k, p))
    }
}
