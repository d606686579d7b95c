//! SCE: select, calculate, erase. Source: Wan et al. 2024 (FuseChat), arXiv:2408.07990 §3.3.
//!
//! Select the positions with the largest variance over the models: k = ⌊topk · #(var ≠ 0)⌋. Calculate one weight
//! per model, mean(τ_i²) / Σ_j mean(τ_j²) of what was selected (1/N below 1e-6). Erase values against the sign of
//! Σ τ_i. `y = b + Σ ω_i M_i τ_i / max(Σ ω_i M_i, 1e-6)`.

use std::ops::Range;

use crate::Result;
use crate::merge::inputs::{TensorInputs, Verbatim};
use crate::merge::recipe::parameter::ParameterValues;
use crate::merge::tiles::select::top;
use crate::merge::tiles::top::Top;
use crate::merge::tiles::values::{BLOCK, TileBuffers, Values, dot};

/// The method with its parameters for one tensor.
#[derive(Debug, Clone)]
pub(crate) struct SceParameters {
    select_topk: f64,
}

impl SceParameters {
    pub(crate) fn new(shared: &ParameterValues) -> Self {
        Self { select_topk: shared.number("select_topk") }
    }

    /// All positions of a single model.
    pub(crate) fn verbatim(&self, inputs: &TensorInputs<'_>) -> Verbatim {
        let whole = inputs.models.len() == 1 && self.select_topk >= 1.0;
        if whole { Verbatim::Model(0) } else { Verbatim::WhereEqual }
    }

    /// Measures variance and weights.
    ///
    /// # Errors
    /// [`crate::Error::Io`] from reading by position.
    pub(crate) fn prepare<'a>(&self, inputs: &TensorInputs<'a>, tile: u64) -> Result<(Values<'a>, Sce)> {
        let values = inputs.deltas(tile);
        let sce = Sce::new(&values, self.select_topk)?;
        Ok((values, sce))
    }
}

/// The rule for one tensor, with all that was measured.
#[derive(Debug)]
pub(crate) struct Sce {
    selected: Selected,
    weights: Vec<f32>,
}

/// The positions of the largest variance.
#[derive(Debug)]
enum Selected {
    All,
    Nothing,
    Top(Top),
}

impl Sce {
    fn new(values: &Values<'_>, topk: f64) -> Result<Self> {
        let models = values.models.len();
        let mut sce = Self { selected: select(values, topk)?, weights: vec![1.0 / models as f32; models] };
        let parts = values.over(|buffers, range| {
            sce.load(values, range, buffers)?;
            let square = |z: &Vec<f32>| -> Vec<f64> { z.chunks(BLOCK).map(|b| dot(b, b)).collect() };
            Ok(buffers.z[..models].iter().map(square).collect::<Vec<_>>())
        })?;
        let of_model = |i: usize| parts.iter().flat_map(|part| &part[i]).sum::<f64>();
        let squares: Vec<f64> = (0..models).map(|i| of_model(i) / values.elements.max(1) as f64).collect();
        let sum: f64 = squares.iter().sum();
        if sum >= 1e-6 {
            sce.weights = squares.iter().map(|s| (s / sum) as f32).collect();
        }
        Ok(sce)
    }

    fn load(&self, values: &Values<'_>, range: Range<u64>, buffers: &mut TileBuffers) -> Result<()> {
        values.load(range.clone(), buffers)?;
        let models = values.models.len();
        match &self.selected {
            Selected::All => {}
            Selected::Nothing => buffers.z[..models].iter_mut().for_each(|z| z.fill(0.0)),
            Selected::Top(top) => {
                variance(buffers, models);
                top.fill(values.tile_of(range.start), &buffers.out, &mut buffers.keep);
                for z in &mut buffers.z[..models] {
                    z.iter_mut().zip(&buffers.keep).for_each(|(z, keep)| *z = if *keep { *z } else { 0.0 });
                }
            }
        }
        Ok(())
    }

    /// Computes the elements `range` into `buffers.out`.
    pub(crate) fn apply(
        &self,
        values: &Values<'_>,
        range: Range<u64>,
        buffers: &mut TileBuffers,
    ) -> Result<()> {
        self.load(values, range, buffers)?;
        let models = &buffers.z[..self.weights.len()];
        buffers.out.clear();
        buffers.out.extend_from_slice(&buffers.base);
        for (i, out) in buffers.out.iter_mut().enumerate() {
            let sum: f32 = models.iter().map(|z| z[i]).sum();
            let (mut moved, mut weight) = (0.0, 0.0);
            for (z, w) in models.iter().zip(&self.weights) {
                let agrees = if sum >= 0.0 { z[i] > 0.0 } else { z[i] < 0.0 };
                if agrees || z[i].is_nan() {
                    moved += z[i] * w;
                    weight += w;
                }
            }
            if moved != 0.0 {
                *out += moved / weight.max(1e-6);
            }
        }
        Ok(())
    }
}

fn select(values: &Values<'_>, topk: f64) -> Result<Selected> {
    let models = values.models.len();
    if topk >= 1.0 {
        return Ok(Selected::All);
    }
    let score = |buffers: &mut TileBuffers, range: Range<u64>| {
        values.load(range, buffers)?;
        variance(buffers, models);
        Ok(())
    };
    let count = |n: &mut u64, buffers: &mut TileBuffers, range: Range<u64>| {
        score(buffers, range)?;
        *n += buffers.out.iter().filter(|v| **v != 0.0).count() as u64;
        Ok(())
    };
    let varies = values.count(|| 0, count, |a, b| *a += b)?;
    let keep = (varies as f64 * topk) as u64;
    if keep == 0 {
        return Ok(Selected::Nothing);
    }
    Ok(top(values, &[keep], &score)?.pop().map_or(Selected::Nothing, Selected::Top))
}

/// The population variance over the models at each position, into `buffers.out`.
fn variance(buffers: &mut TileBuffers, models: usize) {
    let TileBuffers { z, out, base, .. } = buffers;
    let z = &z[..models];
    let n = models as f32;
    out.clear();
    out.extend((0..base.len()).map(|i| {
        let mean = z.iter().map(|z| z[i]).sum::<f32>() / n;
        z.iter().map(|z| (z[i] - mean) * (z[i] - mean)).sum::<f32>() / n
    }));
}
