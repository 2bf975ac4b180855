//! Taking scored pairs out of Parquet files: each thread reads row groups and keeps what passes.
//!
//! A pair whose score is below its class's floor is done with before its sample was looked at, and that is
//! nearly all of them. What passes waits with the thread until the classes take it, when all threads pause.
//!
//! Floors that rise as pairs come let pass K (1 + ln(n / K)) of a class's n pairs. So a few row groups are
//! looked at first ([`guess`]): where a class's K-th score will surely be above some score, what is
//! below that need not wait. Whether it was so is known in the end, when K pairs are there that are
//! no worse; the files are read once more for the classes of which it was not. So a guess costs
//! time where it is wrong, and never changes a result.

use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;

use super::top_k::Waiting;
use super::update::{PAIRS_PER_PIECE, WORTH_TAKING, filter_pairs};
use super::{Order, Selection, not_finite, out_of_range};
use crate::job::Job;
use crate::parquet::{PairReader, Pairs, ParquetPairs};
use crate::{Error, Result};

/// Row groups that are looked at before the others, spread over all.
const LOOKED_AT: usize = 4;

/// Pairs of each of them that are looked at, at most.
const PAIRS_LOOKED_AT: usize = 1 << 19;

/// The floors of the entries of a dictionary of classes.
#[derive(Debug, Default)]
struct EntryFloors {
    /// Not a number for an entry that is no class; none while they are to be looked up.
    floors: Vec<f32>,
    has_unknown: bool,
}

impl EntryFloors {
    fn look_up(&mut self, entries: &[u32], floors: &[f32]) {
        let floor = |&class: &u32| floors.get(class as usize).copied().unwrap_or(f32::NAN);
        self.floors.extend(entries.iter().map(floor));
        self.has_unknown = self.floors.iter().any(|floor| floor.is_nan());
    }
}

/// What a thread reads: one row group after another, whichever is next for anyone.
struct Feed<'a> {
    pairs: &'a ParquetPairs,
    next: &'a AtomicUsize,
    reader: Option<PairReader<'a>>,
    /// One that is done, whose memory is used again.
    done: Option<PairReader<'a>>,
    entry_floors: EntryFloors,
    /// The number of the row group under way.
    group: usize,
    num_pairs: u64,
    /// Whether all were read, and reported, before.
    is_again: bool,
}

impl<'a> Feed<'a> {
    /// Lets wait what passes, until as much waits as may or nothing is left, which it returns.
    fn fill(
        &mut self,
        floors: &[f32],
        is_wanted: &impl Fn(u32, f32) -> bool,
        waiting: &mut Waiting,
        most: usize,
        job: &Job,
    ) -> Result<bool> {
        let piece = most.clamp(1, PAIRS_PER_PIECE);
        self.entry_floors.floors.clear();
        while waiting.len() + piece <= most && waiting.len() <= most / WORTH_TAKING {
            job.check()?;
            if !self.advance(floors, is_wanted, waiting, piece, job)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Looks at the next pairs; whether there were any.
    fn advance(
        &mut self,
        floors: &[f32],
        is_wanted: &impl Fn(u32, f32) -> bool,
        waiting: &mut Waiting,
        piece: usize,
        job: &Job,
    ) -> Result<bool> {
        if self.reader.is_none() {
            self.group = self.next.fetch_add(1, Ordering::Relaxed);
            if self.group >= self.pairs.num_groups() {
                return Ok(false);
            }
            self.reader = Some(self.pairs.read(self.group, self.done.take())?);
            self.entry_floors.floors.clear();
        }
        let Some(reader) = &mut self.reader else { return Ok(false) };
        let Some(pairs) = reader.next_pairs(piece)? else {
            // Its buffers are used again for the next group.
            self.done = self.reader.take();
            return Ok(true);
        };
        filter(floors, &mut self.entry_floors, &pairs, is_wanted, waiting).map_err(|place| {
            let path = self.pairs.path(self.group).display();
            refused(&pairs, place, floors.len() as u32).within(&path)
        })?;
        self.num_pairs += pairs.scores.len() as u64;
        if !self.is_again {
            job.advance(pairs.scores.len() as u64);
        }
        Ok(true)
    }

    /// The first error in what is left of the row group under way.
    fn look_through(&mut self, floors: &[f32], waiting: &mut Waiting, job: &Job) -> Result<()> {
        while self.reader.is_some() {
            job.check()?;
            waiting.clear();
            self.advance(floors, &|_, _| false, waiting, PAIRS_PER_PIECE, job)?;
        }
        Ok(())
    }
}

/// Lets wait what is wanted and not below its class's floor; the place of the first pair that cannot be
/// taken, if there is one. The floors of the dictionary's entries are looked up where they are not there.
fn filter(
    floors: &[f32],
    of_entries: &mut EntryFloors,
    pairs: &Pairs<'_>,
    is_wanted: &impl Fn(u32, f32) -> bool,
    waiting: &mut Waiting,
) -> std::result::Result<(), usize> {
    let Pairs { numbers, scores, .. } = pairs;
    let entries = pairs.entries();
    let wanted = |place: usize| {
        let number = numbers[place];
        let class = entries.map_or(number, |entries| entries[number as usize]);
        is_wanted(class, scores[place]).then(|| (class, pairs.sample(place)))
    };
    let Some(entries) = entries else {
        return filter_pairs(floors, numbers, scores, wanted, waiting);
    };
    if of_entries.floors.is_empty() {
        of_entries.look_up(entries, floors);
    }
    let is_unknown = |&number: &u32| of_entries.floors[number as usize].is_nan();
    let unknown = match of_entries.has_unknown {
        true => numbers.iter().position(is_unknown),
        false => None,
    };
    let refused = filter_pairs(&of_entries.floors, numbers, scores, wanted, waiting).err();
    refused.into_iter().chain(unknown).min().map_or(Ok(()), Err)
}

/// Why a pair cannot be taken.
fn refused(pairs: &Pairs<'_>, place: usize, num_classes: u32) -> Error {
    let (sample, class) = (pairs.sample(place), pairs.class(place));
    match u32::try_from(class) {
        Ok(class) if class < num_classes => not_finite(sample, class, pairs.scores[place], "score"),
        _ => out_of_range(sample, class, num_classes),
    }
}

impl Selection {
    /// Takes the scored pairs of Parquet files; false, and nothing is read, under image-first, which wants
    /// the pairs of a sample together. The job counts rows.
    ///
    /// Refuses what [`update_pairs`](Self::update_pairs) refuses, and nulls and negative numbers.
    pub fn update_parquet(&mut self, pairs: &ParquetPairs, job: &Job) -> Result<bool> {
        if self.order == Order::ImageFirst {
            return Ok(false);
        }
        self.guarded(|selection| selection.take_parquet(pairs, job))?;
        Ok(true)
    }

    fn take_parquet(&mut self, pairs: &ParquetPairs, job: &Job) -> Result<()> {
        let guesses = self.guess(pairs, job)?;
        let before = self.classes.floors.clone();
        let num_pairs = self.read_parquet(pairs, &guesses, |_, _| true, false, job)?;
        self.num_pairs += num_pairs;
        let mut ceilings = vec![f32::NEG_INFINITY; guesses.len()];
        for (class, &guess) in guesses.iter().enumerate() {
            // There was nothing before, and only what is no worse than the guess was taken.
            if guess > before[class] && self.classes.num_best(class) < u64::from(self.k) {
                ceilings[class] = guess;
            }
        }
        if ceilings.iter().all(|&ceiling| ceiling == f32::NEG_INFINITY) {
            return Ok(());
        }
        let is_left = |class: u32, score: f32| score < ceilings[class as usize];
        self.read_parquet(pairs, &before, is_left, true, job).map(|_| ())
    }

    /// Reads all pairs; those wait that `is_wanted` and that are below neither the floors nor `least`.
    /// Returns how many there are.
    fn read_parquet(
        &mut self,
        pairs: &ParquetPairs,
        least: &[f32],
        is_wanted: impl Fn(u32, f32) -> bool + Sync,
        is_again: bool,
        job: &Job,
    ) -> Result<u64> {
        let next = AtomicUsize::new(0);

        // A thread keeps its place in a file between rounds, so that it need not begin a group
        // again.
        let feed = |_| Feed {
            pairs,
            next: &next,
            reader: None,
            done: None,
            entry_floors: EntryFloors::default(),
            group: 0,
            num_pairs: 0,
            is_again,
        };
        let num_threads = rayon::current_num_threads();
        let mut feeds: Vec<Feed<'_>> = (0..num_threads).map(feed).collect();
        let mut waiting = vec![self.classes.waiting(); num_threads];
        let most = (self.classes.most_waiting() / num_threads).max(1);
        loop {
            // Cuts have risen since the last round, so more pairs can be left out where they are
            // read.
            let floors = self.classes.floors.iter().zip(least);
            let floors: Vec<f32> = floors.map(|(&floor, &least)| floor.max(least)).collect();
            let work = waiting.par_iter_mut().zip(&mut feeds);
            let ended =
                work.map(|(waiting, feed)| feed.fill(&floors, &is_wanted, waiting, most, job));
            let ended: Vec<Result<bool>> = ended.collect();
            if ended.iter().any(Result::is_err) {
                return Err(first_error(&floors, &mut feeds, &mut waiting[0], ended, job));
            }
            self.classes.take(&mut waiting)?;
            if ended.into_iter().all(|ended| ended.is_ok_and(|ended| ended)) {
                return Ok(feeds.iter().map(|feed| feed.num_pairs).sum());
            }
        }
    }

    /// For each class a score that its K-th best in these files is not below, by all likelihood.
    fn guess(&self, pairs: &ParquetPairs, job: &Job) -> Result<Vec<f32>> {
        let mut guesses = vec![f32::NEG_INFINITY; self.num_classes as usize];
        let step = pairs.num_groups() / LOOKED_AT;
        // What goes to disk cannot be counted at once.
        if step < 2 || self.classes.spill.limit().is_some() || self.num_pairs > 0 {
            return Ok(guesses);
        }

        // Groups from all over the files are looked at, since one end of them may be unlike the
        // rest.
        let mut scores: Vec<Vec<f32>> = vec![Vec::new(); guesses.len()];
        let (mut num_seen, mut done) = (0, None);
        for group in (step / 2..pairs.num_groups()).step_by(step) {
            let mut reader = pairs.read(group, done.take())?;
            let most = num_seen + PAIRS_LOOKED_AT;
            while num_seen < most
                && let Some(pairs) = reader.next_pairs(PAIRS_PER_PIECE)?
            {
                job.check()?;
                num_seen += pairs.scores.len();
                for (class, &score) in pairs.classes().zip(pairs.scores) {
                    if let Some(scores) = scores.get_mut(class as usize) {
                        scores.push(score);
                    }
                }
            }
            done = Some(reader);
        }

        // The guess has to be too low rather than too high: one that is too high costs another
        // reading.
        let share = num_seen as f64 / pairs.num_pairs() as f64;
        // Five standard deviations, and a few more where there are few.
        let expected = f64::from(self.k) * share;
        let rank = (expected + 5.0 * expected.sqrt() + 10.0) as usize;
        for (guess, scores) in guesses.iter_mut().zip(&mut scores) {
            if rank < scores.len() && scores.iter().all(|score| score.is_finite()) {
                let by_score = |one: &f32, other: &f32| other.total_cmp(one);
                *guess = *scores.select_nth_unstable_by(rank, by_score).1;
            }
        }
        Ok(guesses)
    }
}

/// The first error in the order of the row groups, whichever thread was first.
fn first_error(
    floors: &[f32],
    feeds: &mut [Feed<'_>],
    waiting: &mut Waiting,
    ended: Vec<Result<bool>>,
    job: &Job,
) -> Error {
    let mut errors = Vec::new();
    for (feed, ended) in feeds.iter_mut().zip(ended) {
        let group = feed.group;
        let found = ended.and_then(|_| feed.look_through(floors, waiting, job));
        errors.extend(found.err().map(|error| (group, error)));
    }
    errors.sort_by_key(|(group, _)| *group);
    match errors.into_iter().next() {
        Some((_, error)) => error,
        None => Error::data("the scored pairs could not be read"),
    }
}
