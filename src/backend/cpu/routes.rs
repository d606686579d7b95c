//! The router of a mixture of experts: which token has which expert, and with what weight.

use rayon::prelude::*;

use super::math::{dot, exp_sum, max};
use crate::backend::{RouterLoss, Routes, Routing};
use crate::simd::{Kernel, dispatch};

/// Replaces the rows of `logits`, `[T, N]`, by their softmax.
pub(super) fn softmax(logits: &mut [f32], experts: usize) {
    logits.par_chunks_mut(experts).for_each(|row| dispatch(Softmax { row }));
}

struct Softmax<'a> {
    row: &'a mut [f32],
}

impl Kernel for Softmax<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let largest = max(self.row);
        let inverse = 1.0 / exp_sum(self.row, largest);
        for p in self.row {
            *p *= inverse;
        }
    }
}

/// The most probable experts of each token, the first of equals first.
pub(super) fn choose(probabilities: &[f32], experts: usize, routing: Routing) -> Routes {
    let Routing { per_token, normalised } = routing;
    let chosen: Vec<(Vec<u32>, f32)> = probabilities
        .par_chunks(experts)
        .map(|row| {
            let mut order: Vec<u32> = (0..experts as u32).collect();
            order.sort_by(|a, b| row[*b as usize].total_cmp(&row[*a as usize]));
            order.truncate(per_token);
            let sum = if normalised { order.iter().map(|e| row[*e as usize]).sum() } else { 1.0 };
            (order, sum)
        })
        .collect();
    let mut offsets = vec![0; experts + 1];
    for expert in chosen.iter().flat_map(|(order, _)| order) {
        offsets[*expert as usize + 1] += 1;
    }
    for expert in 0..experts {
        offsets[expert + 1] += offsets[expert];
    }
    let count = chosen.len() * per_token;
    let mut next = offsets.clone();
    let mut routes =
        Routes { offsets, tokens: vec![0; count], weights: vec![0.0; count], of_tokens: vec![0; count] };
    for (token, (order, sum)) in chosen.iter().enumerate() {
        let own = &mut routes.of_tokens[token * per_token..(token + 1) * per_token];
        for (own, expert) in own.iter_mut().zip(order) {
            let route = next[*expert as usize];
            next[*expert as usize] += 1;
            routes.tokens[route] = token as u32;
            routes.weights[route] = probabilities[token * experts + *expert as usize] / sum;
            *own = route as u32;
        }
        own.sort_unstable();
    }
    routes
}

/// From the gradients of the weights of routes to those of the logits, `[T, N]`, in place of the probabilities.
///
/// With the weights `w` of a token's experts, their gradients `dw` and the sum `S` of their probabilities,
/// `dp = (dw − Σ w · dw) / S`, or `dw` where weights are not normalised, more by `of_probabilities`; then
/// `dz = p ∘ (dp − Σ p · dp)`.
pub(super) fn backward(
    (dweights, of_probabilities): (&[f32], Option<&[f32]>),
    routes: &Routes,
    experts: usize,
    routing: Routing,
    probabilities: &mut [f32],
) {
    let expert_of = |route: u32| routes.offsets.partition_point(|start| *start <= route as usize) - 1;
    let own = routes.of_tokens.par_chunks(routing.per_token);
    probabilities.par_chunks_mut(experts).zip(own).for_each(|(row, own)| {
        let of = |values: &[f32]| own.iter().map(|route| values[*route as usize]).collect::<Vec<f32>>();
        let (weights, dweights) = (of(&routes.weights), of(dweights));
        let own: Vec<usize> = own.iter().map(|route| expert_of(*route)).collect();
        let (mean, sum) = if routing.normalised {
            (dot(&weights, &dweights), own.iter().map(|expert| row[*expert]).sum::<f32>())
        } else {
            (0.0, 1.0)
        };
        let mut dp = vec![0.0; experts];
        for (expert, dw) in own.iter().zip(&dweights) {
            dp[*expert] = (dw - mean) / sum;
        }
        dp.iter_mut().zip(of_probabilities.unwrap_or_default()).for_each(|(dp, more)| *dp += more);
        let along = dot(row, &dp);
        for (p, dp) in row.iter_mut().zip(&dp) {
            *p *= dp - along;
        }
    });
}

/// See [`crate::backend::MixtureOperations::router_load`].
pub(super) fn add_load(
    probabilities: &[f32],
    routes: &Routes,
    rows: usize,
    [tokens, sums]: &mut [Vec<f32>; 2],
) {
    let experts = tokens.len();
    let mut of_layer = vec![0.0f64; experts];
    for row in probabilities[..rows * experts].chunks(experts) {
        of_layer.iter_mut().zip(row).for_each(|(sum, p)| *sum += f64::from(*p));
    }
    sums.iter_mut().zip(of_layer).for_each(|(sum, more)| *sum += more as f32);
    let counts = routes.offsets.windows(2).map(|ends| ends[1] - ends[0]);
    tokens.iter_mut().zip(counts).for_each(|(sum, more)| *sum += more as f32);
}

/// See [`crate::backend::MixtureOperations::router_loss`].
pub(super) fn loss(loss: &mut RouterLoss<Vec<f32>>, tokens: usize, factor: f32) {
    let RouterLoss { loads: [counts, sums], of_probabilities, sum } = loss;
    let (factor, tokens) = (f64::from(factor) * counts.len() as f64, tokens as f64);
    let products = counts.iter().zip(&*sums).map(|(f, p)| f64::from(*f) * f64::from(*p));
    sum[0] += (factor * products.sum::<f64>() / (tokens * tokens)) as f32;
    for (out, count) in of_probabilities.iter_mut().zip(&*counts) {
        *out = (factor * f64::from(*count) / (tokens * tokens)) as f32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_have_their_most_probable_experts() {
        let probabilities = [0.1, 0.6, 0.3, 0.5, 0.2, 0.3];
        let routing = Routing { per_token: 2, normalised: true };
        let routes = choose(&probabilities, 3, routing);
        assert_eq!(routes.offsets, [0, 1, 2, 4]);
        assert_eq!(routes.tokens, [1, 0, 0, 1]);
        assert_eq!(routes.of_tokens, [1, 2, 0, 3]);
        let expected = [0.5 / 0.8, 0.6 / 0.9, 0.3 / 0.9, 0.3 / 0.8];
        assert!(routes.weights.iter().zip(expected).all(|(got, expected)| (got - expected).abs() < 1e-6));
        let routes = choose(&[0.25; 4], 4, Routing { per_token: 1, normalised: false });
        assert_eq!((routes.tokens, routes.weights, routes.offsets[1]), (vec![0], vec![0.25], 1));
    }
}
