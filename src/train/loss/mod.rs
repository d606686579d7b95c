//! The losses that training minimizes, one file each.
//!
//! Parts, lowest first: `cross_entropy`, `preference`, `pairs`.

mod cross_entropy;
mod pairs;
mod preference;

pub(super) use cross_entropy::{cross_entropy, mean_scale};
pub use pairs::ReferenceAnswer;
pub(super) use pairs::{PassPairs, StepPairs, losses_of_pairs, mean_of_pairs};
pub use preference::{LossType, PreferenceLoss, PreferenceMetrics};
