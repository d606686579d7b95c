//! The methods of task arithmetic: how each sparsifies task vectors, elects signs and scales the sum.

use std::collections::BTreeMap;

use crate::merge::inputs::{ModelInput, TensorInputs, Verbatim};
use crate::merge::recipe::method::Sparsify;
use crate::merge::recipe::parameter::ParameterValues;
use crate::merge::rules::sparsify::{KeptElements, Rescale, SparsifiedVector, largest, without_outliers};
use crate::merge::rules::task::{Elect, Task};
use crate::merge::tiles::values::Values;
use crate::plan::Key;
use crate::{Error, Result};

/// A method with its parameters for one tensor.
#[derive(Debug, Clone)]
pub(crate) struct TaskArithmetic {
    models: Vec<TaskVector>,
    elect: Elect,
    normalize: bool,
    lambda: f64,
    rescale: Rescale,
    /// Whether a model is trimmed at one magnitude for all tensors.
    pub(crate) trim_global: bool,
}

/// How the task vector of one model is taken.
#[derive(Debug, Clone, Copy)]
struct TaskVector {
    weight: f64,
    density: f64,
    sparsifier: Sparsifier,
}

/// How elements are chosen.
#[derive(Debug, Clone, Copy)]
enum Sparsifier {
    None,
    Magnitude,
    Bernoulli,
    Outlier { gamma: f64 },
    MagPrune { epsilon: f64 },
}

/// For `trim: global`, the magnitude at which each model is trimmed in all tensors.
#[derive(Debug, Default)]
pub(crate) struct GlobalThresholds(pub(crate) BTreeMap<String, f32>);

/// What the sparsifiers follow besides the inputs of a tensor.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Draws<'t> {
    pub(crate) seed: u64,
    pub(crate) thresholds: &'t GlobalThresholds,
}

impl TaskArithmetic {
    /// The method with its parameters; `elect` says whether signs are elected.
    ///
    /// # Errors
    /// [`Error::Usage`] where MagPrune would draw with a probability outside of 0 to 1.
    pub(crate) fn new(
        sparsify: Sparsify,
        elect: bool,
        shared: &ParameterValues,
        models: &[&ParameterValues],
    ) -> Result<Self> {
        let models = models.iter().map(|model| TaskVector::new(sparsify, model)).collect::<Result<_>>()?;
        let elect = match (elect, shared.word("elect")) {
            (false, _) => Elect::None,
            (true, "unweighted") => Elect::Unweighted,
            (true, _) => Elect::Weighted,
        };
        let rescale = match shared.word("rescale") {
            "l1" | "true" => Rescale::L1,
            "inverse-density" => Rescale::InverseDensity,
            _ => Rescale::None,
        };
        let trim_global = sparsify == Sparsify::Magnitude && shared.word("trim") == "global";
        let (normalize, lambda) = (shared.flag("normalize"), shared.number("lambda"));
        Ok(Self { models, elect, normalize, lambda, rescale, trim_global })
    }

    /// The density of model `i`.
    pub(crate) fn density(&self, i: usize) -> f64 {
        self.models[i].density
    }

    /// Nothing is added to the base, or the whole task vector of one model.
    pub(crate) fn verbatim(&self) -> Verbatim {
        let mut added = self.models.iter().enumerate().filter(|(_, m)| m.weight != 0.0 && self.lambda != 0.0);
        match (added.next(), added.next()) {
            (None, _) => Verbatim::Base,
            (Some((i, model)), None) => {
                let factor = if self.normalize { 1.0 } else { model.weight };
                let whole = model.density >= 1.0 && factor * self.lambda == 1.0;
                if whole { Verbatim::Model(i) } else { Verbatim::WhereEqual }
            }
            _ => Verbatim::WhereEqual,
        }
    }

    /// Measures thresholds and factors of all task vectors.
    ///
    /// # Errors
    /// [`Error::Io`] from reading by position.
    pub(crate) fn prepare<'a>(
        &self,
        inputs: &TensorInputs<'a>,
        tile: u64,
        draws: Draws<'_>,
    ) -> Result<(Values<'a>, Task)> {
        let mut values = inputs.deltas(tile);
        if self.models.iter().any(|model| matches!(model.sparsifier, Sparsifier::MagPrune { .. })) {
            values.by_rows();
        }
        let mut vectors = Vec::with_capacity(self.models.len());
        for (i, (model, input)) in self.models.iter().zip(&inputs.models).enumerate() {
            let kept = self.kept(&values, i, input, draws)?;
            vectors.push(SparsifiedVector::new(&values, i, kept, self.rescale, model.density)?);
        }
        let weights = self.models.iter().map(|model| model.weight as f32).collect();
        let (elect, normalize, lambda) = (self.elect, self.normalize, self.lambda as f32);
        Ok((values, Task { vectors, weights, elect, normalize, lambda }))
    }

    fn kept(
        &self,
        values: &Values<'_>,
        i: usize,
        input: &ModelInput<'_>,
        draws: Draws<'_>,
    ) -> Result<KeptElements> {
        let TaskVector { weight, density, sparsifier } = self.models[i];
        let n = values.elements;
        if density >= 1.0 || n == 0 || matches!(sparsifier, Sparsifier::None) {
            return Ok(KeptElements::All);
        }
        if density <= 0.0 || weight == 0.0 {
            return Ok(KeptElements::Nothing);
        }
        let key = || Key::new(draws.seed, 0, &input.draw_key);
        Ok(match sparsifier {
            Sparsifier::None => KeptElements::All,
            Sparsifier::Bernoulli => KeptElements::Bernoulli { key: key(), density },
            Sparsifier::MagPrune { epsilon } => KeptElements::Ranked { key: key(), density, epsilon },
            Sparsifier::Magnitude => {
                let global = draws.thresholds.0.get(input.model).filter(|_| self.trim_global);
                if let Some(threshold) = global {
                    return Ok(KeptElements::Above(*threshold));
                }
                let keep = ((density * n as f64) as u64).max(1);
                largest(values, i, &[keep])?.pop().map_or(KeptElements::Nothing, KeptElements::Largest)
            }
            Sparsifier::Outlier { gamma } => {
                let (target, outliers) = without_outliers(n, density, gamma);
                let mut found = largest(values, i, &[target + outliers, outliers])?.into_iter();
                match (found.next(), found.next()) {
                    (Some(largest), Some(outliers)) => KeptElements::WithoutOutliers { largest, outliers },
                    _ => KeptElements::Nothing,
                }
            }
        })
    }
}

impl TaskVector {
    fn new(sparsify: Sparsify, model: &ParameterValues) -> Result<Self> {
        let (weight, density) = (model.number("weight"), model.number("density"));
        let sparsifier = match sparsify {
            Sparsify::None => Sparsifier::None,
            Sparsify::Magnitude => Sparsifier::Magnitude,
            Sparsify::Bernoulli => Sparsifier::Bernoulli,
            Sparsify::Outlier => Sparsifier::Outlier { gamma: model.number("gamma") },
            Sparsify::MagPrune => {
                let epsilon = model.number("epsilon");
                check_probabilities(density, epsilon)?;
                Sparsifier::MagPrune { epsilon }
            }
        };
        Ok(Self { weight, density, sparsifier })
    }
}

/// The probabilities of MagPrune, density ± epsilon, must lie inside 0 to 1.
fn check_probabilities(density: f64, epsilon: f64) -> Result<()> {
    let drawn = density > 0.0 && density < 1.0;
    if !drawn || density - epsilon > 0.0 && density + epsilon < 1.0 {
        return Ok(());
    }
    let fault = format!("density ± epsilon must lie inside 0 to 1: got {density} ± {epsilon}");
    Err(Error::usage(fault, "use a smaller epsilon"))
}
