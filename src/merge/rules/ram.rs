//! RAM: task vectors of reinforcement learning, unique parts whole, shared parts averaged. arXiv:2601.13572.
//!
//! `A_i = [|τ_i| > ε]`, `c = Σ A_i`; `y = b + Σ A_i τ_i / max(c, 1)`. RAM+ (tensor-local) multiplies elements that
//! only model i moves by `1 + r · clip(ρ_i, 0, α)`, ρ_i = #shared_i / #unique_i.

use std::ops::Range;

use crate::Result;
use crate::merge::inputs::{TensorInputs, Verbatim};
use crate::merge::recipe::parameter::ParameterValues;
use crate::merge::tiles::values::{TileBuffers, Values};

/// The method with its parameters for one tensor.
#[derive(Debug, Clone)]
pub(crate) struct RamParameters {
    epsilon: f64,
    /// Those of RAM+.
    plus: Option<Plus>,
}

#[derive(Debug, Clone, Copy)]
struct Plus {
    r: f64,
    alpha: f64,
}

impl RamParameters {
    pub(crate) fn new(plus: bool, shared: &ParameterValues) -> Self {
        let plus = plus.then(|| Plus { r: shared.number("r"), alpha: shared.number("alpha") });
        Self { epsilon: shared.number("epsilon"), plus }
    }

    /// All elements of a single model.
    pub(crate) fn verbatim(&self, inputs: &TensorInputs<'_>) -> Verbatim {
        let whole = inputs.models.len() == 1 && self.epsilon == 0.0;
        if whole { Verbatim::Model(0) } else { Verbatim::WhereEqual }
    }

    /// Measures the factors of RAM+.
    ///
    /// # Errors
    /// [`crate::Error::Io`] from reading by position.
    pub(crate) fn prepare<'a>(&self, inputs: &TensorInputs<'a>, tile: u64) -> Result<(Values<'a>, Ram)> {
        let values = inputs.deltas(tile);
        let ram = match self.plus {
            None => Ram { epsilon: self.epsilon as f32, unique: vec![1.0; values.models.len()] },
            Some(plus) => Ram::plus(&values, self.epsilon, plus)?,
        };
        Ok((values, ram))
    }
}

/// The rule for one tensor, with all that was measured.
#[derive(Debug)]
pub(crate) struct Ram {
    epsilon: f32,
    /// For each model, the factor of elements that no other model moves.
    unique: Vec<f32>,
}

impl Ram {
    /// Counts shared and unique elements of each model.
    fn plus(values: &Values<'_>, epsilon: f64, Plus { r, alpha }: Plus) -> Result<Self> {
        let models = values.models.len();
        let mut ram = Self { epsilon: epsilon as f32, unique: vec![1.0; models] };
        let add = |counts: &mut Vec<[u64; 2]>, buffers: &mut TileBuffers, range: Range<u64>| {
            values.load(range.clone(), buffers)?;
            for i in 0..(range.end - range.start) as usize {
                let active = |z: &Vec<f32>| z[i].abs() > ram.epsilon;
                let others = buffers.z[..models].iter().filter(|z| active(z)).count();
                for (count, z) in counts.iter_mut().zip(&buffers.z) {
                    count[usize::from(others == 1)] += u64::from(active(z));
                }
            }
            Ok(())
        };
        let join = |a: &mut Vec<[u64; 2]>, b: Vec<[u64; 2]>| {
            a.iter_mut().zip(b).for_each(|(a, b)| *a = [a[0] + b[0], a[1] + b[1]]);
        };
        let counts = values.count(|| vec![[0; 2]; models], add, join)?;
        for (factor, [shared, unique]) in ram.unique.iter_mut().zip(counts) {
            let rho = shared as f64 / (unique as f64).max(epsilon);
            *factor = (1.0 + r * rho.clamp(0.0, alpha.max(0.0))) as f32;
        }
        Ok(ram)
    }

    /// Computes the elements `range` into `buffers.out`.
    pub(crate) fn apply(
        &self,
        values: &Values<'_>,
        range: Range<u64>,
        buffers: &mut TileBuffers,
    ) -> Result<()> {
        values.load(range, buffers)?;
        let models = &buffers.z[..self.unique.len()];
        buffers.out.clear();
        buffers.out.extend_from_slice(&buffers.base);
        for (i, out) in buffers.out.iter_mut().enumerate() {
            let active = |z: &&Vec<f32>| z[i].abs() > self.epsilon || z[i].is_nan();
            let count = models.iter().filter(active).count();
            let sum: f32 = match count {
                0 => continue,
                1 => models.iter().zip(&self.unique).filter(|(z, _)| active(z)).map(|(z, f)| z[i] * f).sum(),
                _ => models.iter().filter(active).map(|z| z[i]).sum::<f32>() / count as f32,
            };
            *out += sum;
        }
        Ok(())
    }
}
