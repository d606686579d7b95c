//! The methods whose result is a combination `y = [b +] Σ c_i z_i` of the inputs, and how each finds its coefficients.

use crate::merge::inputs::{TensorInputs, Verbatim};
use crate::merge::recipe::method::CombinationRule;
use crate::merge::recipe::parameter::ParameterValues;
use crate::merge::rules::combine::{Coefficients, Combine, VectorRule};
use crate::merge::rules::sphere::{Gram, karcher, model_stock, multislerp, nuslerp, slerp};
use crate::merge::tiles::values::Values;
use crate::{Error, Result};

/// A method with its parameters for one tensor.
#[derive(Debug, Clone)]
pub(crate) enum Combination {
    Linear {
        weights: Vec<f64>,
        normalize: bool,
    },
    /// One input, scaled.
    Passthrough {
        scales: Vec<f64>,
    },
    /// Between the base (t = 0) and the model (t = 1).
    Slerp {
        t: f64,
    },
    NuSlerp {
        weights: Vec<f64>,
        vectors: NuSlerpVectors,
    },
    MultiSlerp {
        weights: Vec<f64>,
        normalize: bool,
        eps: f64,
    },
    Karcher {
        max_iter: u32,
        tol: f64,
    },
    ModelStock {
        /// One coefficient per vector along the last axis, not one per tensor.
        filter_wise: bool,
    },
}

/// The vectors between which NuSLERP takes angles.
#[derive(Debug, Clone, Copy)]
pub(crate) enum NuSlerpVectors {
    Tensors,
    Rows,
    Columns,
}

impl Combination {
    /// The method `rule` with its parameters.
    ///
    /// # Errors
    /// Weights that cancel and are to be divided by their sum.
    pub(crate) fn new(
        rule: CombinationRule,
        name: &str,
        shared: &ParameterValues,
        models: &[&ParameterValues],
    ) -> Result<Self> {
        let of_models = |name: &str| models.iter().map(|model| model.number(name)).collect::<Vec<_>>();
        Ok(match rule {
            CombinationRule::Linear => {
                let (weights, normalize) = (of_models("weight"), shared.flag("normalize"));
                check_sum(name, &weights, normalize)?;
                Self::Linear { weights, normalize }
            }
            CombinationRule::Passthrough => Self::Passthrough { scales: of_models("scale") },
            CombinationRule::Slerp => Self::Slerp { t: shared.number("t") },
            CombinationRule::NuSlerp => {
                let vectors = match (shared.flag("nuslerp_flatten"), shared.flag("nuslerp_row_wise")) {
                    (true, _) => NuSlerpVectors::Tensors,
                    (false, true) => NuSlerpVectors::Columns,
                    (false, false) => NuSlerpVectors::Rows,
                };
                Self::NuSlerp { weights: of_models("weight"), vectors }
            }
            CombinationRule::MultiSlerp => {
                let (weights, normalize) = (of_models("weight"), shared.flag("normalize_weights"));
                check_sum(name, &weights, normalize && weights.len() > 1)?;
                Self::MultiSlerp { weights, normalize, eps: shared.number("eps") }
            }
            CombinationRule::Karcher => {
                Self::Karcher { max_iter: shared.number("max_iter") as u32, tol: shared.number("tol") }
            }
            CombinationRule::ModelStock => Self::ModelStock { filter_wise: shared.flag("filter_wise") },
        })
    }

    /// A single model at full weight, or an end of an arc.
    pub(crate) fn verbatim(&self, inputs: &TensorInputs<'_>) -> Verbatim {
        let or_equal = |on: bool| if on { Verbatim::WhereEqual } else { Verbatim::Never };
        let single = inputs.models.len() == 1;
        match self {
            Self::Linear { weights, normalize } => match only_nonzero(weights) {
                Some(i) if *normalize || weights[i] == 1.0 => Verbatim::Model(i),
                _ => or_equal(*normalize),
            },
            Self::Passthrough { scales } if scales == &[1.0] => Verbatim::Model(0),
            Self::Passthrough { .. } => Verbatim::Never,
            Self::Slerp { t: 0.0 } => Verbatim::Base,
            Self::Slerp { t: 1.0 } => Verbatim::Model(0),
            Self::NuSlerp { weights, .. } => {
                only_nonzero(weights).map_or(Verbatim::WhereEqual, Verbatim::Model)
            }
            Self::MultiSlerp { .. } | Self::Karcher { .. } if single => Verbatim::Model(0),
            // Weights that are not normalised scale the result.
            Self::MultiSlerp { normalize, .. } => or_equal(inputs.base.is_some() || *normalize),
            Self::Slerp { .. } | Self::Karcher { .. } | Self::ModelStock { .. } => Verbatim::WhereEqual,
        }
    }

    /// Finds the coefficients, from the values where the method takes angles between them.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Pairing`] where directions cancel.
    pub(crate) fn prepare<'a>(&self, inputs: &TensorInputs<'a>, tile: u64) -> Result<(Values<'a>, Combine)> {
        let mut values = inputs.deltas(tile);
        let coefficients = match self {
            Self::Linear { weights, normalize } => {
                let sum: f64 = if *normalize { weights.iter().sum() } else { 1.0 };
                Coefficients::whole(weights.iter().map(|w| w / sum).collect())
            }
            Self::Passthrough { scales } => Coefficients::whole(scales.clone()),
            Self::Slerp { t } => {
                // The base is one end of the arc.
                values.models.splice(0..0, [inputs.required_base()?]);
                (values.base, values.deltas) = (None, false);
                Coefficients::whole(slerp(&Gram::of(&values)?, *t))
            }
            Self::NuSlerp { weights, vectors: NuSlerpVectors::Tensors } => {
                Coefficients::whole(nuslerp(&Gram::of(&values)?, weights))
            }
            Self::NuSlerp { weights, vectors: NuSlerpVectors::Columns } if inputs.shape.len() > 1 => {
                Coefficients::columns(&values, &VectorRule::NuSlerp(weights.clone()))?
            }
            Self::NuSlerp { weights, .. } => {
                last_axis(&mut values, inputs, VectorRule::NuSlerp(weights.clone()))
            }
            Self::MultiSlerp { weights, normalize, eps } => {
                let found = multislerp(&Gram::of(&values)?, weights, *normalize, *eps);
                Coefficients::whole(found.ok_or_else(|| directions_cancel(inputs))?)
            }
            Self::Karcher { max_iter, tol } => {
                Coefficients::whole(karcher(&Gram::of(&values)?, *max_iter, *tol))
            }
            Self::ModelStock { filter_wise: true } => last_axis(&mut values, inputs, VectorRule::ModelStock),
            Self::ModelStock { filter_wise: false } => Coefficients::whole(model_stock(&Gram::of(&values)?)),
        };
        let equal_stays = matches!(self, Self::Linear { normalize: true, .. });
        Ok((values, Combine { coefficients, equal_stays }))
    }
}

/// Coefficients of each vector along the last axis.
fn last_axis(values: &mut Values<'_>, inputs: &TensorInputs<'_>, rule: VectorRule) -> Coefficients {
    values.row = inputs.last_axis();
    values.by_rows();
    Coefficients::Vectors(values.row, rule)
}

fn directions_cancel(inputs: &TensorInputs<'_>) -> Error {
    Error::Pairing {
        tensor: Some(inputs.name.clone()),
        fault: "the weighted directions of the models cancel".to_owned(),
        hint: Some("use other weights: opposite vectors have no mean on the sphere".to_owned()),
    }
}

/// The index of the weight that is not zero, where all others are.
fn only_nonzero(weights: &[f64]) -> Option<usize> {
    let mut found = (0..weights.len()).filter(|i| weights[*i] != 0.0);
    found.next().filter(|_| found.next().is_none())
}

/// Weights that are to be divided by their sum must not cancel up to rounding: 1 and −1 would make every result NaN.
fn check_sum(tensor: &str, weights: &[f64], divided: bool) -> Result<()> {
    let (sum, size): (f64, f64) = (weights.iter().sum(), weights.iter().map(|w| w.abs()).sum());
    if !divided || weights.is_empty() || sum.abs() > 1e-9 * size {
        return Ok(());
    }
    Err(Error::Pairing {
        tensor: Some(tensor.to_owned()),
        fault: format!("the weights add up to {sum:e}, and are to be divided by their sum"),
        hint: Some("change a weight, or turn the normalization off".to_owned()),
    })
}
