//! Sums over rows in two stages, the second of which is `sum_partials` of `kernels/linear.cu`.

use super::argument::Arg;
use super::device::Device;
use super::memory::Memory;

/// Least number of rows of a piece.
const ROWS: usize = 64;
/// Largest number of pieces.
const PIECES: usize = 256;

/// The sums over pieces of rows.
#[derive(Debug, Default)]
pub(super) struct PartialSums {
    memory: Memory,
}

/// A sum over the rows of a matrix `[rows, cols]`.
#[derive(Debug, Clone, Copy)]
pub(super) struct RowSum {
    /// The kernel that sums over each piece.
    pub(super) kernel: &'static str,
    pub(super) rows: usize,
    pub(super) cols: usize,
    /// Address of `cols` elements of `f32`.
    pub(super) out: Arg,
}

impl PartialSums {
    /// Adds to `out` the sum over all rows: the kernel sums over pieces, `sum_partials` adds their sums in order.
    /// `inputs` are the first arguments of the kernel, before (rows, columns, rows of a piece, partial sums).
    pub(super) fn sum(&mut self, device: &Device, sum: RowSum, inputs: &[Arg]) {
        let RowSum { kernel, rows, cols, out } = sum;
        let rows_of_piece = ROWS.max(rows.div_ceil(PIECES));
        let pieces = rows.div_ceil(rows_of_piece);
        let bytes = 4 * pieces * cols;
        device.reserve(&mut self.memory, bytes);
        let partials = device.arg(&self.memory, bytes);
        let number = |n: usize| Arg::U32(n as u32);
        let args = [inputs, &[number(rows), number(cols), number(rows_of_piece), partials]].concat();
        device.launch(kernel, (cols.div_ceil(256), pieces), 0, &args);
        let args = [partials, number(pieces), number(cols), out];
        device.launch("sum_partials", (cols.div_ceil(256), 1), 0, &args);
    }
}
