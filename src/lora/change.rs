//! What an adapter does to one tensor of the base.
//!
//! `W' = W + s · B A`, A `[r, in]`, B `[out, r]`, s = lora_alpha / r, or lora_alpha / √r with rslora; transposed for
//! embeddings and Conv1D. Source: Hu et al. 2021 (LoRA), arXiv:2106.09685 §4.1; Kalajdzievski 2023 (rsLoRA),
//! arXiv:2312.03732; Liu et al. 2024 (DoRA), arXiv:2402.09353.

use std::collections::BTreeMap;

use crate::lora::adapter::Module;
use crate::lora::adapter_config::AdapterConfig;
use crate::lora::names::Part;
use crate::merge::tiles::low_rank::{AdapterUpdate, LowRankUpdate, finite_values};
use crate::merge::tiles::source::Source;
use crate::merge::tiles::values::Values;
use crate::{Error, Result};

/// What an adapter does to one tensor: first a whole tensor takes its place, then updates are added, then rows replaced.
#[derive(Debug, Clone, Default)]
pub(super) struct Change<'a> {
    /// Takes the place of the base's tensor.
    pub(super) saved: Option<Source<'a>>,
    pub(super) updates: Vec<Update<'a>>,
    /// `w · s · b` for a bias of the base, b and w · s.
    pub(super) biases: Vec<(Source<'a>, f32)>,
    pub(super) tokens: Vec<Tokens<'a>>,
}

/// `w · s · B A` for a matrix of the base.
#[derive(Debug, Clone)]
pub(super) struct Update<'a> {
    a: Source<'a>,
    b: Source<'a>,
    scale: f32,
    transposed: bool,
    /// The norms of DoRA: of the rows, or of the columns where `transposed`.
    pub(super) magnitude: Option<Source<'a>>,
}

/// New rows of an embedding.
#[derive(Debug, Clone)]
pub(super) struct Tokens<'a> {
    pub(super) rows: Source<'a>,
    pub(super) ids: Vec<u64>,
}

/// The weight that a module of an adapter changes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Weight<'a> {
    pub(super) shape: &'a [u64],
    /// Whether it lies as `[in, out]`, where the module is linear; `None` where its shape cannot tell and nothing else does.
    pub(super) fan_in_first: Option<bool>,
    pub(super) is_embedding: bool,
}

impl<'a> Update<'a> {
    /// The update of a module that has factors, times `factor`; `None` for a module without factors.
    ///
    /// # Errors
    /// Factors that do not fit the weight or the rank of the configuration.
    pub(super) fn of(
        module: &Module<'a>,
        weight: Weight<'_>,
        config: &AdapterConfig,
        factor: f64,
    ) -> Result<Option<Self>> {
        let linear = module.part(Part::A).zip(module.part(Part::B));
        let embedding = module.part(Part::EmbeddingA).zip(module.part(Part::EmbeddingB));
        let (a, b, transposed) = match (linear, embedding) {
            (None, None) => return Ok(None),
            (Some(_), Some(_)) => return Err(module.fault("factors of a linear layer and of an embedding")),
            (None, Some((a, b))) => (a, b, true),
            (Some((a, b)), None) => {
                let unknown = "fan_in_fan_out is set, and neither the shape nor model_type tells how the base's weight lies";
                (a, b, weight.fan_in_first.ok_or_else(|| module.fault(unknown))?)
            }
        };
        let magnitude = module.part(Part::Magnitude);
        if magnitude.is_some() && factor != 1.0 {
            let fault =
                format!("the weight {factor} for factors with norms (DoRA) is not defined, expected 1");
            return Err(module.fault(&fault));
        }
        let scale = config.scale(module.name, factor)? as f32;
        let update = Self { a, b, scale, transposed, magnitude };
        update.check(module, weight.shape, config)?;
        Ok(Some(update))
    }

    fn check(&self, module: &Module<'_>, expected: &[u64], config: &AdapterConfig) -> Result<()> {
        let (sa, sb) = (&self.a.info.shape, &self.b.info.shape);
        let (product, rank) = match (sa.as_slice(), sb.as_slice()) {
            ([r, n], [m, s]) if r == s && self.transposed => ([*n, *m], *r),
            ([r, n], [m, s]) if r == s => ([*m, *n], *r),
            _ => return Err(module.fault(&format!("shapes do not fit: B {sb:?} times A {sa:?}"))),
        };
        if product != *expected || product.contains(&0) {
            let fault = format!("shapes do not fit: B {sb:?} times A {sa:?} for {expected:?}");
            return Err(module.fault(&fault));
        }
        let said = config.rank(module.name)?;
        if said != rank as f64 {
            let fault = format!("rank differs: the file has {rank}, adapter_config.json says {said}");
            return Err(module.fault(&fault));
        }
        let norms = product[usize::from(self.transposed)];
        match &self.magnitude {
            Some(m) if m.info.elements() != norms => {
                let got = &m.info.shape;
                Err(module.fault(&format!("lora_magnitude_vector is {got:?}, expected [{norms}]")))
            }
            _ => Ok(()),
        }
    }

    fn read(&self) -> Result<LowRankUpdate> {
        LowRankUpdate::read(&self.a, &self.b, self.scale, self.transposed)
    }
}

impl<'a> Tokens<'a> {
    /// The new rows of a module that has some; `None` for another.
    ///
    /// # Errors
    /// Rows that do not fit the weight or the ids of the configuration.
    pub(super) fn of(
        module: &Module<'a>,
        weight: Weight<'_>,
        config: &AdapterConfig,
    ) -> Result<Option<Self>> {
        let ids = config.tokens(module.name, weight.is_embedding);
        let Some(rows) = module.part(Part::Tokens) else {
            return Ok(None);
        };
        let [count, width] = *weight.shape else {
            return Err(module.fault(&format!("rows for a tensor of shape {:?}", weight.shape)));
        };
        let expected = [ids.len() as u64, width];
        if rows.info.shape != expected {
            let (got, key) = (&rows.info.shape, "trainable_token_indices");
            return Err(
                module.fault(&format!("shapes differ: the file has {got:?}, {key} asks for {expected:?}"))
            );
        }
        if let Some(id) = ids.iter().find(|id| **id >= count) {
            return Err(module.fault(&format!("token id {id}, but the base has {count} rows")));
        }
        Ok(Some(Self { rows, ids: ids.to_vec() }))
    }

    /// The rows by their number.
    fn read(&self) -> Result<BTreeMap<u64, Vec<f32>>> {
        let values = finite_values(&self.rows)?;
        let row = self.rows.info.shape.get(1).copied().unwrap_or(1).max(1) as usize;
        Ok(self.ids.iter().copied().zip(values.chunks(row).map(<[f32]>::to_vec)).collect())
    }
}

impl Change<'_> {
    /// Whether nothing is computed.
    pub(super) fn is_copy(&self) -> bool {
        self.updates.is_empty() && self.biases.is_empty() && self.tokens.is_empty()
    }

    /// Checks what only one of may be.
    pub(super) fn check(&self, fault: &dyn Fn(&str) -> Error) -> Result<()> {
        let dora = self.updates.iter().any(|update| update.magnitude.is_some());
        if dora && self.updates.len() > 1 {
            return Err(fault("two updates of one weight, with norms: which comes first is not defined"));
        }
        if !self.tokens.is_empty() && !self.updates.is_empty() {
            return Err(fault("factors and new rows for one weight: which comes first is not defined"));
        }
        Ok(())
    }

    /// Reads the numbers of the change of the tensor `values`.
    ///
    /// # Errors
    /// [`Error::Io`]; values that are infinite or NaN.
    pub(super) fn read(&self, values: &Values<'_>) -> Result<AdapterUpdate> {
        let mut update = AdapterUpdate::default();
        for low_rank in &self.updates {
            update.updates.push(low_rank.read()?);
        }
        for (bias, scale) in &self.biases {
            update.updates.push(LowRankUpdate::of_vector(finite_values(bias)?, *scale));
        }
        for tokens in &self.tokens {
            update.rows.extend(tokens.read()?);
        }
        let norms =
            self.updates.iter().find_map(|update| Some((update.magnitude.as_ref()?, update.transposed)));
        if let Some((magnitude, by_columns)) = norms {
            update.normalize(values, &finite_values(magnitude)?, by_columns)?;
        }
        Ok(update)
    }
}
