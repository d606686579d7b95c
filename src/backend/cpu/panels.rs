//! Products with weights, in `f32` or of operands rounded to bfloat16.

use std::ops::Range;

use super::matmul::{Mat, MatMut, Store, matmul};
use super::matmul_bf16::{Bf16Matmul, Operand};
use super::weight::Weight;
use crate::simd::{Bf16Product, bf16};

/// How the CPU multiplies matrices.
///
/// In bfloat16 both operands of the products of linear layers, of their gradients and of the head are rounded to nearest, ties
/// to even; products are summed in `f32`, and all else is `f32`. Numbers below 2⁻¹²⁶ count as zero.
#[derive(Debug, Clone, Copy, Default)]
pub struct CpuPrecision(Option<Bf16Product>);

impl CpuPrecision {
    /// Everything in `f32`.
    pub const F32: Self = Self(None);

    /// Products in bfloat16; `None` where the processor has no instructions for them.
    pub fn bf16() -> Option<Self> {
        Some(Self(Some(Bf16Product::detect()?)))
    }

    /// The instructions of products in bfloat16.
    pub fn instructions(self) -> Option<&'static str> {
        Some(self.0?.name())
    }
}

/// Work buffers of products with weights: panels of operands.
#[derive(Debug, Default)]
pub(super) struct Panels {
    /// Rows of a weight, widened to `f32`.
    pub(super) widened: Vec<f32>,
    bf16: Option<Bf16Matmul>,
}

/// Products in the precision of [`Panels`].
pub(super) struct Products<'p>(Option<&'p mut Bf16Matmul>);

impl Panels {
    pub(super) fn new(precision: CpuPrecision) -> Self {
        Self { widened: Vec::new(), bf16: precision.0.map(Bf16Matmul::new) }
    }

    pub(super) fn is_bf16(&self) -> bool {
        self.bf16.is_some()
    }

    pub(super) fn products(&mut self) -> Products<'_> {
        Products(self.bf16.as_mut())
    }

    /// How many rows of a weight [`Panels::weight`] takes at once.
    pub(super) fn rows_at_once(&self, weight: &Weight<'_>) -> usize {
        let packed_as_stored = self.is_bf16() && weight.bf16_rows(0..0).is_some();
        if packed_as_stored { weight.rows.max(1) } else { weight.panel_rows() }
    }

    /// The rows `range` of a weight, widened where products do not take them as they are stored.
    pub(super) fn weight<'p>(
        &'p mut self,
        weight: &'p Weight<'_>,
        range: Range<usize>,
    ) -> (Operand<'p>, Products<'p>) {
        let (rows, cols) = (range.len(), weight.cols);
        let stored = self.bf16.as_ref().and_then(|_| weight.bf16_rows(range.clone()));
        let operand = match stored {
            Some(stored) => Mat::new(stored, rows, cols, cols).into(),
            None => Mat::new(weight.panel(range, &mut self.widened), rows, cols, cols).into(),
        };
        (operand, Products(self.bf16.as_mut()))
    }

    /// `x` as an operand of a product that is not computed by [`Products`].
    pub(super) fn rounded<'x>(&self, x: &'x [f32]) -> std::borrow::Cow<'x, [f32]> {
        if !self.is_bf16() {
            return x.into();
        }
        let (mut bytes, mut rounded) = (vec![0; 2 * x.len()], vec![0.0; x.len()]);
        bf16::encode(x, &mut bytes);
        bf16::decode(&bytes, &mut rounded);
        rounded.into()
    }
}

impl Products<'_> {
    /// `out = a · b`, on all threads.
    pub(super) fn matmul<'a>(
        self,
        out: MatMut<'_>,
        store: Store,
        a: impl Into<Operand<'a>>,
        b: impl Into<Operand<'a>>,
    ) {
        let (a, b) = (a.into(), b.into());
        match self.0 {
            Some(bf16) => bf16.matmul(out, store, a, b),
            None => matmul(out, store, 1.0, a.floats(), b.floats()),
        }
    }
}

/// Speed of a large matrix product on this machine, in GFLOP/s: the yardstick for the speed of training.
pub fn gemm_gflops(precision: CpuPrecision) -> f64 {
    const N: usize = 1024;
    let (a, b, mut c) = (vec![0.5f32; N * N], vec![0.25f32; N * N], vec![0.0f32; N * N]);
    let mut panels = Panels::new(precision);
    let mut best = f64::INFINITY;
    for _ in 0..5 {
        let start = std::time::Instant::now();
        let (a, b) = (Mat::new(&a, N, N, N), Mat::new(&b, N, N, N));
        panels.products().matmul(MatMut::new(&mut c, N, N, N), Store::Overwrite, a, b.t());
        best = best.min(start.elapsed().as_secs_f64());
    }
    2.0 * (N as f64).powi(3) / best / 1e9
}
