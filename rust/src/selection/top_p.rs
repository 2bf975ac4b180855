//! The P best classes of an image: of a row of scores, of adjacent pairs, or of what classes took.

use rayon::prelude::*;

use super::entry::{Entry, descending, score_of};
use crate::{Error, Result};

/// Rows that one thread takes at a time.
const ROWS_PER_TASK: usize = 64;

/// An image that was selected for a class.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SelectedPair {
    /// The image.
    pub sample: u64,
    /// The class that it is selected for.
    pub class: u32,
    /// Its place among the images that the class took, from 1, before the P cut.
    pub rank: u32,
    /// The score of the pair; never -0.
    pub score: f32,
}

/// A class of a row; the smaller candidate is the better one: the higher score, then the smaller
/// class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Candidate {
    /// [`descending`] of the score.
    pub(super) key: u32,
    pub(super) class: u32,
}

impl Candidate {
    pub(super) fn new(class: u32, score: f32) -> Self {
        Self { key: descending(score), class }
    }
}

/// The pairs of the last sample of a stream of pairs, as long as more of them may follow.
#[derive(Debug, Clone)]
pub(super) struct OpenRow {
    pub(super) sample: u64,
    pub(super) candidates: Vec<Candidate>,
}

impl OpenRow {
    pub(super) fn push(&mut self, candidate: Candidate, num_classes: usize) -> Result<()> {
        self.candidates.push(candidate);
        // More pairs than classes: one of them must be doubled, and a row must not grow for ever.
        if self.candidates.len() > num_classes { self.check_distinct() } else { Ok(()) }
    }

    /// The `p` best classes of the row; a data error where a class is in it twice.
    pub(super) fn best(&self, p: usize) -> Result<Vec<(u32, Entry)>> {
        self.check_distinct()?;
        let mut candidates = self.candidates.clone();
        keep_best(&mut candidates, p);
        let entry = |c: Candidate| (c.class, Entry::from_key(c.key, self.sample));
        Ok(candidates.into_iter().map(entry).collect())
    }

    fn check_distinct(&self) -> Result<()> {
        let mut classes: Vec<_> = self.candidates.iter().map(|candidate| candidate.class).collect();
        classes.sort_unstable();
        match classes.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(doubled(self.sample, pair[0])),
            None => Ok(()),
        }
    }
}

/// The error of two scores for one pair.
pub(super) fn doubled(sample: u64, class: u32) -> Error {
    Error::data(format!(
        "sample {sample}, class {class}: the pair was scored twice, and which score counts cannot be \
         told; give every sample once (the same predictions read twice, or samples that restart in \
         each part, look like this)"
    ))
}

fn keep_best(candidates: &mut Vec<Candidate>, p: usize) {
    if candidates.len() > p {
        candidates.select_nth_unstable(p - 1);
        candidates.truncate(p);
    }
}

/// The `p` best classes of every row of a matrix of finite scores, with the numbers of the rows.
pub(super) fn best_of_rows(matrix: &[f32], width: usize, p: usize) -> Vec<(usize, Candidate)> {
    let tasks = matrix.par_chunks(ROWS_PER_TASK * width).enumerate();
    let parts = tasks.map(|(task, rows)| {
        let mut kept = Vec::new();
        let mut candidates = Vec::new();
        for (row, scores) in rows.chunks_exact(width).enumerate() {
            best_of_row(scores, p, &mut candidates);
            kept.extend(candidates.iter().map(|&c| (task * ROWS_PER_TASK + row, c)));
        }
        kept
    });
    parts.flatten_iter().collect()
}

fn best_of_row(scores: &[f32], p: usize, kept: &mut Vec<Candidate>) {
    kept.clear();
    let mut floor = f32::NEG_INFINITY;
    for (class, &score) in (0..).zip(scores) {
        // At the floor the smaller class wins, and that is in `kept` already.
        if score > floor {
            kept.push(Candidate::new(class, score));
            if kept.len() == p.saturating_mul(2) {
                keep_best(kept, p);
                floor = score_of(kept[p - 1].key);
            }
        }
    }
    keep_best(kept, p);
}
