//! The losses that training minimizes, one file each.
//!
//! Parts, lowest first: `cross_entropy`.

mod cross_entropy;

pub(super) use cross_entropy::{cross_entropy, mean_scale};
