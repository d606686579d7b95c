//! What the optimizer of a run is asked for.

use crate::backend::WeightKind;
use crate::checkpoint::{ScratchFile, TensorInfo};
use crate::optimizer::Optimizer;

/// An optimizer with what is common to all.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OptimizerOptions {
    /// The optimizer with its constants.
    pub optimizer: Optimizer,
    /// Decay of matrices; vectors get none.
    pub weight_decay: f32,
    /// Gradients are scaled down to this global norm; 0 = never.
    pub max_grad_norm: f64,
}

/// What trainable weights are kept in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Master {
    /// `f32`, rounded when a checkpoint is written.
    #[default]
    F32,
    /// bfloat16 alone: every step rounds stochastically.
    None,
}

/// The gradients of trainable tensors that are in memory at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Gradients {
    /// All of them, in `f32`.
    #[default]
    F32,
    /// All of them in bfloat16, and in `f32` those of one block.
    Bf16,
    /// Those of one block in `f32`: it is updated as soon as the backward pass has them.
    OneBlock,
}

impl Gradients {
    /// Bytes for each trained parameter, those of one block aside.
    pub fn bytes(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
            Self::OneBlock => 0,
        }
    }
}

impl Master {
    /// How a trainable weight is kept.
    pub(super) fn kind(self) -> WeightKind {
        match self {
            Self::F32 => WeightKind::Trainable,
            Self::None => WeightKind::Rounded,
        }
    }

    /// Bytes of a value on the CPU.
    pub(super) fn bytes(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::None => 2,
        }
    }
}

/// Bytes that the optimizer keeps of a tensor of a checkpoint.
pub(super) fn state_bytes(info: &TensorInfo, optimizer: &Optimizer) -> u64 {
    let (rows, cols) = match info.shape[..] {
        [rows, cols] => (rows, cols),
        _ => (1, info.elements()),
    };
    optimizer.state_bytes(rows as usize, cols as usize)
}

/// The same in a mapped file, at most: it has four parts, each on a boundary.
pub(super) fn mapped_bytes(info: &TensorInfo, optimizer: &Optimizer) -> u64 {
    state_bytes(info, optimizer) + 4 * ScratchFile::bytes_of(1)
}
