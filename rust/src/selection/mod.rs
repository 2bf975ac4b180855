//! Top-K/top-P selection: from teacher scores to the images that are selected for each class.
//!
//! A teacher scores every image for every class. The selection (Yalniz, Jegou, Chen, Paluri, Mahajan
//! 2019, "Billion-scale semi-supervised learning for image classification", section 3.2) takes for
//! every class the K images with the best scores, and lets an image be selected for at most P
//! classes:
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
//! **Memory.** A class keeps K and a quarter entries of 12 bytes and a threshold that rises ([`top_k`]),
//! so that nearly every score costs one comparison and is forgotten. Nothing is reserved before it
//! is needed. With a limit of [`Memory`] entries go to disk as sorted runs ([`runs`]), and so do the
//! selected pairs while they are sorted by sample ([`finish`]); the result is the same to the byte.
//! Image-first also keeps one bit or so for every sample ([`sample_set`]), which stays in memory.
//!
//! **Doubled pairs.** Two scores for one (sample, class) are an error when both would be among the
//! K best of the class, which [`Selection::finish`] finds; below that they cannot change the result
//! and are not sought. Image-first must see all classes of a sample together, in one row of a
//! matrix or in adjacent pairs (also across updates): a sample that comes back is an error, and so
//! is a class twice in its row. [`Selection::update_scattered`] groups other pairs first, on disk
//! where they do not fit.
//!
//! **Failure.** Wrong usage (shapes, types, options) leaves the state as it was. Bad data and a
//! cancelled call leave it half updated; from then on every call but dropping it is an error.

mod by_sample;
mod class_image;
mod class_run;
mod entry;
mod files;
mod finish;
mod log_odds;
mod pairs;
mod pool;
mod runs;
mod sample_set;
mod state;
mod top_k;
mod top_p;
mod ungrouped;
mod update;

use std::ops::Range;

pub use finish::{Pairs, Selected};
pub use log_odds::{log_odds, log_odds_of};
pub use top_p::SelectedPair;

use crate::spill::{Memory, Spill};
use crate::{Error, Result};
use entry::Entry;
use sample_set::SampleSet;
use top_k::{TopK, Waiting};
use top_p::OpenRow;

/// The most classes that a selection can have.
pub const MAX_CLASSES: u32 = 1 << 24;

/// The most pairs that a state may have seen, so that adding to the number never overflows.
pub const MAX_PAIRS: u64 = 1 << 62;

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
                        "samples: {num_rows} rows from {first} on exceed 64 bits"
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
///
/// ```
/// use wsl_core::job::Job;
/// use wsl_core::selection::{Order, Samples, Selection};
/// use wsl_core::spill::Memory;
///
/// // Two classes take their two best images each; an image stands for one class.
/// let mut selection = Selection::new(2, 2, 1, Order::ClassFirst, Memory::unlimited())?;
/// let scores = [0.9, 0.1, 0.4, 0.6, 0.8, 0.7];
/// selection.update(Samples::From(0), &scores, &Job::new())?;
/// let selected = selection.finish(None, None, &Job::new())?;
/// assert_eq!(selected.num_before(), [2, 2]);
/// assert_eq!(selected.num_after(), [2, 1]);
/// # Ok::<(), wsl_core::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Selection {
    num_classes: u32,
    k: u32,
    p: u32,
    order: Order,
    num_pairs: u64,
    classes: TopK,
    /// Entries that the classes have not taken yet; empty between two calls.
    waiting: Waiting,
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
    /// A usage error where one of the three is 0, beyond [`MAX_CLASSES`] classes, and where the
    /// limit of `memory` is too low for so many classes.
    pub fn new(num_classes: u32, k: u32, p: u32, order: Order, memory: Memory) -> Result<Self> {
        let named = [("num_classes", num_classes), ("k", k), ("p", p)];
        if let Some((name, _)) = named.iter().find(|(_, value)| *value == 0) {
            return Err(Error::usage(format!("{name}: expected at least 1, got 0")));
        }
        if num_classes > MAX_CLASSES {
            return Err(Error::usage(format!(
                "num_classes: expected at most {MAX_CLASSES}, got {num_classes}"
            )));
        }
        let classes = TopK::new(num_classes as usize, k as usize, Spill::new(memory))?;
        Ok(Self {
            num_classes,
            k,
            p,
            order,
            num_pairs: 0,
            waiting: classes.waiting(),
            classes,
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

    /// Adds what another selection of the same options took, over other pairs.
    ///
    /// Other options are a usage error; image-first, a sample that both have seen is a data error,
    /// and so are more than [`MAX_PAIRS`] pairs. All leave the selection as it was.
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
        let num_pairs = self.num_pairs.saturating_add(other.num_pairs);
        if num_pairs > MAX_PAIRS {
            return Err(Error::data(format!(
                "merge: the selections have seen {num_pairs} pairs, more than any job has; one of \
                 their files was altered, make it again"
            )));
        }

        // The other selection stays as it is, so the row that is open in it is not closed, only
        // looked at.
        let open = other.open_pairs()?;
        self.guarded(|selection| {
            other.classes.for_each(&mut |class, entry| selection.offer(class, entry))?;
            for (class, entry) in open {
                selection.offer(class as usize, entry)?;
            }
            selection.flush()
        })?;
        self.seen.union(&other.seen);
        self.num_pairs = num_pairs;
        Ok(())
    }

    /// Writes what is in memory to disk now; for callers who want their memory back.
    pub fn spill(&mut self) -> Result<()> {
        self.guarded(|selection| selection.classes.spill())
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

    /// Lets an entry wait for its class, and the classes take what waits when it is much.
    #[inline]
    fn offer(&mut self, class: usize, entry: Entry) -> Result<()> {
        self.waiting.push(class, entry);
        if self.waiting.len() < self.classes.most_waiting() { Ok(()) } else { self.flush() }
    }

    fn flush(&mut self) -> Result<()> {
        self.classes.take(std::slice::from_mut(&mut self.waiting))
    }

    /// What the open row would give its classes if it were closed now.
    fn open_pairs(&self) -> Result<Vec<(u32, Entry)>> {
        self.open.as_ref().map_or(Ok(Vec::new()), |open| open.best(self.p as usize))
    }
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
