//! A comparison with the sums that its views share.

use super::checks::{Checks, failed_lines};
use super::rollup::Rollup;
use crate::diff::{Status, TensorDiff};

/// The comparison of two checkpoints, ready to be shown.
#[derive(Debug)]
pub struct DiffReport {
    pub(super) a: String,
    pub(super) b: String,
    pub(super) tensors: Vec<TensorDiff>,
    pub(super) rollup: Rollup,
    pub(super) checks: Checks,
}

impl DiffReport {
    /// A report on `tensors`, in natural order; `a` and `b` are the paths as given.
    pub fn new(a: String, b: String, tensors: Vec<TensorDiff>, checks: Checks) -> Self {
        Self { a, b, rollup: Rollup::new(&tensors), tensors, checks }
    }

    /// Whether every tensor has the same type, shape and bytes on both sides.
    pub fn identical(&self) -> bool {
        self.tensors.iter().all(|tensor| tensor.status == Status::Identical)
    }

    /// Whether every check passed; without checks, whether the two sides are identical.
    pub fn good(&self) -> bool {
        if self.checks.any() { self.checks.failures().is_empty() } else { self.identical() }
    }

    /// What should be known though nothing failed by it.
    pub fn warnings(&self) -> Vec<String> {
        self.checks.warnings()
    }

    /// A line for everything that failed; nothing where all is well.
    pub fn failures(&self) -> String {
        failed_lines(&self.checks.failures(), usize::MAX)
    }
}
