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

use super::by_sample::{BySample, Collector, ListedImages};
use super::chosen::Chosen;
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
    Sorted(Sorted<Chosen>),
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
    fn add(&mut self, pairs: &[Chosen], p: usize, num_classes: usize) -> Result<()> {
        check_distinct(pairs)?;
        let kept = kept(pairs, p);
        self.num_after.resize(num_classes, 0);
        kept.iter().for_each(|pair| self.num_after[pair.class as usize] += 1);
        if self.by_classes.len() <= kept.len() {
            self.by_classes.resize(kept.len() + 1, 0);
        }
        self.by_classes[kept.len()] += 1;
        Ok(())
    }
}

/// The P best of the pairs of an image.
#[inline]
fn kept(pairs: &[Chosen], p: usize) -> &[Chosen] {
    &pairs[..pairs.len().min(p)]
}

/// A class that took an image twice was given two scores for it.
#[inline]
fn check_distinct(pairs: &[Chosen]) -> Result<()> {
    // Of a few it is looked up in place.
    let is_new = |(place, pair): (usize, &Chosen)| {
        pairs[..place].iter().all(|other| other.class != pair.class)
    };
    if pairs.len() <= FEW_CLASSES && pairs.iter().enumerate().all(is_new) {
        return Ok(());
    }
    let mut classes: Vec<_> = pairs.iter().map(|pair| pair.class).collect();
    classes.sort_unstable();
    match classes.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(doubled(pairs[0].sample(), pair[0])),
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
    Sorted { chosen: SortedReader<Chosen>, ahead: Option<Chosen>, pairs: Vec<Chosen> },
}

impl Images {
    fn sorted(mut chosen: SortedReader<Chosen>, p: usize) -> Result<Self> {
        let ahead = chosen.next_record()?;
        Ok(Self { source: ImageSource::Sorted { chosen, ahead, pairs: Vec::new() }, p })
    }

    /// Goes to the next image, and says whether there is one.
    #[inline]
    fn next(&mut self) -> Result<bool> {
        let (chosen, ahead, pairs) = match &mut self.source {
            ImageSource::Listed(images) => return Ok(images.next()),
            ImageSource::Sorted { chosen, ahead, pairs } => (chosen, ahead, pairs),
        };
        pairs.clear();
        let Some(first) = *ahead else { return Ok(false) };
        while let Some(pair) = ahead.filter(|pair| pair.sample() == first.sample()) {
            pairs.push(pair);
            *ahead = chosen.next_record()?;
        }
        Ok(true)
    }

    #[inline]
    fn pairs(&self) -> &[Chosen] {
        match &self.source {
            ImageSource::Listed(images) => images.pairs(),
            ImageSource::Sorted { pairs, .. } => pairs,
        }
    }

    fn sample(&self) -> u64 {
        self.pairs().first().map_or(0, |pair| pair.sample())
    }

    /// The P best of the image's pairs.
    #[inline]
    fn kept(&self) -> &[Chosen] {
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

    /// The next pairs, as many as a batch holds; none where there are no more.
    fn batch(&mut self) -> Result<Option<RecordBatch>> {
        let mut samples = Vec::with_capacity(ROWS_PER_BATCH);
        let mut classes = Vec::with_capacity(ROWS_PER_BATCH);
        let mut scores = Vec::with_capacity(ROWS_PER_BATCH);
        let mut ranks = Vec::with_capacity(ROWS_PER_BATCH);
        while samples.len() < ROWS_PER_BATCH && self.advance()? {
            let rest = &self.images.kept()[self.place..];
            let some = &rest[..rest.len().min(ROWS_PER_BATCH - samples.len())];
            samples.extend(some.iter().map(|pair| pair.sample()));
            classes.extend(some.iter().map(|pair| pair.class));
            scores.extend(some.iter().map(|pair| pair.score()));
            ranks.extend(some.iter().map(|pair| pair.rank));
            self.place += some.len();
        }
        if samples.is_empty() {
            return Ok(None);
        }
        let columns: Vec<ArrayRef> = vec![
            Arc::new(UInt64Array::from(samples)),
            Arc::new(UInt32Array::from(classes)),
            Arc::new(Float32Array::from(scores)),
            Arc::new(UInt32Array::from(ranks)),
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
        Some(Ok(self.images.kept()[self.place - 1].pair()))
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
        let mut open = self.open_pairs()?;
        open.sort_unstable_by_key(|(class, _)| *class);
        job.check()?;
        self.make_room()?;
        let in_memory = self.classes.spill.limit().is_none() && self.classes.runs.is_empty();
        let cuts = (k as usize, p as usize);
        let (chosen, taken, counts) = if in_memory {
            self.choose_listed(cuts, &open, job)?
        } else {
            self.choose_sorted(cuts, &open, job)?
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
        job: &Job,
    ) -> Result<(Ordered, Vec<Taken>, Vec<Counts>)> {
        let collectors = Collector::for_threads(&self.classes, open, self.num_choosing());
        let found = collectors.into_par_iter().enumerate().map(|(thread, mut collector)| {
            let push = |chosen| {
                collector.push(chosen);
                Ok(())
            };
            let taken = self.choose(thread, k, open, push, job)?;
            Ok((collector, taken))
        });
        let (collectors, taken): (Vec<_>, Vec<_>) =
            found.collect::<Result<Vec<_>>>()?.into_iter().unzip();
        let num_classes = self.num_classes as usize;
        let (listed, counts) = BySample::new(collectors, |counts: &mut Counts, range| {
            job.check()?;
            let mut images = range.chunk_by(|one, other| one.sample() == other.sample());
            images.try_for_each(|pairs| counts.add(pairs, p, num_classes))
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
            let taken = self.choose(thread, k, open, |chosen| sorter.push(chosen), job)?;
            Ok((sorter.finish()?, taken))
        });
        let (sorted, taken): (Vec<_>, Vec<_>) =
            found.collect::<Result<Vec<_>>>()?.into_iter().unzip();
        let chosen = Ordered::Sorted(Sorted::join(sorted, &self.classes.spill)?);
        let (mut images, mut counts) = (chosen.images(p)?, Counts::default());
        let mut seen = 0_u64;
        while images.next()? {
            counts.add(images.pairs(), p, self.num_classes as usize)?;
            seen += 1;
            if seen.is_multiple_of(ENTRIES_PER_CHECK) {
                job.check()?;
            }
        }
        Ok((chosen, taken.concat(), vec![counts]))
    }

    /// Gives `push` what the classes of a thread took. Every thread takes each so-many-th part, since
    /// frequent classes stand together.
    fn choose(
        &self,
        thread: usize,
        k: usize,
        open: &[(u32, Entry)],
        mut push: impl FnMut(Chosen) -> Result<()>,
        job: &Job,
    ) -> Result<Vec<Taken>> {
        let mut taken: Vec<Taken> = Vec::new();
        for part in (thread..self.classes.parts.len()).step_by(self.num_choosing()) {
            self.classes.visit_part(part, k, open, &mut |class, entries| {
                job.check()?;
                let lowest = entries.last().map_or(f32::NAN, |entry| entry.score());
                taken.push((class, entries.len() as u64, lowest));
                let mut ranked = (1..).zip(entries);
                ranked.try_for_each(|(rank, &entry)| push(Chosen::new(entry, class as u32, rank)))
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
