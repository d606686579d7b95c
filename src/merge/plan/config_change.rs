//! What `config.json` and `generation_config.json` must say of a result.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::checkpoint::{Dtype, Known};

/// Keys of the language model's configuration in that of a model of several parts.
const TEXT: [&str; 4] = ["text_config", "llm_config", "language_config", "thinker_config"];
/// Keys of the number of layers: transformers' own, and those of GPT-2, of GLM and GPT-Neo, and of MPT.
const LAYER_COUNTS: [&str; 4] = ["num_hidden_layers", "n_layer", "num_layers", "n_layers"];
/// Keys of lists with one entry for each layer.
const PER_LAYER: [&str; 9] = [
    "layer_types",
    "mlp_layer_types",
    "layers_block_type",
    "no_rope_layers",
    "attention_layers",
    "layer_rope_theta",
    "num_attention_heads_per_layer",
    "num_key_value_heads_per_layer",
    "block_configs",
];
/// Keys of lists of indices of layers.
const LAYER_INDICES: [&str; 7] = [
    "mlp_only_layers",
    "moe_layers",
    "cross_attention_layers",
    "attn_layer_indices",
    "local_layer_ids",
    "fullatt_block_indexes",
    "deepstack_visual_indexes",
];

/// A list of blocks with other layers than the reference has.
#[derive(Debug)]
pub(crate) struct Stack {
    pub(crate) section: Section,
    /// The layer of the reference that each layer comes from.
    pub(crate) layers: Vec<u32>,
}

/// The part of a configuration that says how many layers a list of blocks has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Section {
    /// The decoder of a language model.
    Language,
    Vision,
    Audio,
    /// The halves of a model that reads one sequence and writes another.
    Encoder,
    Decoder,
}

impl Section {
    /// That of a module of a recipe; `None` is the whole model.
    pub(crate) fn of(module: Option<&str>) -> Self {
        let begins = |words: &[&str]| {
            module.is_some_and(|m| m.split('.').any(|part| words.iter().any(|word| part.starts_with(word))))
        };
        match module {
            Some("encoder") => Self::Encoder,
            Some("decoder") => Self::Decoder,
            _ if begins(&["visual", "vision"]) => Self::Vision,
            _ if begins(&["audio", "speech"]) => Self::Audio,
            _ => Self::Language,
        }
    }

    /// The keys of objects that describe the part, where it is not described at the top.
    fn objects(self) -> &'static [&'static str] {
        match self {
            Self::Language => &TEXT,
            Self::Vision => &["vision_config", "thinker_config"],
            Self::Audio => &["audio_config", "thinker_config"],
            Self::Encoder | Self::Decoder => &[],
        }
    }

    /// The keys of the number of layers.
    fn counts(self) -> &'static [&'static str] {
        match self {
            Self::Language => &LAYER_COUNTS,
            Self::Vision | Self::Audio => &["num_hidden_layers", "depth", "num_layers", "encoder_layers"],
            Self::Encoder => &["encoder_layers", "num_layers", "num_hidden_layers"],
            Self::Decoder => &["decoder_layers", "num_decoder_layers"],
        }
    }

    /// Whether the top of a configuration may describe the part.
    fn at_top(self) -> bool {
        !matches!(self, Self::Vision | Self::Audio)
    }
}

/// What a merge changes in `config.json`.
#[derive(Debug, Default)]
pub(crate) struct ConfigChange {
    pub(crate) dtype: Option<Dtype>,
    pub(crate) vocab_size: Option<u64>,
    pub(crate) stacks: Vec<Stack>,
    pub(crate) untie: bool,
    /// The class of the model, where the recipe names another one.
    pub(crate) architecture: Option<String>,
    /// Token ids of the reference's tokenizer that differ in the result's: old and new.
    pub(crate) renumbered: BTreeMap<u64, u64>,
}

impl ConfigChange {
    /// Applies the change where the file says something of it; `None` where nothing changes.
    pub(crate) fn apply(&self, mut config: Value) -> Option<Value> {
        let before = config.clone();
        let map = config.as_object_mut()?;
        self.edit_sections(map);
        self.stacks.iter().for_each(|stack| stack.apply(map, stack.section.at_top()));
        if let (Some(name), true) = (&self.architecture, map.contains_key("architectures")) {
            map.insert("architectures".to_owned(), vec![name.as_str()].into());
        }
        (config != before).then_some(config)
    }

    /// Ids of special tokens in `generation_config.json`; `None` where nothing changes.
    pub(crate) fn apply_to_generation(&self, mut config: Value) -> Option<Value> {
        let before = config.clone();
        self.renumber(config.as_object_mut()?);
        (config != before).then_some(config)
    }

    fn renumber(&self, map: &mut Map<String, Value>) {
        for (_, value) in map.iter_mut().filter(|(key, _)| key.ends_with("_token_id")) {
            let list = match value {
                Value::Array(list) => list.as_mut_slice(),
                one => std::slice::from_mut(one),
            };
            for id in list {
                if let Some(new) = id.as_u64().and_then(|id| self.renumbered.get(&id)) {
                    *id = (*new).into();
                }
            }
        }
    }

    /// Edits an object and those in it that describe the language model.
    fn edit_sections(&self, map: &mut Map<String, Value>) {
        self.edit(map);
        for key in TEXT {
            if let Some(Value::Object(text)) = map.get_mut(key) {
                self.edit_sections(text);
            }
        }
    }

    fn edit(&self, map: &mut Map<String, Value>) {
        self.renumber(map);
        let mut set = |key: &str, value: Value| {
            if let Some(there) = map.get_mut(key) {
                *there = value;
            }
        };
        if let Some(name) = self.dtype.as_ref().and_then(torch_name) {
            set("torch_dtype", name.into());
            set("dtype", name.into());
        }
        if let Some(rows) = self.vocab_size {
            set("vocab_size", rows.into());
        }
        if self.untie {
            set("tie_word_embeddings", false.into());
        }
    }

    /// Whether a configuration says under no known name how many layers a stack has, though the recipe changes it.
    pub(crate) fn layers_unnamed(&self, config: &Value) -> bool {
        self.stacks.iter().any(|stack| stack.unnamed(config, stack.section.at_top()))
    }
}

impl Stack {
    /// Edits an object, where it describes the part, and those in it that do.
    fn apply(&self, map: &mut Map<String, Value>, describes: bool) {
        if describes {
            stack(map, self.section, &self.layers);
        }
        for key in self.section.objects() {
            if let Some(Value::Object(inner)) = map.get_mut(*key) {
                self.apply(inner, true);
            }
        }
    }

    fn unnamed(&self, config: &Value, describes: bool) -> bool {
        let Some(map) = config.as_object() else { return true };
        let here = describes && layer_count(map, self.section).is_some();
        !here && self.section.objects().iter().filter_map(|key| map.get(*key)).all(|c| self.unnamed(c, true))
    }
}

/// The key of the number of layers; `None` for a whole model whose encoder and decoder have numbers of their own.
fn layer_count(map: &Map<String, Value>, section: Section) -> Option<&'static str> {
    let halves = map.get("is_encoder_decoder").and_then(Value::as_bool).unwrap_or(false);
    let whole = halves && section == Section::Language;
    section.counts().iter().copied().find(|key| !whole && map.get(*key).is_some_and(Value::is_u64))
}

/// Makes a configuration that of a stack of `layers`: their number, lists with one entry for each, and lists of their
/// indices.
fn stack(map: &mut Map<String, Value>, section: Section, layers: &[u32]) {
    if layer_count(map, section).is_none() {
        return;
    }
    let counts = section.counts().iter().filter(|key| map.get(**key).is_some_and(Value::is_u64));
    for key in counts.copied().collect::<Vec<_>>() {
        map.insert(key.to_owned(), layers.len().into());
    }
    for (key, value) in map.iter_mut() {
        let Some(list) = value.as_array() else { continue };
        if PER_LAYER.contains(&key.as_str()) {
            let of = |layer: &u32| list.get(*layer as usize).cloned();
            if let Some(entries) = layers.iter().map(of).collect::<Option<Vec<_>>>() {
                *value = entries.into();
            }
        } else if LAYER_INDICES.contains(&key.as_str()) {
            let has = |layer: u32| list.iter().any(|index| index.as_u64() == Some(layer.into()));
            let indices: Vec<usize> = (0..layers.len()).filter(|i| has(layers[*i])).collect();
            *value = indices.into();
        }
    }
}

/// Types of results as PyTorch names them.
pub(crate) const TORCH_NAMES: [(&str, Known); 4] =
    [("float32", Known::F32), ("float16", Known::F16), ("bfloat16", Known::BF16), ("float64", Known::F64)];

fn torch_name(dtype: &Dtype) -> Option<&'static str> {
    TORCH_NAMES.iter().find(|(_, known)| *dtype == Dtype::Known(*known)).map(|(name, _)| *name)
}
