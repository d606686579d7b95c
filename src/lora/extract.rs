//! A LoRA adapter from a base and its fine-tune.
//!
//! Every projection of attention and of the feed-forward part gets `B A ≈ W_tuned − W_base` by a randomized singular
//! value decomposition, written as PEFT writes it with lora_alpha = r, so that the scale is 1. What else differs
//! (embeddings, norms, head) goes into modules_to_save whole.

use std::collections::BTreeSet;
use std::path::Path;

use rayon::prelude::*;
use serde_json::{Map, Value, json};

use crate::checkpoint::{
    Checkpoint, CommandInputs, Dtype, HeaderWriter, Known, Staging, Target, natural_order,
};
use crate::lora::conv1d::is_conv1d;
use crate::lora::svd::{Factors, factors};
use crate::merge::tiles::low_rank::transpose;
use crate::merge::tiles::source::{Source, is_float};
use crate::merge::tiles::values::{TILE, Values};
use crate::plan::{Category, Key, TensorName, module_of};
use crate::surgery::output::finish;
use crate::surgery::pairing::is_buffer_of;
use crate::surgery::{Output, Pairing, Provenance, Record};
use crate::{Error, Result};

/// What an extraction found.
#[derive(Debug)]
pub struct Extraction {
    /// Of each decomposed tensor: its name and the share of ‖Δ‖² that the adapter holds.
    pub energy: Vec<(String, f64)>,
    /// Modules that are saved whole.
    pub saved: Vec<String>,
}

/// One tensor of the adapter.
struct Part {
    name: String,
    shape: [u64; 2],
    values: Vec<f32>,
}

/// Writes the adapter of rank `rank` (less for smaller matrices) into a new directory.
///
/// # Errors
/// [`crate::Error::Checkpoint`] for quantized weights, [`crate::Error::Pairing`], [`crate::Error::Output`],
/// [`crate::Error::Io`].
pub fn extract_lora(
    pairing: &Pairing<'_>,
    rank: usize,
    seed: u64,
    output: &Output<'_>,
    provenance: &Provenance,
    done: &(dyn Fn(u64) + Sync),
) -> Result<Extraction> {
    let (base, tuned) = (pairing.base, pairing.tuned);
    for side in [base, tuned] {
        side.check_not_adapter()?;
        side.check_not_quantized("an extraction")?;
    }
    let staging = output.stage(CommandInputs::of([base, tuned]))?;
    let Differing { matrices, others } = Differing::find(pairing)?;
    if matrices.is_empty() && others.is_empty() {
        return Err(nothing());
    }
    let decompose = |(old, new): &(Source<'_>, Source<'_>)| {
        let found = decompose(old, new, rank, seed);
        done(new.info.len());
        found
    };
    let found: Vec<Factors> = matrices.par_iter().map(decompose).collect::<Result<_>>()?;
    let mut parts = Vec::new();
    let mut ranks = Map::new();
    let mut fan_in_fan_out = false;
    let mut energy = Vec::new();
    for ((old, new), factors) in matrices.iter().zip(found) {
        let module = module_of(&old.info.name);
        let (m, n) = (new.info.shape[0], new.info.shape[1]);
        let r = (rank as u64).min(m).min(n);
        if r != rank as u64 {
            ranks.insert(format!("^{module}"), r.into());
        }
        energy.push((new.info.name.clone(), factors.energy));
        let name = |part: &str| format!("base_model.model.{module}.{part}.weight");
        let conv1d = is_conv1d(base, module) == Some(true);
        fan_in_fan_out |= conv1d;
        let [a, b] = if conv1d {
            let [left, right] = [transpose(&factors.left, m as usize), transpose(&factors.right, r as usize)];
            [([r, m], left), ([n, r], right)]
        } else {
            [([r, n], factors.right), ([m, r], factors.left)]
        };
        parts.push(Part { name: name("lora_A"), shape: a.0, values: a.1 });
        parts.push(Part { name: name("lora_B"), shape: b.0, values: b.1 });
    }
    let targets = matrices.iter().map(|(old, _)| module_of(&old.info.name).to_owned()).collect();
    let Saved { tensors: saved, modules, biases } = Saved::new(pairing, &others, &targets);
    write_weights(&staging, parts, &saved)?;
    let targets = short_names(base, targets);
    let mut config = config(base.path(), rank, &targets, &modules, &ranks);
    config["bias"] = if biases { "all" } else { "none" }.into();
    config["fan_in_fan_out"] = fan_in_fan_out.into();
    staging.write_small("adapter_config.json", format!("{config:#}\n").as_bytes())?;
    finish(staging, &[base, tuned], Record { provenance, seed, plan: json!({"rank": rank}) })?;
    Ok(Extraction { energy, saved: saved.into_iter().map(|(name, _)| name).collect() })
}

fn nothing() -> Error {
    Error::Pairing {
        tensor: None,
        fault: "base and tuned have the same weights: there is nothing to extract".to_owned(),
        hint: Some("PEFT loads no adapter without tensors".to_owned()),
    }
}

/// The tensors that differ.
struct Differing<'a> {
    /// Matrices of attention and of the feed-forward part, base and tuned.
    matrices: Vec<(Source<'a>, Source<'a>)>,
    /// All others, tuned.
    others: Vec<Source<'a>>,
}

impl<'a> Differing<'a> {
    fn find(pairing: &Pairing<'a>) -> Result<Self> {
        let (base, tuned) = (pairing.base, pairing.tuned);
        let (mut matrices, mut others) = (Vec::new(), Vec::new());
        for pair in pairing.pairs().iter().filter(|pair| !is_buffer_of(tuned, &pair.tuned.info.name)) {
            let new = Source::stored(tuned, &pair.tuned);
            let old = pair.base.as_ref().map(|b| Source::stored(base, &b.tensor));
            let Some(old) = old.filter(|old| old.info.shape == new.info.shape) else {
                others.push(new);
                continue;
            };
            if old.same_bytes(&new, new.info.elements())? {
                continue;
            }
            let category = TensorName::of(&new.info.name).category;
            let linear = matches!(category, Category::Attention | Category::Mlp)
                && new.info.shape.len() == 2
                && new.info.name.ends_with(".weight")
                && [&old, &new].iter().all(|s| is_float(&s.info.dtype));
            if linear { matrices.push((old, new)) } else { others.push(new) }
        }
        Ok(Self { matrices, others })
    }
}

/// The factors of `new − old`.
fn decompose(old: &Source<'_>, new: &Source<'_>, rank: usize, seed: u64) -> Result<Factors> {
    let name = &new.info.name;
    let mut values = Values {
        base: Some(old.clone()),
        models: vec![new.clone()],
        deltas: true,
        elements: new.info.elements(),
        row: new.info.shape[1].max(1),
        tile: TILE,
        whole_rows: false,
    };
    factors(&mut values, rank, Key::new(seed, 0, name), name)
}

/// What is saved whole.
struct Saved<'a> {
    /// By the names that PEFT loads them by.
    tensors: Vec<(String, Source<'a>)>,
    /// The modules for `modules_to_save`, by whole names: PEFT takes `norm` for the end of `input_layernorm` too.
    modules: BTreeSet<String>,
    /// Whether there are biases of other modules.
    biases: bool,
}

impl<'a> Saved<'a> {
    /// Biases are saved alone, as with `bias: all`; of what else differs, every tensor of the module, because PEFT
    /// replaces modules whole. A tied embedding is saved as the head too: PEFT unties what it replaces. `targets` are
    /// modules of the base, whose spelling of names an adapter has.
    fn new(pairing: &Pairing<'a>, differing: &[Source<'a>], targets: &BTreeSet<String>) -> Self {
        const HEAD: &str = "lm_head.weight";
        let (base, tuned) = (pairing.base, pairing.tuned);
        let of_weight = |name: &str| {
            let weight = name.strip_suffix(".bias").map(|module| format!("{module}.weight"));
            weight.is_some_and(|weight| tuned.find(&weight).is_some())
        };
        let changed: BTreeSet<&str> = differing.iter().map(|s| s.info.name.as_str()).collect();
        let whole = changed.iter().filter(|name| !of_weight(name));
        let whole: BTreeSet<&str> = whole.map(|name| module_of(name)).collect();
        let (mut tensors, mut modules, mut biases) = (Vec::new(), BTreeSet::new(), false);
        for tensor in tuned.tensors() {
            let name = tensor.info.name.as_str();
            let is_whole = whole.contains(module_of(name));
            let is_bias = !is_whole && changed.contains(name);
            if !is_whole && !is_bias {
                continue;
            }
            biases |= is_bias;
            let name = base.twin(name, tuned).map_or(name, |twin| twin.info.name.as_str());
            let module = module_of(name);
            if is_whole {
                modules.insert(module.to_owned());
            }
            let is_target = is_bias && targets.contains(module);
            let stored = if is_target { format!("{module}.base_layer.bias") } else { name.to_owned() };
            tensors.push((stored, Source::stored(tuned, &tensor)));
        }
        let is_embedding = |name: &str| TensorName::of(name).is_token_embedding();
        let embedding = tensors.iter().find(|(name, _)| is_embedding(name)).map(|(_, s)| s.clone());
        if let Some(embedding) = embedding.filter(|_| tuned.tied() && tuned.find(HEAD).is_none()) {
            modules.insert(module_of(HEAD).to_owned());
            tensors.push((HEAD.to_owned(), embedding));
        }
        Self { tensors, modules, biases }
    }
}

/// The last parts of module names, where all modules with such a name are meant; the whole names otherwise.
fn short_names(tuned: &Checkpoint, modules: BTreeSet<String>) -> BTreeSet<String> {
    fn last(module: &str) -> &str {
        module.rsplit('.').next().unwrap_or(module)
    }
    let all: BTreeSet<&str> = tuned.tensors().map(|t| module_of(&t.info.name)).collect();
    let partial: BTreeSet<&str> = all.into_iter().filter(|m| !modules.contains(*m)).map(last).collect();
    modules.iter().map(|m| if partial.contains(last(m)) { m.clone() } else { last(m).to_owned() }).collect()
}

/// The keys that every version of PEFT knows.
fn config(
    base: &Path,
    rank: usize,
    targets: &BTreeSet<String>,
    saved: &BTreeSet<String>,
    ranks: &Map<String, Value>,
) -> Value {
    let saved = if saved.is_empty() { Value::Null } else { json!(saved) };
    json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base.to_string_lossy(),
        "inference_mode": true,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": false,
        "use_rslora": false,
        "target_modules": targets,
        "modules_to_save": saved,
        "rank_pattern": ranks,
        "alpha_pattern": ranks,
    })
}

/// `adapter_model.safetensors`: factors in f32, saved modules as bytes.
fn write_weights(staging: &Staging, mut parts: Vec<Part>, saved: &[(String, Source<'_>)]) -> Result<()> {
    parts.sort_by(|a, b| natural_order(&a.name, &b.name));
    let mut header = HeaderWriter::new(json!({"format": "pt"}));
    for part in &parts {
        let dtype = Dtype::Known(Known::F32);
        header.push(part.name.clone(), &dtype, &part.shape, part.values.len() as u64 * 4);
    }
    for (name, source) in saved {
        let name = format!("base_model.model.{name}");
        header.push(name, &source.info.dtype, &source.info.shape, source.info.len());
    }
    let data_len = header.data_len();
    let header = header.finish();
    let start = header.len() as u64;
    staging.check_space(start + data_len)?;
    let target = Target::create(staging, "adapter_model.safetensors", start + data_len)?;
    target.write_at(&header, 0)?;
    let mut offset = start;
    let mut bytes = Vec::new();
    for part in &parts {
        bytes.clear();
        bytes.extend(part.values.iter().flat_map(|x| x.to_le_bytes()));
        target.write_at(&bytes, offset)?;
        offset += bytes.len() as u64;
    }
    for (_, source) in saved {
        target.copy_at(source.shard, source.info.bytes.clone(), offset, &mut bytes)?;
        offset += source.info.len();
    }
    if staging.sync() { target.sync() } else { Ok(()) }
}
