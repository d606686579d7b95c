//! Products of bfloat16 with AVX512-BF16.

use std::arch::x86_64::*;

use super::avx512::{
    INTERLEAVE_HALVES, add_products_bf16, load, load_first_f32, load_first_u16, round_bf16, store,
    store_first_f32,
};
use super::bf16_panel::{LINES, Lines, Numbers, Pairs};
use super::level::Avx512Bf16;

/// Rows of a tile. With two vectors of columns the sums fill 28 of the 32 registers.
pub(super) const TILE_ROWS: usize = 14;

/// Panels of columns of a tile.
pub(super) const TILE_PANELS: usize = 2;

impl Avx512Bf16 {
    /// See `Bf16Product::pack_left`: a panel holds `high` lines.
    pub(super) fn pack(self, from: Lines<'_>, high: usize, to: &mut [Pairs]) {
        // SAFETY: `self` proves the features.
        unsafe {
            if from.inner_stride == 1 { pack_by_line(from, high, to) } else { pack_by_place(from, high, to) }
        }
    }

    /// See `Bf16Product::tile`.
    pub(super) fn tile(self, a: &[Pairs], b: &[Pairs], out: &mut [&mut [f32]], column: usize, add: bool) {
        let b = b.split_at(a.len());
        // SAFETY: `self` proves the features.
        unsafe {
            match out.len() {
                1 => tile::<1>(a, b, out, column, add),
                2 => tile::<2>(a, b, out, column, add),
                3 => tile::<3>(a, b, out, column, add),
                4 => tile::<4>(a, b, out, column, add),
                5 => tile::<5>(a, b, out, column, add),
                6 => tile::<6>(a, b, out, column, add),
                7 => tile::<7>(a, b, out, column, add),
                8 => tile::<8>(a, b, out, column, add),
                9 => tile::<9>(a, b, out, column, add),
                10 => tile::<10>(a, b, out, column, add),
                11 => tile::<11>(a, b, out, column, add),
                12 => tile::<12>(a, b, out, column, add),
                13 => tile::<13>(a, b, out, column, add),
                TILE_ROWS => tile::<TILE_ROWS>(a, b, out, column, add),
                rows => unreachable!("a tile has at most {TILE_ROWS} rows, not {rows}"),
            }
        }
    }
}

#[target_feature(enable = "avx512f,avx512bf16")]
fn tile<const ROWS: usize>(
    a: &[Pairs],
    (b0, b1): (&[Pairs], &[Pairs]),
    out: &mut [&mut [f32]],
    column: usize,
    add: bool,
) {
    let mut sums = [[_mm512_setzero_ps(); TILE_PANELS]; ROWS];
    for ((a, b0), b1) in a.iter().zip(b0).zip(b1) {
        let (b0, b1) = (load(&b0.0), load(&b1.0));
        for (a, sums) in a.0.iter().zip(&mut sums) {
            let a = _mm512_set1_epi32(*a as i32);
            sums[0] = add_products_bf16(sums[0], a, b0);
            sums[1] = add_products_bf16(sums[1], a, b1);
        }
    }
    for (out, sums) in out.iter_mut().zip(sums) {
        for (out, sum) in out[column..].chunks_mut(LINES).zip(sums) {
            let sum = if add { _mm512_add_ps(load_first_f32(out), sum) } else { sum };
            store_first_f32(out, sum);
        }
    }
}

impl Numbers<'_> {
    /// 32 neighbours from `first` on, before `end`, rounded.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    fn neighbours(self, first: usize, end: usize) -> __m512i {
        match self {
            Numbers::F32(all) => {
                let (low, high) = all[first..end].split_at(LINES.min(end - first));
                round_bf16(load_first_f32(low), load_first_f32(high))
            }
            Numbers::Bf16(all) => load_first_u16(&all[first..end]),
        }
    }

    /// `len` neighbours from `first` on and as many from `second` on, rounded: in pairs.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    fn pairs(self, first: usize, second: Option<usize>, len: usize) -> __m512i {
        let halves = match self {
            Numbers::F32(all) => {
                let second = second.map_or(&[][..], |second| &all[second..second + len]);
                round_bf16(load_first_f32(&all[first..first + len]), load_first_f32(second))
            }
            Numbers::Bf16(all) => {
                let second = second.map_or(&[][..], |second| &all[second..second + len]);
                let low = load_first_u16(&all[first..first + len]);
                _mm512_inserti64x4::<1>(low, _mm512_castsi512_si256(load_first_u16(second)))
            }
        };
        _mm512_permutexvar_epi16(load(&INTERLEAVE_HALVES), halves)
    }
}

/// Packing where the elements of a line are neighbours.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn pack_by_line(from: Lines<'_>, high: usize, to: &mut [Pairs]) {
    for (p, to) in to.chunks_mut(from.inner.div_ceil(2)).enumerate() {
        let count = from.count.saturating_sub(p * high).min(high);
        for (block, to) in to.chunks_mut(LINES).enumerate() {
            let (first, end) = (2 * LINES * block, from.inner.min(2 * LINES * (block + 1)));
            let mut lines = [_mm512_setzero_si512(); LINES];
            for (i, line) in lines[..count].iter_mut().enumerate() {
                let start = (p * high + i) * from.line_stride;
                *line = from.numbers.neighbours(start + first, start + end);
            }
            for (to, pairs) in to.iter_mut().zip(transposed(lines)) {
                store(&mut to.0, pairs);
            }
        }
    }
}

/// Packing where the elements of one place of all lines are neighbours.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn pack_by_place(from: Lines<'_>, high: usize, to: &mut [Pairs]) {
    let depth = from.inner.div_ceil(2);
    for pair in 0..depth {
        let first = 2 * pair * from.inner_stride;
        let second = (2 * pair + 1 < from.inner).then_some(first + from.inner_stride);
        for (p, to) in to[pair..].iter_mut().step_by(depth).enumerate() {
            let line = (p * high).min(from.count);
            let count = high.min(from.count - line);
            store(&mut to.0, from.numbers.pairs(first + line, second.map(|second| second + line), count));
        }
    }
}

/// The transpose of a matrix of 16 x 16 words.
#[inline]
#[target_feature(enable = "avx512f")]
fn transposed(rows: [__m512i; 16]) -> [__m512i; 16] {
    let zero = [_mm512_setzero_si512(); 16];
    let (mut words, mut quads, mut eights, mut out) = (zero, zero, zero, zero);
    // Pairs of rows, four rows, eight rows, all: in each step the blocks off the diagonal change places.
    for i in 0..8 {
        words[2 * i] = _mm512_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
        words[2 * i + 1] = _mm512_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
    }
    for i in 0..4 {
        for half in 0..2 {
            let (a, b) = (words[4 * i + half], words[4 * i + 2 + half]);
            quads[4 * i + 2 * half] = _mm512_unpacklo_epi64(a, b);
            quads[4 * i + 2 * half + 1] = _mm512_unpackhi_epi64(a, b);
        }
    }
    for i in 0..4 {
        for group in 0..2 {
            let (a, b) = (quads[8 * group + i], quads[8 * group + 4 + i]);
            eights[8 * group + i] = _mm512_shuffle_i32x4::<0x88>(a, b);
            eights[8 * group + 4 + i] = _mm512_shuffle_i32x4::<0xdd>(a, b);
        }
    }
    for i in 0..4 {
        for half in 0..2 {
            let (a, b) = (eights[4 * half + i], eights[8 + 4 * half + i]);
            out[4 * half + i] = _mm512_shuffle_i32x4::<0x88>(a, b);
            out[8 + 4 * half + i] = _mm512_shuffle_i32x4::<0xdd>(a, b);
        }
    }
    out
}
