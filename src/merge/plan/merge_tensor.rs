//! A tensor of the result of a merge, and the options for tensors that do not fit.

use crate::Result;
use crate::merge::inputs::TensorInputs;
use crate::merge::plan::output_tensor::OutputTensor;
use crate::merge::recipe::parameter::ParameterValues;
use crate::merge::rules::rule::{MergeContext, PreparedTensor, TensorRule};
use crate::merge::tokenizer::align::Alignment;

/// A tensor of the result of a merge.
#[derive(Debug, Clone)]
pub(crate) struct MergeTensor<'a> {
    pub(crate) output: OutputTensor<'a>,
    pub(crate) inputs: TensorInputs<'a>,
    /// Values of the parameters that all models share.
    pub(crate) shared: ParameterValues,
    /// `None` for a copy.
    pub(crate) rule: Option<TensorRule>,
}

impl<'a> MergeTensor<'a> {
    /// Measures what has to be known before the first element can be computed.
    ///
    /// # Errors
    /// As [`TensorRule::prepare`].
    pub(crate) fn prepare(&self, context: MergeContext<'_>) -> Result<PreparedTensor<'a>> {
        match &self.rule {
            Some(rule) if self.output.copied.is_none() => rule.prepare(&self.inputs, context),
            _ => Ok(PreparedTensor::Copy(self.output.longest.clone())),
        }
    }
}

/// What to do with embeddings and heads of different numbers of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MergeVocab {
    /// Refuse.
    #[default]
    Error,
    /// Merge the rows that all have, drop the others.
    Common,
    /// Merge the rows that all have; the others come from the input with the most rows.
    Union,
}

/// What a plan follows besides the recipe.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Policy<'v, 'a> {
    pub(crate) vocab: MergeVocab,
    pub(crate) keep_missing: bool,
    /// The vocabulary of the recipe's tokenizer, where it names one.
    pub(crate) aligned: Option<&'v Alignment<'a>>,
}
