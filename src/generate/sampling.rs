//! How the next token is chosen from the logits.

use std::cmp::Ordering;

use crate::plan::{Domain, Key};

/// Sampling from the distribution of the next token, as transformers' `do_sample`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// The logits are divided by it; above 0.
    pub temperature: f32,
    /// Only so many of the largest logits can be drawn, and those that equal the last of them.
    pub top_k: Option<usize>,
    /// Only the smallest set of the most probable tokens whose probabilities sum to this or more can be drawn; above 0,
    /// at most 1. Holtzman et al. 2020, arXiv:1904.09751.
    pub top_p: Option<f32>,
    /// The random numbers: the draw of token `i` is a function of `seed` and `i` alone.
    pub seed: u64,
}

/// How a text is written.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Options {
    /// `None`: the most probable token is taken.
    pub sampling: Option<Sampling>,
    /// Of the tokens that prompt and text have already; 1: none.
    pub repetition_penalty: f32,
    /// New tokens at most.
    pub max_new_tokens: usize,
}

/// Divides the positive logits of the tokens in `ids` by `penalty` and multiplies the others by it, each token once.
/// Keskar et al. 2019, arXiv:1909.05858.
pub fn penalize(logits: &mut [f32], ids: &[u32], penalty: f32) {
    if penalty == 1.0 {
        return;
    }
    let mut seen = vec![false; logits.len()];
    for id in ids {
        let at = *id as usize;
        if !std::mem::replace(&mut seen[at], true) {
            logits[at] = if logits[at] < 0.0 { logits[at] * penalty } else { logits[at] / penalty };
        }
    }
}

/// The largest logit, the first of equal ones.
pub(super) fn greedy(logits: &[f32]) -> u32 {
    let larger = |best: usize, at: usize| if logits[at] > logits[best] { at } else { best };
    (0..logits.len()).fold(0, larger) as u32
}

/// The probabilities that a token is drawn from, by token id: first temperature, then top-k, then top-p. The others
/// are not listed.
pub fn probabilities(logits: &[f32], sampling: &Sampling) -> Vec<(u32, f64)> {
    let scaled = |(id, logit): (usize, &f32)| (id as u32, logit / sampling.temperature);
    let mut kept: Vec<(u32, f32)> = logits.iter().enumerate().map(scaled).collect();
    let descending = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1);
    if let Some(k) = sampling.top_k.filter(|k| (1..kept.len()).contains(k)) {
        let (_, last, _) = kept.select_nth_unstable_by(k - 1, descending);
        let least = last.1;
        kept.retain(|(_, score)| *score >= least);
    }
    if let Some(top_p) = sampling.top_p.filter(|p| *p < 1.0) {
        kept.sort_unstable_by(|a, b| descending(a, b).then(a.0.cmp(&b.0)));
        let probable = softmax(&kept);
        // From the least probable up, as long as their sum is at most 1 − p; the most probable always stays.
        let mut sum = 0.0;
        let dropped = probable.iter().skip(1).rev().take_while(|(_, p)| {
            sum += p;
            sum <= 1.0 - f64::from(top_p)
        });
        kept.truncate(kept.len() - dropped.count());
    }
    kept.sort_unstable_by_key(|(id, _)| *id);
    softmax(&kept)
}

fn softmax(scores: &[(u32, f32)]) -> Vec<(u32, f64)> {
    let largest = scores.iter().map(|(_, score)| *score).fold(f32::NEG_INFINITY, f32::max);
    let exp = |score: f32| (f64::from(score) - f64::from(largest)).exp();
    let sum: f64 = scores.iter().map(|(_, score)| exp(*score)).sum();
    scores.iter().map(|(id, score)| (*id, exp(*score) / sum)).collect()
}

/// The token that the random number of new token `index` falls on, along the cumulative probabilities.
pub(super) fn draw(probabilities: &[(u32, f64)], seed: u64, index: u64) -> u32 {
    let [low, high, ..] = Key::new(seed, 0, "generate").block(Domain::Token, index);
    let uniform = ((u64::from(high) << 32 | u64::from(low)) >> 11) as f64 / (1u64 << 53) as f64;
    let mut sum = 0.0;
    let reached = |(_, p): &&(u32, f64)| {
        sum += p;
        uniform.partial_cmp(&sum) == Some(Ordering::Less)
    };
    // The sum may end a rounding below 1.
    let last = probabilities.iter().rfind(|(_, p)| *p > 0.0);
    probabilities.iter().find(reached).or(last).map_or(0, |(id, _)| *id)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each token is drawn as often as its probability says, within five standard deviations.
    #[test]
    fn draws_follow_the_probabilities() {
        const DRAWS: u64 = 20_000;
        let probabilities = [(3, 0.5), (4, 0.0), (7, 0.3), (9, 0.2)];
        let mut counts = [0u64; 10];
        (0..DRAWS).for_each(|i| counts[draw(&probabilities, 1, i) as usize] += 1);
        for (id, p) in probabilities {
            let (expected, deviation) = (p * DRAWS as f64, (p * (1.0 - p) * DRAWS as f64).sqrt());
            let got = counts[id as usize] as f64;
            assert!((got - expected).abs() <= 5.0 * deviation, "{id}: {got} of {expected}");
        }
        let first = |seed| (0..32).map(|i| draw(&probabilities, seed, i)).collect::<Vec<_>>();
        assert_eq!(first(1), first(1));
        assert_ne!(first(1), first(2));
    }
}
