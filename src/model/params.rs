//! The parameters of a model, by the names of `transformers`.

use std::collections::HashSet;

use crate::backend::{Backend, Stored};
use crate::checkpoint::{Checkpoint, Dtype, Tensor, TensorInfo, decode_f32};
use crate::error::Escaped;
use crate::model::family::NormNames;
use crate::model::{ModelConfig, QueryKeyNorm};
use crate::optimizer::Rounding;
use crate::{Error, Faults, Result};

/// One tensor.
#[derive(Debug)]
pub struct Param<B: Backend> {
    /// Its name in the checkpoint.
    pub name: String,
    /// Output features (1 for a vector) and input features.
    pub shape: (usize, usize),
    /// The values.
    pub weight: B::Weight,
    /// What a trainable tensor needs besides; `None` for a frozen one, which costs nothing.
    pub train: Option<Trained<B>>,
}

/// Gradient and optimizer state of a trainable tensor.
#[derive(Debug)]
pub struct Trained<B: Backend> {
    /// Gradient of the loss.
    pub grad: B::Buffer,
    /// What the optimizer keeps of it.
    pub state: B::State,
    /// Which elements are trainable; `None`: all are.
    pub mask: Option<B::Mask>,
    /// The pull of L2-SP.
    pub pull: Option<Pull<B>>,
    /// The share of the elements that move at a step, those with the largest momentum; `None`: all do.
    pub momentum_share: Option<f64>,
    /// How values in bfloat16 are rounded; `None` where they are in `f32`.
    pub rounding: Option<Rounding>,
}

/// A pull towards the values at the start: the gradient of `strength/2 · ‖weight − start‖²`.
#[derive(Debug)]
pub struct Pull<B: Backend> {
    /// The values at the start.
    pub start: B::Buffer,
    /// The factor.
    pub strength: f32,
}

impl<B: Backend> Trained<B> {
    /// Gives back the memory of gradient and state, when no step will follow.
    pub fn release(&mut self, backend: &B) {
        self.grad = backend.zeros(0);
        self.state = backend.state(&[]);
        self.pull = None;
    }
}

impl<B: Backend> Param<B> {
    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.0 * self.shape.1
    }

    /// The gradient, where the tensor is trainable.
    pub fn grad(&mut self) -> Option<&mut B::Buffer> {
        self.train.as_mut().map(|train| &mut train.grad)
    }
}

/// A matrix with an optional bias.
#[derive(Debug)]
pub struct Linear<B: Backend> {
    /// `[out, in]`.
    pub weight: Param<B>,
    /// `[out]`.
    pub bias: Option<Param<B>>,
}

/// The scale of an RMSNorm.
pub type Norm<B> = Param<B>;

/// The norms on the residual stream around attention or the MLP.
#[derive(Debug)]
pub struct BranchNorms<B: Backend> {
    /// On the input.
    pub input: Option<Norm<B>>,
    /// On the output, before it is added to the residual.
    pub output: Option<Norm<B>>,
}

/// One block.
#[derive(Debug)]
pub struct Layer<B: Backend> {
    /// Around attention.
    pub attention_norms: BranchNorms<B>,
    /// `[H · E, D]`.
    pub q_proj: Linear<B>,
    /// `[K · E, D]`.
    pub k_proj: Linear<B>,
    /// `[K · E, D]`.
    pub v_proj: Linear<B>,
    /// `[D, H · E]`.
    pub o_proj: Linear<B>,
    /// On q.
    pub q_norm: Option<Norm<B>>,
    /// On k.
    pub k_norm: Option<Norm<B>>,
    /// Around the MLP.
    pub mlp_norms: BranchNorms<B>,
    /// `[F, D]`.
    pub gate_proj: Linear<B>,
    /// `[F, D]`.
    pub up_proj: Linear<B>,
    /// `[D, F]`.
    pub down_proj: Linear<B>,
}

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

impl<B: Backend> Layer<B> {
    fn linears(&self) -> [&Linear<B>; 7] {
        let Self { q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj, .. } = self;
        [q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj]
    }

    /// All tensors of the block.
    pub fn params(&self) -> impl Iterator<Item = &Param<B>> {
        let Self { attention_norms, mlp_norms, q_norm, k_norm, .. } = self;
        let branches = [attention_norms, mlp_norms].map(|norms| [&norms.input, &norms.output]);
        let norms = branches.into_iter().flatten().chain([q_norm, k_norm]).flatten();
        norms.chain(self.linears().into_iter().flat_map(|l| std::iter::once(&l.weight).chain(&l.bias)))
    }

    /// As [`Layer::params`].
    pub(crate) fn params_mut(&mut self) -> impl Iterator<Item = &mut Param<B>> {
        let Self { attention_norms, mlp_norms, q_norm, k_norm, .. } = self;
        let branches = [attention_norms, mlp_norms].map(|norms| [&mut norms.input, &mut norms.output]);
        let norms = branches.into_iter().flatten().chain([q_norm, k_norm]).flatten();
        let Self { q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj, .. } = self;
        let linears = [q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj];
        let linears = linears.into_iter().flat_map(|l| std::iter::once(&mut l.weight).chain(l.bias.as_mut()));
        norms.chain(linears)
    }
}

impl<B: Backend> Model<B> {
    /// All tensors, each once.
    pub fn params(&self) -> impl Iterator<Item = &Param<B>> {
        let layers = self.layers.iter().flat_map(Layer::params);
        let ends = std::iter::once(&self.norm).chain(&self.lm_head);
        std::iter::once(&self.embed_tokens).chain(layers).chain(ends)
    }

    /// All tensors, each once, in the order of [`Model::params`].
    pub fn params_mut(&mut self) -> impl Iterator<Item = &mut Param<B>> {
        let layers = self.layers.iter_mut().flat_map(Layer::params_mut);
        let ends = std::iter::once(&mut self.norm).chain(&mut self.lm_head);
        std::iter::once(&mut self.embed_tokens).chain(layers).chain(ends)
    }

    /// Loads the tensors that `config` asks for. `make` turns stored values into a weight, with the state of its
    /// optimizer where it is trainable.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] for every tensor that is missing, has another shape or is not of numbers.
    pub fn load<'a>(
        config: ModelConfig,
        checkpoint: &'a Checkpoint,
        backend: &B,
        mut make: impl FnMut(&str, Stored<'a>) -> Option<(B::Weight, Option<B::State>)>,
    ) -> Result<Self> {
        let mut faults = Faults::default();
        let mut found = Vec::new();
        for (name, shape) in expected(&config) {
            match stored(checkpoint, &name, &shape) {
                Err(fault) => faults.push(fault),
                Ok(stored) => match make(&name, stored) {
                    Some((weight, state)) => found.push((name, shape, weight, state)),
                    None => faults.push(not_numbers(checkpoint, &name, stored.dtype)),
                },
            }
        }
        faults.into_result()?;
        let mut params = found.into_iter().map(|(name, shape, weight, state)| {
            let shape = matrix(&shape);
            let train = state.map(|state| Trained {
                grad: backend.zeros(shape.0 * shape.1),
                state,
                mask: None,
                pull: None,
                momentum_share: None,
                rounding: None,
            });
            Param { name, shape, weight, train }
        });
        let mut next = || params.next().unwrap_or_else(|| unreachable!("as many tensors as are expected"));
        Ok(Self::assemble(config, &mut next))
    }

    /// Takes the tensors in the order of [`expected`].
    fn assemble(config: ModelConfig, next: &mut dyn FnMut() -> Param<B>) -> Self {
        let embed_tokens = next();
        let layers = (0..config.num_hidden_layers).map(|_| {
            let mut linear = |bias: bool| Linear { weight: next(), bias: bias.then(&mut *next) };
            let (q_proj, k_proj) = (linear(config.qkv_bias), linear(config.qkv_bias));
            let (v_proj, o_proj) = (linear(config.qkv_bias), linear(config.o_bias));
            let (gate_proj, up_proj) = (linear(config.mlp_bias), linear(config.mlp_bias));
            let down_proj = linear(config.mlp_bias);
            let mut norm = |has: bool| has.then(&mut *next);
            let on_queries = config.qk_norm != QueryKeyNorm::Off;
            let (q_norm, k_norm) = (norm(on_queries), norm(on_queries));
            let names = config.norms;
            let attention_norms = BranchNorms {
                input: norm(names.attention_input.is_some()),
                output: norm(names.attention_output.is_some()),
            };
            let mlp_norms = BranchNorms {
                input: norm(names.mlp_input.is_some()),
                output: norm(names.mlp_output.is_some()),
            };
            Layer {
                attention_norms,
                q_proj,
                k_proj,
                v_proj,
                o_proj,
                q_norm,
                k_norm,
                mlp_norms,
                gate_proj,
                up_proj,
                down_proj,
            }
        });
        let layers = layers.collect();
        let norm = next();
        let lm_head = (!config.tie_word_embeddings).then(next);
        Self { config, embed_tokens, layers, norm, lm_head }
    }
}

/// Name and shape of every tensor that the model computes with.
pub fn expected(config: &ModelConfig) -> Vec<(String, Vec<usize>)> {
    let (d, f, v) = (config.hidden_size, config.intermediate_size, config.vocab_size);
    let (q, kv, e) = (config.q_size(), config.kv_size(), config.head_dim);
    let names = config.names;
    let body = names.body;
    let mut all = vec![(names.embedding(), vec![v, d])];
    for i in 0..config.num_hidden_layers {
        let linears = [
            ("self_attn.q_proj", q, d, config.qkv_bias),
            ("self_attn.k_proj", kv, d, config.qkv_bias),
            ("self_attn.v_proj", kv, d, config.qkv_bias),
            ("self_attn.o_proj", d, q, config.o_bias),
            ("mlp.gate_proj", f, d, config.mlp_bias),
            ("mlp.up_proj", f, d, config.mlp_bias),
            ("mlp.down_proj", d, f, config.mlp_bias),
        ];
        for (module, out, inner, bias) in linears {
            all.push((format!("{body}layers.{i}.{module}.weight"), vec![out, inner]));
            all.extend(bias.then(|| (format!("{body}layers.{i}.{module}.bias"), vec![out])));
        }
        let (q_norm, k_norm) = ("self_attn.q_norm", "self_attn.k_norm");
        let norms: &[(&str, usize)] = match config.qk_norm {
            QueryKeyNorm::Off => &[],
            QueryKeyNorm::Heads => &[(q_norm, e), (k_norm, e)],
            QueryKeyNorm::Whole => &[(q_norm, q), (k_norm, kv)],
        };
        let NormNames { attention_input, attention_output, mlp_input, mlp_output } = config.norms;
        let branches = [attention_input, attention_output, mlp_input, mlp_output].into_iter().flatten();
        let norms = norms.iter().copied().chain(branches.map(|module| (module, d)));
        all.extend(norms.map(|(module, n)| (format!("{body}layers.{i}.{module}.weight"), vec![n])));
    }
    all.push((format!("{body}norm.weight"), vec![d]));
    all.extend((!config.tie_word_embeddings).then(|| (names.head.to_owned(), vec![v, d])));
    all
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

/// A vector is one row.
fn matrix(shape: &[usize]) -> (usize, usize) {
    if let [rows, cols] = shape { (*rows, *cols) } else { (1, shape.iter().product()) }
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
