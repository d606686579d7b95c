//! What a plan does with each tensor.

use crate::checkpoint::decode_f32;
use crate::plan::{Granularity, Inventory, Plan};
use crate::surgery::element_mask::{ElementMask, PlannedMask, Selection};
use crate::surgery::pairing::Pair;
use crate::{Error, Result};

/// What a plan does with one tensor, decided once.
#[derive(Debug)]
pub(super) enum Fate {
    /// It keeps its tuned bytes.
    Tuned,
    /// It returns to the base.
    Base,
    /// A mask that follows from the plan says which elements keep their tuned value.
    Masked(ElementMask),
    /// The share with the largest |tuned − base| keeps its tuned value, or returns with `complement`.
    Largest { granularity: Granularity, share: f64, complement: bool },
}

impl Fate {
    /// Decides on the tensor of `pair`. A buffer is what the tuned side has.
    ///
    /// # Errors
    /// [`Error::Pairing`] for a mask over a type that cannot be masked.
    pub(super) fn of(plan: &Plan, inventory: &Inventory, pair: &Pair<'_>) -> Result<Self> {
        let info = pair.tuned.info;
        if inventory.unit_of(&info.name).is_some_and(|unit| unit.buffer) {
            return Ok(Self::Tuned);
        }
        let fate = match PlannedMask::of(plan, inventory, &info.name) {
            None => Self::Tuned,
            Some(PlannedMask::Largest { granularity, share, complement }) => {
                Self::Largest { granularity, share, complement }
            }
            Some(PlannedMask::Known(mask)) => match mask.selection {
                Selection::All => Self::Tuned,
                Selection::Nothing => Self::Base,
                _ => Self::Masked(mask),
            },
        };
        let fault = |what: &str| {
            Err(Error::Pairing {
                tensor: Some(info.name.clone()),
                fault: format!("{what} of type {}", info.dtype),
                hint: Some("decide on it as a whole with --train or --freeze".to_owned()),
            })
        };
        let masked = matches!(fate, Self::Masked(_) | Self::Largest { .. });
        if masked && info.dtype.bytes().is_none() {
            return fault("no element mask over a tensor");
        }
        let numbers = decode_f32(&info.dtype, &[], &mut []).is_some();
        if matches!(fate, Self::Largest { .. }) && !numbers {
            return fault("no magnitude in a tensor");
        }
        Ok(fate)
    }
}
