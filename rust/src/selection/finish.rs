//! The end of a selection: its pairs by sample, each cut to its P best classes.
//!
//! The K best of every class are sorted by sample, in memory ([`super::by_sample`]) or, within a limit,
//! on disk where they do not fit; and read as often as somebody asks, one sample at a time.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::Arc;

use arrow_array::{ArrayRef, Float32Array, RecordBatch, UInt32Array, UInt64Array};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use rayon::prelude::*;

use super::by_sample::{BySample, ListedImages, Shelves};
use super::class_image::{ClassImage, Packed, packed};
use super::entry::Entry;
use super::top_p::{SelectedPair, doubled};
use super::{Order, Selection};
use crate::job::Job;
use crate::spill::{Sorted, SortedReader, Sorter};
use crate::{Error, Result};

/// Rows of a record batch of [`Selected::batches`].
const ROWS_PER_BATCH: usize = 1 << 16;
/// Classes of an image that are compared with one another.
const FEW_CLASSES: usize = 16;
/// Entries between two looks at whether the caller asked to stop.
const ENTRIES_PER_CHECK: u64 = 1 << 16;

/// The chosen pairs by sample.
#[derive(Debug, Clone)]
enum Ordered {
    /// Of a selection that is in memory, and may be.
    Listed(BySample),
    /// Of one within a limit of memory, or on disk.
    Sorted(Sorted<ClassImage>),
}

impl Ordered {
    fn images(&self, p: usize) -> Result<Images> {
        match self {
            Self::Listed(listed) => Ok(Images { source: ImageSource::Listed(listed.images()), p }),
            Self::Sorted(sorted) => Images::sorted(sorted.read()?, p),
        }
    }
}

/// What a selection came to.
#[derive(Debug, Clone)]
pub struct Selected {
    chosen: Ordered,
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
        Ok(Pairs { images: self.chosen.images(self.p)?, place: 0 })
    }

    /// The same as record batches.
    pub fn batches(&self) -> Result<impl Iterator<Item = Result<RecordBatch>> + Send + use<>> {
        let mut pairs = self.pairs()?;
        Ok(std::iter::from_fn(move || pairs.batch().transpose()))
    }

    /// How many pairs are in both.
    pub fn num_common(&self, other: &Self, job: &Job) -> Result<u64> {
        let (mut own, mut others) = (self.pairs()?.images, other.pairs()?.images);
        let mut number = 0;
        let (mut a, mut b) = (own.next()?, others.next()?);
        while a && b {
            match own.sample().cmp(&others.sample()) {
                Ordering::Less => a = own.next()?,
                Ordering::Greater => b = others.next()?,
                Ordering::Equal => {
                    let class = |&pair: &Packed| packed::class(pair);
                    let is_common =
                        |&pair: &&Packed| others.kept().iter().any(|o| class(o) == class(pair));
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

    fn add(&mut self, found: Counts) {
        self.num_after.iter_mut().zip(found.num_after).for_each(|(all, own)| *all += own);
        for (classes, images) in (0..).zip(found.by_classes).filter(|(_, images)| *images > 0) {
            *self.images_by_classes.entry(classes).or_insert(0) += images;
        }
    }
}

/// What is counted of some images.
#[derive(Default)]
struct Counts {
    num_after: Vec<u64>,
    /// How many images are selected for so many classes.
    by_classes: Vec<u64>,
}

impl Counts {
    /// Counts the `p` best pairs of an image, of all that classes took; refuses doubled ones.
    #[inline]
    fn add(&mut self, sample: u64, pairs: &[Packed], p: usize, num_classes: usize) -> Result<()> {
        check_distinct(sample, pairs)?;
        let kept = kept(pairs, p);
        self.num_after.resize(num_classes, 0);
        kept.iter().for_each(|&pair| self.num_after[packed::class(pair) as usize] += 1);
        if self.by_classes.len() <= kept.len() {
            self.by_classes.resize(kept.len() + 1, 0);
        }
        self.by_classes[kept.len()] += 1;
        Ok(())
    }
}

/// The P best of the pairs of an image.
#[inline]
fn kept(pairs: &[Packed], p: usize) -> &[Packed] {
    &pairs[..pairs.len().min(p)]
}

/// A class that took an image twice was given two scores for it.
#[inline]
fn check_distinct(sample: u64, pairs: &[Packed]) -> Result<()> {
    let class = |&pair: &Packed| packed::class(pair);
    // Of a few it is looked up in place.
    let is_new = |(place, pair): (usize, &Packed)| {
        pairs[..place].iter().all(|other| class(other) != class(pair))
    };
    if pairs.len() <= FEW_CLASSES && pairs.iter().enumerate().all(is_new) {
        return Ok(());
    }
    let mut classes: Vec<u32> = pairs.iter().map(class).collect();
    classes.sort_unstable();
    match classes.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(doubled(sample, pair[0])),
        None => Ok(()),
    }
}

/// Goes through the chosen pairs, one image after another.
#[derive(Debug)]
struct Images {
    source: ImageSource,
    p: usize,
}

#[derive(Debug)]
enum ImageSource {
    Listed(ListedImages),
    Sorted(SortedImages),
}

/// Goes through pairs that are read in order.
#[derive(Debug)]
struct SortedImages {
    chosen: SortedReader<ClassImage>,
    ahead: Option<ClassImage>,
    sample: u64,
    pairs: Vec<Packed>,
}

impl SortedImages {
    fn next(&mut self) -> Result<bool> {
        self.pairs.clear();
        let Some(first) = self.ahead else { return Ok(false) };
        self.sample = first.sample();
        while let Some(pair) = self.ahead.filter(|pair| pair.sample() == self.sample) {
            self.pairs.push(pair.packed());
            self.ahead = self.chosen.next_record()?;
        }
        Ok(true)
    }
}

impl Images {
    fn sorted(mut chosen: SortedReader<ClassImage>, p: usize) -> Result<Self> {
        let ahead = chosen.next_record()?;
        let images = SortedImages { chosen, ahead, sample: 0, pairs: Vec::new() };
        Ok(Self { source: ImageSource::Sorted(images), p })
    }

    /// Goes to the next image, and returns whether there is one.
    #[inline]
    fn next(&mut self) -> Result<bool> {
        match &mut self.source {
            ImageSource::Listed(images) => Ok(images.next()),
            ImageSource::Sorted(images) => images.next(),
        }
    }

    #[inline]
    fn pairs(&self) -> &[Packed] {
        match &self.source {
            ImageSource::Listed(images) => images.pairs(),
            ImageSource::Sorted(images) => &images.pairs,
        }
    }

    #[inline]
    fn sample(&self) -> u64 {
        match &self.source {
            ImageSource::Listed(images) => images.sample(),
            ImageSource::Sorted(images) => images.sample,
        }
    }

    /// The P best of the image's pairs.
    #[inline]
    fn kept(&self) -> &[Packed] {
        kept(self.pairs(), self.p)
    }
}

/// The selected pairs, read one by one.
#[derive(Debug)]
pub struct Pairs {
    images: Images,
    place: usize,
}

impl Pairs {
    /// Goes to the next pair's image; false where there is none.
    #[inline]
    fn advance(&mut self) -> Result<bool> {
        while self.place >= self.images.kept().len() {
            self.place = 0;
            if !self.images.next()? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The next pairs, as many as fit in a batch; none where there are no more.
    fn batch(&mut self) -> Result<Option<RecordBatch>> {
        let mut samples: Vec<u64> = Vec::with_capacity(ROWS_PER_BATCH);
        let mut pairs: Vec<Packed> = Vec::with_capacity(ROWS_PER_BATCH);
        while samples.len() < ROWS_PER_BATCH && self.advance()? {
            let rest = &self.images.kept()[self.place..];
            let some = &rest[..rest.len().min(ROWS_PER_BATCH - samples.len())];
            pairs.extend_from_slice(some);
            samples.resize(pairs.len(), self.images.sample());
            self.place += some.len();
        }
        if samples.is_empty() {
            return Ok(None);
        }
        let pairs = || pairs.iter().copied();
        let columns: Vec<ArrayRef> = vec![
            Arc::new(UInt64Array::from(samples)),
            Arc::new(UInt32Array::from_iter_values(pairs().map(packed::class))),
            Arc::new(Float32Array::from_iter_values(pairs().map(packed::score))),
            Arc::new(UInt32Array::from_iter_values(pairs().map(packed::rank))),
        ];
        Ok(Some(RecordBatch::try_new(Selected::schema(), columns)?))
    }
}

impl Iterator for Pairs {
    type Item = Result<SelectedPair>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.advance() {
            Ok(true) => {}
            Ok(false) => return None,
            Err(error) => return Some(Err(error)),
        }
        self.place += 1;
        Some(Ok(packed::pair(self.images.sample(), self.images.kept()[self.place - 1])))
    }
}

/// What a class took: how many images, and the lowest score.
type Taken = (usize, u64, f32);

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

        // The row that is open is looked at, not closed, so that more scores may come after this.
        let mut open = self.open_pairs()?;
        open.sort_unstable_by_key(|(class, _)| *class);
        job.check()?;
        self.make_room()?;

        // Both ways give the same pairs; which one is used depends on the memory alone.
        let in_memory = self.classes.spill.limit().is_none() && self.classes.runs.is_empty();
        let cuts = (k as usize, p as usize);
        let shelves =
            in_memory.then(|| Shelves::new(&self.classes, &open, self.num_choosing())).flatten();
        let (chosen, taken, counts) = match shelves {
            Some(shelves) => self.choose_listed(cuts, &open, shelves, job)?,
            None => self.choose_sorted(cuts, &open, job)?,
        };
        let none = vec![0; self.num_classes as usize];
        let mut selected = Selected {
            chosen,
            p: p as usize,
            num_before: none.clone(),
            num_after: none,
            lowest: vec![f32::NAN; self.num_classes as usize],
            images_by_classes: BTreeMap::new(),
        };
        for (class, number, lowest) in taken {
            selected.num_before[class] = number;
            selected.lowest[class] = lowest;
        }
        counts.into_iter().for_each(|found| selected.add(found));
        Ok(selected)
    }

    fn num_choosing(&self) -> usize {
        rayon::current_num_threads().min(self.classes.parts.len()).max(1)
    }

    fn choose_listed(
        &self,
        (k, p): (usize, usize),
        open: &[(u32, Entry)],
        mut shelves: Shelves,
        job: &Job,
    ) -> Result<(Ordered, Vec<Taken>, Vec<Counts>)> {
        let collectors = shelves.collectors().into_par_iter().enumerate();
        let found = collectors.map(|(thread, mut collector)| {
            let push = |entry, class, rank| {
                collector.push(entry, class, rank);
                Ok(())
            };
            let taken = self.choose(thread, k, open, push, job)?;
            Ok((collector.left(), taken))
        });
        let (left, taken): (Vec<_>, Vec<_>) =
            found.collect::<Result<Vec<_>>>()?.into_iter().unzip();
        let num_classes = self.num_classes as usize;
        let (listed, counts) = BySample::new(shelves, &left, |counts: &mut Counts, low, range| {
            job.check()?;
            let distance = |&pair: &Packed| packed::distance(pair);
            let images = range.chunk_by(|one, other| distance(one) == distance(other));
            let mut images = images.map(|pairs| (low + u64::from(distance(&pairs[0])), pairs));
            images.try_for_each(|(sample, pairs)| counts.add(sample, pairs, p, num_classes))
        })?;
        Ok((Ordered::Listed(listed), taken.concat(), counts))
    }

    fn choose_sorted(
        &self,
        (k, p): (usize, usize),
        open: &[(u32, Entry)],
        job: &Job,
    ) -> Result<(Ordered, Vec<Taken>, Vec<Counts>)> {
        let num_threads = self.num_choosing();
        let memory = self.classes.spill.limit().map(|limit| limit / 2 / num_threads);
        let found = (0..num_threads).into_par_iter().map(|thread| {
            let mut sorter = Sorter::new(self.classes.spill.clone(), memory);
            let push = |entry, class, rank| sorter.push(ClassImage::new(entry, class, rank));
            let taken = self.choose(thread, k, open, push, job)?;
            Ok((sorter.finish()?, taken))
        });
        let (sorted, taken): (Vec<_>, Vec<_>) =
            found.collect::<Result<Vec<_>>>()?.into_iter().unzip();
        let chosen = Ordered::Sorted(Sorted::join(sorted, &self.classes.spill)?);
        let (mut images, mut counts) = (chosen.images(p)?, Counts::default());
        let mut seen = 0_u64;
        while images.next()? {
            counts.add(images.sample(), images.pairs(), p, self.num_classes as usize)?;
            seen += 1;
            if seen.is_multiple_of(ENTRIES_PER_CHECK) {
                job.check()?;
            }
        }
        Ok((chosen, taken.concat(), vec![counts]))
    }

    /// Gives `push` what the classes of a thread took: entry, class and rank. Every thread takes each so-many-th part, since
    /// frequent classes are together.
    fn choose(
        &self,
        thread: usize,
        k: usize,
        open: &[(u32, Entry)],
        mut push: impl FnMut(Entry, u32, u32) -> Result<()>,
        job: &Job,
    ) -> Result<Vec<Taken>> {
        let mut taken: Vec<Taken> = Vec::new();
        for part in (thread..self.classes.parts.len()).step_by(self.num_choosing()) {
            self.classes.visit_part(part, k, open, &mut |class, entries| {
                job.check()?;
                let lowest = entries.last().map_or(f32::NAN, |entry| entry.score());
                taken.push((class, entries.len() as u64, lowest));
                let mut ranked = (1..).zip(entries);
                ranked.try_for_each(|(rank, &entry)| push(entry, class as u32, rank))
            })?;
        }
        Ok(taken)
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
