//! The end of a selection: its pairs by class and rank.

use std::sync::Arc;

use arrow_array::{ArrayRef, Float32Array, RecordBatch, UInt32Array, UInt64Array};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use rayon::prelude::*;

use super::top_k::Entry;
use super::top_p::{SelectedPair, cut_samples, doubled};
use super::{Order, Selection};
use crate::job::Job;
use crate::{Error, Result};

/// Rows of a record batch of [`Selected::table`].
const ROWS_PER_BATCH: usize = 1 << 20;

/// What a selection came to.
#[derive(Debug, Clone, PartialEq)]
pub struct Selected {
    pairs: Vec<SelectedPair>,
    num_before: Vec<u64>,
    num_after: Vec<u64>,
}

impl Selected {
    /// The selected pairs by ascending class, then rank.
    pub fn pairs(&self) -> &[SelectedPair] {
        &self.pairs
    }

    /// For every class, how many images it took before the P cut. Where the images were cut first
    /// it is the same as [`num_after`](Self::num_after).
    pub fn num_before(&self) -> &[u64] {
        &self.num_before
    }

    /// For every class, how many images are selected for it.
    pub fn num_after(&self) -> &[u64] {
        &self.num_after
    }

    /// The columns of [`table`](Self::table).
    pub fn schema() -> SchemaRef {
        Arc::new(Schema::new(vec![
            Field::new("sample", DataType::UInt64, false),
            Field::new("class", DataType::UInt32, false),
            Field::new("score", DataType::Float32, false),
            Field::new("rank", DataType::UInt32, false),
        ]))
    }

    /// The pairs as record batches, in the same order.
    pub fn table(&self) -> Result<Vec<RecordBatch>> {
        let make = |pairs: &[SelectedPair]| {
            let columns: Vec<ArrayRef> = vec![
                Arc::new(UInt64Array::from_iter_values(pairs.iter().map(|pair| pair.sample))),
                Arc::new(UInt32Array::from_iter_values(pairs.iter().map(|pair| pair.class))),
                Arc::new(Float32Array::from_iter_values(pairs.iter().map(|pair| pair.score))),
                Arc::new(UInt32Array::from_iter_values(pairs.iter().map(|pair| pair.rank))),
            ];
            Ok(RecordBatch::try_new(Self::schema(), columns)?)
        };
        self.pairs.chunks(ROWS_PER_BATCH).map(make).collect()
    }
}

impl Selection {
    /// The selection over all pairs so far, with K and P of the state or other ones; the state
    /// stays as it is and can take more.
    ///
    /// Class-first, `k` may be smaller and `p` anything; image-first, `k` may be smaller. Others
    /// are a usage error. The result is that of a selection that had them from the start. A data
    /// error names the first doubled pair among the `k` best of a class.
    pub fn finish(&self, k: Option<u32>, p: Option<u32>, job: &Job) -> Result<Selected> {
        self.check_usable()?;
        let (k, p) = self.check_cuts(k, p)?;
        let mut open = self.open_pairs()?;
        open.sort_unstable();
        job.check()?;
        let bests: Vec<Result<Vec<Entry>>> = (0..self.num_classes)
            .into_par_iter()
            .map(|class| {
                job.check()?;
                // A class stands in a row once.
                let more = open.binary_search_by_key(&class, |(of, _)| *of).ok();
                let more = more.map(|place| open[place].1);
                let best = self.classes.best(class as usize, more.as_slice(), k as usize);
                check_distinct(class, &best)?;
                Ok(best)
            })
            .collect();
        let bests = bests.into_iter().collect::<Result<Vec<_>>>()?;
        job.check()?;
        let num_before: Vec<u64> = bests.iter().map(|best| best.len() as u64).collect();
        let mut pairs = Vec::with_capacity(num_before.iter().sum::<u64>() as usize);
        for (class, best) in (0..).zip(bests) {
            pairs.extend((1..).zip(best).map(|(rank, entry)| SelectedPair {
                sample: entry.sample(),
                class,
                rank,
                score: entry.score(),
            }));
        }
        if self.order == Order::ClassFirst && p < self.num_classes {
            cut_samples(&mut pairs, p as usize);
        }
        let mut num_after = vec![0; num_before.len()];
        pairs.iter().for_each(|pair| num_after[pair.class as usize] += 1);
        job.check()?;
        Ok(Selected { pairs, num_before, num_after })
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

fn check_distinct(class: u32, best: &[Entry]) -> Result<()> {
    let mut samples: Vec<_> = best.iter().map(|entry| entry.sample()).collect();
    samples.sort_unstable();
    match samples.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(doubled(pair[0], class)),
        None => Ok(()),
    }
}
