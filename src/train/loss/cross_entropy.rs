//! Cross-entropy of the next token: the mean negative log-likelihood over the target tokens of a step.

use crate::backend::{Backend, Head, HeadGradients, TrainingPass};
use crate::model::{Model, Param};

/// The factor of each target token's loss: `1 / N` for the `N` target tokens of a step.
pub(crate) fn mean_scale(targets: usize) -> f32 {
    1.0 / targets.max(1) as f32
}

/// Records the loss of each target token of `part` and, with their factors, the gradient of the head and, in
/// `dhidden`, of `hidden` `[T, D]`.
pub(crate) fn cross_entropy<B: Backend>(
    backend: &mut B,
    model: &mut Model<B>,
    hidden: &B::Buffer,
    dhidden: Option<&mut B::Buffer>,
    part: &TrainingPass<'_>,
) {
    let Param { weight, train, .. } = model.lm_head.as_mut().unwrap_or(&mut model.embed_tokens);
    let gradients = HeadGradients {
        factors: part.factors,
        hidden: dhidden,
        weight: train.as_mut().map(|train| &mut train.grad),
        accumulate: part.accumulate,
    };
    let head = Head { weight, soft_cap: model.config.logit_cap };
    backend.cross_entropy(hidden, head, part.targets, Some(gradients));
}
