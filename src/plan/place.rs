//! What a tensor's name says: its block, its category and its projection.
//!
//! Rules over the components of a name, not a table per architecture, so that new families mostly work.
//! A name that says nothing is category [`Category::Other`], never dropped.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The kind of a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Category {
    /// Projections of attention: q, k, v, o, fused or low-rank ones.
    Attention,
    /// Feed-forward matrices: gate, up, down, experts, routers.
    Mlp,
    /// Layer norms and RMS norms.
    Norm,
    /// Token, position and type embeddings.
    Embedding,
    /// The output head over the vocabulary.
    LmHead,
    /// Everything else, buffers included.
    Other,
}

impl fmt::Display for Category {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Attention => "attention",
            Self::Mlp => "mlp",
            Self::Norm => "norm",
            Self::Embedding => "embedding",
            Self::LmHead => "lm_head",
            Self::Other => "other",
        })
    }
}

/// Where a tensor stands in its model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The list of blocks it belongs to, such as `model.layers`; empty outside of blocks.
    pub stack: String,
    /// The number of its block.
    pub layer: Option<u32>,
    /// Its kind.
    pub category: Category,
    /// The last name of its module, such as `q_proj` or `input_layernorm`.
    pub projection: String,
    /// The quota group inside its block: empty ordinarily, `experts.3`, `shared_expert` or `router`.
    pub group: String,
}

/// Last components that name a part of a module, not a module.
const PARTS: [&str; 24] = [
    "weight",
    "bias",
    "gamma",
    "beta",
    "weight_scale",
    "weight_scale_inv",
    "weight_scale_2",
    "weight_packed",
    "weight_shape",
    "weight_zero_point",
    "input_scale",
    "output_scale",
    "scale",
    "scales",
    "biases",
    "zeros",
    "qweight",
    "qzeros",
    "g_idx",
    "SCB",
    "absmax",
    "quant_map",
    "quant_state",
    "e_score_correction_bias",
];
/// Endings of fused parameters that name a part.
const PART_ENDINGS: [&str; 4] = ["_weight", "_bias", "_blocks", "_scales"];
/// Last components of buffers: saved with the model, never trained.
const BUFFERS: [&str; 6] =
    ["inv_freq", "masked_bias", "position_ids", "token_type_ids", "num_batches_tracked", "attn_mask"];

/// The module of a tensor: all tensors of one module move together, because half a bias, or a
/// quantisation scale without its matrix, is broken. A buffer is a module of its own.
pub fn module_of(name: &str) -> &str {
    if is_buffer(name) {
        return name;
    }
    let name = name.find(".lora_").map_or(name, |adapter| &name[..adapter]);
    match name.rsplit_once('.') {
        Some((module, part)) if PARTS.contains(&part) || part.starts_with("quant_state") => module,
        _ => PART_ENDINGS.iter().find_map(|end| name.strip_suffix(*end)).unwrap_or(name),
    }
}

/// Whether a tensor is saved with the model but never trained. A `bias` right on an attention module is its
/// causal mask (GPT-2, GPT-NeoX).
fn is_buffer(name: &str) -> bool {
    let (module, part) = name.rsplit_once('.').unwrap_or(("", name));
    let on_attention =
        ["attn", "attention"].iter().any(|last| module == *last || module.ends_with(&format!(".{last}")));
    BUFFERS.contains(&part) || part == "bias" && on_attention
}

fn is_number(part: &str) -> bool {
    part.parse::<u32>().is_ok()
}

impl Place {
    /// Reads the place from a tensor's name.
    pub fn of(name: &str) -> Self {
        let module = module_of(name);
        let parts: Vec<&str> = module.split('.').collect();
        // A number that ends the name counts the steps of a sequence, not blocks.
        let inside = parts.len().saturating_sub(1);
        let number = parts[..inside].iter().enumerate().skip(1).find(|(_, p)| is_number(p));
        let block = number.map_or(0, |(at, _)| at);
        let layer = number.and_then(|(_, p)| p.parse().ok());
        let tail = if layer.is_some() { &parts[block + 1..] } else { &parts[..] };
        let category = if is_buffer(name) {
            Category::Other
        } else if layer.is_some() {
            inside_block(tail)
        } else {
            outside_blocks(tail)
        };
        Self {
            stack: if layer.is_some() { parts[..block].join(".") } else { String::new() },
            layer,
            category,
            projection: projection(tail, layer.is_some()),
            group: if category == Category::Mlp { mlp_group(tail) } else { String::new() },
        }
    }

    /// Whether this is an embedding of tokens, the kind an output head can be tied to.
    pub fn is_token_embedding(&self) -> bool {
        let others = ["position", "wpe", "token_type", "patch", "class_embed"];
        self.category == Category::Embedding && !others.iter().any(|other| self.projection.contains(other))
    }
}

fn is_norm(part: &str) -> bool {
    let part = part.to_ascii_lowercase();
    part.contains("norm")
        || part == "ln"
        || part.starts_with("ln_")
        || part.starts_with("ln1")
        || part.starts_with("ln2")
}

fn inside_block(tail: &[&str]) -> Category {
    let last = tail.last().copied().unwrap_or("");
    let any = |words: &[&str]| {
        tail.iter().any(|p| {
            let p = p.to_ascii_lowercase();
            words.iter().any(|word| p.contains(word))
        })
    };
    if is_norm(last) {
        return Category::Norm;
    }
    // The block that predicts one more token (DeepSeek-V3) has its own head and embedding.
    if matches!(tail, ["shared_head", "head"]) {
        return Category::LmHead;
    }
    if tail == ["embed_tokens"] {
        return Category::Embedding;
    }
    if any(&["attn", "attention"]) {
        return Category::Attention;
    }
    let feed_forward = any(&["mlp", "ffn", "feed_forward", "feedforward", "moe", "expert", "densereludense"])
        || ["fc1", "fc2", "fc_in", "fc_out", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"]
            .contains(&last)
        || matches!(tail, ["intermediate" | "output", "dense"] | [.., "intermediate" | "output", "dense"]);
    if feed_forward { Category::Mlp } else { Category::Other }
}

fn outside_blocks(parts: &[&str]) -> Category {
    let last = parts.last().copied().unwrap_or("");
    if is_norm(last) {
        return Category::Norm;
    }
    let head = ["lm_head", "embed_out", "output"].contains(&last)
        || matches!(
            parts,
            [.., "lm_head", "decoder"] | [.., "predictions", "decoder"] | [.., "cls", "predictions"]
        );
    if head {
        return Category::LmHead;
    }
    let last_word = last.to_ascii_lowercase();
    let embedding = last_word.contains("embed") && !last_word.contains("patch")
        || ["wte", "wpe", "shared"].contains(&last);
    if embedding { Category::Embedding } else { Category::Other }
}

/// Attention over another sequence, beside the attention of the block.
const CROSS: [&str; 4] = ["encoder_attn", "EncDecAttention", "cross_attn", "crossattention"];

/// The end of a module's path that tells it apart from the others of its block, experts counted as one.
fn projection(tail: &[&str], inside_block: bool) -> String {
    let parts: Vec<&str> = (0..tail.len())
        .filter(|i| !(is_number(tail[*i]) && *i > 0 && tail[i - 1] == "experts"))
        .map(|i| tail[i])
        .collect();
    let from = match parts.as_slice() {
        [.., parent, last] if inside_block && CROSS.contains(parent) && !is_number(last) => parts.len() - 2,
        [.., "attention", "output", "dense" | "LayerNorm"] if inside_block => parts.len() - 3,
        [.., "output" | "intermediate", "dense" | "LayerNorm"] if inside_block => parts.len() - 2,
        [.., "attn" | "mlp", "c_proj"] if inside_block => parts.len() - 2,
        // T5 numbers the steps of a block.
        [.., step, "layer_norm"] if inside_block && is_number(step) => parts.len() - 2,
        _ => parts.len().saturating_sub(1),
    };
    let first_name = (0..=from.min(parts.len().saturating_sub(1)))
        .rev()
        .find(|i| parts.get(*i).is_some_and(|p| !is_number(p)));
    parts[first_name.unwrap_or(0)..].join(".")
}

fn mlp_group(tail: &[&str]) -> String {
    let last = tail.last().copied().unwrap_or("");
    if ["gate", "router", "shared_expert_gate"].contains(&last) || tail.contains(&"router") {
        return "router".to_owned();
    }
    if let Some(shared) = tail.iter().find(|p| p.contains("shared_expert") || p.contains("shared_mlp")) {
        return (*shared).to_owned();
    }
    let Some(at) = tail.iter().position(|p| *p == "experts") else {
        return String::new();
    };
    match tail.get(at + 1).filter(|p| p.parse::<u32>().is_ok()) {
        Some(number) => format!("experts.{number}"),
        None => "experts".to_owned(),
    }
}
