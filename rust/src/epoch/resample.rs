//! Repeat factors: how often an epoch shows each image (Mahajan et al. 2018, section 2.2).
//!
//! With f(h) the share of images that have label h, a label repeats r(h) = max(1, sqrt(t / f(h)))
//! times under square-root sampling, max(1, t / f(h)) under uniform sampling and once under natural
//! sampling, and an image as often as the rarest of its labels asks. An image without labels is not
//! trained on: its factor is 0.
//!
//! t is given, or solved for the length of an epoch. The factor of an image depends on its rarest
//! label alone, so the length is a sum over label counts and solving costs no pass over the images.

use std::collections::BTreeMap;

use crate::epoch::MAX_FACTOR;
use crate::{Error, Result};

/// How frequent and rare labels share an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// Every labelled image once.
    Natural,
    /// Rare labels by the square root of their rarity.
    SquareRoot,
    /// Rare labels by their rarity.
    Uniform,
    /// The mirror image: every labelled image at most once, those of frequent labels less often (the
    /// balancing of MetaCLIP, Xu et al. 2024).
    Clip,
}

impl Scheme {
    /// The scheme called `natural`, `square-root`, `uniform` or `clip`.
    pub fn parse(name: &str) -> Result<Self> {
        match name {
            "natural" => Ok(Self::Natural),
            "square-root" => Ok(Self::SquareRoot),
            "uniform" => Ok(Self::Uniform),
            "clip" => Ok(Self::Clip),
            _ => Err(Error::usage(format!(
                "sampling scheme {name:?}: expected natural, square-root, uniform or \
                 clip"
            ))),
        }
    }

    /// r(h) for a label of which `ratio` = t / f(h).
    fn repeat(self, ratio: f64) -> f64 {
        match self {
            Self::Natural => 1.0,
            Self::SquareRoot => ratio.sqrt().max(1.0),
            Self::Uniform => ratio.max(1.0),
            Self::Clip => ratio.min(1.0),
        }
    }
}

/// Repeat factors of labels, from which those of images follow.
#[derive(Debug, Clone)]
pub struct RepeatFactors {
    of_label: Vec<f64>,
    /// The t that was given or solved; `None` under natural sampling.
    pub threshold: Option<f64>,
}

impl RepeatFactors {
    /// Factors for `threshold` = t; `counts[l]` is the number of images with label l out of
    /// `num_samples` images.
    pub fn new(scheme: Scheme, counts: &[u64], num_samples: u64, threshold: f64) -> Result<Self> {
        if !(threshold > 0.0 && threshold.is_finite()) {
            return Err(Error::usage(format!(
                "repeat factors: expected a threshold above 0, a share of images such as 0.001, got \
                 {threshold}"
            )));
        }
        let repeat = |&count: &u64| scheme.repeat(threshold * num_samples as f64 / count as f64);
        let of_label =
            counts.iter().map(|count| repeat(count).min(f64::from(MAX_FACTOR))).collect();
        Ok(Self { of_label, threshold: (scheme != Scheme::Natural).then_some(threshold) })
    }

    /// Factors with which an epoch has about `length` images. `rarest` maps the count of a label to
    /// the number of images whose rarest label has that count; `length` is at least their sum.
    pub fn with_length(
        scheme: Scheme,
        counts: &[u64],
        num_samples: u64,
        rarest: &BTreeMap<u64, u64>,
        length: f64,
    ) -> Result<Self> {
        let num_labelled: u64 = rarest.values().sum();
        let possible = match scheme {
            Scheme::Clip => length > 0.0 && length <= num_labelled as f64,
            _ => length.is_finite() && length >= num_labelled as f64,
        };
        if !possible || num_labelled == 0 {
            let times = if scheme == Scheme::Clip { "at most" } else { "at least" };
            return Err(Error::usage(format!(
                "repeat factors: an epoch cannot be {length} images long; every one of the \
                 {num_labelled} labelled images appears {times} once"
            )));
        }

        // Samples with the same rarest label repeat equally often, so the sum is over labels'
        // counts alone.
        let length_at = |threshold: f64| -> f64 {
            let repeat = |count: u64| scheme.repeat(threshold * num_samples as f64 / count as f64);
            rarest.iter().map(|(&count, &images)| repeat(count) * images as f64).sum()
        };
        let rarest_count = rarest.keys().next().copied().unwrap_or(1).max(1);

        // The length rises with the threshold, so the threshold is found by halving.
        let mut high = rarest_count as f64 / num_samples as f64;
        let mut low = if scheme == Scheme::Clip { 0.0 } else { high };
        while scheme != Scheme::Natural && length_at(high) < length {
            high *= 2.0;
        }
        for _ in 0..200 {
            let middle = 0.5 * (low + high);
            if length_at(middle) < length {
                low = middle;
            } else {
                high = middle;
            }
        }
        Self::new(scheme, counts, num_samples, high)
    }

    /// r(I) of an image with these labels.
    pub fn of_image(&self, labels: impl IntoIterator<Item = u32>) -> f32 {
        let repeat = |label: u32| self.of_label.get(label as usize).copied().unwrap_or(0.0);
        labels.into_iter().map(repeat).fold(0.0, f64::max) as f32
    }
}
