//! Work memory of products in eight-bit floats, and the kernels that fill it: `kernels/float8.cu`.

use super::argument::Arg;
use super::device::Device;
use super::memory::Memory;
use crate::backend::FLOAT8_MULTIPLE;

/// Elements of a piece of a block.
const PIECE: usize = 4096;
/// Most blocks.
const BLOCKS: usize = 1024;

/// Codes that the next product reads.
#[derive(Debug, Default)]
pub(super) struct Float8Memory {
    partials: Memory,
    /// The scale of the codes, and 1.
    pub(super) scales: Memory,
    /// Codes of activations or of their gradients.
    pub(super) codes: Memory,
    /// Codes of a weight, transposed.
    transposed: Memory,
}

impl Float8Memory {
    /// Codes of `n` elements of `x` and their scale, by this kernel.
    pub(super) fn cast(&mut self, device: &Device, kernel: &str, x: Arg, n: usize) {
        assert!(n.is_multiple_of(FLOAT8_MULTIPLE), "rows beside a matrix in float8 are multiples of 16");
        let blocks = n.div_ceil(PIECE).min(BLOCKS);
        device.reserve(&mut self.partials, 4 * BLOCKS);
        device.reserve(&mut self.scales, 8);
        device.reserve(&mut self.codes, n);
        let partials = device.arg(&self.partials, 4 * blocks);
        device.launch("float8_largest", (blocks, 1), 0, &[x, Arg::U64(n as u64), partials]);
        let (codes, scales) = (device.arg(&self.codes, n), device.arg(&self.scales, 8));
        let args = [x, Arg::U64(n as u64), partials, Arg::U32(blocks as u32), codes, scales];
        device.launch(kernel, (blocks, 1), 0, &args);
    }

    /// The codes `[rows, cols]` transposed.
    pub(super) fn transpose(&mut self, device: &Device, codes: Arg, (rows, cols): (usize, usize)) -> Arg {
        device.reserve(&mut self.transposed, rows * cols);
        let transposed = device.arg(&self.transposed, rows * cols);
        let args = [codes, Arg::U32(rows as u32), Arg::U32(cols as u32), transposed];
        device.launch("float8_transpose", (cols.div_ceil(64), rows.div_ceil(64)), 0, &args);
        transposed
    }
}
