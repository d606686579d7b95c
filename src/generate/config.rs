//! `generation_config.json`: where a text stops, and what the file asks for besides.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::sampling::{Options, Sampling};
use crate::checkpoint::{Checkpoint, read_config};
use crate::error::Escaped;
use crate::{Error, Result};

/// Keys that do not change which tokens are chosen, or that [`GenerationConfig::not_followed`] treats by themselves.
const OTHER: [&str; 21] = [
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "decoder_start_token_id",
    "max_length",
    "max_new_tokens",
    "transformers_version",
    "_from_model_config",
    "_commit_hash",
    "_original_object_hash",
    "use_cache",
    "cache_implementation",
    "cache_config",
    "return_dict_in_generate",
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "output_logits",
    "do_sample",
    "trust_remote_code",
    "disable_compile",
];

/// The configuration of generation in the files of a checkpoint.
#[derive(Debug, Clone)]
pub struct GenerationConfig {
    path: PathBuf,
    keys: Map<String, Value>,
    /// The tokens that end a text: `eos_token_id` of `generation_config.json`, or of `config.json` where there is no
    /// such file, as in transformers.
    pub eos_token_ids: Vec<u32>,
}

impl GenerationConfig {
    /// Reads the configuration of a model of `vocab_size` tokens.
    ///
    /// # Errors
    /// When the file cannot be read or is no JSON object, or `eos_token_id` is not of token ids.
    pub fn read(checkpoint: &Checkpoint, vocab_size: usize) -> Result<Self> {
        let path = checkpoint.root().join("generation_config.json");
        let fault = |fault: String| Error::Checkpoint { path: path.clone(), fault, hint: None };
        let bytes = match read_config(&path) {
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                let path = checkpoint.root().join("config.json");
                let model = checkpoint.config().map_or(&Value::Null, |config| config.value());
                let eos_token_ids = token_ids(&path, &model["eos_token_id"], vocab_size)?;
                return Ok(Self { path, keys: Map::new(), eos_token_ids });
            }
            other => other?,
        };
        let keys = match serde_json::from_slice(&bytes) {
            Ok(Value::Object(keys)) => keys,
            Ok(_) => return Err(fault("expected a JSON object".to_owned())),
            Err(e) => return Err(fault(format!("not valid JSON: {}", Escaped(&e)))),
        };
        let eos = keys.get("eos_token_id").unwrap_or(&Value::Null);
        let eos_token_ids = token_ids(&path, eos, vocab_size)?;
        Ok(Self { path, keys, eos_token_ids })
    }

    /// The file that was read.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the file asks for and `options` do not do, as `KEY VALUE`: transformers' `generate` would do it.
    pub fn not_followed(&self, options: &Options) -> Vec<String> {
        let number = |name: &str| self.keys.get(name).and_then(Value::as_f64);
        let mut differs: Vec<&str> = Vec::new();
        if options.sampling.is_none() && self.keys.get("do_sample") == Some(&Value::Bool(true)) {
            differs.push("do_sample");
        }
        let penalty = ("repetition_penalty", f64::from(options.repetition_penalty), 1.0);
        let sampling = options.sampling.map(|Sampling { temperature, top_k, top_p, .. }| {
            let top_k = top_k.map_or(0.0, |k| k as f64);
            [
                ("temperature", f64::from(temperature), 1.0),
                ("top_k", top_k, 0.0),
                ("top_p", top_p.map_or(1.0, f64::from), 1.0),
            ]
        });
        let options = sampling.into_iter().flatten().chain([penalty]);
        differs.extend(
            options
                .filter(|(name, ours, neutral)| {
                    number(name).is_some_and(|asked| asked != *neutral && (asked - ours).abs() > 1e-6)
                })
                .map(|(name, ..)| name),
        );
        let known = ["temperature", "top_k", "top_p", "repetition_penalty"];
        let others = self.keys.iter().filter(|(name, value)| {
            !OTHER.contains(&name.as_str()) && !known.contains(&name.as_str()) && !is_neutral(name, value)
        });
        differs.extend(others.map(|(name, _)| name.as_str()));
        let shown = |name: &str| format!("{} {}", Escaped(name), Escaped(&self.keys[name].to_string()));
        differs.into_iter().map(shown).collect()
    }
}

/// Whether a key of `generation_config.json` asks for nothing with this value.
fn is_neutral(name: &str, value: &Value) -> bool {
    let factor = name.ends_with("_penalty") && name != "diversity_penalty";
    let one = factor || ["num_beams", "num_beam_groups", "num_return_sequences", "typical_p"].contains(&name);
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(n) => n.as_f64() == Some(if one { 1.0 } else { 0.0 }),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Bool(true) | Value::String(_) => false,
    }
}

/// One token id, a list of them, or null.
fn token_ids(path: &Path, value: &Value, vocab_size: usize) -> Result<Vec<u32>> {
    let id = |value: &Value| {
        let id = value.as_u64().filter(|id| *id < vocab_size as u64).map(|id| id as u32);
        id.ok_or_else(|| Error::Checkpoint {
            path: path.to_owned(),
            fault: format!(
                "`eos_token_id`: got `{}`, expected a token id below vocab_size = {vocab_size}",
                Escaped(&value.to_string())
            ),
            hint: None,
        })
    };
    match value {
        Value::Null => Ok(Vec::new()),
        Value::Array(list) => list.iter().map(id).collect(),
        one => Ok(vec![id(one)?]),
    }
}
