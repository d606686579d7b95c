//! What a step costs: floating-point operations and memory, from the plan alone.

use crate::backend::{Backend, head_rows};
use crate::model::{Capacity, Mixtures, Model, ModelConfig, Param, Reach, Recompute, activation_floats};

/// Floating-point operations per token that a step executes.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct FlopsPerToken {
    /// Forward, without the head: 2 per linear parameter, and attention.
    pub forward: f64,
    /// Gradients of activations, and of trainable matrices.
    pub backward: f64,
    /// Head, forward and backward, per target token.
    pub head: f64,
}

/// Memory and work of a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cost {
    /// Elements that are trained.
    pub trainable: u64,
    /// Elements of the model.
    pub parameters: u64,
    /// Bytes of weights, gradients and moments, apart from frozen tensors that stay in their file.
    pub weight_bytes: u64,
    /// Bytes of activations and of the logits.
    pub activation_bytes: u64,
    /// Work per token.
    pub flops: FlopsPerToken,
}

impl Cost {
    /// The cost of a model when `capacity.tokens` tokens go through it at once, in sequences of about
    /// `capacity.positions`.
    pub fn of<B: Backend>(backend: &B, model: &Model<B>, capacity: Capacity, recompute: Recompute) -> Self {
        let Capacity { tokens, positions } = capacity;
        let config = &model.config;
        let trained = |param: &&Param<B>| param.train.is_some();
        let trainable = model.params().filter(trained).map(|p| p.elements() as u64).sum::<u64>();
        let logits = head_rows(tokens, config.vocab_size) * config.vocab_size;
        let hidden = tokens * config.hidden_size;
        let floats = tokens * activation_floats(config, recompute) + logits + hidden;
        let parameters: u64 = model.params().map(|p| p.elements() as u64).sum();
        let masked = model.params().filter(|p| p.train.as_ref().is_some_and(|train| train.mask.is_some()));
        let masks = masked.map(|p| 8 * p.elements().div_ceil(64) as u64).sum::<u64>();
        let bytes = backend.element_bytes();
        Self {
            trainable,
            parameters,
            weight_bytes: bytes.trainable * trainable + bytes.frozen * (parameters - trainable) + masks,
            activation_bytes: bytes.activation * floats as u64,
            flops: flops(model, positions, recompute),
        }
    }
}

/// Floating-point operations of causal attention per token in one layer, forward: two products.
fn attention_flops(config: &ModelConfig, layer: usize, length: usize) -> f64 {
    let seen = config.windows[layer].map_or(length, |window| window.min(length));
    2.0 * 2.0 * config.q_size() as f64 * seen as f64 / 2.0
}

fn flops<B: Backend>(model: &Model<B>, length: usize, recompute: Recompute) -> FlopsPerToken {
    let reach = Reach::of(model);
    let mut flops = FlopsPerToken::default();
    for (l, layer) in model.layers.iter().enumerate() {
        let share = model.config.mixtures.as_ref().map_or(1.0, Mixtures::share);
        let matrices = || layer.params_of_tokens().filter(|(param, _)| !param.vector);
        let elements =
            |(param, some): (&Param<B>, bool)| param.elements() as f64 * if some { share } else { 1.0 };
        let forward = 2.0 * matrices().map(elements).sum::<f64>();
        let attention = attention_flops(&model.config, l, length);
        flops.forward += forward + attention;
        if reach.lowest.is_none_or(|lowest| l < lowest) {
            continue;
        }
        let trained = matrices().filter(|(param, _)| param.train.is_some()).map(elements).sum::<f64>();
        flops.backward += forward + 2.0 * trained + 2.5 * attention;
        if recompute == Recompute::Full {
            flops.backward += forward + attention;
        }
    }
    let head = model.lm_head.as_ref().unwrap_or(&model.embed_tokens);
    let products = 1 + usize::from(reach.hidden) + usize::from(head.train.is_some());
    flops.head = 2.0 * head.elements() as f64 * products as f64;
    flops
}
