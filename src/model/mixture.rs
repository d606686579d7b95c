//! A mixture of experts, forward and backward.

use crate::backend::{Backend, Expert, MixtureActs, MixtureGradients, MixtureWeights, Routing, Updates};
use crate::model::layer::Mixture;
use crate::model::{FeedForward, ModelConfig, Param};

/// How tokens choose their experts.
pub(super) fn routing(config: &ModelConfig) -> Routing {
    let Some(mixtures) = &config.mixtures else { unreachable!("the model has mixtures") };
    mixtures.routing
}

/// The weight of a parameter, and its gradient where it is trainable.
pub(super) fn split<B: Backend>(param: &mut Param<B>) -> (&B::Weight, Option<&mut B::Buffer>) {
    (&param.weight, param.train.as_mut().map(|train| &mut train.grad))
}

fn weights_of<B: Backend>(expert: &Expert<Param<B>>) -> Expert<&B::Weight> {
    expert.each_ref().map(|param| &param.weight)
}

/// The weights of an expert, and the gradients of the trainable ones.
type SplitExpert<'a, B> =
    (Expert<&'a <B as Updates>::Weight>, Expert<Option<&'a mut <B as Updates>::Buffer>>);

fn split_expert<B: Backend>(expert: &mut Expert<Param<B>>) -> SplitExpert<'_, B> {
    let [gate, up, down] = expert.each_mut().map(split);
    ([gate.0, up.0, down.0], [gate.1, up.1, down.1])
}

impl<B: Backend> Mixture<B> {
    /// `out = residual + mixture(x)` of `rows` rows of `x` in layer `layer`; without `out` only what the backward pass needs.
    pub(super) fn forward(
        &self,
        backend: &mut B,
        config: &ModelConfig,
        (x, rows, layer): (&B::Buffer, usize, usize),
        acts: &mut MixtureActs<B::Buffer, B::Routes>,
        (residual, out): (&B::Buffer, Option<&mut B::Buffer>),
    ) {
        let weights = MixtureWeights {
            router: &self.router.weight,
            experts: self.experts.iter().map(weights_of).collect(),
            shared: self.shared.as_ref().map(|(share, expert)| (&share.weight, weights_of(expert))),
            routing: routing(config),
            layer,
        };
        let out = match out {
            None => None,
            Some(out) => {
                backend.copy(residual, out, rows * config.hidden_size);
                Some(out)
            }
        };
        backend.mixture_forward((x, rows), &weights, acts, out);
    }

    /// Overwrites `dx`, unless it is `None`, and writes the gradients of trainable tensors, from the gradient `dout` of the
    /// output of `rows` rows and the input `x`.
    pub(super) fn backward(
        &mut self,
        backend: &mut B,
        config: &ModelConfig,
        (inputs, layer): ((&B::Buffer, &B::Buffer, usize), usize),
        acts: &mut MixtureActs<B::Buffer, B::Routes>,
        dx: Option<&mut B::Buffer>,
        (of_probabilities, accumulate): (Option<&B::Buffer>, bool),
    ) {
        let (router, drouter) = split(&mut self.router);
        let (experts, dexperts) = self.experts.iter_mut().map(split_expert).unzip();
        let (shared, dshared) = match &mut self.shared {
            None => (None, None),
            Some((share, expert)) => {
                let ((share, dshare), (expert, dexpert)) = (split(share), split_expert(expert));
                (Some((share, expert)), Some((dshare, dexpert)))
            }
        };
        let weights = MixtureWeights { router, experts, shared, routing: routing(config), layer };
        let gradients = MixtureGradients {
            router: drouter,
            experts: dexperts,
            shared: dshared,
            of_probabilities,
            accumulate,
        };
        backend.mixture_backward(inputs, &weights, gradients, acts, dx);
    }
}

impl<B: Backend> FeedForward<B> {
    /// [`Mixture::forward`] of either kind of mixture.
    pub(super) fn mixture_forward(
        &self,
        backend: &mut B,
        config: &ModelConfig,
        x: (&B::Buffer, usize, usize),
        acts: &mut MixtureActs<B::Buffer, B::Routes>,
        outputs: (&B::Buffer, Option<&mut B::Buffer>),
    ) {
        match self {
            Self::Mixture(mixture) => mixture.forward(backend, config, x, acts, outputs),
            Self::PackedMixture(mixture) => mixture.forward(backend, config, x, acts, outputs),
            Self::Mlp(_) => unreachable!("the layer has a mixture"),
        }
    }

    /// [`Mixture::backward`] of either kind of mixture.
    pub(super) fn mixture_backward(
        &mut self,
        backend: &mut B,
        config: &ModelConfig,
        inputs: ((&B::Buffer, &B::Buffer, usize), usize),
        acts: &mut MixtureActs<B::Buffer, B::Routes>,
        dx: Option<&mut B::Buffer>,
        more: (Option<&B::Buffer>, bool),
    ) {
        match self {
            Self::Mixture(mixture) => mixture.backward(backend, config, inputs, acts, dx, more),
            Self::PackedMixture(mixture) => mixture.backward(backend, config, inputs, acts, dx, more),
            Self::Mlp(_) => unreachable!("the layer has a mixture"),
        }
    }
}
