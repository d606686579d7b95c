//! Tensors of several adapters into one, as `merge_utils` of PEFT computes it in f32.
//!
//! Sources: TIES, Yadav et al. 2023, arXiv:2306.01708; DARE, Yu et al. 2023, arXiv:2311.03099; formulas and the order of
//! their steps: `peft/utils/merge_utils.py` of PEFT 0.21.2.

use crate::plan::{Domain, Key, bernoulli};

/// How tensors become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskRule {
    /// `Σ w_i x_i`.
    Linear,
    /// `Σ w_i x_i` over the share of largest |x_i| of each tensor.
    MagnitudePrune,
    /// The share of largest |x_i| of each tensor, then the mean of the `w_i x_i` whose x_i has the majority's sign.
    Ties,
    /// `Σ w_i x_i / p` over elements drawn with probability p.
    DareLinear,
    /// As [`TaskRule::Ties`], over `x_i / p` of elements drawn with probability p.
    DareTies,
}

/// What elects the sign of an element.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MajoritySign {
    /// The sign of Σ x_i.
    Total,
    /// The sign of Σ sign(x_i).
    Frequency,
}

impl TaskRule {
    /// Whether only a share of the elements stays.
    pub fn prunes(self) -> bool {
        self != Self::Linear
    }

    /// Whether elements are drawn.
    pub fn draws(self) -> bool {
        matches!(self, Self::DareLinear | Self::DareTies)
    }

    /// Whether a sign is elected.
    pub fn elects_sign(self) -> bool {
        matches!(self, Self::Ties | Self::DareTies)
    }
}

/// A rule with its parameters.
#[derive(Debug, Clone, Copy)]
pub(super) struct TaskMerge {
    pub(super) rule: TaskRule,
    /// The share p of elements that stay; all from 1 on.
    pub(super) density: f64,
    pub(super) majority_sign: MajoritySign,
}

impl TaskMerge {
    /// Merges tensors of one length; `weights` and the `keys` of their draws by the same order.
    pub(super) fn merge(&self, mut tensors: Vec<Vec<f32>>, weights: &[f32], keys: &[Key]) -> Vec<f32> {
        if self.rule.prunes() && self.density < 1.0 {
            for (tensor, key) in tensors.iter_mut().zip(keys) {
                if self.rule.draws() {
                    drop_randomly(tensor, self.density, key);
                } else {
                    let keep = (self.density * tensor.len() as f64) as usize;
                    keep_largest(tensor, keep);
                }
            }
        }
        let len = tensors.first().map_or(0, Vec::len);
        let values = |i: usize| tensors.iter().map(move |tensor| tensor[i]);
        if !self.rule.elects_sign() {
            let sum = |i: usize| values(i).zip(weights).fold(0.0, |sum, (x, w)| sum + x * w);
            return (0..len).map(sum).collect();
        }
        let mean = |i: usize| {
            let sum: f32 = match self.majority_sign {
                MajoritySign::Total => values(i).fold(0.0, |sum, x| sum + x),
                MajoritySign::Frequency => values(i).fold(0.0, |sum, x| sum + sign(x)),
            };
            let elected = if sum >= 0.0 { 1.0 } else { -1.0 };
            let (mut total, mut count) = (0.0f32, 0.0f32);
            for (x, w) in values(i).zip(weights).filter(|(x, _)| sign(*x) == elected) {
                (total, count) = (total + x * w, count + 1.0);
            }
            total / count.max(1.0)
        };
        (0..len).map(mean).collect()
    }
}

/// -1, 0 or 1, as `torch.sign`.
fn sign(x: f32) -> f32 {
    if x == 0.0 { 0.0 } else { x.signum() }
}

/// Sets all but the `keep` largest |x| to zero; of equal ones, the first stay.
fn keep_largest(values: &mut [f32], keep: usize) {
    if keep >= values.len() {
        return;
    }
    if keep == 0 {
        return values.fill(0.0);
    }
    let magnitude = |x: &f32| x.abs().to_bits();
    let mut order: Vec<u32> = values.iter().map(magnitude).collect();
    let (larger, threshold, _) = order.select_nth_unstable_by(keep - 1, |a, b| b.cmp(a));
    let threshold = *threshold;
    let mut ties = keep - larger.iter().filter(|bits| **bits > threshold).count();
    for x in values {
        let bits = magnitude(x);
        let tie = bits == threshold && ties > 0;
        ties -= usize::from(tie);
        if bits < threshold || (bits == threshold && !tie) {
            *x = 0.0;
        }
    }
}

/// Keeps each element with probability `density`, divided by it; sets the others to zero.
fn drop_randomly(values: &mut [f32], density: f64, key: &Key) {
    let mut keep = vec![false; values.len()];
    bernoulli(key, Domain::Element, 0, density, &mut keep);
    for (x, keep) in values.iter_mut().zip(keep) {
        *x = if keep { *x / density as f32 } else { 0.0 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Against a stable sort.
        #[test]
        fn the_largest_are_the_first_of_a_sort(values in prop::collection::vec(-4i8..4, 0..60), share in 0.0f64..=1.0) {
            let values: Vec<f32> = values.into_iter().map(f32::from).collect();
            let keep = (share * values.len() as f64) as usize;
            let mut order: Vec<usize> = (0..values.len()).collect();
            order.sort_by(|a, b| values[*b].abs().total_cmp(&values[*a].abs()));
            let mut expected = vec![0.0; values.len()];
            order[..keep].iter().for_each(|i| expected[*i] = values[*i]);
            let mut got = values.clone();
            keep_largest(&mut got, keep);
            prop_assert_eq!(got, expected);
        }
    }

    /// The mean over many draws is Σ w_i x_i; five standard deviations of the mean.
    #[test]
    fn dare_keeps_the_expectation() {
        let merge =
            TaskMerge { rule: TaskRule::DareLinear, density: 0.4, majority_sign: MajoritySign::Total };
        let (x, y) = (vec![1.0f32; 64], vec![-0.5f32; 64]);
        let mut total = 0.0f64;
        for draw in 0..500 {
            let keys = [Key::new(1, draw, "x"), Key::new(1, draw, "y")];
            let merged = merge.merge(vec![x.clone(), y.clone()], &[0.8, 0.6], &keys);
            total += merged.iter().map(|x| f64::from(*x)).sum::<f64>();
        }
        let draws = 500.0 * 64.0;
        let variance = (0.8f64.powi(2) + 0.3f64.powi(2)) * (1.0 / 0.4 - 1.0);
        assert!((total / draws - 0.5).abs() < 5.0 * (variance / draws).sqrt(), "{}", total / draws);
    }
}
