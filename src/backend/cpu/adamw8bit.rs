//! AdamW with moments of 8 bits, as `bitsandbytes.optim.AdamW8bit`: a block of 256 elements is decoded, updated as AdamW
//! does, and encoded again. The values move by the moments before these are rounded. Dettmers et al. 2022,
//! arXiv:2110.02861.

use super::elementwise_update::{Rule, Tensor, bits_of, is_on, moves};
use super::math::PIECE;
use crate::optimizer::{BLOCK, DynamicMap};
use crate::simd::{Kernel, dispatch};

/// A moment in 8 bits.
pub(super) struct Moment<'a> {
    pub(super) codes: &'a mut [u8],
    /// The largest magnitude of each block.
    pub(super) absmax: &'a mut [f32],
}

impl<'a> Moment<'a> {
    fn pieces(self) -> Vec<Moment<'a>> {
        let pieces = self.codes.chunks_mut(PIECE).zip(self.absmax.chunks_mut(PIECE / BLOCK));
        pieces.map(|(codes, absmax)| Moment { codes, absmax }).collect()
    }
}

/// One step of `rule`.
pub(super) fn step(tensor: Tensor<'_, '_>, rule: impl Rule<2>, [first, second]: [Moment<'_>; 2]) {
    let codes = (&*first.codes, &*first.absmax);
    let moves = moves(&tensor, |i, values, out| {
        let (grad, codes, absmax) =
            (&tensor.grad[i * PIECE..], &codes.0[i * PIECE..], &codes.1[i * PIECE / BLOCK..]);
        for (at, (out, value)) in out.iter_mut().zip(values).enumerate() {
            // The first moment after a step does not depend on the second one.
            let before = DynamicMap::signed().values[codes[at] as usize] * absmax[at / BLOCK];
            *out = rule.update(*value, grad[at], [before, 0.0]).1[0];
        }
    });
    let Tensor { weight, grad, mask, rounding, .. } = tensor;
    let pieces: Vec<_> = first.pieces().into_iter().zip(second.pieces()).collect();
    weight.update_pieces(rounding, pieces, |i, value, (first, second)| {
        let grad = &grad[i * PIECE..];
        let (mask, moves) = (bits_of(mask, i), bits_of(moves.as_deref(), i));
        dispatch(Blocks { rule, value, grad, first, second, mask, moves });
    });
}

/// The blocks of a piece.
struct Blocks<'a, R> {
    rule: R,
    value: &'a mut [f32],
    grad: &'a [f32],
    first: Moment<'a>,
    second: Moment<'a>,
    mask: Option<&'a [u64]>,
    /// Which elements move; all that are trainable where it is `None`.
    moves: Option<&'a [u64]>,
}

impl<R: Rule<2>> Kernel for Blocks<'_, R> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let (signed, unsigned) = (DynamicMap::signed(), DynamicMap::unsigned());
        let codes = self.first.codes.chunks_mut(BLOCK).zip(self.second.codes.chunks_mut(BLOCK));
        let absmax = self.first.absmax.iter_mut().zip(self.second.absmax);
        let values = self.value.chunks_mut(BLOCK).zip(self.grad.chunks(BLOCK));
        let words = BLOCK / 64;
        let every = self.mask.is_none() && self.moves.is_none();
        for (b, ((value, grad), ((first, second), (first_max, second_max)))) in
            values.zip(codes.zip(absmax)).enumerate()
        {
            let n = value.len();
            let (mut m, mut v) = ([0.0; BLOCK], [0.0; BLOCK]);
            signed.decode(first, *first_max, &mut m);
            unsigned.decode(second, *second_max, &mut v);
            let (mask, moves) = (self.mask.map(|m| &m[b * words..]), self.moves.map(|m| &m[b * words..]));
            let (value, grad) = (&mut value[..n], &grad[..n]);
            for i in 0..n {
                // What a mask freezes has no gradient, and its moments stay 0.
                let (after, kept) = self.rule.update(value[i], grad[i], [m[i], v[i]]);
                [m[i], v[i]] = kept;
                let moved = every || is_on(mask, i) && is_on(moves, i);
                value[i] = if moved { after } else { value[i] };
            }
            *first_max = signed.encode(&m[..n], first);
            *second_max = unsigned.encode(&v[..n], second);
        }
    }
}
