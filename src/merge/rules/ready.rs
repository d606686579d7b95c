//! A tensor's rule, measured and ready to be applied to any of its tiles.

use std::ops::Range;

use crate::merge::plan::job::{Input, Inputs, Job, Params};
use crate::merge::recipe::method::{RESCALES, Rule, Sparsify};
use crate::merge::rules::combine::{Coefficients, Combine, VectorRule};
use crate::merge::rules::fusion::Fusion;
use crate::merge::rules::mask::Masked;
use crate::merge::rules::ram::Ram;
use crate::merge::rules::sce::Sce;
use crate::merge::rules::sparsify::{Kept, Rescale, Thinning, between, largest};
use crate::merge::rules::sphere::{Gram, karcher, multislerp, slerp, stock};
use crate::merge::rules::task::{Elect, Task};
use crate::merge::tiles::low_rank::AdapterUpdate;
use crate::merge::tiles::source::Source;
use crate::merge::tiles::values::{Scratch, Values};
use crate::plan::Key;
use crate::surgery::element_mask::ElementMask;
use crate::{Error, Result};

/// What is done with every tile.
#[derive(Debug)]
pub(crate) enum Ready<'a> {
    /// The bytes of one input, or its values in another type.
    Copy(Source<'a>),
    /// Values and the rule over them.
    Rule(Values<'a>, Formula),
}

/// The rule over loaded values.
#[derive(Debug)]
pub(crate) enum Formula {
    Combine(Combine),
    Task(Task),
    Sce(Sce),
    Ram(Ram),
    NearSwap(f32),
    Fusion(Fusion),
    Mask(Masked),
    Adapter(AdapterUpdate),
}

impl Formula {
    /// Computes the elements `range`, a tile, into `scratch.out`.
    pub(crate) fn apply(&self, values: &Values<'_>, range: Range<u64>, scratch: &mut Scratch) -> Result<()> {
        match self {
            Self::Combine(rule) => rule.apply(values, range, scratch),
            Self::Task(rule) => rule.apply(values, range, scratch),
            Self::Sce(rule) => rule.apply(values, range, scratch),
            Self::Ram(rule) => rule.apply(values, range, scratch),
            Self::NearSwap(t) => near_swap(*t, values, range, scratch),
            Self::Fusion(rule) => rule.apply(values, range, scratch),
            Self::Mask(rule) => rule.apply(values, range, scratch),
            Self::Adapter(rule) => rule.apply(values, range, scratch),
        }
    }
}

/// The elements of a tensor that a model gives: inputs, index of the model, its part, the tensor's name.
pub(crate) type MaskOf<'r> = dyn Fn(&Values<'_>, usize, &Input<'_>, &str) -> Result<ElementMask> + Sync + 'r;

/// What the preparation of one tensor needs to know besides its inputs.
#[derive(Clone, Copy)]
pub(crate) struct Setup<'r> {
    pub(crate) rule: Rule,
    pub(crate) seed: u64,
    /// Elements of one tile.
    pub(crate) tile: u64,
    /// Magnitudes that all tensors are trimmed at, for each model in order: `trim: global`.
    pub(crate) cuts: &'r [(String, f32)],
    /// The elements of a tensor that a model gives.
    pub(crate) masks: &'r MaskOf<'r>,
}

impl<'a> Ready<'a> {
    /// Reads what has to be measured before the first element can be computed.
    ///
    /// # Errors
    /// [`Error::Io`] from reading by position; [`Error::Pairing`] where directions cancel.
    pub(crate) fn new(job: &Job<'a>, setup: &Setup<'_>) -> Result<Self> {
        let inputs = &job.inputs;
        if job.copied.is_some() {
            return Ok(Self::Copy(inputs.longest.clone()));
        }
        if let Some(source) = verbatim(setup.rule, inputs)? {
            return Ok(Self::Copy(source));
        }
        let mut values = Values {
            base: inputs.base.clone(),
            models: inputs.models.iter().map(|m| m.source.clone()).collect(),
            deltas: inputs.base.is_some() && !matches!(setup.rule, Rule::Slerp | Rule::NearSwap | Rule::Mask),
            elements: inputs.common,
            row: row_of(&job.shape),
            tile: setup.tile,
            whole_rows: false,
        };
        let formula = match setup.rule {
            Rule::Task { .. } => Formula::Task(task(&values, inputs, setup)?),
            Rule::Sce => Formula::Sce(Sce::new(&values, inputs.shared.get("select_topk"))?),
            Rule::Ram { plus: false } => {
                let epsilon = inputs.shared.get("epsilon") as f32;
                Formula::Ram(Ram { epsilon, unique: vec![1.0; values.models.len()] })
            }
            Rule::Ram { plus: true } => {
                let get = |name: &str| inputs.shared.get(name);
                Formula::Ram(Ram::plus(&values, get("epsilon"), get("r"), get("alpha"))?)
            }
            Rule::NearSwap => Formula::NearSwap(inputs.shared.get("t") as f32),
            Rule::Fusion => {
                let last = job.shape.last().copied().unwrap_or(1);
                Formula::Fusion(Fusion::new(&values, &required(inputs, &job.name)?, last)?)
            }
            Rule::Mask => {
                // As for `reset`, the rows of a vector are its elements.
                values.row = job.shape.iter().skip(1).product::<u64>().max(1);
                Formula::Mask(masked(&values, inputs, job, setup)?)
            }
            rule => Formula::Combine(combine(rule, &mut values, inputs, job)?),
        };
        if let Rule::Task { sparsify: Sparsify::MagPrune, .. } = setup.rule {
            values.by_rows();
        }
        Ok(Self::Rule(values, formula))
    }
}

fn required<'a>(inputs: &Inputs<'a>, tensor: &str) -> Result<Source<'a>> {
    inputs.base.clone().ok_or_else(|| Error::Pairing {
        tensor: Some(tensor.to_owned()),
        fault: "the base has no such tensor".to_owned(),
        hint: None,
    })
}

/// Elements of a slice along the first dimension; a vector is one row.
pub(crate) fn row_of(shape: &[u64]) -> u64 {
    let row = if shape.len() < 2 { shape.first().copied() } else { Some(shape[1..].iter().product()) };
    row.unwrap_or(1).max(1)
}

/// The input whose bytes are the result, where arithmetic would only round them: a single model at full weight, an
/// end of an arc, or inputs that are all the same.
fn verbatim<'a>(rule: Rule, inputs: &Inputs<'a>) -> Result<Option<Source<'a>>> {
    let (shared, models) = (&inputs.shared, &inputs.models);
    let weight = |m: &Input<'_>| m.params.get("weight");
    let only = match models.as_slice() {
        [only] => Some(only),
        _ => None,
    };
    let base = || inputs.base.clone();
    let found = match rule {
        Rule::Linear => {
            let mut heavy = models.iter().filter(|m| weight(m) != 0.0);
            let first = heavy.next().filter(|_| heavy.next().is_none());
            first.filter(|m| shared.on("normalize") || weight(m) == 1.0).map(|m| m.source.clone())
        }
        Rule::Passthrough => only.filter(|m| m.params.get("scale") == 1.0).map(|m| m.source.clone()),
        Rule::MultiSlerp | Rule::Karcher => only.map(|m| m.source.clone()),
        Rule::Slerp | Rule::NearSwap if shared.get("t") == 0.0 => base(),
        Rule::Slerp if shared.get("t") == 1.0 => only.map(|m| m.source.clone()),
        Rule::NuSlerp if models.len() == 2 => {
            let ends = models.iter().filter(|m| weight(m) == 0.0).count();
            models.iter().find(|m| weight(m) != 0.0).filter(|_| ends == 1).map(|m| m.source.clone())
        }
        Rule::Task { .. } => {
            let mut heavy = models.iter().filter(|m| weight(m) != 0.0 && shared.get("lambda") != 0.0);
            match (heavy.next(), heavy.next()) {
                (None, _) => base(),
                (Some(m), None) => {
                    let factor = if shared.on("normalize") { 1.0 } else { weight(m) };
                    let whole = m.params.get("density") >= 1.0 && factor * shared.get("lambda") == 1.0;
                    whole.then_some(m.source.clone())
                }
                _ => None,
            }
        }
        Rule::Sce => only.filter(|_| shared.get("select_topk") >= 1.0).map(|m| m.source.clone()),
        Rule::Ram { .. } => only.filter(|_| shared.get("epsilon") == 0.0).map(|m| m.source.clone()),
        _ => None,
    };
    let fixed = match rule {
        Rule::Passthrough => false,
        Rule::Linear => shared.on("normalize"),
        // Weights that are not normalised scale the result.
        Rule::MultiSlerp => inputs.base.is_some() || shared.on("normalize_weights"),
        _ => true,
    };
    if found.is_some() || !fixed {
        return Ok(found.filter(|source| source.elements() == inputs.common));
    }
    let mut all = base().into_iter().chain(models.iter().map(|m| m.source.clone()));
    let Some(first) = all.next().filter(|first| first.elements() == inputs.common) else {
        return Ok(None);
    };
    for other in all {
        if !first.same_bytes(&other, inputs.common)? {
            return Ok(None);
        }
    }
    Ok(Some(first))
}

fn combine<'a>(rule: Rule, values: &mut Values<'a>, inputs: &Inputs<'a>, job: &Job<'a>) -> Result<Combine> {
    let shared = &inputs.shared;
    let weights: Vec<f64> = inputs.models.iter().map(|m| m.params.get("weight")).collect();
    let last = job.shape.last().copied().unwrap_or(1).max(1);
    let vectors = |values: &mut Values<'a>, rule: VectorRule| {
        values.row = last;
        values.by_rows();
        Coefficients::Vectors(last, rule)
    };
    let coefficients = match rule {
        Rule::Linear => {
            let sum: f64 = if shared.on("normalize") { weights.iter().sum() } else { 1.0 };
            Coefficients::whole(weights.iter().map(|w| w / sum).collect())
        }
        Rule::Slerp => {
            // The base is one end of the arc.
            values.models.splice(0..0, [required(inputs, &job.name)?]);
            values.base = None;
            Coefficients::whole(slerp(&Gram::of(values)?, shared.get("t")))
        }
        Rule::NuSlerp if shared.on("nuslerp_flatten") => {
            Coefficients::whole(super::sphere::nuslerp(&Gram::of(values)?, &weights))
        }
        Rule::NuSlerp if shared.on("nuslerp_row_wise") && job.shape.len() > 1 => {
            Coefficients::columns(values, &VectorRule::NuSlerp(weights))?
        }
        Rule::NuSlerp => vectors(values, VectorRule::NuSlerp(weights)),
        Rule::MultiSlerp => {
            let found =
                multislerp(&Gram::of(values)?, &weights, shared.on("normalize_weights"), shared.get("eps"));
            Coefficients::whole(found.ok_or_else(|| Error::Pairing {
                tensor: Some(job.name.clone()),
                fault: "the weighted directions of the models cancel".to_owned(),
                hint: Some("use other weights: opposite vectors have no mean on the sphere".to_owned()),
            })?)
        }
        Rule::Karcher => {
            let steps = shared.get("max_iter") as u32;
            Coefficients::whole(karcher(&Gram::of(values)?, steps, shared.get("tol")))
        }
        Rule::Stock if shared.on("filter_wise") => vectors(values, VectorRule::Stock),
        Rule::Stock => Coefficients::whole(stock(&Gram::of(values)?)),
        // Passthrough: one input, scaled.
        _ => Coefficients::whole(inputs.models.iter().map(|m| m.params.get("scale")).collect()),
    };
    let equal_stays = rule == Rule::Linear && shared.on("normalize");
    Ok(Combine { coefficients, equal_stays })
}

/// How the parameter `rescale` is to be read.
pub(crate) fn rescale_of(shared: &Params) -> Rescale {
    match RESCALES.get(shared.get("rescale") as usize) {
        Some(&"l1" | &"true") => Rescale::L1,
        Some(&"inverse-density") => Rescale::InverseDensity,
        _ => Rescale::None,
    }
}

fn task(values: &Values<'_>, inputs: &Inputs<'_>, setup: &Setup<'_>) -> Result<Task> {
    let Rule::Task { sparsify, elect, .. } = setup.rule else {
        return Ok(Task {
            thinning: Vec::new(),
            weights: Vec::new(),
            elect: Elect::None,
            normalize: false,
            lambda: 0.0,
        });
    };
    let shared = &inputs.shared;
    let mut thinning = Vec::with_capacity(inputs.models.len());
    for (i, model) in inputs.models.iter().enumerate() {
        let density = model.params.get("density");
        let rows;
        let values = if sparsify == Sparsify::MagPrune {
            let mut by_rows = Values { base: values.base.clone(), models: values.models.clone(), ..*values };
            by_rows.by_rows();
            rows = by_rows;
            &rows
        } else {
            values
        };
        let kept = kept(values, i, model, sparsify, setup)?;
        thinning.push(Thinning::new(values, i, kept, rescale_of(shared), density)?);
    }
    let elect = match (elect, shared.on("elect")) {
        (false, _) => Elect::None,
        (true, false) => Elect::Weighted,
        (true, true) => Elect::Unweighted,
    };
    let weights = inputs.models.iter().map(|m| m.params.get("weight") as f32).collect();
    let (normalize, lambda) = (shared.on("normalize"), shared.get("lambda") as f32);
    Ok(Task { thinning, weights, elect, normalize, lambda })
}

fn kept(
    values: &Values<'_>,
    i: usize,
    model: &Input<'_>,
    sparsify: Sparsify,
    setup: &Setup<'_>,
) -> Result<Kept> {
    let (n, density) = (values.elements, model.params.get("density"));
    if density >= 1.0 || sparsify == Sparsify::None || n == 0 {
        return Ok(Kept::All);
    }
    if density <= 0.0 || model.params.get("weight") == 0.0 {
        return Ok(Kept::Nothing);
    }
    let key = Key::new(setup.seed, 0, &model.key);
    Ok(match sparsify {
        Sparsify::None => Kept::All,
        Sparsify::Bernoulli => Kept::Coins { key, density },
        Sparsify::Magnitude => {
            if let Some((_, cut)) = setup.cuts.iter().find(|(name, _)| name == model.model) {
                return Ok(Kept::Above(*cut));
            }
            let keep = ((density * n as f64) as u64).max(1);
            largest(values, i, &[keep])?.pop().map_or(Kept::Nothing, Kept::Largest)
        }
        Sparsify::Outlier => {
            let (target, outliers) = between(n, density, model.params.get("gamma"));
            let mut found = largest(values, i, &[target + outliers, outliers])?.into_iter();
            match (found.next(), found.next()) {
                (Some(all), Some(outliers)) => Kept::Between(all, outliers),
                _ => Kept::Nothing,
            }
        }
        Sparsify::MagPrune => {
            let epsilon = model.params.get("epsilon");
            Kept::Ranked { key, density, epsilon }
        }
    })
}

fn masked(values: &Values<'_>, inputs: &Inputs<'_>, job: &Job<'_>, setup: &Setup<'_>) -> Result<Masked> {
    let mut parts = Vec::with_capacity(inputs.models.len());
    for (i, model) in inputs.models.iter().enumerate() {
        let mut mask = (setup.masks)(values, i, model, &job.name)?;
        mask.complement ^= model.params.on("complement");
        parts.push((mask, model.params.get("scale") as f32));
    }
    Ok(Masked { parts })
}

/// nearswap: `q = clamp(t / max(|b − x|, 1e-6), 0, 1)`; `y = q x + (1 − q) b`: no value moves by more than t.
fn near_swap(t: f32, values: &Values<'_>, range: Range<u64>, scratch: &mut Scratch) -> Result<()> {
    values.load(range, scratch)?;
    let Scratch { z, base, out, .. } = scratch;
    out.clear();
    out.extend(z[0].iter().zip(base).map(|(x, b)| {
        let q = (t / (*b - *x).abs().max(1e-6)).clamp(0.0, 1.0);
        if q == 1.0 || x.to_bits() == b.to_bits() { *x } else { q * x + (1.0 - q) * *b }
    }));
    Ok(())
}
