//! Top-K/top-P selection: from teacher scores to the images that stand for each class.
//!
//! A teacher scores every image for every class. The selection (Yalniz, Jegou, Chen, Paluri, Mahajan
//! 2019, "Billion-scale semi-supervised learning for image classification", section 3.2) takes for
//! every class the K images with the best scores, and lets an image stand for at most P classes:
//!
//! * [`Order::ClassFirst`]: every class takes its K best images, then every image keeps the P best
//!   of the classes that took it. Any smaller K and any P can be had from one state.
//! * [`Order::ImageFirst`], as published: every image keeps its P best classes, then every class
//!   takes the K best of the images that kept it. Any smaller K can be had at the P of the state.
//!
//! They agree where P is at least the number of classes. Nothing is refilled after a cut.
//!
//! **Rank.** The higher score first, ties to the smaller sample, then to the smaller class; -0 is
//! +0, and a score that is not finite is an error. The result is a function of the set of scored
//! pairs alone: neither their order, nor threads, nor parts that are merged or saved in between
//! change a byte of it.
//!
//! **Memory.** A class keeps at most 2K entries of 12 bytes and a threshold that rises ([`top_k`]),
//! so that nearly every score costs one comparison and is forgotten. Nothing is reserved before it
//! is needed. Image-first also keeps one bit or so for every sample ([`seen`]).
//!
//! **Doubled pairs.** Two scores for one (sample, class) are an error when both would be among the
//! K best of the class, which [`Selection::finish`] finds; below that they cannot change the result
//! and are not sought. Image-first must see all classes of a sample together, in one row of a
//! matrix or in adjacent pairs (also across updates): a sample that comes back is an error, and so
//! is a class twice in its row.
//!
//! **Failure.** Wrong usage (shapes, types, options) leaves the state as it was. Bad data and a
//! cancelled call leave it half updated; from then on every call but dropping it is an error.

mod finish;
mod log_odds;
mod pairs;
mod seen;
mod state;
mod top_k;
mod top_p;

use std::ops::Range;

use arrow_array::RecordBatch;
use arrow_schema::ArrowError;
use rayon::prelude::*;

pub use finish::Selected;
pub use log_odds::{log_odds, log_odds_of};
pub use top_p::SelectedPair;

use crate::job::Job;
use crate::{Error, Result};
use pairs::PairColumns;
use seen::SampleSet;
use top_k::{Entry, TopK};
use top_p::{Candidate, OpenRow};

/// The most classes that a selection can have.
pub const MAX_CLASSES: u32 = 1 << 24;
/// Scores of a matrix that are worked on at a time: 1 MiB, which stays in a core's cache.
const SCORES_PER_BLOCK: usize = 1 << 18;
/// Pairs between two looks at whether the caller asked to stop.
const PAIRS_PER_CHECK: usize = 1 << 16;

/// Which cut comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Every class takes its K best images, then every image keeps its P best of those classes.
    ClassFirst,
    /// Every image keeps its P best classes, then every class takes the K best of those images.
    ImageFirst,
}

impl Order {
    /// The order called `name`: `class-first` or `image-first`.
    pub fn parse(name: &str) -> Result<Self> {
        match name {
            "class-first" => Ok(Self::ClassFirst),
            "image-first" => Ok(Self::ImageFirst),
            _ => Err(Error::usage(format!(
                "order: expected \"class-first\" or \"image-first\", got {name:?}"
            ))),
        }
    }

    /// What [`parse`](Self::parse) reads.
    pub fn name(self) -> &'static str {
        match self {
            Self::ClassFirst => "class-first",
            Self::ImageFirst => "image-first",
        }
    }
}

/// Which samples the rows of a matrix are.
#[derive(Debug, Clone, Copy)]
pub enum Samples<'a> {
    /// The first row is this sample, every other row the one after its predecessor.
    From(u64),
    /// One for each row.
    These(&'a [u64]),
}

impl<'a> Samples<'a> {
    /// Refuses, as wrong usage, what does not name `num_rows` samples.
    pub fn check(self, num_rows: usize) -> Result<()> {
        match self {
            Self::From(first) => {
                let last = (num_rows as u64).checked_sub(1).map(|last| first.checked_add(last));
                if last == Some(None) {
                    return Err(Error::usage(format!(
                        "first_sample {first}: {num_rows} rows from there exceed 64 bits"
                    )));
                }
            }
            Self::These(samples) if samples.len() != num_rows => {
                return Err(Error::usage(format!(
                    "samples: expected one for each of the {num_rows} rows of scores, got {}",
                    samples.len()
                )));
            }
            Self::These(_) => {}
        }
        Ok(())
    }

    /// The sample of `row`; every row was checked to have one.
    fn get(self, row: usize) -> u64 {
        match self {
            Self::From(first) => first.wrapping_add(row as u64),
            Self::These(samples) => samples[row],
        }
    }

    /// The samples of some of the rows.
    pub fn rows(self, rows: Range<usize>) -> Self {
        match self {
            Self::From(first) => Self::From(first.wrapping_add(rows.start as u64)),
            Self::These(samples) => Self::These(&samples[rows]),
        }
    }
}

/// The state of a selection: the best pairs so far, ready for more.
#[derive(Debug, Clone)]
pub struct Selection {
    num_classes: u32,
    k: u32,
    p: u32,
    order: Order,
    num_pairs: u64,
    classes: TopK,
    /// Image-first: the samples that came, and the last one's pairs as long as more may follow.
    seen: SampleSet,
    open: Option<OpenRow>,
    /// Set while an update runs, so that a failed one leaves it behind.
    half_updated: bool,
}

impl Selection {
    /// An empty selection of the `k` best images of each of `num_classes` classes, with at most `p`
    /// classes an image.
    ///
    /// A usage error where one of the three is 0, or beyond [`MAX_CLASSES`] classes.
    pub fn new(num_classes: u32, k: u32, p: u32, order: Order) -> Result<Self> {
        let named = [("num_classes", num_classes), ("k", k), ("p", p)];
        if let Some((name, _)) = named.iter().find(|(_, value)| *value == 0) {
            return Err(Error::usage(format!("{name}: expected at least 1, got 0")));
        }
        if num_classes > MAX_CLASSES {
            return Err(Error::usage(format!(
                "num_classes: expected at most {MAX_CLASSES}, got {num_classes}"
            )));
        }
        Ok(Self {
            num_classes,
            k,
            p,
            order,
            num_pairs: 0,
            classes: TopK::new(num_classes as usize, k as usize),
            seen: SampleSet::default(),
            open: None,
            half_updated: false,
        })
    }

    /// The number of classes.
    pub fn num_classes(&self) -> u32 {
        self.num_classes
    }

    /// K, the most images of a class.
    pub fn k(&self) -> u32 {
        self.k
    }

    /// P, the most classes of an image.
    pub fn p(&self) -> u32 {
        self.p
    }

    /// Which cut comes first.
    pub fn order(&self) -> Order {
        self.order
    }

    /// Scored pairs seen so far.
    pub fn num_pairs(&self) -> u64 {
        self.num_pairs
    }

    /// Takes one score for each (sample, class): three slices of one length.
    ///
    /// Image-first: the pairs of a sample must be adjacent, also across updates. A data error
    /// names the sample and class where a class is out of range or a score is not finite.
    pub fn update_pairs(
        &mut self,
        samples: &[u64],
        classes: &[u32],
        scores: &[f32],
        job: &Job,
    ) -> Result<()> {
        if samples.len() != classes.len() || samples.len() != scores.len() {
            return Err(Error::usage(format!(
                "pairs: expected samples, classes and scores of one length, got {}, {} and {}",
                samples.len(),
                classes.len(),
                scores.len()
            )));
        }
        self.guarded(|selection| {
            for first in (0..samples.len()).step_by(PAIRS_PER_CHECK) {
                job.check()?;
                let rows = first..(first + PAIRS_PER_CHECK).min(samples.len());
                selection.take_pairs(
                    &samples[rows.clone()],
                    &classes[rows.clone()],
                    &scores[rows.clone()],
                )?;
                job.advance(rows.len() as u64);
            }
            Ok(())
        })
    }

    /// Takes pairs as record batches with the columns `sample` and `class` (integers of any width)
    /// and `score` (float32); others are ignored.
    ///
    /// A missing column or another type is a usage error; a null or negative value is a data error,
    /// and so is what [`update_pairs`](Self::update_pairs) refuses. The job counts rows.
    pub fn update_batches(
        &mut self,
        batches: impl IntoIterator<Item = std::result::Result<RecordBatch, ArrowError>>,
        job: &Job,
    ) -> Result<()> {
        self.guarded(|selection| {
            for batch in batches {
                let batch = batch?;
                let columns = PairColumns::new(&batch)?;
                for first in (0..batch.num_rows()).step_by(PAIRS_PER_CHECK) {
                    job.check()?;
                    let rows = first..(first + PAIRS_PER_CHECK).min(batch.num_rows());
                    let (samples, classes) = columns.rows(rows.clone(), selection.num_classes)?;
                    let scores = columns.scores(rows.clone());
                    selection.take_pairs(&samples, &classes, scores)?;
                    job.advance(rows.len() as u64);
                }
            }
            Ok(())
        })
    }

    /// Refuses a schema that [`update_batches`](Self::update_batches) could not read, before
    /// anything is read.
    pub fn check_schema(schema: &arrow_schema::Schema) -> Result<()> {
        pairs::check_schema(schema)
    }

    /// Takes a matrix of scores, row-major, with one row for each sample and one column for each
    /// class. The job counts rows.
    pub fn update_dense(&mut self, samples: Samples<'_>, scores: &[f32], job: &Job) -> Result<()> {
        self.check_matrix(samples, scores)?;
        self.guarded(|selection| {
            selection.each_block(samples, scores, job, |selection, samples, block| {
                selection.take_block(samples, block)
            })
        })
    }

    /// Takes a matrix of logits like [`update_dense`](Self::update_dense), and ranks by
    /// [`log_odds`]; a usage error where there is one class only.
    pub fn update_logits(&mut self, samples: Samples<'_>, logits: &[f32], job: &Job) -> Result<()> {
        if self.num_classes < 2 {
            return Err(Error::usage(
                "update_logits: the log-odds of a softmax need at least 2 classes, and the \
                 selection has 1; give scores to update_dense instead",
            ));
        }
        self.check_matrix(samples, logits)?;
        let width = self.num_classes as usize;
        let mut block = vec![0.0; logits.len().min(rows_per_block(width) * width)];
        self.guarded(|selection| {
            selection.each_block(samples, logits, job, |selection, samples, logits| {
                selection.check_finite(samples, logits, "logit")?;
                let scores = &mut block[..logits.len()];
                let rows = scores.par_chunks_exact_mut(width).zip(logits.par_chunks_exact(width));
                rows.for_each_init(Vec::new, |scratch, (to, from)| log_odds(from, to, scratch));
                selection.take_block(samples, scores)
            })
        })
    }

    /// Adds what another selection of the same options took, over other pairs.
    ///
    /// Other options are a usage error; image-first, a sample that both have seen is a data error.
    /// A failed merge leaves the selection as it was.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        self.check_usable()?;
        other.check_usable()?;
        let options = |s: &Self| (s.num_classes, s.k, s.p, s.order);
        if options(self) != options(other) {
            return Err(Error::usage(format!(
                "merge: expected a selection with the same options, {}; got {}",
                self.describe(),
                other.describe()
            )));
        }
        if let Some(sample) = self.seen.first_common(&other.seen) {
            return Err(Error::data(format!(
                "merge: sample {sample} was scored in both selections; image-first must see all \
                 classes of a sample together, so that parts must have different samples"
            )));
        }
        let open = other.open_pairs()?;
        self.classes.merge(&other.classes);
        for (class, entry) in open {
            self.classes.offer(class as usize, entry);
        }
        self.seen.union(&other.seen);
        self.num_pairs += other.num_pairs;
        Ok(())
    }

    /// Makes every later call an error, as a failed update does; for callers that give one update
    /// in several calls and must stop between them.
    pub fn abandon(&mut self) {
        self.half_updated = true;
    }

    fn describe(&self) -> String {
        format!(
            "{} classes, K = {}, P = {}, {}",
            self.num_classes,
            self.k,
            self.p,
            self.order.name()
        )
    }

    fn check_usable(&self) -> Result<()> {
        if self.half_updated {
            return Err(Error::usage(
                "the selection cannot be used: an earlier update of it failed and left it half \
                 updated; start again, or load the state saved last",
            ));
        }
        Ok(())
    }

    fn guarded(&mut self, work: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        self.check_usable()?;
        self.half_updated = true;
        work(self)?;
        self.half_updated = false;
        Ok(())
    }

    fn check_matrix(&self, samples: Samples<'_>, scores: &[f32]) -> Result<()> {
        let width = self.num_classes as usize;
        if !scores.len().is_multiple_of(width) {
            return Err(Error::usage(format!(
                "scores: expected whole rows of {width} classes, got {} numbers",
                scores.len()
            )));
        }
        samples.check(scores.len() / width)
    }

    fn each_block(
        &mut self,
        samples: Samples<'_>,
        matrix: &[f32],
        job: &Job,
        mut take: impl FnMut(&mut Self, Samples<'_>, &[f32]) -> Result<()>,
    ) -> Result<()> {
        let width = self.num_classes as usize;
        let mut first = 0;
        for block in matrix.chunks(rows_per_block(width) * width) {
            job.check()?;
            let rows = first..first + block.len() / width;
            first = rows.end;
            take(self, samples.rows(rows.clone()), block)?;
            self.num_pairs += block.len() as u64;
            job.advance(rows.len() as u64);
        }
        Ok(())
    }

    fn check_finite(&self, samples: Samples<'_>, block: &[f32], what: &str) -> Result<()> {
        let finite = |part: &[f32]| part.iter().fold(true, |all, score| all & score.is_finite());
        if block.par_chunks(SCORES_PER_BLOCK / 8).all(finite) {
            return Ok(());
        }
        let width = self.num_classes as usize;
        match block.iter().position(|score| !score.is_finite()) {
            Some(place) => Err(not_finite(
                samples.get(place / width),
                (place % width) as u32,
                block[place],
                what,
            )),
            None => Ok(()),
        }
    }

    fn take_block(&mut self, samples: Samples<'_>, block: &[f32]) -> Result<()> {
        self.check_finite(samples, block, "score")?;
        let width = self.num_classes as usize;
        match self.order {
            Order::ClassFirst => self.classes.offer_rows(samples, block),
            Order::ImageFirst => {
                self.close_row()?;
                for row in 0..block.len() / width {
                    self.begin_sample(samples.get(row))?;
                }
                let p = self.p as usize;
                for (row, kept) in top_p::best_of_rows(block, width, p) {
                    let entry = Entry::from_key(kept.key, samples.get(row));
                    self.classes.offer(kept.class as usize, entry);
                }
            }
        }
        Ok(())
    }

    fn take_pairs(&mut self, samples: &[u64], classes: &[u32], scores: &[f32]) -> Result<()> {
        for ((&sample, &class), &score) in samples.iter().zip(classes).zip(scores) {
            if class >= self.num_classes {
                return Err(out_of_range(sample, u64::from(class), self.num_classes));
            }
            if !score.is_finite() {
                return Err(not_finite(sample, class, score, "score"));
            }
            match self.order {
                Order::ClassFirst => self.classes.offer_score(class as usize, sample, score),
                Order::ImageFirst => self.take_pair_of_row(sample, class, score)?,
            }
        }
        self.num_pairs += samples.len() as u64;
        Ok(())
    }

    fn take_pair_of_row(&mut self, sample: u64, class: u32, score: f32) -> Result<()> {
        let num_classes = self.num_classes as usize;
        let candidate = Candidate::new(class, score);
        if let Some(open) = self.open.as_mut().filter(|open| open.sample == sample) {
            return open.push(candidate, num_classes);
        }
        self.close_row()?;
        self.begin_sample(sample)?;
        self.open = Some(OpenRow { sample, candidates: vec![candidate] });
        Ok(())
    }

    fn begin_sample(&mut self, sample: u64) -> Result<()> {
        if self.seen.insert(sample) {
            return Ok(());
        }
        Err(Error::data(format!(
            "sample {sample} came back after other samples; image-first must see all classes of a \
             sample together, so sort the pairs by sample or score each image once"
        )))
    }

    fn close_row(&mut self) -> Result<()> {
        for (class, entry) in self.open_pairs()? {
            self.classes.offer(class as usize, entry);
        }
        self.open = None;
        Ok(())
    }

    /// What the open row would give its classes if it were closed now.
    fn open_pairs(&self) -> Result<Vec<(u32, Entry)>> {
        self.open.as_ref().map_or(Ok(Vec::new()), |open| open.best(self.p as usize))
    }
}

fn rows_per_block(width: usize) -> usize {
    (SCORES_PER_BLOCK / width).max(1)
}

fn not_finite(sample: u64, class: u32, score: f32, what: &str) -> Error {
    Error::data(format!(
        "sample {sample}, class {class}: the {what} is {score}, and only finite numbers can be \
         ranked; look for an overflow in the network that made it"
    ))
}

fn out_of_range(sample: u64, class: u64, num_classes: u32) -> Error {
    Error::data(format!(
        "sample {sample}: the class is {class}, and the selection has {num_classes} classes, from 0 \
         to {}",
        num_classes - 1
    ))
}
