//! A comparison with the sums that its views share.

use super::rollup::Rollup;
use crate::diff::{Status, TensorDiff};

/// The comparison of two checkpoints, ready to be shown.
#[derive(Debug)]
pub struct DiffReport {
    pub(super) a: String,
    pub(super) b: String,
    pub(super) tensors: Vec<TensorDiff>,
    pub(super) rollup: Rollup,
}

impl DiffReport {
    /// A report on `tensors`, in natural order; `a` and `b` are the paths as given.
    pub fn new(a: String, b: String, tensors: Vec<TensorDiff>) -> Self {
        Self { a, b, rollup: Rollup::new(&tensors), tensors }
    }

    /// Whether every tensor has the same type, shape and bytes on both sides.
    pub fn identical(&self) -> bool {
        self.tensors.iter().all(|tensor| tensor.status == Status::Identical)
    }
}
