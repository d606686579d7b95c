//! The text part of a model: all of it, or what a vision-language model computes with beside its towers.

use serde_json::Value;

use super::families::NESTED;
use super::keys::Keys;
use crate::Result;
use crate::checkpoint::Checkpoint;

/// `model_type` of vision-language models whose `text_config` is of a supported family and which compute, for text
/// alone, as that family.
const COMPOSITES: [&str; 13] = [
    "aya_vision",
    "gemma3",
    "idefics3",
    "internvl",
    "llava",
    "llava_next",
    "llava_onevision",
    "mistral3",
    "qwen2_5_vl",
    "qwen2_vl",
    "qwen3_vl",
    "smolvlm",
    "vipllava",
];

/// Those of them whose configuration may have the keys of the text part at the top level.
const FLAT: [&str; 2] = ["qwen2_5_vl", "qwen2_vl"];

/// How the tensors of the text part are named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TensorNames {
    /// What stands before `embed_tokens`, `layers` and `norm`.
    pub(super) body: &'static str,
    /// The output head.
    pub(super) head: &'static str,
}

impl TensorNames {
    /// Of a model of text alone.
    pub(super) const TEXT: Self = Self { body: "model.", head: "lm_head.weight" };

    /// Of the text part of a vision-language model, in the spellings of transformers 4 and 5.
    const COMPOSITE: [Self; 4] = [
        Self { body: "language_model.model.", head: "language_model.lm_head.weight" },
        Self { body: "model.language_model.", head: "lm_head.weight" },
        Self { body: "model.text_model.", head: "lm_head.weight" },
        Self::TEXT,
    ];

    /// The token embedding.
    pub(super) fn embedding(&self) -> String {
        format!("{}embed_tokens.weight", self.body)
    }
}

/// The text part of the model that `keys` describe.
pub(super) struct TextPart<'a> {
    /// Its configuration.
    pub(super) keys: Keys<'a>,
    /// The names of its tensors in the checkpoint.
    pub(super) names: TensorNames,
    /// It is part of a vision-language model.
    pub(super) nested: bool,
    /// `tie_word_embeddings` of the whole model, where it has that key.
    pub(super) tied: Option<bool>,
}

impl<'a> TextPart<'a> {
    /// # Errors
    /// A vision-language model without `text_config` or without a token embedding in its checkpoint.
    pub(super) fn of(keys: Keys<'a>, checkpoint: &Checkpoint) -> Result<Self> {
        let model_type = keys.get("model_type").and_then(Value::as_str);
        if !model_type.is_some_and(|model_type| COMPOSITES.contains(&model_type)) {
            return Ok(Self { keys, names: TensorNames::TEXT, nested: false, tied: None });
        }
        let tied = keys.get("tie_word_embeddings").map(|_| keys.flag("tie_word_embeddings")).transpose()?;
        let flat = model_type.is_some_and(|model_type| FLAT.contains(&model_type));
        let text = match keys.get("text_config") {
            None if flat => Some(keys.value),
            text => text.filter(|value| value.is_object()),
        };
        let text = text.ok_or_else(|| keys.wrong("text_config", "an object"))?;
        let mut all = TensorNames::COMPOSITE.into_iter();
        let names = all.find(|names| checkpoint.find(&names.embedding()).is_some()).ok_or_else(|| {
            let tried = TensorNames::COMPOSITE.map(|names| format!("`{}`", names.embedding()));
            keys.fault(format!("no token embedding of the text part: none of {}", tried.join(", ")), None)
        })?;
        Ok(Self { keys: Keys { value: text, path: keys.path }, names, nested: true, tied })
    }

    /// A size; where the text part of a vision-language model does not have the key, the default of its family.
    ///
    /// # Errors
    /// As [`Keys::size`].
    pub(super) fn size(&self, key: &str) -> Result<usize> {
        let model_type = self.keys.get("model_type").and_then(Value::as_str);
        let default = || {
            let (_, sizes) = NESTED.iter().find(|(family, _)| Some(*family) == model_type)?;
            sizes.iter().find(|(name, _)| *name == key).map(|(_, size)| *size)
        };
        match self.keys.value.get(key) {
            None if self.nested => default().map_or_else(|| self.keys.size(key), Ok),
            _ => self.keys.size(key),
        }
    }
}
