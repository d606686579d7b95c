//! What `tokenizer_config.json` changes of `tokenizer.json`, as transformers 5 loads both.

use serde_json::Value;
use tokenizers::Tokenizer;
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};

/// Values of `model_type` for which transformers takes the tokenizer of the file whatever its class.
const AS_IN_THE_FILE: [&str; 2] = ["mistral", "qwen2"];

/// Makes of a tokenizer what `AutoTokenizer` makes of it: `tokenizer_class: LlamaTokenizer` is built anew with spaces
/// as `▁` and one before the text only, where the file may put one before each text between special tokens.
///
/// `config` is `tokenizer_config.json`, `model` is `config.json`. Source: `tokenization_auto.py` and
/// `tokenization_llama.py` of transformers 5.24.
///
/// # Errors
/// When an added token cannot be normalized anew.
pub(crate) fn apply(tokenizer: &mut Tokenizer, config: &Value, model: &Value) -> Result<(), String> {
    if is_llama_tokenizer(config, model) && !is_byte_level(tokenizer) {
        let scheme = match (config["add_prefix_space"].as_bool(), config["legacy"].as_bool()) {
            (Some(false), _) => PrependScheme::Never,
            (_, Some(true)) => PrependScheme::Always,
            _ => PrependScheme::First,
        };
        tokenizer.with_normalizer(None::<NormalizerWrapper>).map_err(|e| e.to_string())?;
        tokenizer.with_pre_tokenizer(Some(Metaspace::new('▁', scheme, false)));
    }
    Ok(())
}

fn is_llama_tokenizer(config: &Value, model: &Value) -> bool {
    let class = config["tokenizer_class"].as_str().or(model["tokenizer_class"].as_str()).unwrap_or_default();
    let as_in_the_file = model["model_type"].as_str().is_some_and(|name| AS_IN_THE_FILE.contains(&name));
    class.strip_suffix("Fast").unwrap_or(class) == "LlamaTokenizer"
        && !as_in_the_file
        && config.get("auto_map").is_none()
}

/// Whether the file is of the kind of Llama 3, which transformers leaves as it is.
fn is_byte_level(tokenizer: &Tokenizer) -> bool {
    let parts = serde_json::to_string(&tokenizer.get_pre_tokenizer());
    parts.is_ok_and(|parts| parts.contains("\"ByteLevel\""))
}
