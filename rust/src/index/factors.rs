//! Repeat factors of the samples of an index.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use super::mapped::Index;
use crate::epoch::Factors;
use crate::epoch::resample::{RepeatFactors, Scheme};
use crate::job::Job;
use crate::publish::Unpublished;
use crate::{Error, Result};

/// Samples between two looks at the [`Job`].
const SAMPLES_PER_CHECK: u64 = 65_536;

impl Index {
    /// Factors for a threshold, or those with which an epoch has a wanted length.
    pub fn repeat_factors(
        &self,
        scheme: Scheme,
        threshold: Option<f64>,
        epoch_length: Option<f64>,
        job: &Job,
    ) -> Result<RepeatFactors> {
        let counts = self.label_counts(job)?;
        let num_samples = self.num_samples();
        match (threshold, epoch_length) {
            (Some(threshold), None) => RepeatFactors::new(scheme, counts, num_samples, threshold),
            (None, Some(length)) => {
                let mut rarest = BTreeMap::new();
                for ordinal in 0..num_samples {
                    if ordinal % SAMPLES_PER_CHECK == 0 {
                        job.check()?;
                    }
                    let count = self.labels(ordinal)?.map(|label| counts[label as usize]).min();
                    if let Some(count) = count {
                        *rarest.entry(count).or_insert(0) += 1;
                    }
                }
                RepeatFactors::with_length(scheme, counts, num_samples, &rarest, length)
            }
            _ => Err(Error::usage("give either threshold or epoch_length")),
        }
    }

    /// Calls `take` with the factor of every sample in turn.
    pub fn each_factor(
        &self,
        factors: &RepeatFactors,
        job: &Job,
        mut take: impl FnMut(f32) -> Result<()>,
    ) -> Result<()> {
        for ordinal in 0..self.num_samples() {
            if ordinal % SAMPLES_PER_CHECK == 0 {
                job.check()?;
            }
            take(factors.of_image(self.labels(ordinal)?))?;
        }
        Ok(())
    }

    /// Writes the factors as a file of float32, whole or not at all, and their sums beside it.
    pub fn write_factors(&self, factors: &RepeatFactors, path: &Path, job: &Job) -> Result<()> {
        let mut file = Unpublished::create(path)?;
        let fault = |error| Error::io(path, error);
        self.each_factor(factors, job, |f| file.write_all(&f.to_le_bytes()).map_err(fault))?;
        file.publish()?;
        Factors::open(path, self.num_samples(), job).map(drop)
    }
}
