//! The supported families, found by name.

use super::family::Family;
use super::family_rows::{
    ARCEE, COHERE, COHERE2, EXAONE4, GEMMA, GEMMA2, GEMMA3, GLM, GLM4, GRANITE, HELIUM, LLAMA, MINISTRAL,
    MISTRAL, NEMOTRON, OLMO, OLMO2, OLMO3, PHI3, QWEN2, QWEN3, SEED_OSS, SMOLLM3, STABLELM,
};
use super::keys::Keys;
use super::mixture_rows::{GPT_OSS, MIXTRAL, OLMOE, QWEN2_MOE, QWEN3_MOE};
use super::vision_rows::{QWEN2_5_VL, QWEN2_5_VL_TEXT, QWEN2_VL, QWEN2_VL_TEXT, QWEN3_VL_TEXT};
use crate::Result;

/// The default sizes of the families that vision-language models have as their text part: their `text_config` has only
/// what differs.
pub(super) const NESTED: [(&str, [(&str, usize); 5]); 9] = [
    ("llama", sizes(4096, 11_008, 32, 32, 32_000)),
    ("mistral", sizes(4096, 14_336, 32, 32, 32_000)),
    ("gemma3_text", sizes(2304, 9216, 26, 8, 262_208)),
    ("qwen2", sizes(4096, 22_016, 32, 32, 151_936)),
    ("qwen3", sizes(4096, 22_016, 32, 32, 151_936)),
    ("cohere2", sizes(8192, 22_528, 40, 64, 256_000)),
    ("qwen2_vl_text", sizes(8192, 29_568, 80, 64, 152_064)),
    ("qwen2_5_vl_text", sizes(8192, 29_568, 80, 64, 152_064)),
    ("qwen3_vl_text", sizes(4096, 22_016, 32, 32, 151_936)),
];

const fn sizes(
    hidden: usize,
    inner: usize,
    layers: usize,
    heads: usize,
    vocab: usize,
) -> [(&'static str, usize); 5] {
    [
        ("hidden_size", hidden),
        ("intermediate_size", inner),
        ("num_hidden_layers", layers),
        ("num_attention_heads", heads),
        ("vocab_size", vocab),
    ]
}

/// The supported families.
static FAMILIES: [Family; 34] = [
    LLAMA,
    MISTRAL,
    MINISTRAL,
    QWEN2,
    QWEN3,
    SEED_OSS,
    SMOLLM3,
    GRANITE,
    HELIUM,
    OLMO,
    OLMO2,
    OLMO3,
    EXAONE4,
    GEMMA,
    GEMMA2,
    GEMMA3,
    PHI3,
    GLM,
    GLM4,
    STABLELM,
    COHERE,
    COHERE2,
    ARCEE,
    NEMOTRON,
    MIXTRAL,
    QWEN2_MOE,
    QWEN3_MOE,
    OLMOE,
    GPT_OSS,
    QWEN2_VL,
    QWEN2_VL_TEXT,
    QWEN2_5_VL,
    QWEN2_5_VL_TEXT,
    QWEN3_VL_TEXT,
];

/// The family that `model_type` names.
///
/// # Errors
/// [`crate::Error::Checkpoint`] with the supported families.
pub(super) fn family_of(keys: &Keys<'_>) -> Result<&'static Family> {
    let named = keys.get("model_type").and_then(serde_json::Value::as_str);
    let found = FAMILIES.iter().find(|family| Some(family.model_type) == named);
    found.ok_or_else(|| {
        let got = named.map_or_else(|| "none".to_owned(), |t| format!("`{}`", crate::error::Escaped(t)));
        let [first @ .., last] = FAMILIES.each_ref().map(|family| family.model_type);
        keys.fault(
            format!("unsupported model_type: got {got}, expected {} or {last}", first.join(", ")),
            Some("inspect, diff, reset and merge work on any safetensors checkpoint"),
        )
    })
}
