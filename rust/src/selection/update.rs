//! Taking scores: pairs, record batches of them, and matrices.

use std::ops::Range;

use arrow_array::RecordBatch;
use arrow_schema::ArrowError;
use rayon::prelude::*;

use super::entry::Entry;
use super::pairs::{Columns, Piece};
use super::top_k::{Waiting, filter_rows};
use super::top_p::{self, Candidate, OpenRow};
use super::{Order, Samples, Selection, log_odds, not_finite, out_of_range, pairs};
use crate::job::Job;
use crate::{Error, Result};

/// Scores of a matrix that a thread works on at a time: 128 KiB, which stay in a core's cache.
const MIN_BLOCK: usize = 1 << 15;
/// The same when a thread does not write but forget: 4 MiB, worth waking it for.
const MAX_BLOCK: usize = 1 << 20;
/// What share of the room for what waits is filled before the classes take it.
pub(super) const WORTH_TAKING: usize = 8;
/// Pairs between two looks at whether the caller asked to stop.
const PAIRS_PER_CHECK: usize = 1 << 18;
/// Pairs that a thread widens at a time, so that they stay in a core's cache.
pub(super) const PAIRS_PER_PIECE: usize = 1 << 12;

impl Selection {
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
            let mut waiting = selection.waiting_by_thread();
            let columns = Columns::Slices { samples, classes, scores };
            selection.take_columns(&columns, &mut waiting, job)?;
            selection.take_waiting(&mut waiting)
        })
    }

    /// Takes record batches, one row for each pair or one for each sample.
    ///
    /// Pairs have the columns `sample` and `class` (integers of any width) and `score` (float32).
    /// Rows of samples have `sample` and either lists, `classes` and `scores` of one length, or
    /// `scores` alone, a fixed-size list with a score for every class. Other columns are ignored.
    /// A missing column or another type is a usage error; a null or negative value is a data error,
    /// and so is what [`update_pairs`](Self::update_pairs) refuses. The job counts rows.
    pub fn update_batches(
        &mut self,
        batches: impl IntoIterator<Item = std::result::Result<RecordBatch, ArrowError>>,
        job: &Job,
    ) -> Result<()> {
        self.guarded(|selection| {
            let mut waiting = selection.waiting_by_thread();
            for batch in batches {
                selection.take_batch(&batch?, &mut waiting, job)?;
            }
            selection.take_waiting(&mut waiting)
        })
    }

    /// Refuses a schema that [`update_batches`](Self::update_batches) could not read, before
    /// anything is read.
    pub fn check_schema(&self, schema: &arrow_schema::Schema) -> Result<()> {
        pairs::check_schema(schema, self.num_classes)
    }

    /// Takes a matrix of scores, row-major, with one row for each sample and one column for each
    /// class. The job counts rows.
    pub fn update(&mut self, samples: Samples<'_>, scores: &[f32], job: &Job) -> Result<()> {
        self.check_matrix(samples, scores)?;
        self.guarded(|selection| selection.take_matrix(samples, scores, job))
    }

    /// Takes a matrix of logits like [`update`](Self::update), and ranks by
    /// [`log_odds`]; a usage error where there is one class only.
    pub fn update_logits(&mut self, samples: Samples<'_>, logits: &[f32], job: &Job) -> Result<()> {
        if self.num_classes < 2 {
            return Err(Error::usage(
                "update_logits: the log-odds of a softmax need at least 2 classes, and the \
                 selection has 1; give scores to update instead",
            ));
        }
        self.check_matrix(samples, logits)?;
        let width = self.num_classes as usize;

        // In blocks, so that the scores take little memory beside the logits.
        let rows = rayon::current_num_threads() * rows_per_block(width);
        let mut block = vec![0.0; logits.len().min(rows * width)];
        self.guarded(|selection| {
            let mut first = 0;
            for logits in logits.chunks(rows * width) {
                let samples = samples.rows(first..first + logits.len() / width);
                first += logits.len() / width;
                selection.check_finite(samples, logits, "logit")?;
                let scores = &mut block[..logits.len()];
                let pairs = scores.par_chunks_exact_mut(width).zip(logits.par_chunks_exact(width));
                pairs.for_each_init(Vec::new, |scratch, (to, from)| log_odds(from, to, scratch));
                selection.take_matrix(samples, scores, job)?;
            }
            Ok(())
        })
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

    fn waiting_by_thread(&self) -> Vec<Waiting> {
        match self.order {
            Order::ClassFirst => vec![self.classes.waiting(); rayon::current_num_threads()],
            Order::ImageFirst => Vec::new(),
        }
    }

    fn take_waiting(&mut self, waiting: &mut [Waiting]) -> Result<()> {
        self.classes.take(waiting)?;
        self.flush()
    }

    fn take_batch(
        &mut self,
        batch: &RecordBatch,
        waiting: &mut [Waiting],
        job: &Job,
    ) -> Result<()> {
        let columns = Columns::new(batch, self.num_classes)?;
        if let Columns::Dense { scores, .. } = &columns {
            let width = self.num_classes as usize;
            let rows = rayon::current_num_threads() * rows_per_block(width);
            for first in (0..batch.num_rows()).step_by(rows) {
                let rows = first..(first + rows).min(batch.num_rows());
                let samples = columns.samples(rows.clone())?;
                let block = &scores[rows.start * width..rows.end * width];
                self.take_matrix(Samples::These(&samples), block, job)?;
            }
            return Ok(());
        }
        self.take_columns(&columns, waiting, job)
    }

    /// Class-first, all threads look at rows and let wait what passes the floors; the classes take
    /// it when it is worth waking the threads for, so that some may be left waiting at the end.
    fn take_columns(
        &mut self,
        columns: &Columns<'_>,
        waiting: &mut [Waiting],
        job: &Job,
    ) -> Result<()> {
        let most = self.classes.most_waiting();
        let mut first = 0;
        while first < columns.num_rows() {
            job.check()?;
            let num_waiting: usize = waiting.iter().map(Waiting::len).sum();
            let room = (most - num_waiting).min(PAIRS_PER_CHECK);
            let rows = first..columns.rows_of_pairs(first, room);
            first = rows.end;
            if self.order == Order::ImageFirst {
                self.take_rows(columns, rows.clone())?;
            } else {
                self.filter(columns, rows.clone(), waiting)?;
                if waiting.iter().map(Waiting::len).sum::<usize>() >= most / WORTH_TAKING {
                    self.classes.take(waiting)?;
                }
            }
            job.advance(rows.len() as u64);
        }
        self.flush()
    }

    fn filter(
        &mut self,
        columns: &Columns<'_>,
        rows: Range<usize>,
        waiting: &mut [Waiting],
    ) -> Result<()> {
        let share = rows.len().div_ceil(waiting.len()).max(1);
        let found = waiting.par_iter_mut().enumerate().map(|(thread, waiting)| {
            let mut num_pairs = 0;
            let start = (rows.start + thread * share).min(rows.end);
            let end = (start + share).min(rows.end);
            for first in (start..end).step_by(PAIRS_PER_PIECE) {
                let piece =
                    columns.pairs(first..(first + PAIRS_PER_PIECE).min(end), self.num_classes)?;
                self.filter_piece(&piece, waiting)?;
                num_pairs += piece.samples.len() as u64;
            }
            Ok(num_pairs)
        });
        // The first error by row, whichever thread was first.
        for number in found.collect::<Vec<Result<u64>>>() {
            self.num_pairs += number?;
        }
        Ok(())
    }

    fn filter_piece(&self, piece: &Piece<'_>, waiting: &mut Waiting) -> Result<()> {
        let chunks = piece.samples.chunks(PAIRS_PER_PIECE);
        let chunks = chunks.zip(piece.classes.chunks(PAIRS_PER_PIECE));
        for ((samples, classes), scores) in chunks.zip(piece.scores.chunks(PAIRS_PER_PIECE)) {
            let wanted = |place: usize| Some((classes[place], samples[place]));
            filter_pairs(&self.classes.floors, classes, scores, wanted, waiting).or_else(
                |place| check_pair(samples[place], classes[place], scores[place], self.num_classes),
            )?;
        }
        Ok(())
    }

    /// Image-first, the pairs of a sample make a row, which is cut when the next one begins.
    fn take_rows(&mut self, columns: &Columns<'_>, rows: Range<usize>) -> Result<()> {
        for first in rows.clone().step_by(PAIRS_PER_PIECE) {
            let piece =
                columns.pairs(first..(first + PAIRS_PER_PIECE).min(rows.end), self.num_classes)?;
            let pairs = piece.samples.iter().zip(piece.classes.iter()).zip(piece.scores);
            for ((&sample, &class), &score) in pairs {
                check_pair(sample, class, score, self.num_classes)?;
                self.take_pair_of_row(sample, Candidate::new(class, score))?;
            }
            self.num_pairs += piece.samples.len() as u64;
        }
        Ok(())
    }

    pub(super) fn take_pair_of_row(&mut self, sample: u64, candidate: Candidate) -> Result<()> {
        let num_classes = self.num_classes as usize;
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
             sample together, so sort the pairs by sample, let them be grouped first, or score each \
             image once"
        )))
    }

    fn close_row(&mut self) -> Result<()> {
        for (class, entry) in self.open_pairs()? {
            self.offer(class as usize, entry)?;
        }
        self.open = None;
        Ok(())
    }

    fn check_finite(&self, samples: Samples<'_>, block: &[f32], what: &str) -> Result<()> {
        let finite = |part: &[f32]| part.iter().fold(true, |all, score| all & score.is_finite());
        if block.par_chunks(MIN_BLOCK).all(finite) {
            return Ok(());
        }
        match block.iter().position(|score| !score.is_finite()) {
            Some(place) => Err(self.not_finite_at(samples, block, place, what)),
            None => Ok(()),
        }
    }

    fn not_finite_at(
        &self,
        samples: Samples<'_>,
        block: &[f32],
        place: usize,
        what: &str,
    ) -> Error {
        let width = self.num_classes as usize;
        not_finite(samples.get(place / width), (place % width) as u32, block[place], what)
    }

    /// Takes a matrix in rounds, in which every thread has a block: small ones while many scores
    /// pass the floors, larger ones when nearly all are forgotten.
    fn take_matrix(&mut self, samples: Samples<'_>, matrix: &[f32], job: &Job) -> Result<()> {
        let width = self.num_classes as usize;
        let num_threads = rayon::current_num_threads();

        // Small blocks at first, since the cuts are low and nearly everything passes; once little
        // does, larger ones cost fewer rounds.
        let most = self.classes.most_in_round() / num_threads;
        let [least, most] = [MIN_BLOCK, MAX_BLOCK].map(|size| (size.min(most) / width).max(1));
        let mut waiting = vec![self.classes.waiting(); num_threads];
        let (mut first, mut block) = (0, least);
        let num_rows = matrix.len() / width;
        while first < num_rows {
            job.check()?;
            let rows = first..(first + num_threads * block).min(num_rows);
            first = rows.end;
            let round = &matrix[rows.start * width..rows.end * width];
            let samples = samples.rows(rows.clone());

            // Image-first needs all classes of a row at once, so nothing can be filtered by the cut
            // of a class.
            if self.order == Order::ImageFirst {
                self.check_finite(samples, round, "score")?;
                self.take_rows_of_matrix(samples, round)?;
            } else {
                let before: usize = waiting.iter().map(Waiting::len).sum();
                self.filter_matrix(samples, round, block, &mut waiting)?;
                let after: usize = waiting.iter().map(Waiting::len).sum();
                let few = (after - before) * 16 < round.len();
                block = if few { (2 * block).min(most) } else { least };
                if after >= self.classes.most_waiting() / 4 {
                    self.classes.take(&mut waiting)?;
                }
            }
            self.num_pairs += round.len() as u64;
            job.advance(rows.len() as u64);
        }
        self.classes.take(&mut waiting)?;
        self.flush()
    }

    fn filter_matrix(
        &self,
        samples: Samples<'_>,
        round: &[f32],
        block: usize,
        waiting: &mut [Waiting],
    ) -> Result<()> {
        let width = self.num_classes as usize;
        let floors = &self.classes.floors;
        let filter = |(number, (scores, waiting)): (usize, (&[f32], &mut Waiting))| {
            let first = number * block;
            filter_rows(floors, scores, |row| samples.get(first + row), waiting)
                .map_err(|place| first * width + place)
        };
        let blocks = round.par_chunks(block * width).zip(waiting.par_iter_mut());
        let found: Vec<_> = blocks.enumerate().map(filter).collect();
        match found.iter().filter_map(|found| found.as_ref().err()).next() {
            Some(&place) => Err(self.not_finite_at(samples, round, place, "score")),
            None => Ok(()),
        }
    }

    fn take_rows_of_matrix(&mut self, samples: Samples<'_>, block: &[f32]) -> Result<()> {
        let width = self.num_classes as usize;
        self.close_row()?;
        for row in 0..block.len() / width {
            self.begin_sample(samples.get(row))?;
        }
        for (row, kept) in top_p::best_of_rows(block, width, self.p as usize) {
            self.offer(kept.class as usize, Entry::from_key(kept.key, samples.get(row)))?;
        }
        Ok(())
    }
}

fn rows_per_block(width: usize) -> usize {
    (MIN_BLOCK / width).max(1)
}

#[inline]
pub(super) fn check_pair(sample: u64, class: u32, score: f32, num_classes: u32) -> Result<()> {
    if class >= num_classes {
        return Err(out_of_range(sample, u64::from(class), num_classes));
    }
    if !score.is_finite() {
        return Err(not_finite(sample, class, score, "score"));
    }
    Ok(())
}

/// Lets wait what is not below its floor, of pairs that name it by number, with the class and
/// sample from `wanted`; the place of a pair that cannot be taken, if there is one.
///
/// Which pairs these are is noted first, without a branch: while the floors rise it cannot be foreseen. There
/// are at most [`PAIRS_PER_PIECE`] pairs.
pub(super) fn filter_pairs(
    floors: &[f32],
    numbers: &[u32],
    scores: &[f32],
    wanted: impl Fn(usize) -> Option<(u32, u64)>,
    waiting: &mut Waiting,
) -> std::result::Result<(), usize> {
    let mut passing = [0_u16; PAIRS_PER_PIECE];
    let is_good = |(&number, &score): (&u32, &f32)| {
        (number < floors.len() as u32) & (score.abs() <= f32::MAX)
    };
    let are_good = numbers.iter().zip(scores).fold(true, |all, pair| all & is_good(pair));
    if !are_good && let Some(place) = numbers.iter().zip(scores).position(|pair| !is_good(pair)) {
        return Err(place);
    }
    let mut num_passing = 0;
    for (place, (&number, &score)) in numbers.iter().zip(scores).enumerate() {
        let floor = floors.get(number as usize).copied().unwrap_or(f32::NAN);
        passing[num_passing % PAIRS_PER_PIECE] = place as u16;
        num_passing += usize::from(score >= floor);
    }
    for &place in &passing[..num_passing] {
        let place = usize::from(place);
        if let Some((class, sample)) = wanted(place) {
            waiting.push(class as usize, Entry::new(scores[place], sample));
        }
    }
    Ok(())
}
