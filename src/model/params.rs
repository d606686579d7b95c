//! The parameters of a model, by the names of `transformers`.

use std::collections::HashSet;

use crate::backend::{Backend, Head, Stored};
use crate::checkpoint::{Checkpoint, Dtype, Tensor, TensorInfo, decode_f32};
use crate::error::Escaped;
use crate::model::layer::{layer_tensors, linear_layers, norm_tensors};
use crate::model::{Layer, ModelConfig, Norm, Param, Trained};
use crate::{Error, Faults, Result};

/// A whole model.
#[derive(Debug)]
pub struct Model<B: Backend> {
    /// What decides the computation.
    pub config: ModelConfig,
    /// `[V, D]`.
    pub embed_tokens: Param<B>,
    /// The blocks.
    pub layers: Vec<Layer<B>>,
    /// Before the head.
    pub norm: Norm<B>,
    /// `[V, D]`; `None` when tied to `embed_tokens`.
    pub lm_head: Option<Param<B>>,
}

impl<B: Backend> Model<B> {
    /// All tensors, each once.
    pub fn params(&self) -> impl Iterator<Item = &Param<B>> {
        let layers = self.layers.iter().flat_map(Layer::params);
        let ends = self.norm.params().chain(&self.lm_head);
        std::iter::once(&self.embed_tokens).chain(layers).chain(ends)
    }

    /// All tensors, each once, in the order of [`Model::params`].
    pub fn params_mut(&mut self) -> impl Iterator<Item = &mut Param<B>> {
        let layers = self.layers.iter_mut().flat_map(Layer::params_mut);
        let ends = self.norm.params_mut().chain(&mut self.lm_head);
        std::iter::once(&mut self.embed_tokens).chain(layers).chain(ends)
    }

    /// Loads the tensors that `config` asks for. `make` turns stored values into a weight, with what training keeps of it
    /// where it is trainable.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] for every tensor that is missing, has another shape or is not of numbers.
    pub fn load<'a>(
        config: ModelConfig,
        checkpoint: &'a Checkpoint,
        backend: &B,
        mut make: impl FnMut(&str, Stored<'a>) -> Option<(B::Weight, Option<Trained<B>>)>,
    ) -> Result<Self> {
        config.check_packed(backend.packed_experts())?;
        let mut faults = Faults::default();
        let mut found = Vec::new();
        for (name, shape) in expected(&config) {
            match stored(checkpoint, &name, &shape) {
                Err(fault) => faults.push(fault),
                Ok(stored) => match make(&name, stored) {
                    Some((weight, train)) => found.push((name, shape, weight, train)),
                    None => faults.push(not_numbers(checkpoint, &name, stored.dtype)),
                },
            }
        }
        faults.into_result()?;
        let mut params = found.into_iter().map(|(name, shape, weight, train)| {
            let (vector, shape) = (shape.len() < 2, matrix(&shape));
            Param { name, shape, vector, weight, train, float8: false }
        });
        let mut next = || params.next().unwrap_or_else(|| unreachable!("as many tensors as are expected"));
        Ok(Self::assemble(config, &mut next))
    }

    /// Takes the tensors in the order of [`expected`].
    fn assemble(config: ModelConfig, next: &mut dyn FnMut() -> Param<B>) -> Self {
        let embed_tokens = next();
        let layers = (0..config.num_hidden_layers).map(|l| Layer::assemble(&config, l, next)).collect();
        let norm = Norm::assemble(&config, next);
        let lm_head = (!config.tie_word_embeddings).then(next);
        Self { config, embed_tokens, layers, norm, lm_head }
    }

    /// The output head, which a tied model has in its embedding.
    pub fn head(&self) -> Head<'_, B> {
        let weight = &self.lm_head.as_ref().unwrap_or(&self.embed_tokens).weight;
        Head { weight, soft_cap: self.config.logit_cap }
    }
}

/// Name and shape of every tensor that the model computes with.
pub fn expected(config: &ModelConfig) -> Vec<(String, Vec<usize>)> {
    let (d, v, names) = (config.hidden_size, config.vocab_size, config.names);
    let mut all = vec![(names.embedding(), vec![v, d])];
    for i in 0..config.num_hidden_layers {
        let tensors = layer_tensors(config, i).into_iter();
        all.extend(tensors.map(|(name, shape)| (format!("{}layers.{i}.{name}", names.body), shape)));
    }
    let norm = norm_tensors(config, "norm", d).into_iter();
    all.extend(norm.map(|(name, shape)| (format!("{}{name}", names.body), shape)));
    all.extend((!config.tie_word_embeddings).then(|| (names.head.to_owned(), vec![v, d])));
    all
}

/// Name and shape of every matrix of attention and of MLPs that are no mixtures of experts.
pub fn projections(config: &ModelConfig) -> Vec<(String, [usize; 2])> {
    let of_layer = |layer: usize| {
        let layers = linear_layers(config, layer).into_iter();
        layers.map(move |(module, out, inner, _)| {
            (format!("{}layers.{layer}.{module}.weight", config.names.body), [out, inner])
        })
    };
    (0..config.num_hidden_layers).flat_map(of_layer).collect()
}

/// The tensors of `checkpoint` that a model of `config` does not compute with, a copy of its tied embedding aside.
pub fn unused<'a>(checkpoint: &'a Checkpoint, config: &ModelConfig) -> Vec<&'a str> {
    let mut used: HashSet<String> = expected(config).into_iter().map(|(name, _)| name).collect();
    if config.tie_word_embeddings {
        used.insert(config.names.head.to_owned());
    }
    let names = checkpoint.tensors().map(|tensor| tensor.info.name.as_str());
    names.filter(|name| !used.contains(*name)).collect()
}

/// A vector is one row; the matrices of experts lie one after the other.
fn matrix(shape: &[usize]) -> (usize, usize) {
    match shape {
        [rows, cols] => (*rows, *cols),
        [experts, rows, cols @ ..] => (experts * rows, cols.iter().product()),
        _ => (1, shape.iter().product()),
    }
}

fn fault(checkpoint: &Checkpoint, tensor: &str, fault: String) -> Error {
    Error::Checkpoint {
        path: checkpoint.path().to_owned(),
        fault: format!("tensor `{tensor}`: {fault}"),
        hint: None,
    }
}

/// Checks from headers alone that `checkpoint` has every tensor that a model of `config` computes with.
///
/// # Errors
/// [`Error::Checkpoint`] for every tensor that is missing, has another shape or is not of numbers.
pub fn check_tensors(checkpoint: &Checkpoint, config: &ModelConfig) -> Result<()> {
    let mut faults = Faults::default();
    faults.extend(expected(config).iter().filter_map(|(name, shape)| find(checkpoint, name, shape).err()));
    faults.into_result()
}

/// The tensor of that name, which has this shape and is of numbers.
fn find<'a>(checkpoint: &'a Checkpoint, name: &str, shape: &[usize]) -> Result<Tensor<'a>> {
    let Some(tensor) = checkpoint.find(name) else {
        let twin = checkpoint.twin(name, checkpoint).map(|twin| twin.info.name.as_str());
        let twin =
            twin.map_or_else(String::new, |twin| format!("; `{}` is to be renamed to it", Escaped(twin)));
        let what = format!("missing, expected shape {shape:?} by config.json{twin}");
        return Err(fault(checkpoint, name, what));
    };
    let TensorInfo { dtype, shape: stored, .. } = tensor.info;
    if !stored.iter().copied().eq(shape.iter().map(|d| *d as u64)) {
        let what = format!("got shape {stored:?}, expected {shape:?} by config.json");
        return Err(fault(checkpoint, name, what));
    }
    if decode_f32(dtype, &[], &mut []).is_none() {
        return Err(not_numbers(checkpoint, name, dtype));
    }
    Ok(tensor)
}

fn not_numbers(checkpoint: &Checkpoint, name: &str, dtype: &Dtype) -> Error {
    fault(checkpoint, name, format!("weights of type {dtype} cannot be computed with"))
}

fn stored<'a>(checkpoint: &'a Checkpoint, name: &str, shape: &[usize]) -> Result<Stored<'a>> {
    let tensor = find(checkpoint, name, shape)?;
    let bytes = checkpoint.shards()[tensor.shard].mapped(tensor.info.bytes.clone());
    let bytes = bytes.ok_or_else(|| fault(checkpoint, name, "not in memory".to_owned()))?;
    let (rows, cols) = matrix(shape);
    Ok(Stored { dtype: &tensor.info.dtype, bytes, rows, cols })
}
