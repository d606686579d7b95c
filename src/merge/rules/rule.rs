//! The rule of a tensor, of any family: built from parameters, prepared by measuring the inputs, applied to tiles.

use std::ops::Range;

use crate::Result;
use crate::merge::inputs::{TensorInputs, Verbatim};
use crate::merge::recipe::method::Rule;
use crate::merge::recipe::parameter::ParameterValues;
use crate::merge::rules::combination::Combination;
use crate::merge::rules::combine::Combine;
use crate::merge::rules::fusion::Fusion;
use crate::merge::rules::mask::Masked;
use crate::merge::rules::mask_plans::{MaskParameters, MaskPlans};
use crate::merge::rules::near_swap::NearSwap;
use crate::merge::rules::ram::{Ram, RamParameters};
use crate::merge::rules::sce::{Sce, SceParameters};
use crate::merge::rules::task::Task;
use crate::merge::rules::task_arithmetic::{Draws, GlobalThresholds, TaskArithmetic};
use crate::merge::tiles::low_rank::AdapterUpdate;
use crate::merge::tiles::source::Source;
use crate::merge::tiles::values::{TileBuffers, Values};

/// A method with its parameters for one tensor.
#[derive(Debug, Clone)]
pub(crate) enum TensorRule {
    Combination(Combination),
    Task(TaskArithmetic),
    Sce(SceParameters),
    Ram(RamParameters),
    NearSwap(NearSwap),
    Fusion,
    Mask(MaskParameters),
}

/// What all tensors of a merge share.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MergeContext<'m> {
    pub(crate) seed: u64,
    /// Elements of one tile.
    pub(crate) tile: u64,
    pub(crate) thresholds: &'m GlobalThresholds,
    pub(crate) masks: &'m MaskPlans,
}

/// A tensor that is ready to be written.
#[derive(Debug)]
pub(crate) enum PreparedTensor<'a> {
    /// The bytes of one input, or its values in another type.
    Copy(Source<'a>),
    /// Values and the rule over them.
    Computed(Values<'a>, PreparedRule),
}

/// A rule with all that had to be measured before the first element can be computed.
#[derive(Debug)]
pub(crate) enum PreparedRule {
    Combine(Combine),
    Task(Task),
    Sce(Sce),
    Ram(Ram),
    NearSwap(NearSwap),
    Fusion(Fusion),
    Mask(Masked),
    Adapter(AdapterUpdate),
}

impl PreparedTensor<'_> {
    /// Gives back the memory of the inputs, which are not read again for this tensor.
    pub(crate) fn release(&self) {
        match self {
            Self::Copy(source) => source.release(),
            Self::Computed(values, _) => values.base.iter().chain(&values.models).for_each(Source::release),
        }
    }
}

impl TensorRule {
    /// The rule of the tensor `name`, from the values of its parameters: shared ones, and those of each model.
    ///
    /// # Errors
    /// Values that the rule cannot take together.
    pub(crate) fn new(
        rule: Rule,
        name: &str,
        shared: &ParameterValues,
        models: &[&ParameterValues],
    ) -> Result<Self> {
        Ok(match rule {
            Rule::Combination(rule) => Self::Combination(Combination::new(rule, name, shared, models)?),
            Rule::Task { sparsify, elect } => {
                Self::Task(TaskArithmetic::new(sparsify, elect, shared, models)?)
            }
            Rule::Sce => Self::Sce(SceParameters::new(shared)),
            Rule::Ram { plus } => Self::Ram(RamParameters::new(plus, shared)),
            Rule::NearSwap => Self::NearSwap(NearSwap::new(shared)),
            Rule::Fusion => Self::Fusion,
            Rule::Mask => Self::Mask(MaskParameters::new(models)),
        })
    }

    fn verbatim(&self, inputs: &TensorInputs<'_>) -> Verbatim {
        match self {
            Self::Combination(rule) => rule.verbatim(inputs),
            Self::Task(rule) => rule.verbatim(),
            Self::Sce(rule) => rule.verbatim(inputs),
            Self::Ram(rule) => rule.verbatim(inputs),
            Self::NearSwap(rule) => rule.verbatim(),
            Self::Fusion | Self::Mask(_) => Verbatim::WhereEqual,
        }
    }

    /// Measures what has to be known before the first element can be computed.
    ///
    /// # Errors
    /// [`crate::Error::Io`] from reading by position; [`crate::Error::Pairing`] where directions cancel.
    pub(crate) fn prepare<'a>(
        &self,
        inputs: &TensorInputs<'a>,
        context: MergeContext<'_>,
    ) -> Result<PreparedTensor<'a>> {
        if let Some(source) = inputs.verbatim(self.verbatim(inputs))? {
            return Ok(PreparedTensor::Copy(source));
        }
        let MergeContext { seed, tile, thresholds, masks } = context;
        let (values, rule) = match self {
            Self::Combination(rule) => prepared(rule.prepare(inputs, tile)?, PreparedRule::Combine),
            Self::Task(rule) => {
                prepared(rule.prepare(inputs, tile, Draws { seed, thresholds })?, PreparedRule::Task)
            }
            Self::Sce(rule) => prepared(rule.prepare(inputs, tile)?, PreparedRule::Sce),
            Self::Ram(rule) => prepared(rule.prepare(inputs, tile)?, PreparedRule::Ram),
            Self::NearSwap(rule) => (inputs.values(tile), PreparedRule::NearSwap(*rule)),
            Self::Fusion => prepared(Fusion::prepare(inputs, tile)?, PreparedRule::Fusion),
            Self::Mask(rule) => prepared(rule.prepare(inputs, tile, masks)?, PreparedRule::Mask),
        };
        Ok(PreparedTensor::Computed(values, rule))
    }
}

fn prepared<'a, R>(
    (values, rule): (Values<'a>, R),
    family: fn(R) -> PreparedRule,
) -> (Values<'a>, PreparedRule) {
    (values, family(rule))
}

impl PreparedRule {
    /// Computes the elements `range`, a tile, into `buffers.out`.
    pub(crate) fn apply(
        &self,
        values: &Values<'_>,
        range: Range<u64>,
        buffers: &mut TileBuffers,
    ) -> Result<()> {
        match self {
            Self::Combine(rule) => rule.apply(values, range, buffers),
            Self::Task(rule) => rule.apply(values, range, buffers),
            Self::Sce(rule) => rule.apply(values, range, buffers),
            Self::Ram(rule) => rule.apply(values, range, buffers),
            Self::NearSwap(rule) => rule.apply(values, range, buffers),
            Self::Fusion(rule) => rule.apply(values, range, buffers),
            Self::Mask(rule) => rule.apply(values, range, buffers),
            Self::Adapter(rule) => rule.apply(values, range, buffers),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::merge::recipe::method::METHODS;
    use crate::merge::recipe::parameter::{Parameter, TensorPosition};
    use crate::merge::recipe::setting::{Setting, Settings};

    /// The row of every method lists all parameters that its rule reads.
    #[test]
    fn every_method_builds_its_rule() {
        let given = ["weight", "t"].map(|name| (name.to_owned(), Setting::parse(&0.5.into()).unwrap()));
        let given: Settings = given.into_iter().collect();
        for method in METHODS {
            let resolve = |per_model: bool| {
                let parameters = method.parameters.iter().filter(|p: &&Parameter| p.per_model == per_model);
                ParameterValues::resolve(parameters, &[&given], TensorPosition { name: "w", depth: 0.0 })
                    .unwrap()
            };
            let model = resolve(true);
            let rule = TensorRule::new(method.rule, "w", &resolve(false), &[&model, &model]);
            assert!(rule.is_ok(), "{}: {rule:?}", method.name);
        }
    }
}
