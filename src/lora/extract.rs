//! A LoRA adapter from a base and its fine-tune.
//!
//! Every projection of attention and of the feed-forward part gets `B A ≈ W_tuned − W_base` by a randomized singular
//! value decomposition, written as PEFT writes it with lora_alpha = r, so that the scale is 1. What else differs
//! (embeddings, norms, head) goes into modules_to_save whole.

use std::collections::BTreeSet;
use std::path::Path;

use rayon::prelude::*;
use serde_json::{Map, Value, json};

use crate::Result;
use crate::checkpoint::{
    Checkpoint, CommandInputs, Dtype, HeaderWriter, Known, Staging, Target, natural_order,
};
use crate::lora::svd::{Factors, factors};
use crate::merge::tiles::source::{Source, is_float};
use crate::merge::tiles::values::{TILE, Values};
use crate::plan::{Category, Key, TensorName, module_of};
use crate::surgery::output::finish;
use crate::surgery::pairing::is_buffer_of;
use crate::surgery::{Output, Pairing, Provenance, Record};

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
    let mut matrices = Vec::new();
    let mut saved: Vec<Source<'_>> = Vec::new();
    for pair in pairing.pairs() {
        if is_buffer_of(tuned, &pair.tuned.info.name) {
            continue;
        }
        let new = Source::stored(tuned, &pair.tuned);
        let old = pair.base.as_ref().map(|b| Source::stored(base, &b.tensor));
        let Some(old) = old.filter(|old| old.info.shape == new.info.shape) else {
            saved.push(new);
            continue;
        };
        if old.same_bytes(&new, new.info.elements())? {
            continue;
        }
        let place = TensorName::of(&new.info.name);
        let linear = matches!(place.category, Category::Attention | Category::Mlp)
            && new.info.shape.len() == 2
            && new.info.name.ends_with(".weight")
            && [&old, &new].iter().all(|s| is_float(&s.info.dtype));
        if linear { matrices.push((old, new)) } else { saved.push(new) }
    }
    let found: Vec<Factors> = matrices
        .par_iter()
        .map(|(old, new)| {
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
            let found = factors(&mut values, rank, Key::new(seed, 0, name), name);
            done(new.info.len());
            found
        })
        .collect::<Result<_>>()?;
    let mut parts = Vec::new();
    let mut ranks = Map::new();
    let mut energy = Vec::new();
    for ((_, new), factors) in matrices.iter().zip(found) {
        let module = module_of(&new.info.name);
        let (m, n) = (new.info.shape[0], new.info.shape[1]);
        let r = (rank as u64).min(m).min(n);
        if r != rank as u64 {
            ranks.insert(format!("^{module}"), r.into());
        }
        energy.push((new.info.name.clone(), factors.energy));
        let name = |part: &str| format!("base_model.model.{module}.{part}.weight");
        parts.push(Part { name: name("lora_A"), shape: [r, n], values: factors.right });
        parts.push(Part { name: name("lora_B"), shape: [m, r], values: factors.left });
    }
    let saved = named(tuned, saved);
    write_weights(&staging, parts, &saved)?;
    let targets = matrices.iter().map(|(_, new)| module_of(&new.info.name).to_owned()).collect();
    let targets = short_names(tuned, targets);
    // By whole names: PEFT takes `norm` for the end of `input_layernorm` too.
    let whole: BTreeSet<String> = saved.iter().map(|(name, _)| module_of(name).to_owned()).collect();
    let config = config(base.path(), rank, &targets, &whole, &ranks);
    staging.write_small("adapter_config.json", format!("{config:#}\n").as_bytes())?;
    finish(staging, &[base, tuned], Record { provenance, seed, plan: json!({"rank": rank}) })?;
    Ok(Extraction { energy, saved: saved.into_iter().map(|(name, _)| name).collect() })
}

/// Saved tensors with their names. A tied embedding is saved as the head too: PEFT unties what it replaces.
fn named<'a>(tuned: &Checkpoint, saved: Vec<Source<'a>>) -> Vec<(String, Source<'a>)> {
    const HEAD: &str = "lm_head.weight";
    let mut named: Vec<(String, Source<'a>)> = saved.into_iter().map(|s| (s.info.name.clone(), s)).collect();
    let embedding =
        named.iter().find(|(name, _)| TensorName::of(name).is_token_embedding()).map(|(_, s)| s.clone());
    if let Some(embedding) = embedding.filter(|_| tuned.tied() && tuned.find(HEAD).is_none()) {
        named.push((HEAD.to_owned(), embedding));
    }
    named
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
