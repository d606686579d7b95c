//! A mixture of packed experts, forward and backward.

use crate::backend::{
    Backend, MixtureActs, PackedExperts, PackedMixtureGradients, PackedMixtureWeights, Updates,
};
use crate::model::mixture::{routing, split};
use crate::model::{ExpertProjection, Linear, ModelConfig, PackedMixture, Packing};

fn packing(config: &ModelConfig) -> Packing {
    let packed = config.mixtures.as_ref().and_then(|mixtures| mixtures.packed);
    packed.unwrap_or_else(|| unreachable!("the model has packed experts"))
}

/// A projection, and the gradients of values and bias where they are trainable.
type SplitProjection<'a, B> =
    (PackedExperts<'a, <B as Updates>::Weight>, [Option<&'a mut <B as Updates>::Buffer>; 2]);

impl<B: Backend> ExpertProjection<B> {
    fn weights(&self) -> PackedExperts<'_, B::Weight> {
        PackedExperts {
            values: &self.values.weight,
            scales: self.scales.as_ref().map(|scales| &scales.weight),
            bias: &self.bias.weight,
        }
    }

    fn split(&mut self) -> SplitProjection<'_, B> {
        let ((values, dvalues), (bias, dbias)) = (split(&mut self.values), split(&mut self.bias));
        let scales = self.scales.as_ref().map(|scales| &scales.weight);
        (PackedExperts { values, scales, bias }, [dvalues, dbias])
    }
}

impl<B: Backend> PackedMixture<B> {
    /// As [`super::Mixture::forward`].
    pub(super) fn forward(
        &self,
        backend: &mut B,
        config: &ModelConfig,
        (x, rows, _): (&B::Buffer, usize, usize),
        acts: &mut MixtureActs<B::Buffer, B::Routes>,
        (residual, mut out): (&B::Buffer, Option<&mut B::Buffer>),
    ) {
        let Linear { weight, bias } = &self.router;
        let weights = PackedMixtureWeights {
            router: &weight.weight,
            router_bias: &bias_of(bias.as_ref()).weight,
            gate_up: self.gate_up.weights(),
            down: self.down.weights(),
            routing: routing(config),
            gate: packing(config).gate,
        };
        if let Some(out) = &mut out {
            backend.copy(residual, out, rows * config.hidden_size);
        }
        backend.packed_mixture_forward((x, rows), &weights, acts, out);
    }

    /// As [`super::Mixture::backward`].
    pub(super) fn backward(
        &mut self,
        backend: &mut B,
        config: &ModelConfig,
        (inputs, _): ((&B::Buffer, &B::Buffer, usize), usize),
        acts: &mut MixtureActs<B::Buffer, B::Routes>,
        dx: Option<&mut B::Buffer>,
        (of_probabilities, accumulate): (Option<&B::Buffer>, bool),
    ) {
        let Linear { weight, bias } = &mut self.router;
        let ((router, drouter), (router_bias, drouter_bias)) = (split(weight), split(bias_of(bias.as_mut())));
        let ((gate_up, dgate_up), (down, ddown)) = (self.gate_up.split(), self.down.split());
        let (routing, gate) = (routing(config), packing(config).gate);
        let weights = PackedMixtureWeights { router, router_bias, gate_up, down, routing, gate };
        let gradients = PackedMixtureGradients {
            router: drouter,
            router_bias: drouter_bias,
            gate_up: dgate_up,
            down: ddown,
            of_probabilities,
            accumulate,
        };
        backend.packed_mixture_backward(inputs, &weights, gradients, acts, dx);
    }
}

/// The bias of the router.
fn bias_of<T>(bias: Option<T>) -> T {
    bias.unwrap_or_else(|| unreachable!("the router has a bias"))
}
