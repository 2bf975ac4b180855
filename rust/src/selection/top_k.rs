//! The K best entries of every class, in one pass.
//!
//! A class collects entries in a list; when K and a quarter are in it, the K best stay (a partial
//! selection, so that an entry costs constant time on average) and the K-th becomes the class's cut: what is not
//! better than the cut can never be among the K best and is dropped unseen. Beside the exact cut
//! is its score as a plain float, the floor, so that a row of scores is compared with the floors
//! of its classes sixteen at a time; after the first few thousand rows almost nothing gets past that.
//!
//! All threads share one state. Each takes some of the rows and lets [`Waiting`] what passes the
//! floors; then each takes some of the parts, which are ranges of classes, and gives them what waits
//! for them. With a limit of memory the lists are written to disk as a sorted run before they exceed
//! it ([`super::runs`]).
//!
//! What is kept is the K smallest of the multiset of entries under a total order. Equal entries are
//! indistinguishable, so it does not depend on the order in which they came.

use rayon::prelude::*;

use super::class_run::{ClassRun, Mark};
use super::entry::{Entry, keep_best};
use super::pool::{List, Pool};
use crate::spill::{Memory, Spill};
use crate::{Error, Result};

/// Scores that are compared with their floors together.
pub(super) const LANES: usize = 16;
/// Parts that the classes are split into at most; as many threads can work on them.
const MAX_PARTS: usize = 64;
/// Entries that wait at most before the classes take them, and fewer where memory is limited.
const MAX_WAITING: usize = 1 << 18;

/// The best entries of one class: up to [`most_kept`], the K best among them.
#[derive(Debug, Clone)]
pub(super) struct Best {
    pub(super) list: List,
    pub(super) cut: Entry,
    /// What runs on disk show of the cut; ascending.
    pub(super) marks: Vec<Mark>,
}

impl Best {
    const EMPTY: Self = Self { list: List::EMPTY, cut: Entry::WORST, marks: Vec::new() };

    pub(super) fn floor(&self) -> f32 {
        if self.cut == Entry::WORST { f32::NEG_INFINITY } else { self.cut.score() }
    }
}

/// Adjacent classes and the entries of their lists.
#[derive(Debug, Clone)]
pub(super) struct Part {
    pub(super) classes: Vec<Best>,
    pub(super) pool: Pool,
}

impl Part {
    /// Makes the processor fetch where the lists grow, all at once.
    fn prefetch(&self) {
        self.classes.iter().for_each(|best| self.pool.prefetch_end(best.list));
    }

    /// Takes `entry` where it may be among the `k` best; true where the cut rose.
    #[inline]
    fn offer(&mut self, class: usize, entry: Entry, k: usize, scratch: &mut Vec<Entry>) -> bool {
        let best = &mut self.classes[class];
        if entry >= best.cut {
            return false;
        }
        self.pool.push(&mut best.list, entry);
        let full = best.list.len() >= most_kept(k);
        if full {
            self.compact(class, k, scratch);
        }
        full
    }

    /// Leaves the `k` best of a class that has more, and raises its cut to the last of them.
    #[cold]
    fn compact(&mut self, class: usize, k: usize, scratch: &mut Vec<Entry>) {
        let best = &mut self.classes[class];
        scratch.clear();
        self.pool.read(best.list, scratch);
        keep_best(scratch, k);
        best.cut = scratch[k - 1].min(best.cut);
        self.pool.empty(&mut best.list);
        self.pool.fill(&mut best.list, scratch);
    }
}

/// Entries of a class before they are cut down to K: a quarter more, and for small K some more, since
/// every cut looks at all of them.
pub(super) fn most_kept(k: usize) -> usize {
    k.saturating_add(k.min((k / 4).max(64)))
}

/// An entry on its way to a class.
#[derive(Debug, Clone, Copy)]
struct Offer {
    /// The class's number within its part.
    class: u32,
    entry: Entry,
}

/// What waits for the classes, by their parts.
#[derive(Debug, Clone, Default)]
pub(super) struct Waiting {
    parts: Vec<Vec<Offer>>,
    len: usize,
    shift: u32,
}

impl Waiting {
    #[inline]
    pub(super) fn push(&mut self, class: usize, entry: Entry) {
        let first = class >> self.shift << self.shift;
        self.parts[class >> self.shift].push(Offer { class: (class - first) as u32, entry });
        self.len += 1;
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn clear(&mut self) {
        self.parts.iter_mut().for_each(Vec::clear);
        self.len = 0;
    }
}

/// How the memory of a limit is divided.
#[derive(Debug, Clone, Copy)]
struct Budget {
    /// For the entries of all classes, in bytes.
    entries: usize,
    /// Entries that may wait.
    waiting: usize,
    /// Scores that may be looked at in one round, of which all could have to wait.
    round: usize,
}

impl Budget {
    fn new(spill: &Spill, num_classes: usize, k: usize, chunk_bytes: usize) -> Result<Self> {
        let Some(limit) = spill.limit() else {
            return Ok(Self { entries: usize::MAX, waiting: MAX_WAITING, round: usize::MAX });
        };
        let of_class = size_of::<Best>() + size_of::<f32>() + Mark::MOST * size_of::<Mark>();
        let least = (num_classes * (of_class + 2 * chunk_bytes)) / 3 * 4;
        if limit >= Memory::LEAST && limit < least {
            return Err(Error::usage(format!(
                "memory_bytes {limit}: at least {least} are needed for {num_classes} classes"
            )));
        }
        // An eighth for what waits and for the blocks of runs.
        let rest = (limit - limit / 8).saturating_sub(num_classes * of_class);
        // A class that is cut down, written or sorted is copied twice, one class in each thread.
        let copies =
            most_kept(k).saturating_mul(2 * size_of::<Entry>() * rayon::current_num_threads());
        let entries = if copies <= limit / 8 { rest - rest.min(copies) } else { rest / 2 };
        let round = (limit / 16 / size_of::<Offer>()).max(64);
        let waiting = round.min(MAX_WAITING);
        Ok(Self { entries: entries.max(2 * num_classes * chunk_bytes), waiting, round })
    }
}

/// The K best entries of every class.
#[derive(Debug, Clone)]
pub(super) struct TopK {
    pub(super) k: usize,
    num_classes: usize,
    /// A part has 2^shift classes.
    shift: u32,
    /// The score of every class's cut: a lower one need not be looked at.
    pub(super) floors: Vec<f32>,
    pub(super) parts: Vec<Part>,
    pub(super) runs: Vec<ClassRun>,
    pub(super) spill: Spill,
    budget: Budget,
}

impl TopK {
    pub(super) fn new(num_classes: usize, k: usize, spill: Spill) -> Result<Self> {
        let wanted = num_classes.div_ceil(MAX_PARTS).max(LANES);
        let shift = wanted.next_power_of_two().ilog2();
        let sizes =
            (0..num_classes).step_by(1 << shift).map(|first| (num_classes - first).min(1 << shift));
        let pool = Pool::new(most_kept(k));
        let budget = Budget::new(&spill, num_classes, k, pool.chunk_bytes())?;
        let part = |size| Part { classes: vec![Best::EMPTY; size], pool: pool.clone() };
        Ok(Self {
            k,
            num_classes,
            shift,
            floors: vec![f32::NEG_INFINITY; num_classes],
            parts: sizes.map(part).collect(),
            runs: Vec::new(),
            spill,
            budget,
        })
    }

    pub(super) fn num_classes(&self) -> usize {
        self.num_classes
    }

    /// Classes of a part, but for the last.
    pub(super) fn part_size(&self) -> usize {
        1 << self.shift
    }

    /// Room for what waits.
    pub(super) fn waiting(&self) -> Waiting {
        Waiting { parts: vec![Vec::new(); self.parts.len()], len: 0, shift: self.shift }
    }

    /// How many entries may wait before [`take`](Self::take) must be called.
    pub(super) fn most_waiting(&self) -> usize {
        self.budget.waiting
    }

    /// How many scores may be looked at before that.
    pub(super) fn most_in_round(&self) -> usize {
        self.budget.round
    }

    /// Whether the lists take more than half of what they may.
    pub(super) fn is_half_full(&self) -> bool {
        self.bytes_used() > self.budget.entries / 2
    }

    fn bytes_used(&self) -> usize {
        self.parts.iter().map(|part| part.pool.num_used() * part.pool.chunk_bytes()).sum()
    }

    /// Gives the classes what waits for them, and empties it.
    pub(super) fn take(&mut self, waiting: &mut [Waiting]) -> Result<()> {
        let num_waiting: usize = waiting.iter().map(Waiting::len).sum();
        if num_waiting == 0 {
            return Ok(());
        }

        // Before the entries are taken, so that the limit is kept at every moment.
        if self.spill.limit().is_some() {
            let needed: usize = (0..self.parts.len()).map(|part| self.needed(waiting, part)).sum();
            if self.bytes_used() + needed > self.budget.entries {
                self.spill()?;
            }
        }

        // A part is touched by one thread alone, so no class needs a lock.
        let (k, waits) = (self.k, &*waiting);
        let parts = self.parts.par_iter_mut().zip(self.floors.par_chunks_mut(1 << self.shift));
        parts.enumerate().for_each_init(Vec::new, |scratch, (number, (part, floors))| {
            part.prefetch();
            for offer in waits.iter().flat_map(|waiting| &waiting.parts[number]) {
                let class = offer.class as usize;
                if part.offer(class, offer.entry, k, scratch) {
                    floors[class] = part.classes[class].floor();
                }
            }
        });
        waiting.iter_mut().for_each(Waiting::clear);
        Ok(())
    }

    /// Bytes that the lists of a part may grow by.
    fn needed(&self, waiting: &[Waiting], part: usize) -> usize {
        let number: usize = waiting.iter().map(|waiting| waiting.parts[part].len()).sum();
        let pool = &self.parts[part].pool;
        let chunks = number.min(number / pool.chunk_len() + self.parts[part].classes.len());
        chunks * pool.chunk_bytes()
    }

    /// Raises the cut of a class of which K entries are known that are not worse than `entry`.
    pub(super) fn raise_cut(&mut self, class: usize, entry: Entry) {
        let best = &mut self.parts[class >> self.shift].classes[class & ((1 << self.shift) - 1)];
        best.cut = best.cut.min(entry);
        self.floors[class] = best.floor();
    }
}

/// Lets the scores of `rows`, a column for each class, wait that are not below the floors; the place
/// of the first score that is not finite, if there is one.
pub(super) fn filter_rows(
    floors: &[f32],
    rows: &[f32],
    sample: impl Fn(usize) -> u64,
    waiting: &mut Waiting,
) -> std::result::Result<(), usize> {
    let width = floors.len();
    let (floor_lanes, floor_rest) = floors.as_chunks::<LANES>();
    for (row, scores) in rows.chunks_exact(width).enumerate() {
        let (lanes, rest) = scores.as_chunks::<LANES>();
        for (number, (scores, floors)) in lanes.iter().zip(floor_lanes).enumerate() {
            if !are_below(scores, floors) {
                filter_lanes(number * LANES, scores, floors, sample(row), waiting)
                    .map_err(|class| row * width + class)?;
            }
        }
        filter_lanes(lanes.len() * LANES, rest, floor_rest, sample(row), waiting)
            .map_err(|class| row * width + class)?;
    }
    Ok(())
}

/// Whether all scores are finite and below their floors. A score that is not a number, or infinite
/// and positive, is below none.
#[inline]
fn are_below(scores: &[f32; LANES], floors: &[f32; LANES]) -> bool {
    let mut below = u32::MAX;
    for (score, floor) in scores.iter().zip(floors) {
        let is_below = u32::from(score < floor) & u32::from(*score > f32::NEG_INFINITY);
        below &= is_below.wrapping_neg();
    }
    below != 0
}

fn filter_lanes(
    first: usize,
    scores: &[f32],
    floors: &[f32],
    sample: u64,
    waiting: &mut Waiting,
) -> std::result::Result<(), usize> {
    let mut finite = true;
    for (class, (&score, &floor)) in (first..).zip(scores.iter().zip(floors)) {
        finite &= score.abs() <= f32::MAX;
        if score >= floor {
            waiting.push(class, Entry::new(score, sample));
        }
    }
    if finite {
        return Ok(());
    }
    let wrong = scores.iter().position(|score| !score.is_finite());
    Err(first + wrong.unwrap_or_default())
}
