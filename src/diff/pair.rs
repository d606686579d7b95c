//! Two tensors to be compared, and how their bytes are read.

use crate::checkpoint::{Checkpoint, Dtype, Known, Shard, Tensor, TensorInfo};
use crate::diff::real::{AsF32, AsF64, Decode};

/// How the numbers of a pair are read.
#[derive(Debug)]
pub(crate) enum Values {
    /// Both sides are floats of at most 32 bits.
    F32(AsF32, AsF32),
    /// Both sides are real numbers.
    F64(AsF64, AsF64),
    /// Both sides have one type that is not decoded: bytes are equal or not.
    Bytes,
}

/// One side: a tensor and its shard.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PairSide<'a> {
    pub(crate) shard: &'a Shard,
    pub(crate) info: &'a TensorInfo,
}

impl<'a> PairSide<'a> {
    /// A tensor of `checkpoint`.
    pub(crate) fn of(checkpoint: &'a Checkpoint, tensor: Tensor<'a>) -> Self {
        Self { shard: &checkpoint.shards()[tensor.shard], info: tensor.info }
    }
}

/// Two tensors, compared over the leading rows that both have.
#[derive(Debug)]
pub(crate) struct Pair<'a> {
    pub(crate) a: PairSide<'a>,
    pub(crate) b: PairSide<'a>,
    pub(crate) values: Values,
    elements: u64,
}

impl<'a> Pair<'a> {
    /// Pairs two tensors over their common rows. `None` where nothing can be compared: rows of different
    /// shapes, or different types of which one is not a number.
    pub(crate) fn new(a: PairSide<'a>, b: PairSide<'a>) -> Option<Self> {
        let elements = common_elements(&a.info.shape, &b.info.shape)?;
        let (of_a, of_b) = (&a.info.dtype, &b.info.dtype);
        let values = if let (Some(x), Some(y)) = (AsF32::of(of_a), AsF32::of(of_b))
            && is_complex(of_a) == is_complex(of_b)
        {
            Values::F32(x, y)
        } else if let (Some(x), Some(y)) = (AsF64::of(of_a), AsF64::of(of_b))
            && !is_complex(of_a)
            && !is_complex(of_b)
        {
            Values::F64(x, y)
        } else {
            return Self::of_bytes(a, b);
        };
        Some(Self { a, b, values, elements })
    }

    /// Pairs two tensors as bytes. `None` where their types or shapes differ.
    pub(crate) fn of_bytes(a: PairSide<'a>, b: PairSide<'a>) -> Option<Self> {
        let elements = a.info.elements();
        let same = a.info.dtype == b.info.dtype && a.info.shape == b.info.shape;
        same.then_some(Self { a, b, values: Values::Bytes, elements })
    }

    /// Numbers on each side: elements, two for a complex one, or bytes.
    pub(crate) fn numbers(&self) -> u64 {
        match self.values {
            Values::Bytes => self.a.info.len(),
            Values::F32(..) if is_complex(&self.a.info.dtype) => 2 * self.elements,
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
        self.a.info.dtype == self.b.info.dtype
    }

    /// Whether different bytes are different numbers: integers of one type.
    pub(crate) fn by_bytes(&self) -> bool {
        let wide = matches!(self.a.info.dtype, Dtype::Known(Known::I64 | Known::U64));
        wide && self.same_type()
    }
}

fn is_complex(dtype: &Dtype) -> bool {
    *dtype == Dtype::Known(Known::C64)
}

/// Elements of the rows that both shapes have.
pub(crate) fn common_elements(a: &[u64], b: &[u64]) -> Option<u64> {
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
