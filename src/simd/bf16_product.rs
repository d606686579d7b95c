//! Products of bfloat16 summed in `f32`, by the instructions that a processor has for them: packing of operands, and a tile of
//! the output.

use super::bf16_panel::{LINES, Lines, Pairs};
#[cfg(target_arch = "x86_64")]
use super::bf16_product_avx512::{TILE_PANELS, TILE_ROWS};
#[cfg(target_arch = "x86_64")]
use super::level::{Avx512, Avx512Bf16};

/// The instructions that multiply bfloat16, as a proof that the processor has them.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Bf16Product {
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512Bf16),
}

impl Bf16Product {
    /// The fastest of this processor.
    pub(crate) fn detect() -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        return Avx512::detect()?.bf16().map(Self::Avx512);
        #[cfg(not(target_arch = "x86_64"))]
        None
    }

    /// Their name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(_) => "AVX512-BF16",
        }
    }

    /// Rows of a tile, at most [`LINES`]: the lines of a left panel.
    pub(crate) fn tile_rows(self) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(_) => TILE_ROWS,
        }
    }

    /// Right panels of a tile.
    pub(crate) fn tile_panels(self) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(_) => TILE_PANELS,
        }
    }

    /// Packs lines of the left operand into panels, one after the other; zeros take the place of lines and elements that
    /// they lack.
    pub(crate) fn pack_left(self, from: Lines<'_>, to: &mut [Pairs]) {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(proof) => proof.pack(from, TILE_ROWS, to),
        }
    }

    /// As [`Bf16Product::pack_left`], of the right operand.
    pub(crate) fn pack_right(self, from: Lines<'_>, to: &mut [Pairs]) {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(proof) => proof.pack(from, LINES, to),
        }
    }

    /// The product of the lines of a left panel, one for each of the rows `out`, with the right panels of a tile, one after
    /// the other. It is written to the columns from `column` on, as many as a row has, or added to them. Every value is one
    /// sum over the inner dimension from its beginning on.
    pub(crate) fn tile(
        self,
        left: &[Pairs],
        right: &[Pairs],
        out: &mut [&mut [f32]],
        column: usize,
        add: bool,
    ) {
        assert!(right.len() == self.tile_panels() * left.len(), "panels of one inner dimension");
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(proof) => proof.tile(left, right, out, column, add),
        }
    }
}
