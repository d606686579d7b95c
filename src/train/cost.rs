//! What a step costs: floating-point operations and memory, from the plan alone.

use std::collections::BTreeMap;

use super::gradient_pool::elements_at_once;
use super::optimizer_options::{Gradients, Master, state_bytes};
use crate::backend::{Backend, head_rows};
use crate::checkpoint::TensorInfo;
use crate::model::{
    Capacity, ExpertProjection, FeedForward, Layer, Mixtures, Model, ModelConfig, Param, Reach, Recompute,
    activation_floats,
};
use crate::optimizer::{Optimizer, StatePlace};

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

/// Bytes of memory, by what they hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MemoryParts {
    /// Values of trainable tensors, on a GPU with their copies in the compute dtype.
    pub weights: u64,
    /// Their gradients.
    pub gradients: u64,
    /// What the optimizer keeps of them in memory of the device.
    pub moments: u64,
    /// The same on the disk, or in memory of a GPU's host; no part of the sums.
    pub offloaded: u64,
    /// Where that is.
    pub place: StatePlace,
    /// Frozen tensors; on the CPU only matrices in eight-bit floats, as others stay in the map of their file.
    pub frozen: u64,
    /// Element masks, and the values at the start that L2-SP pulls to.
    pub restraints: u64,
    /// Activations and logits.
    pub activations: u64,
}

impl MemoryParts {
    /// All but activations.
    pub fn state(&self) -> u64 {
        self.weights + self.gradients + self.moments + self.frozen + self.restraints
    }

    /// All of them.
    pub fn total(&self) -> u64 {
        self.state() + self.activations
    }

    /// The same with the moments in this place, which were in memory of the device.
    pub fn place_moments(&mut self, place: StatePlace) {
        self.place = place;
        if place != StatePlace::Device {
            self.offloaded = std::mem::take(&mut self.moments);
        }
    }

    /// Whether the moments are in memory of the device.
    pub fn has_moments(&self) -> bool {
        self.place == StatePlace::Device
    }

    /// Names and bytes for each of `trainable` trained parameters: weights, gradients, moments.
    pub fn per_trained(&self, trainable: u64) -> [(&'static str, f64); 3] {
        let each = |bytes: u64| bytes as f64 / trainable.max(1) as f64;
        [
            ("weights", each(self.weights)),
            ("gradients", each(self.gradients)),
            ("moments", each(self.moments)),
        ]
    }
}

/// Memory and work of a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cost {
    /// Elements that are trained.
    pub trainable: u64,
    /// Elements of the model.
    pub parameters: u64,
    /// What is held in memory.
    pub memory: MemoryParts,
    /// Work per token.
    pub flops: FlopsPerToken,
}

impl Cost {
    /// The cost of a model when `capacity.tokens` tokens go through it at once, in sequences of about
    /// `capacity.positions`.
    pub fn of<B: Backend>(
        backend: &B,
        model: &Model<B>,
        capacity: Capacity,
        recompute: Recompute,
        (optimizer, gradients): (&Optimizer, Gradients),
    ) -> Self {
        let Capacity { tokens, positions } = capacity;
        let config = &model.config;
        let logits = head_rows(tokens, config.vocab_size) * config.vocab_size;
        let hidden = tokens * config.hidden_size;
        let floats = tokens * activation_floats(config, recompute) + logits + hidden;
        let parameters: u64 = model.params().map(|p| p.elements() as u64).sum();
        let bytes = backend.element_bytes();
        let (mut trainable, mut memory) = (0, MemoryParts::default());
        for param in model.params() {
            let elements = param.elements() as u64;
            let Some(train) = &param.train else {
                memory.frozen += elements * if param.float8 { bytes.float8 } else { bytes.frozen };
                continue;
            };
            trainable += elements;
            memory.weights +=
                elements * if train.rounding.is_some() { bytes.rounded } else { bytes.trainable };
            memory.gradients += gradients.bytes() * elements;
            memory.moments += optimizer.state_bytes(param.shape.0, param.shape.1);
            memory.restraints += if train.mask.is_some() { 8 * elements.div_ceil(64) } else { 0 };
            memory.restraints += if train.pull.is_some() { 4 * elements } else { 0 };
        }
        memory.gradients += gradients_of_one_block(backend, model, gradients);
        memory.activations = bytes.activation * floats as u64;
        Self { trainable, parameters, memory, flops: flops(model, positions, recompute) }
    }
}

/// Bytes of the gradients in `f32` that one block after the other has; 0 where those of all are in `f32`.
pub(super) fn gradients_of_one_block<B: Backend>(backend: &B, model: &Model<B>, gradients: Gradients) -> u64 {
    if gradients == Gradients::F32 { 0 } else { backend.element_bytes().gradient * elements_at_once(model) }
}

/// Bytes on the CPU of trained tensors: their values, their gradients, and what the optimizer keeps of them. Where only the
/// gradients of one block are in `f32`, those of the largest block and of the largest tensor beside blocks.
pub fn trained_bytes<'t>(
    tensors: impl Iterator<Item = &'t TensorInfo>,
    optimizer: &Optimizer,
    master: Master,
    gradients: Gradients,
) -> u64 {
    let (mut bytes, mut all, mut beside) = (0, 0, 0);
    let mut blocks = BTreeMap::<u64, u64>::new();
    for info in tensors {
        bytes += master.bytes() * info.elements() + state_bytes(info, optimizer);
        all += info.elements();
        match info.name.split('.').find_map(|part| part.parse().ok()) {
            Some(block) => *blocks.entry(block).or_default() += info.elements(),
            None => beside = info.elements().max(beside),
        }
    }
    let within = blocks.values().max().copied().unwrap_or(0) + beside;
    let one_block = if gradients == Gradients::F32 { 0 } else { 4 * within };
    bytes + gradients.bytes() * all + one_block
}

/// Floating-point operations of causal attention per token in one layer, forward: two products.
fn attention_flops(config: &ModelConfig, layer: usize, length: usize) -> f64 {
    let seen = config.windows[layer].map_or(length, |window| window.min(length));
    2.0 * 2.0 * config.q_size() as f64 * seen as f64 / 2.0
}

/// Values of experts in MXFP4 beyond the elements of the tensors that store them: a byte has two, and an exponent none.
fn more_values<B: Backend>(layer: &Layer<B>) -> f64 {
    let FeedForward::PackedMixture(mixture) = &layer.feed_forward else { return 0.0 };
    let of_projection = |projection: &ExpertProjection<B>| {
        let scales = projection.scales.as_ref()?.elements();
        Some(projection.values.elements() as f64 - scales as f64)
    };
    [&mixture.gate_up, &mixture.down].into_iter().filter_map(of_projection).sum()
}

fn flops<B: Backend>(model: &Model<B>, length: usize, recompute: Recompute) -> FlopsPerToken {
    let reach = Reach::of(model);
    let mut flops = FlopsPerToken::default();
    for (l, layer) in model.layers.iter().enumerate() {
        let share = model.config.mixtures.as_ref().map_or(1.0, Mixtures::share);
        let matrices = || layer.params_of_tokens().filter(|(param, _)| !param.vector);
        let elements =
            |(param, some): (&Param<B>, bool)| param.elements() as f64 * if some { share } else { 1.0 };
        let forward = 2.0 * (matrices().map(elements).sum::<f64>() + share * more_values(layer));
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
