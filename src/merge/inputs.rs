//! What one tensor of the result is merged from.

use crate::merge::recipe::parameter::ParameterValues;
use crate::merge::tiles::source::Source;
use crate::merge::tiles::values::Values;
use crate::{Error, Result};

/// The inputs of one tensor of the result.
#[derive(Debug, Clone)]
pub(crate) struct TensorInputs<'a> {
    /// The name that masks and random draws go by: that of the tensor in the result, for a stored copy of a tied head
    /// that of the embedding.
    pub(crate) name: String,
    /// The shape of the result.
    pub(crate) shape: Vec<u64>,
    pub(crate) base: Option<Source<'a>>,
    /// In an order that does not depend on that of the recipe.
    pub(crate) models: Vec<ModelInput<'a>>,
    /// Leading elements, which all inputs have.
    pub(crate) common: u64,
}

/// The tensor of one model.
#[derive(Debug, Clone)]
pub(crate) struct ModelInput<'a> {
    pub(crate) source: Source<'a>,
    /// What its random draws are keyed by: tensor, contents of the model, and which of the inputs of these contents.
    pub(crate) draw_key: String,
    /// Its name in the recipe.
    pub(crate) model: &'a str,
    pub(crate) parameters: ParameterValues,
}

/// The input whose bytes are the result, where arithmetic would only round them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verbatim {
    Base,
    /// The model of this index.
    Model(usize),
    /// Any, where all are the same bytes.
    WhereEqual,
    Never,
}

impl<'a> TensorInputs<'a> {
    /// The values of the models, not differences from the base.
    pub(crate) fn values(&self, tile: u64) -> Values<'a> {
        Values {
            base: self.base.clone(),
            models: self.models.iter().map(|model| model.source.clone()).collect(),
            deltas: false,
            elements: self.common,
            row: row_of(&self.shape),
            tile,
            whole_rows: false,
        }
    }

    /// The values of the models as differences from the base, where there is one.
    pub(crate) fn deltas(&self, tile: u64) -> Values<'a> {
        Values { deltas: self.base.is_some(), ..self.values(tile) }
    }

    /// The base of a method that needs one.
    ///
    /// # Errors
    /// [`Error::Pairing`] where it has no such tensor.
    pub(crate) fn required_base(&self) -> Result<Source<'a>> {
        self.base.clone().ok_or_else(|| Error::Pairing {
            tensor: Some(self.name.clone()),
            fault: "the base has no such tensor".to_owned(),
            hint: None,
        })
    }

    /// The length of the last axis; a scalar counts as a vector of one element.
    pub(crate) fn last_axis(&self) -> u64 {
        self.shape.last().copied().unwrap_or(1).max(1)
    }

    /// The input whose bytes are the result; `None` where it has to be computed.
    ///
    /// # Errors
    /// [`Error::Io`] from reading by position.
    pub(crate) fn verbatim(&self, which: Verbatim) -> Result<Option<Source<'a>>> {
        let found = match which {
            Verbatim::Base => self.base.as_ref(),
            Verbatim::Model(i) => self.models.get(i).map(|model| &model.source),
            Verbatim::WhereEqual => return self.equal(),
            Verbatim::Never => None,
        };
        Ok(found.filter(|source| source.elements() == self.common).cloned())
    }

    /// The first input, where all are the same bytes.
    fn equal(&self) -> Result<Option<Source<'a>>> {
        let mut all = self.base.iter().chain(self.models.iter().map(|model| &model.source));
        let Some(first) = all.next().filter(|first| first.elements() == self.common) else {
            return Ok(None);
        };
        for other in all {
            if !first.same_bytes(other, self.common)? {
                return Ok(None);
            }
        }
        Ok(Some(first.clone()))
    }
}

/// Elements of a slice along the first dimension; a vector is one row.
pub(crate) fn row_of(shape: &[u64]) -> u64 {
    let row = if shape.len() < 2 { shape.first().copied() } else { Some(shape[1..].iter().product()) };
    row.unwrap_or(1).max(1)
}
