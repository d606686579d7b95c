//! What an optimizer keeps of a tensor between steps.

use super::choice::Optimizer;
use super::dynamic_map::{BLOCK, DynamicMap};
use super::storage::Storage;
use crate::checkpoint::ScratchFile;

/// Tensors with fewer elements keep their moments in `f32`, as in bitsandbytes.
pub const SMALLEST_IN_8_BITS: usize = 4096;

/// How the numbers of a part are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PartKind {
    /// `f32`.
    Float,
    /// Codes of [`DynamicMap::signed`].
    Signed,
    /// Codes of [`DynamicMap::unsigned`].
    Unsigned,
}

/// A part of the state of one tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatePart {
    /// Its name, as PyTorch has it.
    pub name: &'static str,
    /// Number of elements.
    pub len: usize,
    /// How they are stored.
    pub kind: PartKind,
}

/// The values of a part, on the host.
#[derive(Debug, Clone, PartialEq)]
pub enum StateValues {
    /// Numbers.
    Floats(Storage<f32>),
    /// Codes of 8 bits.
    Codes(Storage<u8>),
}

impl StateValues {
    /// Sets values of the same kind and length, where they lie.
    ///
    /// # Panics
    /// When kinds or lengths differ.
    pub fn set(&mut self, values: Self) {
        match (self, values) {
            (Self::Floats(to), Self::Floats(from)) => to.set(from),
            (Self::Codes(to), Self::Codes(from)) => to.set(from),
            _ => unreachable!("the values of a part are of its kind"),
        }
    }

    /// Asks for pages of a file that are soon used.
    pub fn will_need(&self) {
        match self {
            Self::Floats(values) => values.will_need(),
            Self::Codes(codes) => codes.will_need(),
        }
    }

    /// Takes pages of a file out of memory.
    pub fn release(&self) {
        match self {
            Self::Floats(values) => values.release(),
            Self::Codes(codes) => codes.release(),
        }
    }
}

impl StatePart {
    /// Its bytes.
    pub fn bytes(&self) -> u64 {
        let each = if self.kind == PartKind::Float { 4 } else { 1 };
        each * self.len as u64
    }

    /// Its values before the first step: zeros.
    pub fn zeros(&self) -> StateValues {
        match self.zero() {
            None => StateValues::Floats(vec![0.0; self.len].into()),
            Some(zero) => StateValues::Codes(vec![zero; self.len].into()),
        }
    }

    /// The same in a file.
    ///
    /// # Panics
    /// As [`ScratchFile::take`].
    pub fn zeros_in(&self, file: &ScratchFile) -> StateValues {
        let Some(zero) = self.zero() else {
            return StateValues::Floats(Storage::Mapped(file.take(self.len)));
        };
        let mut codes = file.take(self.len);
        codes.fill(zero);
        codes.release();
        StateValues::Codes(Storage::Mapped(codes))
    }

    /// The code of 0, where there are codes.
    fn zero(&self) -> Option<u8> {
        match self.kind {
            PartKind::Float => None,
            PartKind::Signed => Some(DynamicMap::signed().zero),
            PartKind::Unsigned => Some(DynamicMap::unsigned().zero),
        }
    }
}

impl Optimizer {
    /// The parts that it keeps of a matrix `[rows, cols]`, or of a vector as one row; in an order that every device has.
    pub fn state_parts(&self, rows: usize, cols: usize) -> Vec<StatePart> {
        let (len, blocks) = (rows * cols, (rows * cols).div_ceil(BLOCK));
        let float = |name, len| StatePart { name, len, kind: PartKind::Float };
        let codes = |name, kind| StatePart { name, len, kind };
        match self {
            Self::AdamW8bit(_) if len >= SMALLEST_IN_8_BITS => vec![
                codes("exp_avg", PartKind::Signed),
                float("exp_avg_absmax", blocks),
                codes("exp_avg_sq", PartKind::Unsigned),
                float("exp_avg_sq_absmax", blocks),
            ],
            Self::AdamW(_) | Self::AdamW8bit(_) => vec![float("exp_avg", len), float("exp_avg_sq", len)],
            Self::Adafactor(_) if rows == 1 => vec![float("variance", len)],
            Self::Adafactor(_) => vec![float("row_var", rows), float("col_var", cols)],
            Self::Lion(_) => vec![float("exp_avg", len)],
            Self::Sgd(sgd) if sgd.momentum == 0.0 => Vec::new(),
            Self::Sgd(_) => vec![float("momentum_buffer", len)],
        }
    }

    /// Bytes that it keeps of such a tensor.
    pub fn state_bytes(&self, rows: usize, cols: usize) -> u64 {
        self.state_parts(rows, cols).iter().map(StatePart::bytes).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Adafactor, Adam, Lion, Sgd};
    use super::*;

    #[test]
    fn bytes_of_the_state_of_a_matrix_and_of_a_vector() {
        let adam = Adam { beta1: 0.9, beta2: 0.999, eps: 1e-8 };
        let bytes = |optimizer: Optimizer| {
            [(100, 257), (1, 257)].map(|(rows, cols)| optimizer.state_bytes(rows, cols))
        };
        assert_eq!(bytes(Optimizer::AdamW(adam)), [8 * 25_700, 8 * 257]);
        // Codes, and one number for each block of 256 elements.
        assert_eq!(bytes(Optimizer::AdamW8bit(adam)), [2 * (25_700 + 4 * 101), 8 * 257]);
        assert_eq!(bytes(Optimizer::Adafactor(Adafactor::default())), [4 * 357, 4 * 257]);
        assert_eq!(bytes(Optimizer::Lion(Lion { beta1: 0.9, beta2: 0.99 })), [4 * 25_700, 4 * 257]);
        assert_eq!(bytes(Optimizer::Sgd(Sgd { momentum: 0.9 })), [4 * 25_700, 4 * 257]);
        assert_eq!(bytes(Optimizer::Sgd(Sgd { momentum: 0.0 })), [0, 0]);
    }
}
