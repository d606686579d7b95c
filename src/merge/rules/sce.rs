//! SCE: select, calculate, erase. Source: Wan et al. 2024 (FuseChat), arXiv:2408.07990 §3.3.
//!
//! Select the positions with the largest variance over the models: k = ⌊topk · #(var ≠ 0)⌋. Calculate one weight
//! per model, mean(τ_i²) / Σ_j mean(τ_j²) of what was selected (1/N below 1e-6). Erase values against the sign of
//! Σ τ_i. `y = b + Σ ω_i M_i τ_i / max(Σ ω_i M_i, 1e-6)`.

use std::ops::Range;

use crate::Result;
use crate::merge::tiles::select::top;
use crate::merge::tiles::top::Top;
use crate::merge::tiles::values::{BLOCK, Scratch, Values, dot};

/// The rule for one tensor.
#[derive(Debug)]
pub(crate) struct Sce {
    chosen: Chosen,
    weights: Vec<f32>,
}

#[derive(Debug)]
enum Chosen {
    All,
    Nothing,
    Top(Top),
}

impl Sce {
    /// Measures variance and weights.
    pub(crate) fn new(values: &Values<'_>, topk: f64) -> Result<Self> {
        let models = values.models.len();
        let mut sce = Self { chosen: choose(values, topk)?, weights: vec![1.0 / models as f32; models] };
        let parts = values.over(|scratch, range| {
            sce.load(values, range, scratch)?;
            let square = |z: &Vec<f32>| -> Vec<f64> { z.chunks(BLOCK).map(|b| dot(b, b)).collect() };
            Ok(scratch.z[..models].iter().map(square).collect::<Vec<_>>())
        })?;
        let of_model = |i: usize| parts.iter().flat_map(|part| &part[i]).sum::<f64>();
        let squares: Vec<f64> = (0..models).map(|i| of_model(i) / values.elements.max(1) as f64).collect();
        let sum: f64 = squares.iter().sum();
        if sum >= 1e-6 {
            sce.weights = squares.iter().map(|s| (s / sum) as f32).collect();
        }
        Ok(sce)
    }

    fn load(&self, values: &Values<'_>, range: Range<u64>, scratch: &mut Scratch) -> Result<()> {
        values.load(range.clone(), scratch)?;
        let models = values.models.len();
        match &self.chosen {
            Chosen::All => {}
            Chosen::Nothing => scratch.z[..models].iter_mut().for_each(|z| z.fill(0.0)),
            Chosen::Top(top) => {
                variance(scratch, models);
                top.fill(values.tile_of(range.start), &scratch.out, &mut scratch.keep);
                for z in &mut scratch.z[..models] {
                    z.iter_mut().zip(&scratch.keep).for_each(|(z, keep)| *z = if *keep { *z } else { 0.0 });
                }
            }
        }
        Ok(())
    }

    /// Computes the elements `range` into `scratch.out`.
    pub(crate) fn apply(&self, values: &Values<'_>, range: Range<u64>, scratch: &mut Scratch) -> Result<()> {
        self.load(values, range, scratch)?;
        let models = &scratch.z[..self.weights.len()];
        scratch.out.clear();
        scratch.out.extend_from_slice(&scratch.base);
        for (i, out) in scratch.out.iter_mut().enumerate() {
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

fn choose(values: &Values<'_>, topk: f64) -> Result<Chosen> {
    let models = values.models.len();
    if topk >= 1.0 {
        return Ok(Chosen::All);
    }
    let score = |scratch: &mut Scratch, range: Range<u64>| {
        values.load(range, scratch)?;
        variance(scratch, models);
        Ok(())
    };
    let count = |n: &mut u64, scratch: &mut Scratch, range: Range<u64>| {
        score(scratch, range)?;
        *n += scratch.out.iter().filter(|v| **v != 0.0).count() as u64;
        Ok(())
    };
    let varies = values.count(|| 0, count, |a, b| *a += b)?;
    let keep = (varies as f64 * topk) as u64;
    if keep == 0 {
        return Ok(Chosen::Nothing);
    }
    Ok(top(values, &[keep], &score)?.pop().map_or(Chosen::Nothing, Chosen::Top))
}

/// The population variance over the models at each position, into `scratch.out`.
fn variance(scratch: &mut Scratch, models: usize) {
    let Scratch { z, out, base, .. } = scratch;
    let z = &z[..models];
    let n = models as f32;
    out.clear();
    out.extend((0..base.len()).map(|i| {
        let mean = z.iter().map(|z| z[i]).sum::<f32>() / n;
        z.iter().map(|z| (z[i] - mean) * (z[i] - mean)).sum::<f32>() / n
    }));
}
