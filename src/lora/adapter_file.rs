//! The files of an adapter that is written: `adapter_model.safetensors` and `adapter_config.json`.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use crate::Result;
use crate::checkpoint::{Dtype, HeaderWriter, Known, Staging, Target, natural_order};
use crate::lora::adapter_config;
use crate::merge::tiles::source::Source;

/// What PEFT puts before the name of a tensor of the model.
pub(super) const PREFIX: &str = "base_model.model.";

/// One factor.
#[derive(Debug)]
pub(super) struct Factor {
    /// Its name in the file.
    pub(super) name: String,
    pub(super) shape: [u64; 2],
    pub(super) values: Vec<f32>,
}

/// The factors `A` `[r, in]` and `B` `[out, r]` of a module, or those of an embedding: A `[r, V]`, B `[D, r]`.
#[derive(Debug)]
pub(super) struct FactorPair {
    pub(super) module: String,
    pub(super) is_embedding: bool,
    pub(super) rank: usize,
    pub(super) a: Vec<f32>,
    pub(super) b: Vec<f32>,
}

/// What `adapter_config.json` says: the keys that every version of PEFT knows.
#[derive(Debug, Default)]
pub(super) struct ConfigText {
    pub(super) base_model: Option<String>,
    pub(super) task_type: Option<String>,
    pub(super) bias: &'static str,
    pub(super) fan_in_fan_out: bool,
    pub(super) targets: BTreeSet<String>,
    pub(super) saved: BTreeSet<String>,
}

impl FactorPair {
    /// Both factors under the names that PEFT loads them by.
    fn factors(self) -> [Factor; 2] {
        let Self { module, is_embedding, rank, a, b } = self;
        let name = |part: &str| match is_embedding {
            true => format!("{PREFIX}{module}.lora_embedding_{part}"),
            false => format!("{PREFIX}{module}.lora_{part}.weight"),
        };
        let other = |values: &[f32]| (values.len() / rank.max(1)) as u64;
        let (n, m) = (other(&a), other(&b));
        let rank = rank as u64;
        [
            Factor { name: name("A"), shape: [rank, n], values: a },
            Factor { name: name("B"), shape: [m, rank], values: b },
        ]
    }
}

/// Writes `adapter_config.json` for these modules: the scale of each is 1, as lora_alpha is its rank. Modules of another
/// rank than the largest are named in `rank_pattern` and `alpha_pattern`.
///
/// # Errors
/// [`crate::Error::Io`].
pub(super) fn write_config(staging: &Staging, pairs: &[FactorPair], text: &ConfigText) -> Result<()> {
    let rank = pairs.iter().map(|pair| pair.rank).max().unwrap_or(1);
    let others = pairs.iter().filter(|pair| pair.rank != rank);
    let ranks: Map<String, Value> =
        others.map(|pair| (format!("^{}", escaped(&pair.module)), pair.rank.into())).collect();
    let saved = if text.saved.is_empty() { Value::Null } else { json!(text.saved) };
    let config = json!({
        "peft_type": "LORA",
        "task_type": text.task_type,
        "base_model_name_or_path": text.base_model,
        "inference_mode": true,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": text.bias,
        "fan_in_fan_out": text.fan_in_fan_out,
        "use_rslora": false,
        "target_modules": text.targets,
        "modules_to_save": saved,
        "rank_pattern": ranks,
        "alpha_pattern": ranks,
    });
    staging.write_small(adapter_config::FILE, format!("{config:#}\n").as_bytes())
}

/// A module's name as a regular expression.
fn escaped(module: &str) -> String {
    fancy_regex::escape(module).into_owned()
}

/// Writes `adapter_model.safetensors`: factors in f32, and tensors that are saved whole, as bytes, by their names in the file.
///
/// # Errors
/// [`crate::Error::Io`]; [`crate::Error::Output`] where the disk has no room.
pub(super) fn write_weights(
    staging: &Staging,
    pairs: Vec<FactorPair>,
    whole: &[(String, Source<'_>)],
) -> Result<()> {
    let mut factors: Vec<Factor> = pairs.into_iter().flat_map(FactorPair::factors).collect();
    factors.sort_by(|a, b| natural_order(&a.name, &b.name));
    let mut header = HeaderWriter::new(json!({"format": "pt"}));
    for factor in &factors {
        let dtype = Dtype::Known(Known::F32);
        header.push(factor.name.clone(), &dtype, &factor.shape, factor.values.len() as u64 * 4);
    }
    for (name, source) in whole {
        header.push(name.clone(), &source.info.dtype, &source.info.shape, source.info.len());
    }
    let data_len = header.data_len();
    let header = header.finish();
    let start = header.len() as u64;
    staging.check_space(start + data_len)?;
    let target = Target::create(staging, "adapter_model.safetensors", start + data_len)?;
    target.write_at(&header, 0)?;
    let mut offset = start;
    let mut bytes = Vec::new();
    for factor in &factors {
        bytes.clear();
        bytes.extend(factor.values.iter().flat_map(|x| x.to_le_bytes()));
        target.write_at(&bytes, offset)?;
        offset += bytes.len() as u64;
    }
    for (_, source) in whole {
        target.copy_at(source.shard, source.info.bytes.clone(), offset, &mut bytes)?;
        offset += source.info.len();
    }
    if staging.sync() { target.sync() } else { Ok(()) }
}
