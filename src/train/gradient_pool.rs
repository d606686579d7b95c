//! Gradients in `f32` that are in memory for one block at a time, within the backward pass.

use std::collections::BTreeMap;

use crate::backend::Backend;
use crate::model::{Model, Param};

/// Gradients that no tensor has now, by their length.
#[derive(Debug)]
pub(super) struct GradientPool<B: Backend> {
    free: BTreeMap<usize, Vec<B::Buffer>>,
    /// The name of the embedding, and whether it is tied to the head, so that it has its gradient since the head.
    embedding: (String, bool),
}

impl<B: Backend> GradientPool<B> {
    /// A pool that has no gradients yet.
    pub(super) fn new() -> Self {
        Self { free: BTreeMap::new(), embedding: Default::default() }
    }

    /// Gives the head its gradient, at the beginning of a pass. The head overwrites it.
    pub(super) fn lend_to_head(&mut self, backend: &B, model: &mut Model<B>) {
        self.embedding = (model.embed_tokens.name.clone(), model.lm_head.is_none());
        self.lend(backend, model.lm_head.as_mut().unwrap_or(&mut model.embed_tokens));
    }

    /// Gives each trainable tensor its gradient. What the backward pass adds to, vectors and the embedding, begins at zero;
    /// others are overwritten.
    pub(super) fn lend_to(&mut self, backend: &B, params: &mut dyn Iterator<Item = &mut Param<B>>) {
        for param in params {
            let (embedding, tied) = (param.name == self.embedding.0, self.embedding.1);
            if embedding && tied {
                continue;
            }
            self.lend(backend, param);
            if let Some(train) = param.train.as_mut().filter(|_| param.vector || embedding) {
                backend.clear(&mut train.grad);
            }
        }
    }

    /// Gives the tensor, where it is trainable, a gradient of undefined contents.
    pub(super) fn lend(&mut self, backend: &B, param: &mut Param<B>) {
        let elements = param.elements();
        if let Some(train) = &mut param.train {
            let free = self.free.get_mut(&elements).and_then(Vec::pop);
            train.grad = free.unwrap_or_else(|| backend.zeros(elements));
        }
    }

    /// Takes the gradient of the tensor, where it is trainable.
    pub(super) fn take_back(&mut self, backend: &B, param: &mut Param<B>) {
        let elements = param.elements();
        if let Some(train) = &mut param.train {
            let grad = std::mem::replace(&mut train.grad, backend.zeros(0));
            self.free.entry(elements).or_default().push(grad);
        }
    }
}

/// Elements of the gradients that a pool has once it was used for a step.
pub(super) fn elements_at_once<B: Backend>(model: &Model<B>) -> u64 {
    let trained = |param: &&Param<B>| param.train.is_some();
    let (mut most, mut held) = (BTreeMap::<usize, usize>::new(), 0);
    let mut add = |params: &mut dyn Iterator<Item = &Param<B>>| {
        let mut group = BTreeMap::<usize, usize>::new();
        params.filter(trained).for_each(|param| *group.entry(param.elements()).or_default() += 1);
        for (len, count) in group {
            let most = most.entry(len).or_default();
            *most = count.max(*most);
        }
    };
    add(&mut model.lm_head.iter());
    add(&mut model.norm.params());
    model.layers.iter().for_each(|layer| add(&mut layer.params()));
    let embedding = &model.embed_tokens;
    match model.lm_head {
        Some(_) => add(&mut std::iter::once(embedding)),
        // A tied one is in memory from the head on.
        None => held = if embedding.train.is_some() { embedding.elements() } else { 0 },
    }
    (held + most.iter().map(|(len, count)| len * count).sum::<usize>()) as u64
}
