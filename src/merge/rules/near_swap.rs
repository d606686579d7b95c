//! NearSwap: no value moves from the base by more than t. <https://huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001>

use std::ops::Range;

use crate::Result;
use crate::merge::inputs::Verbatim;
use crate::merge::recipe::parameter::ParameterValues;
use crate::merge::tiles::values::{TileBuffers, Values};

/// `q = clamp(t / max(|b − x|, 1e-6), 0, 1)`; `y = q x + (1 − q) b`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NearSwap {
    t: f64,
}

impl NearSwap {
    pub(crate) fn new(shared: &ParameterValues) -> Self {
        Self { t: shared.number("t") }
    }

    /// Nothing moves at t = 0.
    pub(crate) fn verbatim(self) -> Verbatim {
        if self.t == 0.0 { Verbatim::Base } else { Verbatim::WhereEqual }
    }

    /// Computes the elements `range` into `buffers.out`.
    pub(crate) fn apply(
        self,
        values: &Values<'_>,
        range: Range<u64>,
        buffers: &mut TileBuffers,
    ) -> Result<()> {
        values.load(range, buffers)?;
        let TileBuffers { z, base, out, .. } = buffers;
        let t = self.t as f32;
        out.clear();
        out.extend(z[0].iter().zip(base).map(|(x, b)| {
            let q = (t / (*b - *x).abs().max(1e-6)).clamp(0.0, 1.0);
            if q == 1.0 || x.to_bits() == b.to_bits() { *x } else { q * x + (1.0 - q) * *b }
        }));
        Ok(())
    }
}
