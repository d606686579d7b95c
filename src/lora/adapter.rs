//! A PEFT adapter on disk: `adapter_config.json` and `adapter_model.safetensors`, each checked against the other.

use std::collections::BTreeMap;
use std::path::Path;

use crate::checkpoint::{Checkpoint, ReadOptions};
use crate::error::Escaped;
use crate::lora::adapter_config::AdapterConfig;
use crate::lora::names::{AdapterName, Part};
use crate::merge::tiles::source::{Source, is_float};
use crate::plan::{Category, TensorName};
use crate::{Error, Faults, Result};

/// The name of the file with the tensors.
const WEIGHTS: &str = "adapter_model.safetensors";

/// An adapter that was read and checked by itself.
#[derive(Debug)]
pub struct Adapter {
    checkpoint: Checkpoint,
    pub(super) config: AdapterConfig,
    /// The tensors of each module by their part: names in the file.
    modules: BTreeMap<String, BTreeMap<Part, String>>,
    /// Tensors of the model that are saved whole: names in the file by names in the model.
    whole: BTreeMap<String, String>,
}

/// An adapter and the factor w of what it adds to its base: `W' = W + w · s · B A`.
#[derive(Debug, Clone, Copy)]
pub struct WeightedAdapter<'a> {
    /// The adapter.
    pub adapter: &'a Adapter,
    /// The factor w.
    pub weight: f64,
}

/// The tensors of one module of an adapter.
#[derive(Debug)]
pub(super) struct Module<'a> {
    pub(super) name: &'a str,
    adapter: &'a Adapter,
    parts: &'a BTreeMap<Part, String>,
}

impl Adapter {
    /// Opens the adapter in directory `path`.
    ///
    /// # Errors
    /// [`Error::Io`], a broken file, tensors without their counterpart, or a kind of adapter that cannot be merged.
    pub fn open(path: &Path, options: impl Into<ReadOptions>) -> Result<Self> {
        let config = AdapterConfig::read(path)?;
        let weights = path.join(WEIGHTS);
        if !weights.exists() && path.join("adapter_model.bin").exists() {
            return Err(Error::Checkpoint {
                path: path.to_owned(),
                fault: format!("has adapter_model.bin, expected {WEIGHTS}"),
                hint: Some("load and save it with PEFT, which writes safetensors".to_owned()),
            });
        }
        let checkpoint = Checkpoint::open(&weights, options)?;
        let mut adapter = Self { checkpoint, config, modules: BTreeMap::new(), whole: BTreeMap::new() };
        let mut faults = adapter.read_names();
        if adapter.checkpoint.is_empty() {
            faults.push(adapter.fault("no tensors: the adapter is empty".to_owned()));
        }
        // The first alone: one contradiction of the configuration is one of every module.
        faults.extend(adapter.modules().find_map(|module| module.check().err()));
        faults.into_result()?;
        Ok(adapter)
    }

    /// The tensors of the adapter.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// The modules that have factors, magnitudes or rows, by their names in the model.
    pub(super) fn modules(&self) -> impl Iterator<Item = Module<'_>> {
        self.modules.iter().map(|(name, parts)| Module { name, adapter: self, parts })
    }

    /// The tensors that are saved whole, by their names in the model.
    pub(super) fn whole(&self) -> impl Iterator<Item = (&str, Source<'_>)> {
        self.whole.iter().filter_map(|(name, stored)| Some((name.as_str(), self.source(stored)?)))
    }

    /// A fault of the file with the tensors.
    pub(super) fn fault(&self, fault: String) -> Error {
        Error::Checkpoint { path: self.checkpoint.path().to_owned(), fault, hint: None }
    }

    /// A fault of one tensor.
    pub(super) fn tensor_fault(&self, tensor: &str, fault: &str) -> Error {
        self.fault(format!("tensor `{}`: {fault}", Escaped(tensor)))
    }

    fn source(&self, name: &str) -> Option<Source<'_>> {
        let tensor = self.checkpoint.find(name)?;
        Some(Source::stored(&self.checkpoint, &tensor))
    }

    /// Sorts the tensors by what they are.
    fn read_names(&mut self) -> Faults {
        let mut faults = Faults::default();
        let names: Vec<String> = self.checkpoint.tensors().map(|t| t.info.name.clone()).collect();
        for name in names {
            let twice = match AdapterName::of(&name) {
                AdapterName::Of(module, part) => {
                    self.modules.entry(module).or_default().insert(part, name.clone())
                }
                AdapterName::Whole(target) => self.whole.insert(target, name.clone()),
                AdapterName::Unknown => {
                    faults.push(self.tensor_fault(&name, "an unknown part of an adapter"));
                    None
                }
            };
            if let Some(other) = twice {
                let fault = format!("the same tensor as `{}`, under another name", Escaped(&other));
                faults.push(self.tensor_fault(&name, &fault));
            }
        }
        faults
    }
}

impl<'a> Module<'a> {
    /// The tensor of a part.
    pub(super) fn part(&self, part: Part) -> Option<Source<'a>> {
        self.parts.get(&part).and_then(|name| self.adapter.source(name))
    }

    /// A fault of the module's first tensor.
    pub(super) fn fault(&self, fault: &str) -> Error {
        self.adapter.tensor_fault(self.parts.values().next().map_or(self.name, String::as_str), fault)
    }

    /// Checks the parts against each other and against the configuration.
    fn check(&self) -> Result<()> {
        let has = |part| self.parts.contains_key(&part);
        let config = &self.adapter.config;
        let pairs = [
            (Part::A, Part::B, "lora_A without its lora_B"),
            (Part::B, Part::A, "lora_B without its lora_A"),
            (Part::EmbeddingA, Part::EmbeddingB, "lora_embedding_A without its lora_embedding_B"),
            (Part::EmbeddingB, Part::EmbeddingA, "lora_embedding_B without its lora_embedding_A"),
            (Part::Bias, Part::B, "the bias of a lora_B without its weight"),
        ];
        if let Some((.., what)) = pairs.iter().find(|(one, other, _)| has(*one) && !has(*other)) {
            return Err(self.fault(&format!("{what}: the adapter is incomplete")));
        }
        let linear = has(Part::A);
        let factors = linear || has(Part::EmbeddingA);
        let agree = |part: bool, said: bool, key: &str| match (part, said) {
            (true, false) => Err(self.fault(&format!("adapter_config.json does not set {key}"))),
            (false, true) => {
                Err(self.fault(&format!("the part is missing that {key} of adapter_config.json asks for")))
            }
            _ => Ok(()),
        };
        agree(has(Part::Magnitude), factors && config.dora, "use_dora")?;
        agree(has(Part::Bias), linear && config.lora_bias, "lora_bias")?;
        if factors {
            let head = TensorName::of(&format!("{}.weight", self.name)).category == Category::LmHead;
            let included = config.targets.include(self.name, head);
            let included = included.map_err(|e| config.fault(format!("a pattern cannot be matched: {e}")))?;
            if !included {
                return Err(
                    self.fault("adapter_config.json does not target its module, so PEFT does not load it")
                );
            }
        }
        self.parts.values().try_for_each(|name| {
            let source = self.adapter.source(name);
            match source.filter(|source| !is_float(&source.info.dtype)) {
                None => Ok(()),
                Some(source) => Err(self.adapter.tensor_fault(
                    name,
                    &format!("not a floating-point type that can be computed with: {}", source.info.dtype),
                )),
            }
        })
    }
}
