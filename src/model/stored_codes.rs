//! Quantized weights that a model computes with as they are stored.

use serde_json::Value;

use crate::checkpoint::{Checkpoint, Quantization};

/// The modules of a block that may be stored in MXFP4.
const MODULES: [&str; 2] = [".mlp.experts.gate_up_proj", ".mlp.experts.down_proj"];
/// Their tensors.
const PARTS: [&str; 3] = ["_blocks", "_scales", "_bias"];

/// Whether `checkpoint` is a gpt-oss whose quantized weights are the experts, in MXFP4. These are decoded when they are used.
pub fn computes_with_codes(checkpoint: &Checkpoint) -> bool {
    let (Some(quantization), Some(config)) = (checkpoint.quantization(), checkpoint.config()) else {
        return false;
    };
    let is = |value: Option<&Value>, key: &str, name: &str| {
        value.and_then(|value| value.get(key)).and_then(Value::as_str) == Some(name)
    };
    let of_experts = |name: &str, module: &str| {
        MODULES.iter().any(|end| module.ends_with(end)) && PARTS.contains(&&name[module.len()..])
    };
    let mut names = quantized_names(checkpoint, quantization).peekable();
    is(Some(config.value()), "model_type", "gpt_oss")
        && quantization.config().is_none_or(|said| is(Some(said), "quant_method", "mxfp4"))
        && names.peek().is_some()
        && names.all(|(name, module)| module.is_some_and(|module| of_experts(name, module)))
}

/// The names of the tensors of quantized weights, each with its module.
fn quantized_names<'c>(
    checkpoint: &'c Checkpoint,
    quantization: &'c Quantization,
) -> impl Iterator<Item = (&'c str, Option<&'c str>)> {
    let names = checkpoint.tensors().map(|tensor| tensor.info.name.as_str());
    let quantized = names.filter(|name| quantization.covers(name));
    quantized.map(|name| (name, quantization.module_of(name)))
}
