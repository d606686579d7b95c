//! Element masks of trainable tensors, as bits.

use crate::checkpoint::TensorInfo;
use crate::plan::{Domain, Granularity, Inventory, Key, Plan, Selector, bernoulli};
use crate::{Error, Result};

/// Coins drawn at once.
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
    let Some(mask) = plan.mask_of(&info.name) else { return Ok(None) };
    if mask.selector != Selector::Bernoulli {
        return Err(Error::Plan {
            path: None,
            tensor: Some(info.name.clone()),
            fault: "its mask chooses by |tuned − base|, but training starts from one checkpoint".to_owned(),
            hint: Some("make the plan with --selector bernoulli".to_owned()),
        });
    }
    // A tied head follows its embedding, so both draw from the name of their unit's first tensor.
    let unit = inventory.unit_of(&info.name);
    let name = unit.and_then(|u| u.tensors.first()).unwrap_or(&info.name);
    let key = Key::new(plan.seed(), plan.round(), name);
    let elements = info.elements() as usize;
    let row = info.shape.iter().skip(1).product::<u64>().max(1) as usize;
    let (domain, each) = match mask.granularity {
        Granularity::Element => (Domain::Element, 1),
        Granularity::Row => (Domain::Row, row),
    };
    let mut bits = vec![0u64; elements.div_ceil(64)];
    let mut coins = vec![false; PIECE];
    let units = elements / each;
    for first in (0..units).step_by(PIECE) {
        let coins = &mut coins[..PIECE.min(units - first)];
        bernoulli(&key, domain, first as u64, mask.ratio, coins);
        for (i, coin) in coins.iter().enumerate() {
            if *coin != mask.complement {
                let at = (first + i) * each;
                (at..at + each).for_each(|e| bits[e / 64] |= 1 << (e % 64));
            }
        }
    }
    Ok(Some(bits))
}
