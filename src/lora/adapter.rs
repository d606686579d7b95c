//! A PEFT adapter on disk: `adapter_config.json` and `adapter_model.safetensors`, checked against a base.
//!
//! `W' = W + s · B A`, A `[r, in]`, B `[out, r]`, s = lora_alpha / r, or lora_alpha / √r with rslora; transposed for
//! embeddings and with fan_in_fan_out. Source: Hu et al. 2021 (LoRA), arXiv:2106.09685 §4.1; Kalajdzievski 2023
//! (rsLoRA), arXiv:2312.03732.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use crate::checkpoint::{Checkpoint, ReadOptions, read_config};
use crate::error::Escaped;
use crate::merge::tiles::source::{Source, is_float, is_writable};
use crate::plan::{Category, TensorName};
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
    /// A tensor of `modules_to_save` takes its place.
    Replace(Source<'a>),
}

impl Adapter {
    /// Opens the adapter in directory `path`.
    ///
    /// # Errors
    /// [`Error::Io`], a broken file, or a kind of adapter that is not plain LoRA.
    pub fn open(path: &Path, options: impl Into<ReadOptions>) -> Result<Self> {
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
        let checkpoint = Checkpoint::open(&path.join("adapter_model.safetensors"), options)?;
        Ok(Self { checkpoint, config })
    }

    /// The tensors of the adapter.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// The change to each tensor of `base` that the adapter names, by the name of the tensor.
    ///
    /// # Errors
    /// Every tensor of the adapter that has no target in the base, or whose shape or type does not fit it.
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

    /// Whether a tensor is the head of a base with tied embeddings, and has the bytes of the embedding in the adapter.
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

/// The value of the first key that equals the module's name or its last components, as PEFT matches `rank_pattern`.
fn pattern(map: &BTreeMap<String, f64>, module: &str) -> Option<f64> {
    let fits = |key: &str| match key.strip_prefix('^') {
        Some(whole) => module == whole,
        None => module.strip_suffix(key).is_some_and(|front| front.is_empty() || front.ends_with('.')),
    };
    map.iter().find(|(key, _)| fits(key)).map(|(_, x)| *x)
}
