//! Optimizers that treat every element by itself, in one pass over pieces of a tensor.

use rayon::prelude::*;

use super::math::PIECE;
use super::momentum::LargestMomentum;
use super::weight::Weight;
use crate::optimizer::Rounding;
use crate::simd::{Kernel, dispatch};

/// The update of one element that has `N` numbers of state, the first moment first.
pub(super) trait Rule<const N: usize>: Copy + Sync {
    /// Value and state after the step.
    fn update(&self, value: f32, grad: f32, state: [f32; N]) -> (f32, [f32; N]);
}

/// What an update reads and writes beside the state.
pub(super) struct Tensor<'t, 'a> {
    pub(super) weight: &'t mut Weight<'a>,
    pub(super) grad: &'t [f32],
    /// Which elements are trainable; `None`: all are.
    pub(super) mask: Option<&'t [u64]>,
    /// See [`crate::backend::UpdateTensor::momentum_share`].
    pub(super) momentum_share: Option<f64>,
    /// How values in bfloat16 are rounded, and the step.
    pub(super) rounding: Option<(Rounding, u32)>,
}

/// The bits of piece `i`.
pub(super) fn bits_of(bits: Option<&[u64]>, i: usize) -> Option<&[u64]> {
    bits.map(|bits| &bits[i * PIECE / 64..])
}

/// Whether the bit of an element is 1.
#[inline(always)]
pub(super) fn is_on(bits: Option<&[u64]>, at: usize) -> bool {
    bits.is_none_or(|bits| bits[at / 64] >> (at % 64) & 1 == 1)
}

/// The bits of the elements that move, where a share of them does: those with the largest |first moment| after the step.
/// `first(piece, values, out)` writes those of a piece.
pub(super) fn moves(
    tensor: &Tensor<'_, '_>,
    first: impl Fn(usize, &[f32], &mut [f32]) + Sync,
) -> Option<Vec<u64>> {
    let share = tensor.momentum_share?;
    let mut moments = vec![0.0; tensor.grad.len()];
    moments.par_chunks_mut(PIECE).enumerate().for_each(|(i, out)| {
        tensor.weight.piece(i * PIECE, out.len(), |values| first(i, values, out));
        if let Some(mask) = bits_of(tensor.mask, i) {
            out.iter_mut().enumerate().filter(|(at, _)| !is_on(Some(mask), *at)).for_each(|(_, x)| *x = 0.0);
        }
    });
    let largest = LargestMomentum::of(&moments, tensor.mask, share);
    let pieces = moments.par_chunks(PIECE).enumerate();
    let bits: Vec<Vec<u64>> =
        pieces.map(|(i, moments)| largest.bits(i, moments, bits_of(tensor.mask, i))).collect();
    Some(bits.concat())
}

/// The pieces of each part of a state.
fn pieces_of<const N: usize>(state: [&mut [f32]; N], len: usize) -> Vec<[&mut [f32]; N]> {
    let mut parts = state.map(|part| part.chunks_mut(PIECE));
    (0..len.div_ceil(PIECE)).map(|_| parts.each_mut().map(|part| part.next().unwrap_or_default())).collect()
}

/// One step of `rule`.
pub(super) fn step<const N: usize>(tensor: Tensor<'_, '_>, rule: impl Rule<N>, state: [&mut [f32]; N]) {
    let shared = state.each_ref().map(|part| &**part);
    let moves = moves(&tensor, |i, values, out| {
        let (first, grad) = (i * PIECE, &tensor.grad[i * PIECE..]);
        for (at, (out, value)) in out.iter_mut().zip(values).enumerate() {
            let state = std::array::from_fn(|part| shared[part][first + at]);
            *out = rule.update(*value, grad[at], state).1.first().copied().unwrap_or(0.0);
        }
    });
    let Tensor { weight, grad, mask, rounding, .. } = tensor;
    let pieces = pieces_of(state, grad.len());
    weight.update_pieces(rounding, pieces, |i, value, state| {
        let grad = &grad[i * PIECE..];
        let (mask, moves) = (bits_of(mask, i), bits_of(moves.as_deref(), i));
        dispatch(Pass { rule, value, grad, state, mask, moves });
    });
}

struct Pass<'a, R, const N: usize> {
    rule: R,
    value: &'a mut [f32],
    grad: &'a [f32],
    state: [&'a mut [f32]; N],
    mask: Option<&'a [u64]>,
    /// Which elements move; all that are trainable where it is `None`.
    moves: Option<&'a [u64]>,
}

impl<R: Rule<N>, const N: usize> Kernel for Pass<'_, R, N> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { rule, value, grad, state, mask, moves } = self;
        let n = value.len();
        let (value, grad) = (&mut value[..n], &grad[..n]);
        let state = state.map(|part| &mut part[..n]);
        let every = mask.is_none() && moves.is_none();
        for i in 0..n {
            if every || is_on(mask, i) {
                let before = std::array::from_fn(|part| state[part][i]);
                let (after, kept) = rule.update(value[i], grad[i], before);
                for part in 0..N {
                    state[part][i] = kept[part];
                }
                if every || is_on(moves, i) {
                    value[i] = after;
                }
            }
        }
    }
}
