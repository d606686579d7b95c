//! One block of a model, by the names of `transformers`.

use crate::backend::Backend;
use crate::model::family::{MlpLayout, NormNames};
use crate::model::{ModelConfig, Param, QueryKeyNorm};

/// A matrix with an optional bias.
#[derive(Debug)]
pub struct Linear<B: Backend> {
    /// `[out, in]`.
    pub weight: Param<B>,
    /// `[out]`.
    pub bias: Option<Param<B>>,
}

/// A norm over rows.
#[derive(Debug)]
pub struct Norm<B: Backend> {
    /// What rows are multiplied by once they are normed, less the offset of the family; `None`: nothing.
    pub scale: Option<Param<B>>,
    /// What is added then.
    pub bias: Option<Param<B>>,
}

/// The norms on the residual stream around attention or the MLP.
#[derive(Debug)]
pub struct BranchNorms<B: Backend> {
    /// On the input.
    pub input: Option<Norm<B>>,
    /// On the output, before it is added to the residual.
    pub output: Option<Norm<B>>,
}

/// The MLP of a block.
#[derive(Debug)]
pub struct Mlp<B: Backend> {
    /// gate and up, `[F, D]` each; or both in one matrix `[2 · F, D]`; or up alone, where there is no gate.
    pub gate_up: Vec<Linear<B>>,
    /// `[D, F]`.
    pub down_proj: Linear<B>,
}

/// One block.
#[derive(Debug)]
pub struct Layer<B: Backend> {
    /// Around attention.
    pub attention_norms: BranchNorms<B>,
    /// q `[H · E, D]`, k and v `[K · E, D]`; or all three in one matrix `[(H + 2 · K) · E, D]`.
    pub qkv: Vec<Linear<B>>,
    /// `[D, H · E]`.
    pub o_proj: Linear<B>,
    /// On q.
    pub q_norm: Option<Norm<B>>,
    /// On k.
    pub k_norm: Option<Norm<B>>,
    /// Around the MLP.
    pub mlp_norms: BranchNorms<B>,
    /// The MLP.
    pub mlp: Mlp<B>,
}

impl<B: Backend> Linear<B> {
    fn assemble(bias: bool, next: &mut dyn FnMut() -> Param<B>) -> Self {
        Self { weight: next(), bias: bias.then(next) }
    }

    /// Its tensors.
    pub fn params(&self) -> impl Iterator<Item = &Param<B>> {
        std::iter::once(&self.weight).chain(&self.bias)
    }

    fn params_mut(&mut self) -> impl Iterator<Item = &mut Param<B>> {
        std::iter::once(&mut self.weight).chain(&mut self.bias)
    }
}

impl<B: Backend> Norm<B> {
    /// Takes the tensors in the order of [`norm_tensors`].
    pub(super) fn assemble(config: &ModelConfig, next: &mut dyn FnMut() -> Param<B>) -> Self {
        Self { scale: config.norm_kind.scale.then(&mut *next), bias: config.norm_kind.bias.then(next) }
    }

    /// Its tensors.
    pub fn params(&self) -> impl Iterator<Item = &Param<B>> {
        self.scale.iter().chain(&self.bias)
    }

    pub(super) fn params_mut(&mut self) -> impl Iterator<Item = &mut Param<B>> {
        self.scale.iter_mut().chain(&mut self.bias)
    }
}

impl<B: Backend> Mlp<B> {
    fn linears(&self) -> impl Iterator<Item = &Linear<B>> {
        self.gate_up.iter().chain([&self.down_proj])
    }
}

impl<B: Backend> Layer<B> {
    /// All tensors of the block.
    pub fn params(&self) -> impl Iterator<Item = &Param<B>> {
        let Self { attention_norms, mlp_norms, q_norm, k_norm, qkv, o_proj, mlp } = self;
        let branches = [attention_norms, mlp_norms].map(|norms| [&norms.input, &norms.output]);
        let norms = branches.into_iter().flatten().chain([q_norm, k_norm]).flatten();
        let linears = qkv.iter().chain([o_proj]).chain(mlp.linears());
        norms.flat_map(Norm::params).chain(linears.flat_map(Linear::params))
    }

    /// All tensors of the block, in the order of [`Layer::params`].
    pub(super) fn params_mut(&mut self) -> impl Iterator<Item = &mut Param<B>> {
        let Self { attention_norms, mlp_norms, q_norm, k_norm, qkv, o_proj, mlp } = self;
        let branches = [attention_norms, mlp_norms].map(|norms| [&mut norms.input, &mut norms.output]);
        let norms = branches.into_iter().flatten().chain([q_norm, k_norm]).flatten();
        let Mlp { gate_up, down_proj } = mlp;
        let linears = qkv.iter_mut().chain([o_proj]).chain(gate_up).chain([down_proj]);
        norms.flat_map(Norm::params_mut).chain(linears.flat_map(Linear::params_mut))
    }

    /// Takes the tensors in the order of [`layer_tensors`].
    pub(super) fn assemble(config: &ModelConfig, next: &mut dyn FnMut() -> Param<B>) -> Self {
        let mut linears = |count: usize, bias: bool| -> Vec<Linear<B>> {
            (0..count).map(|_| Linear::assemble(bias, next)).collect()
        };
        let qkv = linears(if config.fused_qkv { 1 } else { 3 }, config.qkv_bias);
        let o_proj = Linear::assemble(config.o_bias, next);
        let gate_up = (0..config.mlp_layout.inputs().len()).map(|_| Linear::assemble(config.mlp_bias, next));
        let gate_up = gate_up.collect();
        let mlp = Mlp { gate_up, down_proj: Linear::assemble(config.mlp_bias, next) };
        let mut norm = |has: bool| has.then(|| Norm::assemble(config, next));
        let on_queries = config.qk_norm != QueryKeyNorm::Off;
        let (q_norm, k_norm) = (norm(on_queries), norm(on_queries));
        let NormNames { attention_input, attention_output, mlp_input, mlp_output } = config.norms;
        let mut branch = |input: Option<&str>, output: Option<&str>| BranchNorms {
            input: norm(input.is_some()),
            output: norm(output.is_some()),
        };
        let attention_norms = branch(attention_input, attention_output);
        let mlp_norms = branch(mlp_input, mlp_output);
        Self { attention_norms, qkv, o_proj, q_norm, k_norm, mlp_norms, mlp }
    }
}

/// Name within its block and shape of every tensor of a block.
pub(super) fn layer_tensors(config: &ModelConfig) -> Vec<(String, Vec<usize>)> {
    let (d, f) = (config.hidden_size, config.intermediate_size);
    let (q, kv, e) = (config.q_size(), config.kv_size(), config.head_dim);
    let mut linears = if config.fused_qkv {
        vec![("self_attn.qkv_proj", q + 2 * kv, d, config.qkv_bias)]
    } else {
        let own = |name, out| (name, out, d, config.qkv_bias);
        vec![own("self_attn.q_proj", q), own("self_attn.k_proj", kv), own("self_attn.v_proj", kv)]
    };
    linears.push(("self_attn.o_proj", d, q, config.o_bias));
    let inputs = config.mlp_layout.inputs();
    let rows = if config.mlp_layout == MlpLayout::Fused { 2 * f } else { f };
    linears.extend(inputs.iter().map(|name| (*name, rows, d, config.mlp_bias)));
    linears.push(("mlp.down_proj", d, f, config.mlp_bias));
    let mut all = Vec::new();
    for (module, out, inner, bias) in linears {
        all.push((format!("{module}.weight"), vec![out, inner]));
        all.extend(bias.then(|| (format!("{module}.bias"), vec![out])));
    }
    let (q_norm, k_norm) = ("self_attn.q_norm", "self_attn.k_norm");
    let on_queries: &[(&str, usize)] = match config.qk_norm {
        QueryKeyNorm::Off => &[],
        QueryKeyNorm::Heads => &[(q_norm, e), (k_norm, e)],
        QueryKeyNorm::Whole => &[(q_norm, q), (k_norm, kv)],
    };
    let NormNames { attention_input, attention_output, mlp_input, mlp_output } = config.norms;
    let branches = [attention_input, attention_output, mlp_input, mlp_output].into_iter().flatten();
    let norms = on_queries.iter().copied().chain(branches.map(|module| (module, d)));
    all.extend(norms.flat_map(|(module, size)| norm_tensors(config, module, size)));
    all
}

/// Name and shape of the tensors of a norm over rows of `size` elements.
pub(super) fn norm_tensors(config: &ModelConfig, module: &str, size: usize) -> Vec<(String, Vec<usize>)> {
    let parts = [(config.norm_kind.scale, "weight"), (config.norm_kind.bias, "bias")];
    let there = parts.into_iter().filter(|(has, _)| *has);
    there.map(|(_, part)| (format!("{module}.{part}"), vec![size])).collect()
}
