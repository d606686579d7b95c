//! What is done to gradients before a step: pulls, masks, and the sum of squares for clipping.

use rayon::prelude::*;

use super::math::PIECE;
use super::weight::Weight;
use crate::backend::{MaskedGrad, Updates};
use crate::simd::{Kernel, dispatch};

/// See [`crate::backend::Updates::mask_and_square_sum`].
pub(super) fn mask_and_square_sum<'a, B>(masked: &mut MaskedGrad<'_, B>) -> f64
where
    B: Updates<Buffer = Vec<f32>, Weight = Weight<'a>, Mask = Vec<u64>>,
{
    let MaskedGrad { grad, mask, pull } = masked;
    if let Some(pull) = pull {
        let pieces = grad.par_chunks_mut(PIECE).zip(pull.start.par_chunks(PIECE)).enumerate();
        pieces.for_each(|(i, (grad, start))| {
            pull.weight.piece(i * PIECE, grad.len(), |values| {
                for (grad, (value, start)) in grad.iter_mut().zip(values.iter().zip(start)) {
                    *grad += pull.strength * (value - start);
                }
            });
        });
    }
    let pieces = grad.par_chunks_mut(PIECE).enumerate();
    let sums: Vec<f64> = pieces
        .map(|(i, grad)| {
            let mask = mask.map(|mask| &mask[i * PIECE / 64..]);
            dispatch(MaskedSquares { grad, mask })
        })
        .collect();
    sums.iter().sum()
}

struct MaskedSquares<'a> {
    grad: &'a mut [f32],
    mask: Option<&'a [u64]>,
}

impl Kernel for MaskedSquares<'_> {
    type Output = f64;

    #[inline(always)]
    fn run(self) -> f64 {
        if let Some(mask) = self.mask {
            for (grads, bits) in self.grad.chunks_mut(64).zip(mask) {
                for (i, g) in grads.iter_mut().enumerate() {
                    *g = if bits >> i & 1 == 1 { *g } else { 0.0 };
                }
            }
        }
        square_sum(self.grad)
    }
}

/// `Σ x[i]²`, in `f64`.
#[inline(always)]
pub(super) fn square_sum(values: &[f32]) -> f64 {
    const LANES: usize = 8;
    let mut lanes = [0.0f64; LANES];
    let (whole, rest) = values.as_chunks::<LANES>();
    for x in whole {
        for i in 0..LANES {
            let x = f64::from(x[i]);
            lanes[i] += x * x;
        }
    }
    let rest: f64 = rest.iter().map(|x| f64::from(*x).powi(2)).sum();
    lanes.iter().sum::<f64>() + rest
}
