//! Views of a comparison: a table, JSON, CSV, a heat map and a page.

mod csv;
mod html;
mod json;
mod rollup;
mod scale;
mod svg;
mod table;

pub use html::HTML_MARKER;
pub use svg::SVG_MARKER;
pub use table::SortBy;

use rollup::Rollup;

use crate::diff::{Status, TensorDiff};

/// The comparison of two checkpoints, ready to be shown.
#[derive(Debug)]
pub struct DiffReport {
    a: String,
    b: String,
    tensors: Vec<TensorDiff>,
    rollup: Rollup,
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

#[cfg(test)]
mod tests;
