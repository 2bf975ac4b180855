//! How Zipf-like the counts are.
//!
//! The counts of tags follow p(x) ~ x^-alpha above some x_min. alpha is the maximum of the discrete
//! likelihood, x_min the count whose fit has the smallest Kolmogorov-Smirnov distance, the standard
//! error 1 / sqrt(n (ln zeta)'') by the observed information (Clauset, Shalizi and Newman 2009,
//! sections 3 and B). A tag of rank r then has a count of about r^(-1 / (alpha - 1)), the rank
//! exponent; beside it is the plain least-squares slope of log count against log rank.
//!
//! The fit works on the multiset of counts (how many tags have each count), so its cost does not
//! depend on the number of tags; the slope takes one pass over their ranks.

use std::collections::BTreeMap;

use crate::job::Job;
use crate::{Error, Result};

/// Candidates for x_min beyond which they are thinned out evenly in rank.
const MAX_CANDIDATES: usize = 1000;
/// The range of alpha.
const MIN_ALPHA: f64 = 1.0 + 1e-6;
const MAX_ALPHA: f64 = 50.0;

/// The fit of a power law.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ZipfFit {
    /// Exponent of p(x) ~ x^-alpha for x >= x_min.
    pub alpha: f64,
    /// Its standard error.
    pub standard_error: f64,
    /// The smallest count that follows the law.
    pub x_min: u64,
    /// Largest distance between the two distribution functions from x_min on.
    pub ks_distance: f64,
    /// Tags with at least x_min.
    pub num_tail: u64,
    /// 1 / (alpha - 1).
    pub rank_exponent: f64,
    /// Slope of the least-squares line through (log rank, log count), all tags.
    pub loglog_slope: f64,
}

/// Fits counts; `multiplicities` is how many tags have each; x_min is chosen unless
/// given. At least two different counts are needed; `job` is only looked at.
pub fn fit(multiplicities: &BTreeMap<u64, u64>, x_min: Option<u64>, job: &Job) -> Result<ZipfFit> {
    let points: Vec<(u64, u64)> =
        multiplicities.iter().filter(|&(&x, &n)| x > 0 && n > 0).map(|(&x, &n)| (x, n)).collect();
    let too_few = |what: &str| {
        Error::usage(format!(
            "a Zipf fit needs tags of at least two different counts{what}; there are {} tags in all",
            points.iter().map(|point| point.1).sum::<u64>()
        ))
    };
    if points.len() < 2 {
        return Err(too_few(""));
    }

    // Not every count is tried as x_min: each costs a fit of all that is above it.
    let candidates: Vec<usize> = match x_min {
        Some(x_min) => {
            let first = points.partition_point(|point| point.0 < x_min);
            if points.len() - first < 2 {
                return Err(too_few(&format!(" from x_min {x_min} on")));
            }
            vec![first]
        }
        None => candidates(points.len() - 1),
    };

    // The exponent of the last tail is a good start for the next, which differs from it by little.
    let mut best: Option<Tail> = None;
    let mut guess = 2.0;
    for first in candidates {
        job.check()?;
        let x_min = x_min.unwrap_or(points[first].0);
        let tail = Tail::fit(&points[first..], x_min, guess);
        guess = tail.alpha;
        if best.as_ref().is_none_or(|best| tail.ks_distance < best.ks_distance) {
            best = Some(tail);
        }
    }
    let tail = best.ok_or_else(|| too_few(""))?;
    Ok(ZipfFit {
        alpha: tail.alpha,
        standard_error: tail.standard_error,
        x_min: tail.x_min,
        ks_distance: tail.ks_distance,
        num_tail: tail.num,
        rank_exponent: 1.0 / (tail.alpha - 1.0),
        loglog_slope: slope(&points),
    })
}

/// The share of all occurrences that the `heads` most frequent tags have, for each of `heads`.
pub fn head_shares(multiplicities: &BTreeMap<u64, u64>, heads: &[u64]) -> Vec<f64> {
    let total: f64 = multiplicities.iter().map(|(&x, &n)| x as f64 * n as f64).sum();
    let share = |&head: &u64| {
        let mut left = head;
        let mut held = 0.0;
        for (&count, &tags) in multiplicities.iter().rev() {
            let taken = tags.min(left);
            held += count as f64 * taken as f64;
            left -= taken;
        }
        if total > 0.0 { held / total } else { 0.0 }
    };
    heads.iter().map(share).collect()
}

/// How many of the most frequent tags have at least each of `shares` of all occurrences.
pub fn head_sizes(multiplicities: &BTreeMap<u64, u64>, shares: &[f64]) -> Vec<u64> {
    let total: f64 = multiplicities.iter().map(|(&x, &n)| x as f64 * n as f64).sum();
    let size = |&share: &f64| {
        let mut missing = share * total;
        let mut size = 0;
        for (&count, &tags) in multiplicities.iter().rev() {
            let held = count as f64 * tags as f64;
            if held >= missing {
                return size + (missing / count as f64).ceil().max(0.0) as u64;
            }
            missing -= held;
            size += tags;
        }
        size
    };
    shares.iter().map(size).collect()
}

fn candidates(number: usize) -> Vec<usize> {
    if number <= MAX_CANDIDATES {
        return (0..number).collect();
    }
    (0..MAX_CANDIDATES).map(|place| place * number / MAX_CANDIDATES).collect()
}

struct Tail {
    alpha: f64,
    standard_error: f64,
    x_min: u64,
    ks_distance: f64,
    num: u64,
}

impl Tail {
    /// Newton's method on the mean log-likelihood -alpha mean(ln x) - ln zeta(alpha, x_min), which is
    /// concave; a step that leaves the interval known to have the maximum is replaced by bisection.
    fn fit(points: &[(u64, u64)], x_min: u64, guess: f64) -> Self {
        let num: u64 = points.iter().map(|point| point.1).sum();
        let logarithms: f64 = points.iter().map(|&(x, n)| (x as f64).ln() * n as f64).sum();
        let mean = logarithms / num as f64;
        let (mut low, mut high) = (MIN_ALPHA, MAX_ALPHA);
        let mut alpha = guess.clamp(low, high);
        let mut curvature = 1.0;

        // The likelihood is concave, so its derivative shows on which side of the maximum a step
        // is.
        for _ in 0..100 {
            let log_zeta = hurwitz(alpha, x_min as f64).ln();
            let gradient = -mean - log_zeta.first;
            curvature = log_zeta.second;
            if gradient > 0.0 {
                low = alpha;
            } else {
                high = alpha;
            }

            // Newton's step where it stays within the bounds; halving always does.
            let newton = alpha + gradient / curvature;
            let next = if newton > low && newton < high { newton } else { 0.5 * (low + high) };
            let step = (next - alpha).abs();
            alpha = next;
            if step < 1e-12 * alpha {
                break;
            }
        }
        let standard_error = 1.0 / (num as f64 * curvature).sqrt();
        let ks_distance = distance(points, x_min, alpha, num);
        Self { alpha, standard_error, x_min, ks_distance, num }
    }
}

/// The largest distance of the distribution functions over all integers: between two counts that occur
/// the data's stays and the law's rises, so it is at a count or just before the next one.
fn distance(points: &[(u64, u64)], x_min: u64, alpha: f64, num: u64) -> f64 {
    let all = hurwitz(alpha, x_min as f64).value;
    let below = |x: u64| 1.0 - hurwitz(alpha, x as f64).value / all;
    let mut seen = 0;
    let mut largest: f64 = 0.0;
    for &(x, n) in points {
        largest = largest.max((seen as f64 / num as f64 - below(x)).abs());
        seen += n;
        largest = largest.max((seen as f64 / num as f64 - below(x + 1)).abs());
    }
    largest
}

fn slope(points: &[(u64, u64)]) -> f64 {
    // Tags of one count take consecutive ranks; sums of ln r and (ln r)^2 over each run.
    let (mut rank, mut sums) = (0_u64, [0.0_f64; 4]);
    let num: u64 = points.iter().map(|point| point.1).sum();
    for &(count, tags) in points.iter().rev() {
        let y = (count as f64).ln();
        for _ in 0..tags {
            rank += 1;
            let x = (rank as f64).ln();
            for (sum, value) in sums.iter_mut().zip([x, y, x * x, x * y]) {
                *sum += value;
            }
        }
    }
    let [x, y, xx, xy] = sums;
    let num = num as f64;
    (num * xy - x * y) / (num * xx - x * x)
}

/// A value with its first two derivatives.
#[derive(Debug, Clone, Copy)]
struct Jet {
    value: f64,
    first: f64,
    second: f64,
}

impl Jet {
    fn constant(value: f64) -> Self {
        Self { value, first: 0.0, second: 0.0 }
    }

    /// The variable itself, plus `offset`.
    fn variable(value: f64) -> Self {
        Self { value, first: 1.0, second: 0.0 }
    }

    /// base^-s as a function of s.
    fn power(base: f64, s: f64) -> Self {
        let logarithm = base.ln();
        let value = (-s * logarithm).exp();
        Self { value, first: -logarithm * value, second: logarithm * logarithm * value }
    }

    fn plus(self, other: Self) -> Self {
        Self {
            value: self.value + other.value,
            first: self.first + other.first,
            second: self.second + other.second,
        }
    }

    fn times(self, other: Self) -> Self {
        Self {
            value: self.value * other.value,
            first: self.first * other.value + self.value * other.first,
            second: self.second * other.value
                + 2.0 * self.first * other.first
                + self.value * other.second,
        }
    }

    fn scaled(self, by: f64) -> Self {
        self.times(Self::constant(by))
    }

    fn reciprocal(self) -> Self {
        let value = 1.0 / self.value;
        Self {
            value,
            first: -self.first * value * value,
            second: (2.0 * self.first * self.first * value - self.second) * value * value,
        }
    }

    fn ln(self) -> Self {
        let first = self.first / self.value;
        Self { value: self.value.ln(), first, second: self.second / self.value - first * first }
    }
}

/// zeta(s, q), the sum of (q + k)^-s over k >= 0, with its derivatives in s: the first terms and the
/// Euler-Maclaurin formula for the rest (Abramowitz and Stegun 23.1.30). For s > 1 and q >= 1 the
/// error is below 1e-13 of the value.
fn hurwitz(s: f64, q: f64) -> Jet {
    /// B_2j / (2j)!
    const BERNOULLI: [f64; 7] = [
        1.0 / 12.0,
        -1.0 / 720.0,
        1.0 / 30_240.0,
        -1.0 / 1_209_600.0,
        1.0 / 47_900_160.0,
        -691.0 / 1_307_674_368_000.0,
        1.0 / 74_724_249_600.0,
    ];
    // The asymptotic series wants q + direct well above s.
    let direct = (12.0 + s - q).max(0.0).ceil() as u32;
    let mut sum = Jet::constant(0.0);
    for k in 0..direct {
        sum = sum.plus(Jet::power(q + f64::from(k), s));
    }
    let a = q + f64::from(direct);
    let power = Jet::power(a, s);
    sum = sum.plus(power.scaled(a).times(Jet::variable(s - 1.0).reciprocal()));
    sum = sum.plus(power.scaled(0.5));
    let mut rising = Jet::variable(s);
    let mut scale = 1.0 / a;
    for (j, coefficient) in BERNOULLI.into_iter().enumerate() {
        sum = sum.plus(power.times(rising).scaled(coefficient * scale));
        let next = (2 * j + 1) as f64;
        rising = rising.times(Jet::variable(s + next)).times(Jet::variable(s + next + 1.0));
        scale /= a * a;
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeta_has_its_known_values() {
        let pi = std::f64::consts::PI;
        for (s, q, expected) in [
            (2.0, 1.0, pi * pi / 6.0),
            (4.0, 1.0, pi.powi(4) / 90.0),
            (2.0, 2.0, pi * pi / 6.0 - 1.0),
            (3.0, 1.0, 1.202_056_903_159_594),
            (1.5, 1.0, 2.612_375_348_685_488),
        ] {
            let value = hurwitz(s, q).value;
            assert!((value / expected - 1.0).abs() < 1e-13, "{s} {q}: {value} {expected}");
        }
    }

    #[test]
    fn derivatives_agree_with_differences() {
        for (s, q) in [(1.3, 1.0), (2.2, 5.0), (6.0, 30.0), (2.5, 400.0)] {
            let h = 1e-4;
            let (left, middle, right) =
                (hurwitz(s - h, q).ln(), hurwitz(s, q).ln(), hurwitz(s + h, q).ln());
            let first = (right.value - left.value) / (2.0 * h);
            let second = (right.first - left.first) / (2.0 * h);
            assert!((middle.first / first - 1.0).abs() < 1e-5);
            assert!((middle.second / second - 1.0).abs() < 1e-5);
        }
    }
}
