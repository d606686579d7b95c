//! Names of one tensor that differ only in what wraps the model.

/// Components that `torch.compile`, FSDP and activation checkpointing put into names.
const WRAPPERS: [&str; 3] = ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"];
/// Components at the front of a name that say only which class wraps the model: `module` of data-parallel training,
/// the base-model prefixes of transformers, and `language_model.model`, `model.language_model` or `model.text_model` of its
/// vision-language models.
const FRONT: [&str; 5] = ["module", "model", "language_model", "text_model", "transformer"];

/// The name without wrappers and without the prefix of the model. Names of one tensor in two spellings have one plain
/// name; tensors of one checkpoint may have it in common, and are then told apart by their names only.
pub(super) fn plain_name(name: &str) -> String {
    let mut parts: Vec<&str> = name.split('.').filter(|part| !WRAPPERS.contains(part)).collect();
    let front = parts.iter().take_while(|part| FRONT.contains(part)).count();
    // A name is not all prefix: `module.weight` stays.
    parts.drain(..front.min(parts.len().saturating_sub(2)));
    parts.join(".")
}

#[cfg(test)]
mod tests {
    use super::plain_name;

    /// The spellings that PyTorch and transformers 4 and 5 give to one tensor.
    #[test]
    fn spellings_of_one_tensor_have_one_plain_name() {
        let layer = "layers.0.self_attn.q_proj.weight";
        for (names, plain) in [
            (
                &[
                    "layers.0.self_attn.q_proj.weight",
                    "model.layers.0.self_attn.q_proj.weight",
                    "_orig_mod.model.layers.0.self_attn.q_proj.weight",
                    "module.model.layers.0.self_attn.q_proj.weight",
                    "module._orig_mod.model.layers.0._checkpoint_wrapped_module.self_attn.q_proj.weight",
                    "_fsdp_wrapped_module.model.layers.0._fsdp_wrapped_module.self_attn.q_proj.weight",
                    "language_model.model.layers.0.self_attn.q_proj.weight",
                    "model.language_model.layers.0.self_attn.q_proj.weight",
                    "model.text_model.layers.0.self_attn.q_proj.weight",
                ][..],
                layer,
            ),
            (
                &["lm_head.weight", "language_model.lm_head.weight", "_orig_mod.lm_head.weight"],
                "lm_head.weight",
            ),
            (
                &["visual.blocks.0.attn.qkv.weight", "model.visual.blocks.0.attn.qkv.weight"],
                "visual.blocks.0.attn.qkv.weight",
            ),
            (&["h.0.ln_1.bias", "transformer.h.0.ln_1.bias"], "h.0.ln_1.bias"),
            (&["module.weight"], "module.weight"),
        ] {
            for name in names {
                assert_eq!(plain_name(name), plain, "{name}");
            }
        }
        assert_ne!(plain_name("vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight"), layer);
        assert_ne!(plain_name("model.decoder.layers.0.self_attn.q_proj.weight"), layer);
    }
}
