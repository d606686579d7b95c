//! What the steps of the optimizers keep between calls.

use super::adafactor::AdafactorMemory;
use super::adamw8bit::AdamW8bit;
use super::square_sum::SquareSum;
use super::update_table::UpdateTable;

/// Tables and work memory of the steps.
#[derive(Debug, Default)]
pub(super) struct UpdateMemory {
    pub(super) square_sum: SquareSum,
    pub(super) floats: UpdateTable,
    /// Of tensors whose moments have 8 bits.
    pub(super) codes: UpdateTable,
    pub(super) adamw8bit: AdamW8bit,
    pub(super) adafactor: AdafactorMemory,
}
