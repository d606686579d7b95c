//! The mixtures of experts of a backend whose operations are measured.

use std::time::Instant;

use super::mixture::{Expert, MixtureActs, MixtureGradients, MixtureWeights, RouterLoss};
use super::mixture_operations::MixtureOperations;
use super::operation_time::{Operation, OperationKind, Phase};
use super::operations::Backend;
use super::packed_mixture::{PackedExperts, PackedMixtureGradients, PackedMixtureWeights};
use super::timer::{Timed, TimedWeight};

impl<B: Backend> MixtureOperations for Timed<'_, B> {
    type Routes = B::Routes;

    fn routes(&self, tokens: usize, per_token: usize, experts: usize) -> B::Routes {
        self.inner.routes(tokens, per_token, experts)
    }

    fn mixture_forward(
        &mut self,
        x: (&B::Buffer, usize),
        weights: &MixtureWeights<'_, Self::Weight>,
        acts: &mut MixtureActs<B::Buffer, B::Routes>,
        out: Option<&mut B::Buffer>,
    ) {
        let clock = Instant::now();
        let flops = 2.0 * mixture_elements(weights) * x.1 as f64;
        self.inner.mixture_forward(x, &inner_weights(weights), acts, out);
        self.add_forward(OperationKind::Mixture, None, clock, flops);
    }

    fn mixture_backward(
        &mut self,
        inputs: (&B::Buffer, &B::Buffer, usize),
        weights: &MixtureWeights<'_, Self::Weight>,
        gradients: MixtureGradients<'_, B::Buffer>,
        acts: &mut MixtureActs<B::Buffer, B::Routes>,
        dx: Option<&mut B::Buffer>,
    ) {
        let clock = Instant::now();
        let flops = 4.0 * mixture_elements(weights) * inputs.2 as f64;
        self.inner.mixture_backward(inputs, &inner_weights(weights), gradients, acts, dx);
        let kind = OperationKind::Mixture;
        self.count(Operation { phase: Phase::ActivationGradients, kind, shape: None }, clock, flops);
    }

    fn router_load(
        &mut self,
        acts: &MixtureActs<B::Buffer, B::Routes>,
        rows: usize,
        loads: &mut [B::Buffer; 2],
    ) {
        let clock = Instant::now();
        self.inner.router_load(acts, rows, loads);
        self.add_forward(OperationKind::Mixture, None, clock, 0.0);
    }

    fn router_loss(&mut self, loss: &mut RouterLoss<B::Buffer>, tokens: usize, factor: f32) {
        let clock = Instant::now();
        self.inner.router_loss(loss, tokens, factor);
        self.add_forward(OperationKind::Mixture, None, clock, 0.0);
    }

    fn packed_experts(&self) -> bool {
        self.inner.packed_experts()
    }

    fn packed_mixture_forward(
        &mut self,
        x: (&B::Buffer, usize),
        weights: &PackedMixtureWeights<'_, Self::Weight>,
        acts: &mut MixtureActs<B::Buffer, B::Routes>,
        out: Option<&mut B::Buffer>,
    ) {
        let clock = Instant::now();
        let flops = 2.0 * packed_elements(weights) * x.1 as f64;
        self.inner.packed_mixture_forward(x, &inner_packed(weights), acts, out);
        self.add_forward(OperationKind::Mixture, None, clock, flops);
    }

    fn packed_mixture_backward(
        &mut self,
        inputs: (&B::Buffer, &B::Buffer, usize),
        weights: &PackedMixtureWeights<'_, Self::Weight>,
        gradients: PackedMixtureGradients<'_, B::Buffer>,
        acts: &mut MixtureActs<B::Buffer, B::Routes>,
        dx: Option<&mut B::Buffer>,
    ) {
        let clock = Instant::now();
        let flops = 4.0 * packed_elements(weights) * inputs.2 as f64;
        self.inner.packed_mixture_backward(inputs, &inner_packed(weights), gradients, acts, dx);
        let kind = OperationKind::Mixture;
        self.count(Operation { phase: Phase::ActivationGradients, kind, shape: None }, clock, flops);
    }
}

/// The weights without their clocks.
fn inner_weights<'m, W>(weights: &MixtureWeights<'m, TimedWeight<W>>) -> MixtureWeights<'m, W> {
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
fn mixture_elements<W>(weights: &MixtureWeights<'_, TimedWeight<W>>) -> f64 {
    let elements = |weight: &TimedWeight<W>| weight.rows as f64 * weight.cols as f64;
    let of_expert =
        |expert: &Expert<&TimedWeight<W>>| expert.iter().map(|weight| elements(weight)).sum::<f64>();
    let routed = weights.experts.first().map_or(0.0, of_expert) * weights.routing.per_token as f64;
    let shared = weights.shared.as_ref().map_or(0.0, |(share, expert)| elements(share) + of_expert(expert));
    elements(weights.router) + routed + shared
}

/// As [`inner_weights`].
fn inner_packed<'m, W>(weights: &PackedMixtureWeights<'m, TimedWeight<W>>) -> PackedMixtureWeights<'m, W> {
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
fn packed_elements<W>(weights: &PackedMixtureWeights<'_, TimedWeight<W>>) -> f64 {
    let (d, f) = (weights.router.cols as f64, weights.gate_up.bias.cols as f64 / 2.0);
    weights.router.rows as f64 * d + 3.0 * d * f * weights.routing.per_token as f64
}
