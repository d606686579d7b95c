//! A tensor's name, parsed: its block, its category and its projection.
//!
//! Rules over the components of a name, not a table per architecture, so that new families mostly work.
//! A name without a known word is of category [`Category::Other`], never dropped.

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

/// The position of a tensor in its model, as its name tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorName {
    /// The list of blocks it belongs to, such as `model.layers`; empty outside of blocks.
    pub stack: String,
    /// The number of its block.
    pub layer: Option<u32>,
    /// Its kind.
    pub category: Category,
    /// Its module below the block, such as `q_proj` or `input_layernorm`, with as much of the path as tells
    /// it apart from the other modules of the block: `mlp.c_proj`, `EncDecAttention.q`. Outside of blocks,
    /// the last name.
    pub projection: String,
    /// The quota group inside its block: empty ordinarily, `experts.3`, `shared_expert` or `router`.
    pub group: String,
}

/// Last components that name a parameter of a module, not a module.
const PARTS: [&str; 27] = [
    "weight",
    "bias",
    "gamma",
    "beta",
    "input_scale",
    "input_global_scale",
    "input_zero_point",
    "output_scale",
    "activation_scale",
    "pre_quant_scale",
    "q_scale",
    "k_scale",
    "v_scale",
    "scale",
    "scale_inv",
    "scales",
    "blocks",
    "biases",
    "zeros",
    "zero_point",
    "qweight",
    "qzeros",
    "g_idx",
    "SCB",
    "absmax",
    "quant_map",
    "e_score_correction_bias",
];
/// Endings of fused names that name a parameter of a module.
const PART_ENDINGS: [&str; 4] = ["_weight", "_bias", "_blocks", "_scales"];
/// Components below a module that hold its parts: split or quantised weights, quantisers, adapters. What
/// follows them is still that module.
const HOLDERS: [&str; 10] = [
    ".weight.",
    ".weight_quantizer.",
    ".input_quantizer.",
    ".output_quantizer.",
    ".parametrizations.",
    ".lora_",
    ".ia3_",
    ".oft_",
    ".modules_to_save.",
    ".original_module.",
];
/// Last components of buffers: saved with the model, never trained.
const BUFFERS: [&str; 9] = [
    "inv_freq",
    "masked_bias",
    "position_ids",
    "token_type_ids",
    "num_batches_tracked",
    "running_mean",
    "running_var",
    "attn_mask",
    "tid2eid",
];

/// The module of a tensor: all tensors of one module move together, because half a bias, or a
/// quantisation scale without its matrix, is broken. A buffer is a module of its own.
pub fn module_of(name: &str) -> &str {
    if is_buffer(name) {
        return name;
    }
    let held = HOLDERS.iter().filter_map(|holder| name.find(holder)).filter(|at| *at > 0).min();
    let module = match name.rsplit_once('.') {
        _ if held.is_some() => &name[..held.unwrap_or_default()],
        Some((module, part)) if is_part(part) && !module.is_empty() => module,
        _ => fused_module(name),
    };
    // A module that an adapter wraps keeps its own name.
    let mut module = module;
    while let Some(inner) = module.strip_suffix(".base_layer").filter(|inner| !inner.is_empty()) {
        module = inner;
    }
    module
}

fn is_part(part: &str) -> bool {
    let lstm = part.starts_with("bias_ih_") || part.starts_with("bias_hh_");
    // A second weight, `weight_1`, is a matrix of its own.
    let of_weight = part.strip_prefix("weight_").is_some_and(|what| !is_number(what));
    PARTS.contains(&part) || of_weight || part.starts_with("quant_state") || lstm
}

/// The module of a parameter that stands beside others of its kind, such as `experts.gate_up_proj_scale_inv`.
fn fused_module(name: &str) -> &str {
    if let Some((module, part)) = name.rsplit_once("_proj_")
        && is_part(part)
    {
        return &name[..module.len() + "_proj".len()];
    }
    let fused = PART_ENDINGS.iter().find_map(|end| name.strip_suffix(*end));
    fused.filter(|module| !module.is_empty() && !module.ends_with('.')).unwrap_or(name)
}

/// Whether a tensor is saved with the model but never trained. A `bias` right on an attention module is its
/// causal mask (GPT-2, GPT-NeoX), and scales right on one are those of its cache.
pub fn is_buffer(name: &str) -> bool {
    let (module, part) = name.rsplit_once('.').unwrap_or(("", name));
    let on = module.rsplit('.').next().unwrap_or_default();
    BUFFERS.contains(&part)
        || part == "bias" && ["attn", "attention"].contains(&on)
        || ["q_scale", "k_scale", "v_scale"].contains(&part)
            && (on.ends_with("attn") || on.ends_with("attention"))
}

/// Digits only: `+5` is a number to a parser, not to a list of modules.
fn number(part: &str) -> Option<u32> {
    part.bytes().all(|b| b.is_ascii_digit()).then(|| part.parse().ok()).flatten()
}

fn is_number(part: &str) -> bool {
    number(part).is_some()
}

impl TensorName {
    /// Parses a tensor's name.
    pub fn of(name: &str) -> Self {
        let module = module_of(name);
        let parts: Vec<&str> = module.split('.').collect();
        // A number that ends the name counts the steps of a sequence, not blocks.
        let inside = parts.len().saturating_sub(1);
        let block = (1..inside).find_map(|at| number(parts[at]).map(|layer| (at, layer)));
        let Some((at, layer)) = block else {
            let category = if is_buffer(name) { Category::Other } else { outside_blocks(&parts) };
            let projection = last_name(&parts);
            return Self { stack: String::new(), layer: None, category, projection, group: String::new() };
        };
        let wrapper = |part: &&str| part.starts_with('_') && part.ends_with("_module");
        let unwrapped: Vec<&str> = parts[at + 1..].iter().filter(|part| !wrapper(part)).copied().collect();
        let tail = if unwrapped.is_empty() { &parts[at + 1..] } else { &unwrapped };
        let category = if is_buffer(name) { Category::Other } else { inside_block(tail, parts[at - 1]) };
        Self {
            stack: parts[..at].join("."),
            layer: Some(layer),
            category,
            projection: label(tail, category),
            group: if category == Category::Mlp { mlp_group(tail) } else { String::new() },
        }
    }

    /// Whether this is an embedding of tokens, the kind an output head can be tied to.
    pub fn is_token_embedding(&self) -> bool {
        let name = self.projection.as_str();
        let last = name.rsplit('.').next().unwrap_or_default();
        let plain = ["shared", "emb", "embed", "embed_in", "embedding", "embeddings", "input_embedding"];
        let others = ["type", "per_layer", "vision", "hash", "position", "quantize"];
        self.category == Category::Embedding
            && (plain.contains(&last) || ["tok", "word", "wte"].iter().any(|word| name.contains(word)))
            && !others.iter().any(|other| name.contains(other))
    }
}

/// The last component that is not the number of a step.
fn last_named<'a>(parts: &[&'a str]) -> &'a str {
    parts.iter().rev().find(|part| !is_number(part)).copied().unwrap_or_default()
}

/// The last name with the numbers of steps that follow it, such as `mlp.0`. That of an embedding inside of
/// another, `wte.embedding`, has its parent's name too.
fn last_name(parts: &[&str]) -> String {
    let last = parts.iter().rposition(|part| !is_number(part)).unwrap_or(0);
    let from = if parts[last] == "embedding" { last.saturating_sub(1) } else { last };
    parts[from..].join(".")
}

fn is_norm(part: &str) -> bool {
    let part = part.to_ascii_lowercase();
    let mut words = part.split('_').map(|word| word.trim_end_matches(|c: char| c.is_ascii_digit()));
    part.contains("norm") || words.any(|word| word == "ln")
}

/// The category that one component of a name implies.
fn implied_category(part: &str) -> Option<Category> {
    let part = part.to_ascii_lowercase();
    let has = |words: &[&str]| words.iter().any(|word| part.contains(word));
    let first = part.split('_').next().unwrap_or_default().trim_end_matches(|c: char| c.is_ascii_digit());
    if has(&["attn", "attention"]) || first == "att" {
        return Some(Category::Attention);
    }
    let feed_forward = has(&["mlp", "ffn", "feed_forward", "feedforward", "densereludense"]) || first == "ff";
    feed_forward.then_some(Category::Mlp)
}

/// The kind of a module by its path below the block; `list` is the name of the list of blocks.
fn inside_block(tail: &[&str], list: &str) -> Category {
    let last = last_named(tail);
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
    // Weights between residual streams (hyper-connections) belong to neither of the two they stand at.
    if tail.iter().any(|part| part.split('_').any(|word| word == "hc")) {
        return Category::Other;
    }
    // The deepest word decides: `cross_attn_block.mlp` is feed-forward.
    if let Some(category) = tail.iter().rev().find_map(|part| implied_category(part)) {
        return category;
    }
    if ["q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj", "query_key_value", "Wqkv", "wqkv", "wo"]
        .contains(&last)
    {
        return Category::Attention;
    }
    let dense = |first: &str| first.starts_with("intermediate") || first.starts_with("output");
    let feed_forward = tail.iter().any(|part| part.contains("expert") || part.contains("moe"))
        || ["fc1", "fc2", "fc_in", "fc_out", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"]
            .contains(&last)
        || matches!(tail, [first, .., "dense"] if dense(first))
        || matches!(tail, ["mixer", "gate" | "router"]);
    if feed_forward { Category::Mlp } else { implied_category(list).unwrap_or(Category::Other) }
}

fn outside_blocks(parts: &[&str]) -> Category {
    let last = last_named(parts);
    if is_norm(last) {
        return Category::Norm;
    }
    let heads = [
        "embed_out",
        "unembed",
        "output",
        "output_layer",
        "output_projection",
        "lm_loss",
        "vocab_projector",
        "ff_out",
    ];
    let head = heads.contains(&last)
        || last.ends_with("lm_head")
        || matches!(parts, ["head" | "decoder" | "proj_out"])
        || matches!(parts, [.., "lm_head", "decoder" | "out_proj"] | [.., "pred_layer", "proj"])
        || matches!(parts, [.., "predictions", "decoder"] | [.., "cls", "predictions"]);
    if head {
        return Category::LmHead;
    }
    let last = last.to_ascii_lowercase();
    // A linear map from or to the embeddings, or one of patches, is none.
    let maps = ["patch", "project", "mapping", "transformation", "dense", "decoder"];
    let embedding = (last.contains("embed") || last.ends_with("_emb") || last == "emb")
        && !maps.iter().any(|map| last.contains(map))
        || ["wte", "wpe", "shared"].contains(&last.as_str());
    if embedding { Category::Embedding } else { Category::Other }
}

/// Paths that mean the attention of a block, and nothing more.
const ATTENTION: [&[&str]; 8] = [
    &["attention", "self"],
    &["attention", "attention"],
    &["attn", "attention"],
    &["self_attn"],
    &["self_attention"],
    &["attn"],
    &["attention"],
    &["SelfAttention"],
];
/// Paths that mean the feed-forward part of a block, and nothing more.
const FEED_FORWARD: [&[&str]; 6] =
    [&["mlp"], &["feed_forward"], &["ffn"], &["block_sparse_moe"], &["moe"], &["DenseReluDense"]];

/// The path below the block, without the components that the category and the group imply.
///
/// Modules of one block have different labels: a path is either whole, or it is less its attention and
/// begins as only attention does, or it is less its feed-forward part and does not.
fn label(tail: &[&str], category: Category) -> String {
    let last = tail.len() - 1;
    let said = |at: usize| {
        let of_experts = at > 0 && tail[at - 1] == "experts" && expert_number(tail[at]).is_some();
        category == Category::Mlp && at < last && (tail[at] == "experts" || of_experts || is_shared(tail[at]))
    };
    let path: Vec<&str> = (0..tail.len()).filter(|at| !said(*at)).map(|at| tail[at]).collect();
    // T5 numbers the steps of a block; they tell only its norms apart.
    let path = match path.as_slice() {
        ["layer", step, rest @ ..] if is_number(step) && rest.len() > 1 => rest,
        whole => whole,
    };
    let attention = below(path, &ATTENTION).filter(|rest| is_of_attention(rest[0]));
    let feed_forward = below(path, &FEED_FORWARD)
        .filter(|rest| !is_of_attention(rest[0]) && !is_norm(rest[0]) && !is_ambiguous(rest[0]));
    attention.or(feed_forward).unwrap_or(path).join(".")
}

/// The rest of `path` after one of `names`, if there is a rest.
fn below<'a, 'b>(path: &'a [&'b str], names: &[&'static [&'static str]]) -> Option<&'a [&'b str]> {
    names.iter().find_map(|name| path.strip_prefix(*name)).filter(|rest| !rest.is_empty())
}

/// Names of modules of attention. A feed-forward module with such a name keeps its whole path, so that labels differ.
fn is_of_attention(name: &str) -> bool {
    let part = name.to_ascii_lowercase();
    let begins = ["q_", "k_", "v_", "o_", "kv_", "qkv", "wqkv", "query", "in_proj"];
    let whole = ["q", "k", "v", "o", "wq", "wk", "wv", "key", "value", "out_proj", "dense", "proj"];
    begins.iter().any(|begin| part.starts_with(begin))
        || whole.contains(&part.as_str())
        || ["wo", "c_attn", "sinks", "relative_attention_bias"].contains(&name)
}

/// Names that both attention and feed-forward parts give to their last matrix.
fn is_ambiguous(name: &str) -> bool {
    ["c_proj", "Wo"].contains(&name)
}

/// The number of one of the `experts`: `3` or `expert_3`.
fn expert_number(part: &str) -> Option<u32> {
    number(part.strip_prefix("expert_").unwrap_or(part))
}

fn is_shared(part: &str) -> bool {
    ["shared_expert", "share_expert", "shared_mlp"].iter().any(|name| part.contains(name))
}

fn mlp_group(tail: &[&str]) -> String {
    let last = tail.last().copied().unwrap_or_default();
    let routers = ["gate", "router", "shared_expert_gate", "moe_statics", "expert"];
    // A parameter directly on the parent of the experts is the bias of their router.
    let on_parent = matches!(tail, [only] if only.contains("moe"));
    if routers.contains(&last) || on_parent || tail.contains(&"router") {
        return "router".to_owned();
    }
    if let Some(shared) = tail.iter().find(|part| is_shared(part)) {
        return (*shared).to_owned();
    }
    let Some(at) = tail.iter().position(|part| *part == "experts") else {
        return String::new();
    };
    match tail.get(at + 1).and_then(|part| expert_number(part)) {
        Some(number) => format!("experts.{number}"),
        None => "experts".to_owned(),
    }
}
