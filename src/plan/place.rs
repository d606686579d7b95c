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
/// quantisation scale without its matrix, is broken.
pub fn module_of(name: &str) -> &str {
    let name = name.find(".lora_").map_or(name, |adapter| &name[..adapter]);
    match name.rsplit_once('.') {
        Some((module, part)) if PARTS.contains(&part) || part.starts_with("quant_state") => module,
        _ => {
            let strip = |end: &&str| name.strip_suffix(*end);
            PART_ENDINGS.iter().find_map(|end| strip(&end)).unwrap_or(name)
        }
    }
}

impl Place {
    /// Reads the place from a tensor's name.
    pub fn of(name: &str) -> Self {
        let module = module_of(name);
        let parts: Vec<&str> = module.split('.').collect();
        let part = name.rsplit('.').next().unwrap_or(name);
        let number = parts.iter().enumerate().skip(1).find(|(_, p)| p.parse::<u32>().is_ok());
        let block = number.map_or(0, |(at, _)| at);
        let layer = number.and_then(|(_, p)| p.parse().ok());
        let tail = if layer.is_some() { &parts[block + 1..] } else { &parts[..] };
        let category = if BUFFERS.contains(&part) {
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
            projection: projection(tail),
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
    // A parameter right on the attention module is its causal-mask buffer (GPT-2, GPT-NeoX).
    if ["attn", "attention", "self_attn", "self_attention"].contains(&last) {
        return Category::Other;
    }
    if is_norm(last) {
        return Category::Norm;
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
    let embedding = last.to_ascii_lowercase().contains("embed") || ["wte", "wpe", "shared"].contains(&last);
    if embedding { Category::Embedding } else { Category::Other }
}

/// The last name that tells matrices of a block apart; `dense` alone does not.
fn projection(tail: &[&str]) -> String {
    let named: Vec<&str> = tail.iter().copied().filter(|p| p.parse::<u32>().is_err()).collect();
    match named.as_slice() {
        [] => String::new(),
        [.., parent, last] if ["dense", "LayerNorm", "layer_norm"].contains(last) => {
            format!("{parent}.{last}")
        }
        [.., last] => (*last).to_owned(),
    }
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
