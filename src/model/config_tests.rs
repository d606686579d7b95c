//! What is read from `config.json`.

use serde_json::{Value, json};

use super::*;
use crate::model::RopeScaling;

fn parse(extra: Value) -> Result<ModelConfig> {
    let mut value = json!({
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 4,
        "num_attention_heads": 4, "vocab_size": 256, "rms_norm_eps": 1e-5
    });
    for (key, v) in extra.as_object().into_iter().flatten() {
        value[key] = v.clone();
    }
    let keys = Keys { value: &value, path: "config.json".as_ref() };
    ModelConfig::of_part(&TextPart { keys, names: TensorNames::TEXT, nested: false, tied: None }, 40)
}

#[test]
fn both_spellings_say_the_same() {
    let scaling = json!({"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192});
    let old = parse(json!({"rope_theta": 5e5, "rope_scaling": scaling.clone()}));
    let mut parameters = scaling;
    parameters["rope_theta"] = json!(5e5);
    let new = parse(json!({"rope_parameters": parameters}));
    let (Ok(old), Ok(new)) = (old, new) else { panic!("both are valid") };
    assert_eq!(old, new);
    assert_eq!(old.ropes[0].theta, 5e5);
}

/// With the default values of the configuration classes of transformers, and of public models.
#[test]
fn every_key_that_transformers_writes_is_known() {
    let text = include_str!("../../fixtures/config/defaults.json");
    let defaults: Value = serde_json::from_str(text).unwrap();
    for (family, value) in defaults.as_object().unwrap() {
        let keys = Keys { value, path: "config.json".as_ref() };
        let own = family_of(&keys).unwrap();
        let checked = check_keys(&keys, own.keys, own.fixed);
        assert_eq!(checked.map_err(|e| e.to_string()), Ok(()), "{family}");
    }
    assert!(defaults.as_object().unwrap().len() >= 24);
}

#[test]
fn windows_follow_the_family() {
    let windows = |extra| parse(extra).map(|c| c.windows).unwrap_or_default();
    assert_eq!(windows(json!({"sliding_window": 8, "use_sliding_window": false})), [None; 4]);
    let mistral = json!({"model_type": "mistral", "num_key_value_heads": 4, "sliding_window": 8});
    assert_eq!(windows(mistral), [Some(8); 4]);
    let qwen = json!({"model_type": "qwen2", "num_key_value_heads": 4, "sliding_window": 8, "use_sliding_window": true,
        "max_window_layers": 3});
    assert_eq!(windows(qwen), [None, None, None, Some(8)]);
    let off = json!({"model_type": "qwen2", "num_key_value_heads": 4, "sliding_window": 8, "use_sliding_window": false});
    assert_eq!(windows(off), [None; 4]);
}

/// The defaults of the configuration classes of transformers 5.
#[test]
fn a_missing_key_has_the_default_of_its_family() {
    let of = |extra| parse(extra).unwrap();
    let mistral = json!({"model_type": "mistral", "num_attention_heads": 8, "head_dim": 8});
    assert_eq!((of(mistral.clone()).windows, of(mistral).num_key_value_heads), (vec![Some(4096); 4], 8));
    let qwen = json!({"model_type": "qwen2", "use_sliding_window": true, "max_window_layers": 0,
        "num_attention_heads": 32, "head_dim": 2});
    assert_eq!((of(qwen.clone()).windows, of(qwen).num_key_value_heads), (vec![Some(4096); 4], 32));
    let unscaled = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0});
    for (model_type, positions) in [("llama", 2048.0), ("mistral", 131_072.0), ("qwen3", 32_768.0)] {
        let config = of(json!({"model_type": model_type, "rope_scaling": unscaled,
            "num_key_value_heads": 4}));
        let RopeScaling::Llama3 { original, .. } = config.ropes[0].scaling else { panic!("{config:?}") };
        assert_eq!(original, positions, "{model_type}");
    }
}

#[test]
fn the_row_of_the_pad_token_counts_from_either_end() {
    let of = |id: Value| parse(json!({"pad_token_id": id})).map(|config| config.padding_idx);
    assert_eq!(of(json!(null)).unwrap(), None);
    assert_eq!(of(json!(255)).unwrap(), Some(255));
    assert_eq!(of(json!(-1)).unwrap(), Some(255));
    for id in [json!(256), json!(-257), json!("0")] {
        assert!(of(id).unwrap_err().to_string().contains("below vocab_size = 256"));
    }
}

#[test]
fn what_is_not_supported_is_named() {
    let says = |extra: Value, word: &str| {
        let error = parse(extra).map_or_else(|e| e.to_string(), |_| "accepted".to_owned());
        assert!(error.contains(word), "{error}");
    };
    says(json!({"model_type": "gpt2"}), "unsupported model_type: got `gpt2`");
    says(json!({"hidden_act": "gelu"}), "hidden_act");
    says(json!({"num_key_value_heads": 3}), "a divisor of num_attention_heads = 4");
    says(
        json!({"rope_scaling": {"rope_type": "longrope"}}),
        "`long_factor`: got nothing, expected 8 numbers",
    );
    says(json!({"rope_scaling": {"type": "dynamic"}}), "`factor`: got nothing");
    says(json!({"rope_scaling": {"type": "su"}}), "rope type: got `\"su\"`, expected default, dynamic");
    says(json!({"model_type": "glm", "partial_rotary_factor": 0.2}), "`partial_rotary_factor`: got 0.2");
    says(json!({"model_type": "cohere", "use_qk_norm": true}), "use_qk_norm");
    says(json!({"model_type": "olmo", "clip_qkv": 8.0}), "clip_qkv");
    says(json!({"hidden_size": "big"}), "got `\"big\"`, expected a whole number above 0");
    says(json!({"quantization_config": {}}), "quantized");
    says(json!({"rope_scaling": "yarn"}), "`rope_scaling`: got `\"yarn\"`, expected an object");
    says(json!({"rope_scaling": {"rope_type": "default", "type": "yarn"}}), "`type`: got `\"yarn\"`");
    says(json!({"rope_parameters": {"full_attention": {}}}), "`full_attention` is not known");
    says(json!({"rope_parameters": {"factor": 2.0}}), "`factor` is not known");
    says(
        json!({"rope_parameters": {"partial_rotary_factor": 0.5}}),
        "`partial_rotary_factor`: got `0.5`, expected 1",
    );
    says(json!({"sliding_window": 8}), "this family has no sliding window");
    says(
        json!({"model_type": "mistral", "num_key_value_heads": 4, "use_sliding_window": false}),
        "`use_sliding_window`: got `false`",
    );
    let no_window = json!({"model_type": "qwen2", "num_key_value_heads": 4, "sliding_window": 8,
        "layer_types": vec!["sliding_attention"; 4]});
    says(no_window, "`layer_types`: sliding_attention, but the model has no sliding window");
    says(
        json!({"num_hidden_layers": 1_000_000_000}),
        "got `1000000000`, expected at most one layer for each of the 40",
    );
}
