//! A PEFT adapter on disk: `adapter_config.json` and `adapter_model.safetensors`, and the update it makes.
//!
//! `W' = W + s · B A`, A `[r, in]`, B `[out, r]`, s = lora_alpha / r, or lora_alpha / √r with rslora; transposed for
//! embeddings and with fan_in_fan_out. Source: Hu et al. 2021 (LoRA), arXiv:2106.09685 §4.1; Kalajdzievski 2023
//! (rsLoRA), arXiv:2312.03732.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use serde_json::Value;

use crate::checkpoint::{Access, Checkpoint, read_config};
use crate::error::Escaped;
use crate::merge::tiles::source::{Source, is_float, is_writable};
use crate::merge::tiles::values::{Scratch, Values};
use crate::plan::{Category, TensorName};
use crate::simd::{Kernel, dispatch};
use crate::{Error, Faults, Result};

/// An adapter that was read and checked by itself.
#[derive(Debug)]
pub struct Adapter {
    checkpoint: Checkpoint,
    config: Config,
}

#[derive(Debug)]
struct Config {
    alpha: f64,
    rank: f64,
    alphas: BTreeMap<String, f64>,
    ranks: BTreeMap<String, f64>,
    rslora: bool,
    transposed: bool,
}

/// What an adapter does to one tensor of the base.
#[derive(Debug, Clone)]
pub(crate) enum Change<'a> {
    /// `W + s · B A`, or its transpose.
    Update { a: Source<'a>, b: Source<'a>, scale: f32, transposed: bool },
    /// A saved module takes its place.
    Replace(Source<'a>),
}

impl Adapter {
    /// Opens the adapter in directory `path`.
    ///
    /// # Errors
    /// [`Error::Io`], a broken file, or a kind of adapter that is not plain LoRA.
    pub fn open(path: &Path, access: Access) -> Result<Self> {
        let config_path = path.join("adapter_config.json");
        let fault = |fault: String| Error::Checkpoint {
            path: config_path.clone(),
            fault,
            hint: Some("only plain LoRA adapters of PEFT can be applied".to_owned()),
        };
        let value: Value = serde_json::from_slice(&read_config(&config_path)?)
            .map_err(|e| fault(format!("not valid JSON: {}", Escaped(&e))))?;
        let kind = value["peft_type"].as_str().unwrap_or("LORA");
        if kind != "LORA" {
            return Err(fault(format!("peft_type is `{}`, expected LORA", Escaped(kind))));
        }
        for key in ["use_dora", "use_bdlora", "lora_bias", "alora_invocation_tokens", "megatron_config"] {
            if !matches!(value[key], Value::Null | Value::Bool(false)) {
                return Err(fault(format!("`{key}` is set, which changes what the adapter computes")));
            }
        }
        let number = |key: &str, x: &Value, least: f64| {
            let got = x.as_f64().filter(|x| x.is_finite() && *x >= least);
            let expected = format!("expected a number of at least {least}");
            got.ok_or_else(|| fault(format!("`{key}`: got {}, {expected}", Escaped(&x.to_string()))))
        };
        let pattern = |key: &str, least: f64| -> Result<BTreeMap<String, f64>> {
            let map = value[key].as_object().into_iter().flatten();
            let place = |name: &str| format!("{key}.{}", Escaped(name));
            map.map(|(name, x)| Ok((name.clone(), number(&place(name), x, least)?))).collect()
        };
        let config = Config {
            alpha: number("lora_alpha", &value["lora_alpha"], 0.0)?,
            rank: number("r", &value["r"], 1.0)?,
            alphas: pattern("alpha_pattern", 0.0)?,
            ranks: pattern("rank_pattern", 1.0)?,
            rslora: value["use_rslora"] == true,
            transposed: value["fan_in_fan_out"] == true,
        };
        let checkpoint = Checkpoint::open(&path.join("adapter_model.safetensors"), access)?;
        Ok(Self { checkpoint, config })
    }

    /// The tensors of the adapter.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// What becomes of each tensor of `base` that the adapter names.
    ///
    /// # Errors
    /// Tensors of the adapter that the base has no place for, and shapes that do not fit, all at once.
    pub(crate) fn changes<'a>(&'a self, base: &Checkpoint) -> Result<BTreeMap<String, Change<'a>>> {
        let mut changes = BTreeMap::new();
        let mut faults = Faults::default();
        for tensor in self.checkpoint.tensors() {
            let name = tensor.info.name.as_str();
            if name.contains("lora_B") || name.contains("lora_embedding_B") {
                continue;
            }
            if self.is_tied_head(base, name)? {
                continue;
            }
            match self.change(base, name) {
                Ok((target, change)) => drop(changes.insert(target, change)),
                Err(fault) => faults.push(fault),
            }
        }
        faults.into_result()?;
        Ok(changes)
    }

    /// Whether a tensor is the head of a tied base, the same bytes as the embedding that the adapter saves.
    fn is_tied_head(&self, base: &Checkpoint, name: &str) -> Result<bool> {
        fn inner(name: &str) -> &str {
            name.strip_prefix("base_model.model.").unwrap_or(name)
        }
        let head =
            TensorName::of(inner(name)).category == Category::LmHead && base.find(inner(name)).is_none();
        let mut tensors = self.checkpoint.tensors();
        let embedding = tensors.find(|t| TensorName::of(inner(&t.info.name)).is_token_embedding());
        let embedding = embedding.and_then(|t| self.source(&t.info.name));
        match (self.source(name), embedding) {
            (Some(a), Some(b)) if head && base.tied() && a.info.shape == b.info.shape => {
                a.same_bytes(&b, a.info.elements())
            }
            _ => Ok(false),
        }
    }

    fn source(&self, name: &str) -> Option<Source<'_>> {
        let tensor = self.checkpoint.find(name)?;
        Some(Source::stored(&self.checkpoint, &tensor))
    }

    fn change(&self, base: &Checkpoint, name: &str) -> Result<(String, Change<'_>)> {
        let fault = |what: String| Error::Pairing {
            tensor: Some(name.to_owned()),
            fault: what,
            hint: Some("apply the adapter to the base it was trained on".to_owned()),
        };
        let gone = || fault("a part of the pair is missing".to_owned());
        let inner = name.strip_prefix("base_model.model.").unwrap_or(name);
        let a = self.source(name).ok_or_else(gone)?;
        let pair = [("lora_A", "lora_B", false), ("lora_embedding_A", "lora_embedding_B", true)]
            .into_iter()
            .find_map(|(a, b, embedding)| Some((inner.split_once(&format!(".{a}"))?.0, a, b, embedding)));
        let Some((module, a_name, b_name, embedding)) = pair else {
            let target = inner.replace(".modules_to_save", "").replace(".base_layer", "");
            let found =
                base.find(&target).ok_or_else(|| fault(format!("the base has no `{}`", Escaped(&target))))?;
            if found.info.shape != a.info.shape {
                let (got, expected) = (&a.info.shape, &found.info.shape);
                return Err(fault(format!("shapes differ: the adapter has {got:?}, the base {expected:?}")));
            }
            let (from, to) = (&a.info.dtype, &found.info.dtype);
            if from != to && !(is_float(from) && is_writable(to)) {
                return Err(fault(format!("types differ: the adapter has {from}, the base {to}")));
            }
            return Ok((target, Change::Replace(a)));
        };
        let b = self.source(&name.replace(a_name, b_name)).ok_or_else(gone)?;
        let target = format!("{module}.weight");
        let found =
            base.find(&target).ok_or_else(|| fault(format!("the base has no `{}`", Escaped(&target))))?;
        let transposed = embedding || self.config.transposed;
        let (sa, sb) = (&a.info.shape, &b.info.shape);
        let expected: &[u64] = &found.info.shape;
        let product = match (sa.as_slice(), sb.as_slice()) {
            ([r, n], [m, s]) if r == s && transposed => Some([*n, *m]),
            ([r, n], [m, s]) if r == s => Some([*m, *n]),
            _ => None,
        };
        if product.as_ref().map(<[u64; 2]>::as_slice) != Some(expected) {
            return Err(fault(format!("shapes do not fit: B {sb:?} times A {sa:?} for {expected:?}")));
        }
        if ![&a, &b].iter().all(|s| is_float(&s.info.dtype)) || !is_float(&found.info.dtype) {
            let [a, b, w] = [&a.info.dtype, &b.info.dtype, &found.info.dtype];
            let got = format!("A is {a}, B is {b}, the base {w}");
            return Err(fault(format!("not floating-point types that can be computed with: {got}")));
        }
        if !is_writable(&found.info.dtype) {
            return Err(fault(format!("cannot write results of type {}", found.info.dtype)));
        }
        let rank = sa[0] as f64;
        let said = pattern(&self.config.ranks, module).unwrap_or(self.config.rank);
        if said != rank {
            return Err(fault(format!("rank differs: the file has {rank}, adapter_config.json says {said}")));
        }
        let alpha = pattern(&self.config.alphas, module).unwrap_or(self.config.alpha);
        let scale = (alpha / if self.config.rslora { rank.sqrt() } else { rank }) as f32;
        if !scale.is_finite() {
            return Err(fault(format!("the scale is not finite: lora_alpha {alpha:e}, rank {rank}")));
        }
        Ok((target, Change::Update { a, b, scale, transposed }))
    }
}

/// The value of the first key that is the module's name or its end, as PEFT matches `rank_pattern`.
fn pattern(map: &BTreeMap<String, f64>, module: &str) -> Option<f64> {
    let fits = |key: &str| match key.strip_prefix('^') {
        Some(whole) => module == whole,
        None => module.strip_suffix(key).is_some_and(|front| front.is_empty() || front.ends_with('.')),
    };
    map.iter().find(|(key, _)| fits(key)).map(|(_, x)| *x)
}

/// `out = W + s · B A` over rows: the factors in memory, the product never.
#[derive(Debug)]
pub(crate) struct Update {
    /// One row of r numbers for each row of W, times s.
    left: Vec<f32>,
    /// r rows as long as those of W.
    right: Vec<f32>,
    rank: usize,
}

impl Update {
    /// Reads both factors.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Pairing`] for a factor that is not finite.
    pub(crate) fn new(a: &Source<'_>, b: &Source<'_>, scale: f32, transposed: bool) -> Result<Self> {
        let rank = a.info.shape.first().copied().unwrap_or(0) as usize;
        let (mut bytes, mut left, mut right) = (Vec::new(), Vec::new(), Vec::new());
        // W' ᵀ: rows of W are columns of A; its columns, rows of B.
        a.decode(0..a.info.elements(), &mut bytes, if transposed { &mut left } else { &mut right })?;
        b.decode(0..b.info.elements(), &mut bytes, if transposed { &mut right } else { &mut left })?;
        let factors = if transposed { [(a, &left), (b, &right)] } else { [(a, &right), (b, &left)] };
        for (source, values) in factors {
            let bad = values.iter().filter(|x| !x.is_finite()).count();
            if bad > 0 {
                return Err(Error::Pairing {
                    tensor: Some(source.info.name.clone()),
                    fault: format!("infinite or NaN values in a factor of the adapter: {bad}"),
                    hint: Some("the training that made it diverged".to_owned()),
                });
            }
        }
        if transposed {
            left = transpose(&left, rank);
            let out = right.len() / rank.max(1);
            right = transpose(&right, out);
        }
        left.iter_mut().for_each(|x| *x *= scale);
        Ok(Self { left, right, rank })
    }

    /// Computes the elements `range`, whole rows, into `scratch.out`.
    pub(crate) fn apply(&self, values: &Values<'_>, range: Range<u64>, scratch: &mut Scratch) -> Result<()> {
        values.load(range.clone(), scratch)?;
        let Scratch { z, out, sum, .. } = scratch;
        let row = values.row as usize;
        out.clear();
        out.extend_from_slice(&z[0]);
        let first = (range.start / values.row) as usize;
        for (i, out) in out.chunks_mut(row).enumerate() {
            sum.clear();
            sum.resize(row, 0.0);
            let left = &self.left[(first + i) * self.rank..][..self.rank];
            dispatch(RowTimes { left, right: &self.right, row: sum });
            out.iter_mut().zip(&*sum).for_each(|(out, x)| *out = if *x == 0.0 { *out } else { *out + *x });
        }
        Ok(())
    }
}

/// `row += Σ_k left[k] · right[k]`.
struct RowTimes<'a> {
    left: &'a [f32],
    right: &'a [f32],
    row: &'a mut [f32],
}

impl Kernel for RowTimes<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for (c, right) in self.left.iter().zip(self.right.chunks_exact(self.row.len().max(1))) {
            for (x, r) in self.row.iter_mut().zip(right) {
                *x += *c * *r;
            }
        }
    }
}

/// A matrix of `rows` rows, its columns as rows.
fn transpose(x: &[f32], rows: usize) -> Vec<f32> {
    let columns = x.len() / rows.max(1);
    (0..columns).flat_map(|c| (0..rows).map(move |r| x[r * columns + c])).collect()
}
