//! Names of an adapter's tensors, and of the tensors of a base that they mean.

use crate::checkpoint::{Checkpoint, Tensor};

/// What a tensor of an adapter is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    /// `lora_A.weight`, `[r, in]`.
    A,
    /// `lora_B.weight`, `[out, r]`.
    B,
    /// `lora_B.bias`, `[out]`.
    Bias,
    /// `lora_embedding_A`, `[r, V]`.
    EmbeddingA,
    /// `lora_embedding_B`, `[D, r]`.
    EmbeddingB,
    /// `lora_magnitude_vector`, `[out]`; of an embedding `[D]`.
    Magnitude,
    /// `token_adapter.trainable_tokens_delta`, `[tokens, D]`: new rows, not differences.
    Tokens,
}

/// A tensor's name without what wrappers of PEFT and PyTorch put into it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum AdapterName {
    /// A part of the adapter of a module.
    Of(String, Part),
    /// A tensor of the model, saved whole.
    Whole(String),
    /// Neither.
    Unknown,
}

/// Components that wrap a module and are no part of its name.
const WRAPPERS: [&str; 4] = ["base_layer", "modules_to_save", "_orig_mod", "_fsdp_wrapped_module"];

impl AdapterName {
    /// Reads the name of a tensor.
    pub(super) fn of(name: &str) -> Self {
        let bare = without_wrappers(name);
        let inner = bare.strip_prefix("module.").unwrap_or(&bare);
        let inner = inner.strip_prefix("base_model.model.").unwrap_or(inner);
        let parts: Vec<&str> = inner.split('.').collect();
        let known =
            |part: &&str| part.starts_with("lora_") || *part == "token_adapter" || *part == "original_module";
        let Some(at) = parts.iter().position(known) else {
            return Self::Whole(inner.to_owned());
        };
        // The name of the adapter stands in files that PEFT did not write itself.
        let rest: Vec<&str> = parts[at + 1..].iter().copied().filter(|part| *part != "default").collect();
        let part = match (parts[at], rest.as_slice()) {
            ("lora_A", ["weight"]) => Part::A,
            ("lora_B", ["weight"]) => Part::B,
            ("lora_B", ["bias"]) => Part::Bias,
            ("lora_embedding_A", []) => Part::EmbeddingA,
            ("lora_embedding_B", []) => Part::EmbeddingB,
            ("lora_magnitude_vector", [] | ["weight"]) => Part::Magnitude,
            ("token_adapter", ["trainable_tokens_delta"]) => Part::Tokens,
            _ => return Self::Unknown,
        };
        match parts[..at].join(".") {
            module if module.is_empty() => Self::Unknown,
            module => Self::Of(module, part),
        }
    }
}

fn without_wrappers(name: &str) -> String {
    name.split('.').filter(|part| !WRAPPERS.contains(part)).collect::<Vec<_>>().join(".")
}

/// Pairs of spellings that versions of transformers give the same module of a vision-language model.
const SPELLINGS: [(&str, &str); 7] = [
    ("model.language_model.", "language_model.model."),
    ("model.language_model.", "model."),
    ("model.visual.", "visual."),
    ("model.vision_tower.", "vision_tower."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
    ("lm_head.", "language_model.lm_head."),
    ("model.", ""),
];

/// The tensor of `base` that `name` means: that of the name, or the only one of another spelling.
pub(super) fn find<'a>(base: &'a Checkpoint, name: &str) -> Option<Tensor<'a>> {
    if let Some(found) = base.find(name) {
        return Some(found);
    }
    let other = |(from, to): &(&str, &str)| Some(format!("{to}{}", name.strip_prefix(from)?));
    let spellings = SPELLINGS.iter().flat_map(|(a, b)| [(*a, *b), (*b, *a)]);
    let mut found = spellings.filter_map(|pair| base.find(&other(&pair)?));
    let first = found.next()?;
    found.all(|next| next.info.name == first.info.name).then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrappers_are_no_part_of_a_name() {
        let of = |name: &str, part| AdapterName::Of(name.to_owned(), part);
        let whole = |name: &str| AdapterName::Whole(name.to_owned());
        let cases = [
            ("base_model.model.model.layers.0.q.lora_A.weight", of("model.layers.0.q", Part::A)),
            ("base_model.model.model.layers.0.q.lora_B.default.weight", of("model.layers.0.q", Part::B)),
            ("_orig_mod.base_model.model.q.lora_B.bias", of("q", Part::Bias)),
            ("module.base_model.model.e.lora_embedding_A", of("e", Part::EmbeddingA)),
            ("base_model.model._orig_mod.e.lora_embedding_B.default", of("e", Part::EmbeddingB)),
            ("base_model.model.q.lora_magnitude_vector", of("q", Part::Magnitude)),
            ("base_model.model.q.lora_magnitude_vector.default.weight", of("q", Part::Magnitude)),
            ("base_model.model.e.token_adapter.trainable_tokens_delta", of("e", Part::Tokens)),
            ("base_model.model.q.base_layer.bias", whole("q.bias")),
            ("base_model.model.head.modules_to_save.weight", whole("head.weight")),
            ("base_model.model.q.lora_diag", AdapterName::Unknown),
            ("base_model.model.q.lora_A.other.weight", AdapterName::Unknown),
            ("base_model.model.e.token_adapter.trainable_tokens_original", AdapterName::Unknown),
            ("lora_A.weight", AdapterName::Unknown),
        ];
        for (name, expected) in cases {
            assert_eq!(AdapterName::of(name), expected, "{name}");
        }
    }
}
