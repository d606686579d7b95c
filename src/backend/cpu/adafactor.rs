//! Adafactor as `torch.optim.Adafactor`: the second moment of a matrix is the outer product of its means over columns
//! and over rows, and a step is in proportion to the root mean square of the tensor. Shazeer and Stern 2018,
//! arXiv:1804.04235.
//!
//! Means and norms are over all elements; those that a mask freezes have a gradient of 0, as PyTorch would see them.

use rayon::prelude::*;

use super::elementwise_update::{Tensor, bits_of, is_on};
use super::math::PIECE;
use super::square_sum::square_sum;
use crate::optimizer::{Adafactor, OptimizerStep};
use crate::simd::{Kernel, dispatch};

/// Rows of one partial sum over rows.
const ROWS: usize = 64;

/// The second moment.
pub(super) enum Variance<'a> {
    /// Of a vector: of each element.
    Whole(&'a mut [f32]),
    /// Of a matrix: means of the rows and of the columns.
    Factors { rows: &'a mut [f32], cols: &'a mut [f32] },
}

/// The constants of a step.
#[derive(Clone, Copy)]
pub(super) struct Constants {
    /// The weight of this step's squares, t^beta2_decay.
    fresh: f32,
    /// The learning rate relative to the tensor, at most 1 / √t.
    rate: f64,
    decay: f32,
    grad_scale: f32,
    eps1: f32,
    eps2: f64,
    d: f64,
}

impl Constants {
    pub(super) fn new(adafactor: &Adafactor, step: &OptimizerStep, weight_decay: f32) -> Self {
        let t = step.count as f64;
        Self {
            fresh: t.powf(adafactor.beta2_decay) as f32,
            rate: step.lr.min(1.0 / t.sqrt()),
            decay: (1.0 - step.lr * f64::from(weight_decay)) as f32,
            grad_scale: step.grad_scale,
            eps1: adafactor.eps1 as f32,
            eps2: adafactor.eps2,
            d: adafactor.d,
        }
    }
}

/// A second moment after the step, as it is read.
enum Estimate<'a> {
    Whole(&'a [f32]),
    Factors { rows: &'a [f32], cols: &'a [f32], mean: f32 },
}

/// The updates of a piece of a tensor, before they are scaled to its size: `g / √v`.
struct PieceUpdates<'a> {
    estimate: &'a Estimate<'a>,
    constants: Constants,
    /// The first element of the piece.
    first: usize,
    grad: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for PieceUpdates<'_> {
    /// The sum of their squares.
    type Output = f64;

    #[inline(always)]
    fn run(self) -> f64 {
        let Self { estimate, constants: Constants { grad_scale, eps1, .. }, first, grad, out } = self;
        let update = |grad: f32, variance: f32| grad * grad_scale / variance.max(eps1 * eps1).sqrt();
        match estimate {
            Estimate::Whole(variance) => {
                for ((out, grad), variance) in out.iter_mut().zip(grad).zip(&variance[first..]) {
                    *out = update(*grad, *variance);
                }
            }
            Estimate::Factors { rows, cols, mean } => {
                let mut at = 0;
                while at < grad.len() {
                    let (row, col) = (rows[(first + at) / cols.len()], (first + at) % cols.len());
                    let end = grad.len().min(at + cols.len() - col);
                    let of_row = out[at..end].iter_mut().zip(&grad[at..end]);
                    for ((out, grad), col) in of_row.zip(&cols[col..]) {
                        *out = update(*grad, row * col / mean);
                    }
                    at = end;
                }
            }
        }
        square_sum(out)
    }
}

/// One step.
pub(super) fn step(tensor: Tensor<'_, '_>, constants: Constants, variance: Variance<'_>) {
    let Tensor { weight, grad, mask, rounding, .. } = tensor;
    let n = grad.len();
    let pieces = || (0..n).into_par_iter().step_by(PIECE).map(|first| (first, PIECE.min(n - first)));
    let root_mean_square = |sums: Vec<f64>| (sums.iter().sum::<f64>() / n as f64).sqrt();
    let size = root_mean_square(pieces().map(|(first, len)| weight.piece(first, len, square_sum)).collect());
    let estimate = &accumulate(grad, constants, variance);
    let updates = |first: usize, out: &mut [f32]| {
        let grad = &grad[first..first + out.len()];
        dispatch(PieceUpdates { estimate, constants, first, grad, out })
    };
    let length = pieces().map_init(|| vec![0.0; PIECE], |out, (first, len)| updates(first, &mut out[..len]));
    let length = root_mean_square(length.collect());
    let alpha = size.max(constants.eps2) * constants.rate / (length / constants.d).max(1.0);
    let (alpha, decay) = (alpha as f32, constants.decay);
    weight.update_pieces(rounding, vec![(); n.div_ceil(PIECE)], |i, values, ()| {
        let mut update = [0.0; PIECE];
        updates(i * PIECE, &mut update[..values.len()]);
        let mask = bits_of(mask, i);
        for (at, (value, update)) in values.iter_mut().zip(&update).enumerate() {
            if is_on(mask, at) {
                *value = *value * decay - alpha * update;
            }
        }
    });
}

/// Moves the second moment towards the squares of the gradient.
fn accumulate<'v>(grad: &[f32], constants: Constants, variance: Variance<'v>) -> Estimate<'v> {
    let Constants { fresh, grad_scale, eps1, .. } = constants;
    let towards = |old: &mut f32, new: f32| *old += fresh * (new - *old);
    match variance {
        Variance::Whole(variance) => {
            for (old, grad) in variance.iter_mut().zip(grad) {
                towards(old, (grad * grad_scale) * (grad * grad_scale));
            }
            Estimate::Whole(variance)
        }
        Variance::Factors { rows, cols } => {
            let (scale, width) = (f64::from(grad_scale).powi(2), cols.len());
            rows.par_iter_mut().zip(grad.par_chunks(width)).for_each(|(old, row)| {
                towards(old, (square_sum(row) * scale / width as f64) as f32);
            });
            let partials: Vec<Vec<f64>> = grad
                .par_chunks(ROWS * width)
                .map(|rows| {
                    let mut sums = vec![0.0; width];
                    for row in rows.chunks(width) {
                        sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x) * f64::from(*x));
                    }
                    sums
                })
                .collect();
            for (col, old) in cols.iter_mut().enumerate() {
                let sum: f64 = partials.iter().map(|sums| sums[col]).sum();
                towards(old, (sum * scale / rows.len() as f64) as f32);
            }
            let mean = rows.iter().map(|x| f64::from(*x)).sum::<f64>() / rows.len() as f64;
            Estimate::Factors { rows, cols, mean: (mean as f32).max(eps1) }
        }
    }
}
