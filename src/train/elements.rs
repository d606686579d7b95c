//! Element masks of trainable tensors, as bits.

use crate::checkpoint::TensorInfo;
use crate::plan::{Inventory, Plan};
use crate::surgery::element_mask::{PlannedMask, Selection};
use crate::{Error, Result};

/// Elements that are drawn at once, a multiple of 64.
const PIECE: usize = 1 << 16;

/// One bit per element of the tensor, least significant first, 1 = trainable; `None` where the plan has no mask
/// over it. The same elements as `reset` keeps under this plan.
///
/// # Errors
/// [`Error::Plan`] for a mask by magnitude, which needs a tuned checkpoint.
pub(super) fn element_bits(
    plan: &Plan,
    inventory: &Inventory,
    info: &TensorInfo,
) -> Result<Option<Vec<u64>>> {
    let mask = match PlannedMask::of(plan, inventory, &info.name) {
        Some(PlannedMask::Known(mask)) => mask,
        Some(PlannedMask::Largest { .. }) => {
            return Err(Error::Plan {
                path: None,
                tensor: Some(info.name.clone()),
                fault: "its mask chooses by |tuned − base|, but training starts from one checkpoint"
                    .to_owned(),
                hint: Some("make the plan with --selector bernoulli".to_owned()),
            });
        }
        None => return Ok(None),
    };
    if !matches!(mask.selection, Selection::Bernoulli { .. }) {
        return Ok(None);
    }
    let elements = info.elements();
    let row = info.shape.iter().skip(1).product::<u64>().max(1);
    let mut bits = vec![0u64; elements.div_ceil(64) as usize];
    let mut trainable = vec![false; PIECE];
    for (start, bits) in (0..elements).step_by(PIECE).zip(bits.chunks_mut(PIECE / 64)) {
        let end = elements.min(start + PIECE as u64);
        let trainable = &mut trainable[..(end - start) as usize];
        mask.fill(start..end, row, &[], trainable);
        for (word, flags) in bits.iter_mut().zip(trainable.chunks(64)) {
            *word = flags.iter().rev().fold(0, |word, flag| word << 1 | u64::from(*flag));
        }
    }
    Ok(Some(bits))
}
