//! Quantized weights: tensors whose stored codes are numbers only together with other tensors, their scales.
//!
//! Recognised by `config.json` and by the names and types that fp8, MXFP4, NVFP4, compressed-tensors, bitsandbytes,
//! GPTQ, AWQ, HQQ, Quanto, AQLM, EETQ, BitNet, torchao and MLX write.

use std::collections::BTreeSet;
use std::fmt;

use serde_json::Value;

use super::config::Config;
use super::dtype::{Dtype, Known};
use crate::error::Escaped;

/// Last components that only a module with quantized weights has.
const CERTAIN: [&str; 15] = [
    "weight_scale",
    "weight_scale_inv",
    "weight_scale_2",
    "weight_scales",
    "weight_zero_point",
    "weight_packed",
    "weight_global_scale",
    "weight_format",
    "_weight_qdata",
    "_weight_scale",
    "qweight",
    "qzeros",
    "SCB",
    "W_q",
    "qscale_weight",
];
/// What follows `.weight.` in the name of a part of a quantized weight; `quant_state.…` besides.
const BELOW_WEIGHT: [&str; 7] =
    ["absmax", "quant_map", "nested_absmax", "nested_quant_map", "_data", "_scale", "_shift"];

/// The quantized weights of a checkpoint.
#[derive(Debug, Clone)]
pub struct Quantization {
    /// What `config.json` says of it.
    config: Option<Value>,
    /// The modules whose tensors are quantized; empty where only `config.json` says that some are.
    modules: BTreeSet<String>,
}

impl Quantization {
    /// Looks for quantized weights among `tensors`, which `find` knows by name; `None` where neither they nor `config`
    /// show any.
    pub(super) fn of<'a>(
        config: Option<&Config>,
        tensors: impl Iterator<Item = (&'a str, &'a Dtype)>,
        find: &dyn Fn(&str) -> Option<&'a Dtype>,
    ) -> Option<Self> {
        let config = config.and_then(quantization_config).cloned();
        let modules = tensors.filter_map(|(name, dtype)| module(name, dtype, find));
        let modules: BTreeSet<String> = modules.map(str::to_owned).collect();
        (config.is_some() || !modules.is_empty()).then_some(Self { config, modules })
    }

    /// Whether the tensor of that name is one of those that make up a quantized weight. Where only `config.json` says
    /// that there are any, every tensor may be.
    pub fn covers(&self, tensor: &str) -> bool {
        self.modules.is_empty() || self.module_of(tensor).is_some()
    }

    /// The module whose quantized weight the tensor of that name is part of, where its tensors tell.
    pub fn module_of<'n>(&self, tensor: &'n str) -> Option<&'n str> {
        let last = tensor.rfind('.').unwrap_or(0);
        let ends = tensor.match_indices(['.', '_']).filter(|(at, end)| *end == "." || *at > last);
        let mut modules = ends.map(|(at, _)| &tensor[..at]).chain([tensor]);
        modules.find(|module| self.modules.contains(*module))
    }

    /// What `config.json` says of it: `quantization_config` and what other programs call it.
    pub fn config(&self) -> Option<&Value> {
        self.config.as_ref()
    }
}

/// Such as ``fp8 by config.json, 210 modules, the first `model.layers.0.mlp.down_proj` ``.
impl fmt::Display for Quantization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(config) = &self.config {
            let method = config["quant_method"].as_str().unwrap_or("unnamed method");
            write!(f, "{} by config.json", Escaped(method))?;
        }
        let Some(first) = self.modules.first() else { return Ok(()) };
        let comma = if self.config.is_some() { ", " } else { "" };
        let (n, s) = (self.modules.len(), if self.modules.len() == 1 { "" } else { "s" });
        write!(f, "{comma}{n} module{s}, the first `{}`", Escaped(first))
    }
}

/// Keys of `config.json` that say how weights are quantized.
pub(super) const KEYS: [&str; 3] = ["quantization_config", "compression_config", "quantization"];

/// What the configuration says of quantization, at the top level or in `text_config`.
fn quantization_config(config: &Config) -> Option<&Value> {
    let value = config.value();
    let places = [Some(value), value.get("text_config")];
    let said = places.into_iter().flatten().flat_map(|place| KEYS.iter().filter_map(|key| place.get(*key)));
    said.into_iter().find(|said| said.is_object())
}

/// The module whose weight is quantized, where name and type of one of its tensors tell.
fn module<'n, 'a>(name: &'n str, dtype: &Dtype, find: &dyn Fn(&str) -> Option<&'a Dtype>) -> Option<&'n str> {
    if let Some((module, part)) = name.split_once(".weight.")
        && (BELOW_WEIGHT.contains(&part) || part.starts_with("quant_state."))
    {
        return Some(module);
    }
    if let Some((module, "_scale" | "_double_scale")) = name.split_once(".weight_quantizer.") {
        return Some(module);
    }
    let (module, part) = name.rsplit_once('.').unwrap_or(("", name));
    let beside = |part: &str| find(&format!("{module}.{part}"));
    let found = match part {
        _ if CERTAIN.contains(&part) => true,
        "scale" => beside("weight").is_some_and(is_code),
        "scales" | "biases" => beside("weight").is_some_and(is_integer),
        "codes" => beside("codebooks").is_some(),
        _ => false,
    };
    if found {
        return Some(module);
    }
    let fused = |end: &str| name.strip_suffix(end).filter(|module| !module.is_empty());
    if let Some(module) = fused("_blocks").filter(|module| find(&format!("{module}_scales")).is_some()) {
        return Some(module);
    }
    let scaled = fused("_scale_inv").or_else(|| fused("_scale"));
    if let Some(module) = scaled.filter(|module| find(module).is_some_and(is_code)) {
        return Some(module);
    }
    let only_scaled = *dtype == Dtype::Known(Known::F8_E8M0);
    only_scaled.then(|| name.strip_suffix(".weight").or_else(|| fused("_scales")).unwrap_or(name))
}

/// Types of codes that scales belong to.
fn is_code(dtype: &Dtype) -> bool {
    dtype.bits().is_some_and(|bits| bits <= 8) || is_integer(dtype)
}

fn is_integer(dtype: &Dtype) -> bool {
    matches!(dtype, Dtype::Known(Known::I8 | Known::U8 | Known::I32 | Known::U32))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn found(tensors: &[(&str, &str)]) -> Option<Quantization> {
        let tensors: BTreeMap<&str, Dtype> = tensors.iter().map(|(n, d)| (*n, Dtype::parse(d))).collect();
        Quantization::of(None, tensors.iter().map(|(name, d)| (*name, d)), &|name| tensors.get(name))
    }

    /// The tensors of one matrix `m.q_proj` as each program saves it.
    const SAVED: [(&str, &[(&str, &str)]); 14] = [
        ("fp8", &[("m.q_proj.weight", "F8_E4M3"), ("m.q_proj.weight_scale_inv", "F32")]),
        (
            "compressed-tensors",
            &[
                ("m.q_proj.weight_packed", "I32"),
                ("m.q_proj.weight_scale", "BF16"),
                ("m.q_proj.weight_shape", "I64"),
            ],
        ),
        (
            "bitsandbytes 4 bit",
            &[
                ("m.q_proj.weight", "U8"),
                ("m.q_proj.weight.absmax", "F32"),
                ("m.q_proj.weight.quant_map", "F32"),
                ("m.q_proj.weight.quant_state.bitsandbytes__nf4", "U8"),
            ],
        ),
        (
            "bitsandbytes 8 bit",
            &[("m.q_proj.weight", "I8"), ("m.q_proj.SCB", "F32"), ("m.q_proj.weight_format", "U8")],
        ),
        (
            "GPTQ",
            &[
                ("m.q_proj.qweight", "I32"),
                ("m.q_proj.qzeros", "I32"),
                ("m.q_proj.scales", "F16"),
                ("m.q_proj.g_idx", "I32"),
            ],
        ),
        ("AWQ", &[("m.q_proj.qweight", "I32"), ("m.q_proj.qzeros", "I32"), ("m.q_proj.scales", "F16")]),
        ("MXFP4", &[("m.q_proj_blocks", "U8"), ("m.q_proj_scales", "U8"), ("m.q_proj_bias", "BF16")]),
        ("fused fp8", &[("m.q_proj", "F8_E4M3"), ("m.q_proj_scale", "F32")]),
        ("DeepSeek", &[("m.q_proj.weight", "F8_E4M3"), ("m.q_proj.scale", "F8_E8M0")]),
        ("HQQ", &[("m.q_proj.W_q", "U8"), ("m.q_proj.scale", "F16"), ("m.q_proj.zero", "F16")]),
        ("Quanto", &[("m.q_proj.weight._data", "I8"), ("m.q_proj.weight._scale", "F32")]),
        ("AQLM", &[("m.q_proj.codes", "I8"), ("m.q_proj.codebooks", "F16"), ("m.q_proj.scales", "F16")]),
        ("torchao", &[("m.q_proj._weight_qdata", "I8"), ("m.q_proj._weight_scale", "F32")]),
        ("MLX", &[("m.q_proj.weight", "U32"), ("m.q_proj.scales", "F16"), ("m.q_proj.biases", "F16")]),
    ];

    #[test]
    fn every_program_is_recognised() {
        for (program, tensors) in SAVED {
            let plain = [("m.norm.weight", "BF16"), ("m.q_proj_2.weight", "BF16")];
            let found = found(&[tensors, &plain].concat()).unwrap();
            assert_eq!(found.to_string(), "1 module, the first `m.q_proj`", "{program}");
            for (name, _) in tensors {
                assert_eq!(found.module_of(name), Some("m.q_proj"), "{program} {name}");
            }
            assert!(!found.covers("m.norm.weight") && !found.covers("m.q_projection"), "{program}");
        }
    }

    #[test]
    fn plain_weights_are_not_quantized() {
        let plain = [
            ("h.0.attn.bias", "U8"),
            ("m.scale", "F32"),
            ("m.norm.weight", "F32"),
            ("m.norm.scale", "F32"),
            ("m.gamma_scale", "F32"),
            ("m.cast.weight", "F8_E4M3"),
            ("m.parametrizations.weight.original0", "F32"),
            ("m.self_attn.k_scale", "F32"),
            ("m.res_blocks", "F32"),
            ("m.codes", "I64"),
        ];
        assert!(found(&plain).is_none());
    }
}
