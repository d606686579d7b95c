//! Two tensors to be compared, and how their bytes are read.

use crate::checkpoint::{Dtype, Known, Shard, TensorInfo};
use crate::diff::real::{AsF32, AsF64, Decode};

/// How the numbers of a pair are read.
#[derive(Debug)]
pub(crate) enum Values {
    /// Both sides are floats of at most 32 bits.
    F32(AsF32, AsF32),
    /// Both sides are real numbers.
    F64(AsF64, AsF64),
    /// One type whose elements are not numbers here: equal or not.
    Bytes,
}

/// One side: the shard and the tensor in it.
pub(crate) type Side<'a> = (&'a Shard, &'a TensorInfo);

/// Two tensors and the leading elements they are compared over.
#[derive(Debug)]
pub(crate) struct Pair<'a> {
    pub(crate) a: Side<'a>,
    pub(crate) b: Side<'a>,
    pub(crate) values: Values,
    elements: u64,
}

impl<'a> Pair<'a> {
    /// Pairs two tensors over their common rows. `None` where nothing can be compared: rows of different
    /// shapes, or different types of which one is not a number.
    pub(crate) fn new(a: Side<'a>, b: Side<'a>) -> Option<Self> {
        let elements = common_elements(&a.1.shape, &b.1.shape)?;
        let (of_a, of_b) = (&a.1.dtype, &b.1.dtype);
        let values = if let (Some(x), Some(y)) = (AsF32::of(of_a), AsF32::of(of_b))
            && is_complex(of_a) == is_complex(of_b)
        {
            Values::F32(x, y)
        } else if let (Some(x), Some(y)) = (AsF64::of(of_a), AsF64::of(of_b))
            && !is_complex(of_a)
            && !is_complex(of_b)
        {
            Values::F64(x, y)
        } else if of_a == of_b && elements == a.1.elements() && elements == b.1.elements() {
            Values::Bytes
        } else {
            return None;
        };
        Some(Self { a, b, values, elements })
    }

    /// Numbers on each side: elements, two for a complex one, or bytes.
    pub(crate) fn numbers(&self) -> u64 {
        match self.values {
            Values::Bytes => self.a.1.len(),
            Values::F32(..) if is_complex(&self.a.1.dtype) => 2 * self.elements,
            Values::F32(..) | Values::F64(..) => self.elements,
        }
    }

    /// Bytes of one number on each side.
    pub(crate) fn widths(&self) -> (u64, u64) {
        match &self.values {
            Values::Bytes => (1, 1),
            Values::F32(a, b) => (a.width() as u64, b.width() as u64),
            Values::F64(a, b) => (a.width() as u64, b.width() as u64),
        }
    }

    /// Whether both sides have one type.
    pub(crate) fn same_type(&self) -> bool {
        self.a.1.dtype == self.b.1.dtype
    }

    /// Whether different bytes are different numbers: integers of one type.
    pub(crate) fn by_bytes(&self) -> bool {
        let wide = matches!(self.a.1.dtype, Dtype::Known(Known::I64 | Known::U64));
        wide && self.same_type()
    }
}

fn is_complex(dtype: &Dtype) -> bool {
    *dtype == Dtype::Known(Known::C64)
}

/// Elements of the rows that both shapes have.
fn common_elements(a: &[u64], b: &[u64]) -> Option<u64> {
    match (a, b) {
        ([rows_a, row_a @ ..], [rows_b, row_b @ ..]) if row_a == row_b => {
            // Rows of an empty tensor may claim any size.
            let row = row_a.iter().fold(1, |n: u64, d| n.saturating_mul(*d));
            Some(rows_a.min(rows_b).saturating_mul(row))
        }
        ([], []) => Some(1),
        _ => None,
    }
}
