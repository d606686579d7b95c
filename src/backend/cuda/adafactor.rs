//! Adafactor, tensor by tensor: `kernels/adafactor.cu`.

use super::argument::Arg;
use super::device::Device;
use super::memory::Memory;
use super::update_table::{Launch, PIECE};
use crate::optimizer::{Adafactor, OptimizerStep};

/// Rows of one partial sum over rows, at least.
const ROWS: usize = 64;
/// Largest number of such sums.
const PIECES: usize = 256;

/// Work memory.
#[derive(Debug, Default)]
pub(super) struct AdafactorMemory {
    partials: Memory,
    /// The mean of the row means, and the size of the step.
    scalars: Memory,
}

/// Rows of a partial sum over the rows of a matrix, and the number of sums.
fn division(rows: usize) -> (usize, usize) {
    let each = ROWS.max(rows.div_ceil(PIECES));
    (each, rows.div_ceil(each))
}

impl AdafactorMemory {
    /// One step of the tensors of these shapes, in the order of the table.
    pub(super) fn step(
        &mut self,
        device: &Device,
        launch: &Launch,
        shapes: &[(usize, usize)],
        adafactor: &Adafactor,
        step: &OptimizerStep,
    ) {
        let doubles =
            |&(rows, cols): &(usize, usize)| (division(rows).1 * cols).max(2 * (rows * cols).div_ceil(PIECE));
        let bytes = 8 * shapes.iter().map(doubles).max().unwrap_or(0);
        device.reserve(&mut self.partials, bytes);
        device.reserve(&mut self.scalars, 8);
        let (partials, scalars) = (device.arg(&self.partials, bytes), device.arg(&self.scalars, 8));
        let t = step.count as f64;
        let fresh = Arg::F32(t.powf(adafactor.beta2_decay) as f32);
        let rate = Arg::F32(step.lr.min(1.0 / t.sqrt()) as f32);
        let (eps1, scale) = (Arg::F32(adafactor.eps1 as f32), Arg::F32(step.grad_scale));
        let (eps2, d) = (Arg::F32(adafactor.eps2 as f32), Arg::F32(adafactor.d as f32));
        let number = |n: usize| Arg::U32(n as u32);
        for (which, &(rows, cols)) in shapes.iter().enumerate() {
            let tensor = [launch.table[0], number(which)];
            let run = |kernel: &str, grid: (usize, usize), args: &[Arg]| {
                device.launch(kernel, grid, 0, &[&tensor[..], args].concat());
            };
            if rows == 1 {
                run("adafactor_vector", (cols.div_ceil(256), 1), &[fresh, scale]);
            } else {
                let (rows_of_piece, pieces) = division(rows);
                let [r, c, each] = [rows, cols, rows_of_piece].map(number);
                run("adafactor_rows", (rows, 1), &[c, fresh, scale]);
                run("adafactor_columns", (cols.div_ceil(256), pieces), &[r, c, each, partials]);
                let args = [r, c, number(pieces), partials, fresh, scale];
                run("adafactor_column_means", (cols.div_ceil(256), 1), &args);
                run("adafactor_mean", (1, 1), &[r, eps1, scalars]);
            }
            let pieces = (rows * cols).div_ceil(PIECE);
            run("adafactor_squares", (pieces, 1), &[number(cols), eps1, scale, scalars, partials]);
            run("adafactor_alpha", (1, 1), &[number(pieces), partials, rate, eps2, d, scalars]);
            let count = Arg::U32(step.count as u32);
            run("adafactor", (pieces, 1), &[number(cols), eps1, scale, scalars, count]);
        }
    }
}
