//! The result for one tensor.

use std::fmt;

use crate::checkpoint::Dtype;
use crate::diff::Delta;

/// The relation of the two sides of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Status {
    /// The same type, shape and bytes.
    Identical,
    /// The same type and shape, other bytes.
    Changed,
    /// Not in b.
    OnlyInA,
    /// Not in a.
    OnlyInB,
    /// Other shapes; rows that both have are compared where the rows have one shape.
    ShapeDiffers,
    /// The same shape in other types, compared by value.
    DtypeDiffers,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Identical => "identical",
            Self::Changed => "changed",
            Self::OnlyInA => "only_in_a",
            Self::OnlyInB => "only_in_b",
            Self::ShapeDiffers => "shape_differs",
            Self::DtypeDiffers => "dtype_differs",
        })
    }
}

/// How one side stores the tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredAs {
    /// Element type.
    pub dtype: Dtype,
    /// Row-major shape.
    pub shape: Vec<u64>,
    /// Name of the shard's file.
    pub shard: String,
}

/// What a comparison found for one tensor.
#[derive(Debug, Clone)]
pub struct TensorDiff {
    /// Its name on side b, or on a where b lacks it.
    pub name: String,
    /// The relation of the two sides.
    pub status: Status,
    /// Side a, if it has the tensor.
    pub a: Option<StoredAs>,
    /// Side b, if it has the tensor.
    pub b: Option<StoredAs>,
    /// Sums over the compared elements; `None` where there is nothing to compare by value.
    pub delta: Option<Delta>,
    /// Its name on side a, where that is another spelling of the name on side b; or the name of the same bytes on the
    /// other side, for a tensor that only one side has.
    pub renamed: Option<String>,
}
