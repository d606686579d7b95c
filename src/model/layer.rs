//! One block of a model, by the names of `transformers`.

use crate::backend::{Backend, Expert};
use crate::model::family::{ExpertLayout, MixtureRule, MlpLayout, NormNames};
use crate::model::mixtures::Mixtures;
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

/// A mixture of experts.
#[derive(Debug)]
pub struct Mixture<B: Backend> {
    /// `[N, D]`.
    pub router: Param<B>,
    /// gate and up `[F, D]`, down `[D, F]` of each.
    pub experts: Vec<Expert<Param<B>>>,
    /// What the share of the shared expert is computed from, `[1, D]`, and the expert.
    pub shared: Option<(Param<B>, Expert<Param<B>>)>,
}

/// A projection of all experts of a mixture, from `I` to `O` features.
#[derive(Debug)]
pub struct ExpertProjection<B: Backend> {
    /// `[N, I, O]`; with scales, codes of MXFP4 `[N, O, I / 32, 16]`.
    pub values: Param<B>,
    /// `[N, O, I / 32]`.
    pub scales: Option<Param<B>>,
    /// `[N, O]`.
    pub bias: Param<B>,
}

/// A mixture of packed experts.
#[derive(Debug)]
pub struct PackedMixture<B: Backend> {
    /// `[N, D]`.
    pub router: Linear<B>,
    /// From `D` to `2 · F` features: gate and up in turn.
    pub gate_up: ExpertProjection<B>,
    /// From `F` to `D` features.
    pub down: ExpertProjection<B>,
}

/// What follows attention.
#[derive(Debug)]
pub enum FeedForward<B: Backend> {
    /// An MLP.
    Mlp(Mlp<B>),
    /// A mixture of experts.
    Mixture(Mixture<B>),
    /// A mixture of packed experts.
    PackedMixture(PackedMixture<B>),
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
    /// The sinks of attention, `[H]`.
    pub sinks: Option<Param<B>>,
    /// On q.
    pub q_norm: Option<Norm<B>>,
    /// On k.
    pub k_norm: Option<Norm<B>>,
    /// Around what follows attention.
    pub mlp_norms: BranchNorms<B>,
    /// What follows attention.
    pub feed_forward: FeedForward<B>,
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

impl<B: Backend> ExpertProjection<B> {
    fn assemble(mxfp4: bool, next: &mut dyn FnMut() -> Param<B>) -> Self {
        Self { values: next(), scales: mxfp4.then(&mut *next), bias: next() }
    }

    /// Its tensors.
    pub fn params(&self) -> impl Iterator<Item = &Param<B>> {
        std::iter::once(&self.values).chain(&self.scales).chain([&self.bias])
    }

    fn params_mut(&mut self) -> impl Iterator<Item = &mut Param<B>> {
        std::iter::once(&mut self.values).chain(&mut self.scales).chain([&mut self.bias])
    }
}

fn expert_of<B: Backend>(next: &mut dyn FnMut() -> Param<B>) -> Expert<Param<B>> {
    [(); 3].map(|()| next())
}

impl<B: Backend> FeedForward<B> {
    /// Its tensors, each with whether it is of an expert that only some tokens go through.
    pub(super) fn params(&self) -> Box<dyn Iterator<Item = (&Param<B>, bool)> + '_> {
        match self {
            Self::Mlp(Mlp { gate_up, down_proj }) => {
                let linears = gate_up.iter().chain([down_proj]);
                Box::new(linears.flat_map(Linear::params).map(|param| (param, false)))
            }
            Self::Mixture(Mixture { router, experts, shared }) => {
                let shared = shared.iter().flat_map(|(share, expert)| std::iter::once(share).chain(expert));
                let of_all = std::iter::once(router).chain(shared).map(|param| (param, false));
                Box::new(of_all.chain(experts.iter().flatten().map(|param| (param, true))))
            }
            Self::PackedMixture(PackedMixture { router, gate_up, down }) => {
                let experts = gate_up.params().chain(down.params()).map(|param| (param, true));
                Box::new(router.params().map(|param| (param, false)).chain(experts))
            }
        }
    }

    fn params_mut(&mut self) -> Box<dyn Iterator<Item = &mut Param<B>> + '_> {
        match self {
            Self::Mlp(Mlp { gate_up, down_proj }) => {
                Box::new(gate_up.iter_mut().chain([down_proj]).flat_map(Linear::params_mut))
            }
            Self::Mixture(Mixture { router, experts, shared }) => {
                let shared =
                    shared.iter_mut().flat_map(|(share, expert)| std::iter::once(share).chain(expert));
                Box::new(std::iter::once(router).chain(shared).chain(experts.iter_mut().flatten()))
            }
            Self::PackedMixture(PackedMixture { router, gate_up, down }) => {
                Box::new(router.params_mut().chain(gate_up.params_mut()).chain(down.params_mut()))
            }
        }
    }

    /// Takes the tensors in the order of [`mixture_tensors`], or of an MLP.
    fn assemble(config: &ModelConfig, layer: usize, next: &mut dyn FnMut() -> Param<B>) -> Self {
        let Some(mixtures) = config.mixture(layer) else {
            let inputs = config.mlp_layout.inputs().len();
            let gate_up = (0..inputs).map(|_| Linear::assemble(config.mlp_bias, next)).collect();
            return Self::Mlp(Mlp { gate_up, down_proj: Linear::assemble(config.mlp_bias, next) });
        };
        if let Some(packing) = mixtures.packed {
            let router = Linear::assemble(true, next);
            let [gate_up, down] = [(); 2].map(|()| ExpertProjection::assemble(packing.mxfp4, next));
            return Self::PackedMixture(PackedMixture { router, gate_up, down });
        }
        let router = next();
        let experts = (0..mixtures.experts).map(|_| expert_of(next)).collect();
        let shared = mixtures.shared_size.is_some().then(|| {
            let expert = expert_of(next);
            (next(), expert)
        });
        Self::Mixture(Mixture { router, experts, shared })
    }
}

impl<B: Backend> Layer<B> {
    /// All tensors of the block.
    pub fn params(&self) -> impl Iterator<Item = &Param<B>> {
        self.params_of_tokens().map(|(param, _)| param)
    }

    /// All tensors of the block, each with whether it is of an expert that only some tokens go through.
    pub fn params_of_tokens(&self) -> impl Iterator<Item = (&Param<B>, bool)> {
        let Self { attention_norms, mlp_norms, q_norm, k_norm, qkv, o_proj, sinks, feed_forward } = self;
        let branches = [attention_norms, mlp_norms].map(|norms| [&norms.input, &norms.output]);
        let norms = branches.into_iter().flatten().chain([q_norm, k_norm]).flatten();
        let linears = qkv.iter().chain([o_proj]).flat_map(Linear::params);
        let of_all = norms.flat_map(Norm::params).chain(linears).chain(sinks).map(|param| (param, false));
        of_all.chain(feed_forward.params())
    }

    /// All tensors of the block, in the order of [`Layer::params`].
    pub(super) fn params_mut(&mut self) -> impl Iterator<Item = &mut Param<B>> {
        let Self { attention_norms, mlp_norms, q_norm, k_norm, qkv, o_proj, sinks, feed_forward } = self;
        let branches = [attention_norms, mlp_norms].map(|norms| [&mut norms.input, &mut norms.output]);
        let norms = branches.into_iter().flatten().chain([q_norm, k_norm]).flatten();
        let linears = qkv.iter_mut().chain([o_proj]).flat_map(Linear::params_mut);
        norms.flat_map(Norm::params_mut).chain(linears).chain(sinks).chain(feed_forward.params_mut())
    }

    /// Takes the tensors in the order of [`layer_tensors`].
    pub(super) fn assemble(config: &ModelConfig, layer: usize, next: &mut dyn FnMut() -> Param<B>) -> Self {
        let mut linears = |count: usize, bias: bool| -> Vec<Linear<B>> {
            (0..count).map(|_| Linear::assemble(bias, next)).collect()
        };
        let qkv = linears(if config.fused_qkv { 1 } else { 3 }, config.qkv_bias);
        let o_proj = Linear::assemble(config.o_bias, next);
        let feed_forward = FeedForward::assemble(config, layer, next);
        let sinks = config.sinks.then(&mut *next);
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
        Self { attention_norms, qkv, o_proj, sinks, q_norm, k_norm, mlp_norms, feed_forward }
    }
}

/// Name within its block, output and input features of the linear layers of attention and of an MLP, and whether each has a
/// bias.
pub(super) fn linear_layers(config: &ModelConfig, layer: usize) -> Vec<(&'static str, usize, usize, bool)> {
    let (d, f) = (config.hidden_size, config.intermediate_size);
    let (q, kv) = (config.q_size(), config.kv_size());
    let mut linears = if config.fused_qkv {
        vec![("self_attn.qkv_proj", q + 2 * kv, d, config.qkv_bias)]
    } else {
        let own = |name, out| (name, out, d, config.qkv_bias);
        vec![own("self_attn.q_proj", q), own("self_attn.k_proj", kv), own("self_attn.v_proj", kv)]
    };
    linears.push(("self_attn.o_proj", d, q, config.o_bias));
    if config.mixture(layer).is_none() {
        let rows = if config.mlp_layout == MlpLayout::Fused { 2 * f } else { f };
        let inputs = config.mlp_layout.inputs().iter();
        linears.extend(inputs.map(|name| (*name, rows, d, config.mlp_bias)));
        linears.push(("mlp.down_proj", d, f, config.mlp_bias));
    }
    linears
}

/// Name within its block and shape of every tensor of a block.
pub(super) fn layer_tensors(config: &ModelConfig, layer: usize) -> Vec<(String, Vec<usize>)> {
    let (d, q, kv, e) = (config.hidden_size, config.q_size(), config.kv_size(), config.head_dim);
    let mixture = config.mixture(layer);
    let mut all = Vec::new();
    for (module, out, inner, bias) in linear_layers(config, layer) {
        all.push((format!("{module}.weight"), vec![out, inner]));
        all.extend(bias.then(|| (format!("{module}.bias"), vec![out])));
    }
    all.extend(mixture.into_iter().flat_map(|mixtures| mixture_tensors(mixtures, d)));
    all.extend(config.sinks.then(|| ("self_attn.sinks".to_owned(), vec![config.num_attention_heads])));
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

/// Name within its block and shape of every tensor of a mixture of experts over rows of `d` elements.
fn mixture_tensors(mixtures: &Mixtures, d: usize) -> Vec<(String, Vec<usize>)> {
    let Mixtures { rule, experts, intermediate_size, shared_size, .. } = mixtures;
    let module = rule.module;
    let ExpertLayout::Apart([gate, up, down]) = rule.layout else { return packed_tensors(mixtures, d) };
    let mut all = vec![(format!("{module}.gate.weight"), vec![*experts, d])];
    let mut expert = |name: &str, f: usize| {
        let parts = [(gate, vec![f, d]), (up, vec![f, d]), (down, vec![d, f])];
        all.extend(parts.map(|(part, shape)| (format!("{module}.{name}.{part}.weight"), shape)));
    };
    (0..*experts).for_each(|index| expert(&format!("experts.{index}"), *intermediate_size));
    if let Some(size) = shared_size {
        expert("shared_expert", *size);
        all.push((format!("{module}.shared_expert_gate.weight"), vec![1, d]));
    }
    all
}

/// As [`mixture_tensors`], of packed experts.
fn packed_tensors(mixtures: &Mixtures, d: usize) -> Vec<(String, Vec<usize>)> {
    let Mixtures { rule: MixtureRule { module, .. }, experts: n, intermediate_size: f, packed, .. } =
        mixtures;
    let mut all =
        vec![(format!("{module}.router.weight"), vec![*n, d]), (format!("{module}.router.bias"), vec![*n])];
    for (projection, inputs, outputs) in [("gate_up_proj", d, 2 * f), ("down_proj", *f, d)] {
        let name = format!("{module}.experts.{projection}");
        if packed.is_some_and(|packing| packing.mxfp4) {
            all.push((format!("{name}_blocks"), vec![*n, outputs, inputs / 32, 16]));
            all.push((format!("{name}_scales"), vec![*n, outputs, inputs / 32]));
        } else {
            all.push((name.clone(), vec![*n, inputs, outputs]));
        }
        all.push((format!("{name}_bias"), vec![*n, outputs]));
    }
    all
}

/// Name and shape of the tensors of a norm over rows of `size` elements.
pub(super) fn norm_tensors(config: &ModelConfig, module: &str, size: usize) -> Vec<(String, Vec<usize>)> {
    let parts = [(config.norm_kind.scale, "weight"), (config.norm_kind.bias, "bias")];
    let there = parts.into_iter().filter(|(has, _)| *has);
    there.map(|(_, part)| (format!("{module}.{part}"), vec![size])).collect()
}
