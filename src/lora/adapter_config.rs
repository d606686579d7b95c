//! `adapter_config.json` of PEFT: every key is obeyed, known to change no weight, or refused by name.

use std::path::{Path, PathBuf};

use fancy_regex::Regex;
use serde_json::{Map, Value};

use crate::checkpoint::read_config;
use crate::error::Escaped;
use crate::lora::python_regex;
use crate::lora::targets::Targets;
use crate::{Error, Result};

/// The name of the file.
pub(super) const FILE: &str = "adapter_config.json";

/// Keys that decide what is merged.
const OBEYED: [&str; 16] = [
    "alpha_pattern",
    "exclude_modules",
    "fan_in_fan_out",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "lora_bias",
    "modules_to_save",
    "peft_type",
    "r",
    "rank_pattern",
    "target_modules",
    "trainable_token_indices",
    "use_dora",
    "use_rslora",
];

/// Keys that change how an adapter is trained, first filled or found, and none of its merged weights. Tensors that
/// `bias` and `ensure_weight_tying` speak of lie in the file; the parameters of first values count with
/// `init_lora_weights` only.
const HARMLESS: [&str; 15] = [
    "auto_mapping",
    "base_model_name_or_path",
    "bias",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "inference_mode",
    "loftq_config",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "task_type",
];

/// First values of A and B that leave the base as it is.
const PLAIN_STARTS: [&str; 5] = ["gaussian", "eva", "orthogonal", "mica", "true"];

/// What the file says.
#[derive(Debug)]
pub(super) struct AdapterConfig {
    pub(super) path: PathBuf,
    alpha: f64,
    rank: f64,
    alphas: Vec<(Regex, f64)>,
    ranks: Vec<(Regex, f64)>,
    pub(super) rslora: bool,
    /// The model that the adapter was trained on, as the file names it.
    pub(super) base_model: Option<String>,
    pub(super) task_type: Option<String>,
    /// Rows of W + s·B A are scaled to given norms.
    pub(super) dora: bool,
    /// B has a bias, which goes to the bias of the base.
    pub(super) lora_bias: bool,
    /// Weights lie as `[in, out]`.
    pub(super) fan_in_fan_out: bool,
    pub(super) targets: Targets,
    tokens: Tokens,
}

/// `trainable_token_indices`.
#[derive(Debug)]
enum Tokens {
    /// Of the token embedding.
    Embedding(Vec<u64>),
    /// By the end of the name of a module.
    Modules(Vec<(String, Vec<u64>)>),
}

/// The JSON object and where it was read.
struct Reader<'a> {
    path: &'a Path,
    map: &'a Map<String, Value>,
}

impl AdapterConfig {
    /// Reads the file in the directory of an adapter.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Checkpoint`] for a kind of adapter that cannot be merged exactly.
    pub(super) fn read(adapter: &Path) -> Result<Self> {
        let path = adapter.join(FILE);
        let fault = |fault: String, hint: &str| Error::Checkpoint {
            path: path.clone(),
            fault,
            hint: Some(hint.to_owned()),
        };
        let directory = "--lora takes the directory that PEFT's save_pretrained wrote";
        let bytes = match read_config(&path) {
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                return Err(fault("no such file: not a LoRA adapter".to_owned(), directory));
            }
            other => other?,
        };
        let value: Value = serde_json::from_slice(&bytes)
            .map_err(|e| fault(format!("not valid JSON: {}", Escaped(&e)), directory))?;
        let Value::Object(map) = &value else {
            return Err(fault("expected a JSON object".to_owned(), directory));
        };
        Reader { path: &path, map }.config()
    }

    /// The rank that the file says a module has.
    pub(super) fn rank(&self, module: &str) -> Result<f64> {
        Ok(self.first(&self.ranks, module)?.unwrap_or(self.rank))
    }

    /// The largest rank that the file says any module has.
    pub(super) fn largest_rank(&self) -> f64 {
        self.ranks.iter().map(|(_, rank)| *rank).fold(self.rank, f64::max)
    }

    /// w · s: s = lora_alpha / r, or lora_alpha / √r with rslora, w the weight of the adapter.
    ///
    /// # Errors
    /// A product that f32 cannot hold.
    pub(super) fn scale(&self, module: &str, weight: f64) -> Result<f64> {
        let rank = self.rank(module)?;
        let alpha = self.first(&self.alphas, module)?.unwrap_or(self.alpha);
        let scale = weight * alpha / if self.rslora { rank.sqrt() } else { rank };
        if (scale as f32).is_finite() {
            return Ok(scale);
        }
        let module = Escaped(module);
        Err(self.fault(format!("the scale of `{module}` is not finite: lora_alpha {alpha:e}, rank {rank}")))
    }

    /// The rows of `trainable_token_indices` that a module has, in the order of the file.
    pub(super) fn tokens(&self, module: &str, embedding: bool) -> &[u64] {
        match &self.tokens {
            Tokens::Embedding(rows) if embedding => rows,
            Tokens::Embedding(_) => &[],
            Tokens::Modules(map) => {
                map.iter().find(|(key, _)| module.ends_with(key.as_str())).map_or(&[], |(_, rows)| rows)
            }
        }
    }

    /// The ends of the names of the modules that `trainable_token_indices` names; empty for the token embedding.
    pub(super) fn token_modules(&self) -> Vec<&str> {
        match &self.tokens {
            Tokens::Embedding(rows) if rows.is_empty() => Vec::new(),
            Tokens::Embedding(_) => vec![""],
            Tokens::Modules(map) => map.iter().map(|(key, _)| key.as_str()).collect(),
        }
    }

    /// A fault of this file.
    pub(super) fn fault(&self, fault: String) -> Error {
        Error::Checkpoint { path: self.path.clone(), fault, hint: None }
    }

    /// The value of the first pattern that fits, in the order of the file.
    fn first(&self, patterns: &[(Regex, f64)], module: &str) -> Result<Option<f64>> {
        for (regex, x) in patterns {
            if regex.is_match(module).map_err(|e| self.fault(format!("a pattern cannot be matched: {e}")))? {
                return Ok(Some(*x));
            }
        }
        Ok(None)
    }
}

impl Reader<'_> {
    fn config(&self) -> Result<AdapterConfig> {
        let kind = self.get("peft_type").as_str().unwrap_or("LORA");
        if kind != "LORA" {
            return Err(self.fault(format!("peft_type is `{}`, expected LORA", Escaped(kind))));
        }
        self.check_keys()?;
        self.check_start()?;
        Ok(AdapterConfig {
            path: self.path.to_owned(),
            alpha: self.number("lora_alpha", self.get("lora_alpha"), 0.0)?,
            rank: self.number("r", self.get("r"), 1.0)?,
            alphas: self.patterns("alpha_pattern", 0.0)?,
            ranks: self.patterns("rank_pattern", 1.0)?,
            rslora: self.flag("use_rslora")?,
            base_model: self.get("base_model_name_or_path").as_str().map(str::to_owned),
            task_type: self.get("task_type").as_str().map(str::to_owned),
            dora: self.flag("use_dora")?,
            lora_bias: self.flag("lora_bias")?,
            fan_in_fan_out: self.flag("fan_in_fan_out")?,
            targets: Targets::read(self.map).map_err(|fault| self.fault(fault))?,
            tokens: self.tokens()?,
        })
    }

    /// Refuses what is set and changes the computation in a way that is not known here.
    fn check_keys(&self) -> Result<()> {
        for (key, value) in self.map {
            let set = match value {
                Value::Null | Value::Bool(false) => false,
                Value::Array(list) => !list.is_empty(),
                Value::Object(map) => !map.is_empty(),
                _ => true,
            };
            if set && !OBEYED.contains(&key.as_str()) && !HARMLESS.contains(&key.as_str()) {
                let key = Escaped(key);
                return Err(self.fault(format!("`{key}` is set, which may change what the adapter computes")));
            }
        }
        Ok(())
    }

    /// Refuses first values that were subtracted from the base.
    fn check_start(&self) -> Result<()> {
        match self.get("init_lora_weights") {
            Value::Null | Value::Bool(_) => Ok(()),
            Value::String(text) if PLAIN_STARTS.contains(&text.to_lowercase().as_str()) => Ok(()),
            other => Err(Error::Checkpoint {
                path: self.path.to_owned(),
                fault: format!(
                    "`init_lora_weights` is {}: such an adapter belongs to a base from which its first values were \
                     subtracted, not to the base itself",
                    Escaped(&other.to_string())
                ),
                hint: Some(
                    "save it with PEFT's save_pretrained(…, path_initial_model_for_weight_conversion=…)"
                        .to_owned(),
                ),
            }),
        }
    }

    fn tokens(&self) -> Result<Tokens> {
        let key = "trainable_token_indices";
        let rows =
            |value: &Value| -> Option<Vec<u64>> { value.as_array()?.iter().map(Value::as_u64).collect() };
        let found = match self.get(key) {
            Value::Null => Some(Tokens::Embedding(Vec::new())),
            Value::Object(map) => {
                let modules = map.iter().map(|(name, value)| Some((name.clone(), rows(value)?)));
                modules.collect::<Option<_>>().map(Tokens::Modules)
            }
            list => rows(list).map(Tokens::Embedding),
        };
        found.ok_or_else(|| self.fault(format!("`{key}`: expected lists of token ids")))
    }

    fn get(&self, key: &str) -> &Value {
        self.map.get(key).unwrap_or(&Value::Null)
    }

    fn flag(&self, key: &str) -> Result<bool> {
        match self.get(key) {
            Value::Null => Ok(false),
            Value::Bool(flag) => Ok(*flag),
            other => {
                let got = Escaped(&other.to_string()).to_string();
                Err(self.fault(format!("`{key}`: got {got}, expected true or false")))
            }
        }
    }

    fn number(&self, key: &str, value: &Value, least: f64) -> Result<f64> {
        let got = value.as_f64().filter(|x| x.is_finite() && *x >= least);
        let expected = format!("expected a number of at least {least}");
        got.ok_or_else(|| self.fault(format!("`{key}`: got {}, {expected}", Escaped(&value.to_string()))))
    }

    fn patterns(&self, key: &str, least: f64) -> Result<Vec<(Regex, f64)>> {
        let map = match self.get(key) {
            Value::Null => return Ok(Vec::new()),
            Value::Object(map) => map,
            other => {
                let got = Escaped(&other.to_string()).to_string();
                return Err(self.fault(format!("`{key}`: got {got}, expected numbers by patterns of names")));
            }
        };
        let read = |(name, value): (&String, &Value)| {
            let place = format!("{key}.{}", Escaped(name));
            let regex = python_regex::suffix(name).map_err(|e| self.fault(format!("`{place}`: {e}")))?;
            Ok((regex, self.number(&place, value, least)?))
        };
        map.iter().map(read).collect()
    }

    fn fault(&self, fault: String) -> Error {
        Error::Checkpoint {
            path: self.path.to_owned(),
            fault,
            hint: Some("merge it with PEFT's merge_and_unload() instead".to_owned()),
        }
    }
}
