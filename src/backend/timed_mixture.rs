//! The weights of mixtures of experts without their clocks, and what a token is multiplied with.

use super::mixture::{Expert, MixtureWeights};
use super::packed_mixture::{PackedExperts, PackedMixtureWeights};
use super::timer::TimedWeight;

pub(super) fn inner_weights<'m, W>(weights: &MixtureWeights<'m, TimedWeight<W>>) -> MixtureWeights<'m, W> {
    let MixtureWeights { router, experts, shared, routing, layer } = weights;
    let of_expert = |expert: &Expert<&'m TimedWeight<W>>| expert.map(|weight| &weight.weight);
    MixtureWeights {
        router: &router.weight,
        experts: experts.iter().map(of_expert).collect(),
        shared: shared.map(|(share, expert)| (&share.weight, of_expert(&expert))),
        routing: *routing,
        layer: *layer,
    }
}

/// Elements of the matrices that one token is multiplied with.
pub(super) fn mixture_elements<W>(weights: &MixtureWeights<'_, TimedWeight<W>>) -> f64 {
    let elements = |weight: &TimedWeight<W>| weight.rows as f64 * weight.cols as f64;
    let of_expert =
        |expert: &Expert<&TimedWeight<W>>| expert.iter().map(|weight| elements(weight)).sum::<f64>();
    let routed = weights.experts.first().map_or(0.0, of_expert) * weights.routing.per_token as f64;
    let shared = weights.shared.as_ref().map_or(0.0, |(share, expert)| elements(share) + of_expert(expert));
    elements(weights.router) + routed + shared
}

pub(super) fn inner_packed<'m, W>(
    weights: &PackedMixtureWeights<'m, TimedWeight<W>>,
) -> PackedMixtureWeights<'m, W> {
    let experts = |experts: &PackedExperts<'m, TimedWeight<W>>| PackedExperts {
        values: &experts.values.weight,
        scales: experts.scales.map(|scales| &scales.weight),
        bias: &experts.bias.weight,
    };
    PackedMixtureWeights {
        router: &weights.router.weight,
        router_bias: &weights.router_bias.weight,
        gate_up: experts(&weights.gate_up),
        down: experts(&weights.down),
        routing: weights.routing,
        gate: weights.gate,
    }
}

/// As [`mixture_elements`]: gate, up and down have `D · F` elements each.
pub(super) fn packed_elements<W>(weights: &PackedMixtureWeights<'_, TimedWeight<W>>) -> f64 {
    let (d, f) = (weights.router.cols as f64, weights.gate_up.bias.cols as f64 / 2.0);
    weights.router.rows as f64 * d + 3.0 * d * f * weights.routing.per_token as f64
}
