//! What the operations of an optimizer step are given of a trainable tensor.

use super::optimizer_options::OptimizerOptions;
use crate::backend::{Backend, MaskedGrad, TowardsStart, UpdateTensor};
use crate::model::{Param, Pull, Trained};

/// What the optimizer reads and writes of a trainable tensor.
pub(super) fn update_tensor<'p, B: Backend>(
    param: &'p mut Param<B>,
    options: &OptimizerOptions,
) -> Option<UpdateTensor<'p, B>> {
    let weight_decay = if param.vector { 0.0 } else { options.weight_decay };
    let Trained { grad, state, mask, momentum_share, rounding, .. } = param.train.as_mut()?;
    let (weight, mask) = (&mut param.weight, mask.as_ref());
    let (momentum_share, rounding) = (*momentum_share, *rounding);
    Some(UpdateTensor { weight, grad, state, mask, weight_decay, momentum_share, rounding })
}

/// The gradient of a trainable tensor with its mask and its pull.
pub(super) fn masked_grad<B: Backend>(param: &mut Param<B>) -> Option<MaskedGrad<'_, B>> {
    let Trained { grad, mask, pull, .. } = param.train.as_mut()?;
    let weight = &param.weight;
    let pull =
        pull.as_ref().map(|Pull { start, strength }| TowardsStart { weight, start, strength: *strength });
    Some(MaskedGrad { grad, mask: mask.as_ref(), pull })
}
