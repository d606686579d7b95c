//! The keys of `config.json` that are understood. Any other key may change what the model computes, so that a
//! configuration with one is refused.

use serde_json::Value;

use super::keys::Keys;
use crate::Result;
use crate::error::Escaped;

/// Keys that the computation here depends on.
const READ: [&str; 24] = [
    "attention_bias",
    "head_dim",
    "hidden_size",
    "intermediate_size",
    "layer_types",
    "max_position_embeddings",
    "max_window_layers",
    "mlp_bias",
    "model_type",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "original_max_position_embeddings",
    "pad_token_id",
    "partial_rotary_factor",
    "quantization_config",
    "rms_norm_eps",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "sliding_window",
    "tie_word_embeddings",
    "use_sliding_window",
    "vocab_size",
];

/// Keys that no model class of the supported families computes with: names, types, versions, settings of
/// generation, of classification, of memory and of other programs.
const HARMLESS: [&str; 84] = [
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_attn_implementation_internal",
    "_commit_hash",
    "_flash_attn_2_enabled",
    "_from_model_config",
    "_name_or_path",
    "architectures",
    "attn_implementation",
    "auto_map",
    "bad_words_ids",
    "begin_suppress_tokens",
    "bos_token",
    "bos_token_id",
    "cache_implementation",
    "chunk_size_feed_forward",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "dtype",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "eos_token",
    "eos_token_id",
    "exponential_decay_length_penalty",
    "finetuning_task",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "gradient_checkpointing",
    "id2label",
    "initializer_range",
    "is_decoder",
    "is_llama_config",
    "label2id",
    "length_penalty",
    "license",
    "max_length",
    "max_seq_len",
    "max_seq_length",
    "max_sequence_length",
    "mergekit_config",
    "min_length",
    "model_max_length",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_labels",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "output_scores",
    "pad_token",
    "prefix",
    "pretraining_tp",
    "problem_type",
    "remove_invalid_values",
    "repetition_penalty",
    "return_dict",
    "return_dict_in_generate",
    "sep_token_id",
    "seq_length",
    "suppress_tokens",
    "task_specific_params",
    "temperature",
    "tf_legacy_loss",
    "tokenizer_class",
    "tokenizer_model_max_length",
    "tokenizer_padding_side",
    "top_k",
    "top_p",
    "torch_dtype",
    "torchscript",
    "transformers.js_config",
    "transformers_version",
    "typical_p",
    "unk_token_id",
    "unsloth_fixed",
    "unsloth_version",
    "use_bfloat16",
    "use_cache",
    "use_flash_attention",
    "use_flash_attention_2",
    "use_flash_attn",
];

/// The only value of a key that is computed with.
#[derive(Debug, Clone, Copy)]
pub(super) enum Only {
    /// True; null counts as false, as in transformers.
    True,
    /// False or null.
    False,
    /// This number or null.
    Number(f64),
    /// One of these words or null.
    Word(&'static [&'static str]),
    /// An object or a list without entries, or null.
    Empty,
}

/// Keys with one value that is computed with.
const FIXED: [(&str, Only); 16] = [
    ("add_cross_attention", Only::False),
    ("attention_dropout", Only::Number(0.0)),
    ("cross_attention_hidden_size", Only::Empty),
    ("hidden_act", Only::Word(&["silu", "swish"])),
    ("hidden_dropout", Only::Number(0.0)),
    ("is_causal", Only::True),
    ("is_encoder_decoder", Only::False),
    ("logits_scaling", Only::Number(1.0)),
    ("pruned_heads", Only::Empty),
    ("qk_layernorm", Only::False),
    ("residual_dropout", Only::Number(0.0)),
    ("rope_interleaved", Only::False),
    ("tie_encoder_decoder", Only::False),
    ("use_bidirectional_attention", Only::False),
    ("use_mrope", Only::False),
    ("use_qk_norm", Only::False),
];

impl Only {
    /// Whether `value` is the one.
    fn is(self, value: &Value) -> bool {
        match self {
            Self::True => value == true,
            _ if value.is_null() => true,
            Self::False => value == false,
            Self::Number(number) => value.as_f64() == Some(number),
            Self::Word(words) => value.as_str().is_some_and(|word| words.contains(&word)),
            Self::Empty => {
                value.as_object().is_some_and(serde_json::Map::is_empty)
                    || value.as_array().is_some_and(Vec::is_empty)
            }
        }
    }

    /// What an error says was expected.
    fn expected(self) -> String {
        match self {
            Self::True => "true".to_owned(),
            Self::False => "false".to_owned(),
            Self::Number(number) => number.to_string(),
            Self::Word(words) => words.join(" or "),
            Self::Empty => "nothing".to_owned(),
        }
    }
}

/// Checks that every key is known and that keys of which one value is computed with have that value. `read` and `fixed`
/// are the keys that the family has of its own; they go before those of all families.
///
/// # Errors
/// [`crate::Error::Checkpoint`] naming the key and its value, or all keys that are not known.
pub(super) fn check_keys(keys: &Keys<'_>, read: &[&str], fixed: &[(&str, Only)]) -> Result<()> {
    let entries = || keys.value.as_object().into_iter().flatten();
    for (key, value) in entries() {
        if read.contains(&key.as_str()) {
            continue;
        }
        let found = fixed.iter().chain(&FIXED).find(|(name, _)| name == key);
        if let Some((_, only)) = found.filter(|(_, only)| !only.is(value)) {
            return Err(keys.wrong(key, &only.expected()));
        }
    }
    if keys.get("quantization_config").is_some() && !read.contains(&"quantization_config") {
        return Err(keys.fault(
            "`quantization_config`: quantized weights cannot be trained",
            Some("use the checkpoint it was quantized from"),
        ));
    }
    let known = |key: &str| {
        READ.contains(&key)
            || read.contains(&key)
            || HARMLESS.contains(&key)
            || fixed.iter().chain(&FIXED).any(|(name, _)| *name == key)
    };
    let unknown = entries().filter(|(key, value)| !value.is_null() && !known(key));
    let unknown: Vec<String> = unknown.take(8).map(|(key, _)| format!("`{}`", Escaped(key))).collect();
    if unknown.is_empty() {
        return Ok(());
    }
    Err(keys.fault(
        format!("{}: not known, and may change what the model computes", unknown.join(", ")),
        Some("if the model computes the same without it, remove it from a copy of config.json"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(value: &Value) -> Result<()> {
        check_keys(&Keys { value, path: "config.json".as_ref() }, &[], &[])
    }

    #[test]
    fn the_lists_have_each_key_once_and_in_order() {
        assert!(READ.is_sorted() && HARMLESS.is_sorted() && FIXED.is_sorted_by_key(|(key, _)| *key));
        let all = READ.iter().chain(&HARMLESS).chain(FIXED.iter().map(|(key, _)| key));
        let mut all: Vec<&str> = all.copied().collect();
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
    }

    #[test]
    fn keys_that_may_change_the_computation_are_named() {
        for (key, value) in [
            ("is_causal", json!(false)),
            ("is_causal", json!(null)),
            ("attention_dropout", json!("0.5")),
            ("rope_interleaved", json!(true)),
            ("pruned_heads", json!({"0": [1]})),
            ("quantization_config", json!({})),
            ("final_logit_softcapping", json!(30.0)),
            ("no_rope_layers", json!([1, 0])),
            ("text_config", json!({})),
        ] {
            let error =
                check(&json!({ key: value })).map_or_else(|e| e.to_string(), |()| "accepted".to_owned());
            assert!(error.contains(&format!("`{key}`")), "{error}");
        }
        assert!(check(&json!({"anything": null})).is_ok());
    }
}
