//! Tensor names as torchtune has them in its decoder models.

use super::name_pattern::block_number;

/// Names in a block of Hugging Face's and of torchtune's models, as in torchtune's `models/convert_weights.py` and
/// `models/qwen2/_convert_weights.py`.
const IN_BLOCK: [(&str, &str); 12] = [
    ("self_attn.q_proj.weight", "attn.q_proj.weight"),
    ("self_attn.q_proj.bias", "attn.q_proj.bias"),
    ("self_attn.k_proj.weight", "attn.k_proj.weight"),
    ("self_attn.k_proj.bias", "attn.k_proj.bias"),
    ("self_attn.v_proj.weight", "attn.v_proj.weight"),
    ("self_attn.v_proj.bias", "attn.v_proj.bias"),
    ("self_attn.o_proj.weight", "attn.output_proj.weight"),
    ("mlp.gate_proj.weight", "mlp.w1.weight"),
    ("mlp.up_proj.weight", "mlp.w3.weight"),
    ("mlp.down_proj.weight", "mlp.w2.weight"),
    ("input_layernorm.weight", "sa_norm.scale"),
    ("post_attention_layernorm.weight", "mlp_norm.scale"),
];
const OUTSIDE: [(&str, &str); 3] = [
    ("model.embed_tokens.weight", "tok_embeddings.weight"),
    ("model.norm.weight", "norm.scale"),
    ("lm_head.weight", "output.weight"),
];

/// The name of a tensor of a Llama, Mistral or Qwen2 checkpoint in torchtune; `None` for any other name.
pub(super) fn torchtune_name(name: &str) -> Option<String> {
    let renamed = |names: &[(&str, &'static str)], name: &str| {
        names.iter().find(|(theirs, _)| *theirs == name).map(|(_, ours)| *ours)
    };
    let Some((start, end)) = block_number(name) else {
        return renamed(&OUTSIDE, name).map(str::to_owned);
    };
    let inside = renamed(&IN_BLOCK, &name[end + 1..]).filter(|_| &name[..start] == "model.layers.")?;
    Some(format!("layers.{}.{inside}", &name[start..end]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_torchtune_or_none() {
        let name = |name| torchtune_name(name).unwrap_or_default();
        assert_eq!(name("model.layers.11.self_attn.o_proj.weight"), "layers.11.attn.output_proj.weight");
        assert_eq!(name("lm_head.weight"), "output.weight");
        assert_eq!(name("model.layers.0.self_attn.q_norm.weight"), "");
        assert_eq!(name("vision.layers.0.mlp.up_proj.weight"), "");
    }
}
