//! The score of a softmax that does not saturate.

/// Writes the log-odds of every class of one image: with logits z,
/// `score_c = z_c - log(sum of exp(z_j) over all j but c)`.
///
/// It is the logit of the softmax's probability, log(p / (1 - p)), and orders as p does; but where p
/// in float32 is 1.0 from about 17 on, the log-odds continue to rise, and where p is 0.0 they
/// continue falling. p = 1 / (1 + exp(-score)).
///
/// Computed in float64 and rounded once. The class with the largest logit takes the sum over the
/// others alone, relative to the largest of those; subtracting its own term from the sum over all
/// would leave nothing of the others. Equal logits make equal scores. Beyond the range of float32 a
/// score is the largest or smallest finite number.
///
/// `logits` and `scores` are of one length, at least 2, and the logits finite; `scratch` is working
/// space to be used again for the next row.
pub fn log_odds(logits: &[f32], scores: &mut [f32], scratch: &mut Vec<f64>) {
    let mut top = 0;
    for (class, &logit) in logits.iter().enumerate() {
        if logit > logits[top] {
            top = class;
        }
    }
    let others = || logits.iter().enumerate().filter(|(class, _)| *class != top);
    let largest = f64::from(logits[top]);
    let second = others().fold(f64::NEG_INFINITY, |most, (_, &z)| most.max(f64::from(z)));
    scratch.clear();
    scratch.extend(logits.iter().map(|&z| (f64::from(z) - second).exp()));
    scratch[top] = 0.0;
    // Over all classes but the top one, relative to the second: between 1 and their number.
    let rest: f64 = scratch.iter().sum();
    let scale = (second - largest).exp();
    let top_score = rounded(largest - second - rest.ln());
    for ((score, &logit), &term) in scores.iter_mut().zip(logits).zip(scratch.iter()) {
        let logit = f64::from(logit);
        *score = if logit == largest {
            top_score
        } else {
            // The top class is 1 in this sum; a term never exceeds the sum that it is part of, but
            // for the last bit.
            rounded(logit - largest - (scale * (rest - term).max(0.0)).ln_1p())
        };
    }
}

fn rounded(score: f64) -> f32 {
    (score as f32).clamp(f32::MIN, f32::MAX)
}

/// [`log_odds`] of every row of `width` logits; the place of the first that is not finite, if any.
pub fn log_odds_of(logits: &[f32], scores: &mut [f32], width: usize) -> Option<usize> {
    let wrong = logits.iter().position(|logit| !logit.is_finite());
    if wrong.is_none() {
        let mut scratch = Vec::new();
        for (row, out) in logits.chunks_exact(width).zip(scores.chunks_exact_mut(width)) {
            log_odds(row, out, &mut scratch);
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scores_of(logits: &[f32]) -> Vec<f32> {
        let mut scores = vec![0.0; logits.len()];
        log_odds(logits, &mut scores, &mut Vec::new());
        scores
    }

    #[test]
    fn two_classes_differ_by_their_logits() {
        assert_eq!(scores_of(&[3.0, 1.0]), [2.0, -2.0]);
        assert_eq!(scores_of(&[-500.0, 500.0]), [-1000.0, 1000.0]);
    }

    #[test]
    fn the_top_class_keeps_what_the_others_weigh() {
        let scores = scores_of(&[60.0, 1.0, 1.0]);
        assert_eq!(scores[0], (59.0 - 2f64.ln()) as f32);
        assert_eq!(scores[1], -59.0);
    }

    #[test]
    fn equal_logits_make_equal_scores() {
        assert_eq!(scores_of(&[2.0; 4]), [-(3f64.ln()) as f32; 4]);
        let scores = scores_of(&[0.3, 7.7, 7.7, 0.3, 0.1]);
        assert_eq!(scores[1].to_bits(), scores[2].to_bits());
        assert_eq!(scores[0].to_bits(), scores[3].to_bits());
    }

    #[test]
    fn the_largest_logits_make_finite_scores() {
        assert_eq!(scores_of(&[f32::MAX, f32::MIN]), [f32::MAX, f32::MIN]);
    }
}
