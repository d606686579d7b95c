//! RAM: task vectors of reinforcement learning, unique parts whole, shared parts averaged. arXiv:2601.13572.
//!
//! `A_i = [|τ_i| > ε]`, `c = Σ A_i`; `y = b + Σ A_i τ_i / max(c, 1)`. RAM+ (tensor-local) strengthens what only
//! model i has by `1 + r · clip(ρ_i, 0, α)`, ρ_i = #shared_i / #unique_i.

use std::ops::Range;

use crate::Result;
use crate::merge::tiles::values::{Scratch, Values};

/// The rule for one tensor.
#[derive(Debug)]
pub(crate) struct Ram {
    pub(crate) epsilon: f32,
    /// Factor of what only this model has.
    pub(crate) unique: Vec<f32>,
}

impl Ram {
    /// Counts shared and unique elements of each model.
    pub(crate) fn plus(values: &Values<'_>, epsilon: f64, r: f64, alpha: f64) -> Result<Self> {
        let models = values.models.len();
        let mut ram = Self { epsilon: epsilon as f32, unique: vec![1.0; models] };
        let add = |counts: &mut Vec<[u64; 2]>, scratch: &mut Scratch, range: Range<u64>| {
            values.load(range.clone(), scratch)?;
            for i in 0..(range.end - range.start) as usize {
                let active = |z: &Vec<f32>| z[i].abs() > ram.epsilon;
                let others = scratch.z[..models].iter().filter(|z| active(z)).count();
                for (count, z) in counts.iter_mut().zip(&scratch.z) {
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

    /// Computes the elements `range` into `scratch.out`.
    pub(crate) fn apply(&self, values: &Values<'_>, range: Range<u64>, scratch: &mut Scratch) -> Result<()> {
        values.load(range, scratch)?;
        let models = &scratch.z[..self.unique.len()];
        scratch.out.clear();
        scratch.out.extend_from_slice(&scratch.base);
        for (i, out) in scratch.out.iter_mut().enumerate() {
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
