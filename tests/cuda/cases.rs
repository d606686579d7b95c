//! Each operation with its input values, written once for every backend.
#![allow(unreachable_pub, clippy::unwrap_used, reason = "a part of a test")]

use hft_surgery::backend::cuda::{self, Cuda};
use hft_surgery::backend::{
    AttentionLayout, AttentionOutput, AttentionShape, Backend, Columns, Cpu, Head, HeadGradients,
    LinearShape, MaskedGrad, NormInputs, QueryKeyValue, QueryKeyValueMut, RopeTable, Rotation, RowNorm,
    Sequences, Statistics, Stored, Targets, TrainingPass, UpdateTensor, Updates, WeightKind,
};
use hft_surgery::checkpoint::{Dtype, Known};
use hft_surgery::optimizer::{Adafactor, Adam, Lion, Optimizer, OptimizerStep, Rounding, Sgd, StateValues};

use super::numbers::numbers;
use mixtures::{mixture, mixture_shared, mixture_ties, mixture_tiles};

#[path = "mixtures.rs"]
mod mixtures;

/// A backend that makes weights.
pub trait Maker: Backend {
    /// A weight `[rows, cols]`.
    fn of_kind(&self, stored: Stored<'static>, kind: WeightKind) -> Self::Weight;
}

impl Maker for Cpu<'static> {
    fn of_kind(&self, stored: Stored<'static>, kind: WeightKind) -> Self::Weight {
        Cpu::weight(stored, kind).unwrap()
    }
}

impl Maker for Cuda {
    fn of_kind(&self, stored: Stored<'static>, kind: WeightKind) -> cuda::Weight {
        self.weight(stored, kind).unwrap()
    }
}

/// An operation with its input values.
pub struct Case {
    pub name: &'static str,
    /// Largest error in bf16, as a share of the largest number of a result.
    pub bf16: f64,
    pub cpu: fn(&mut Cpu<'static>) -> Vec<Vec<f32>>,
    pub cuda: fn(&mut Cuda) -> Vec<Vec<f32>>,
}

macro_rules! cases {
    ($($name:ident $bf16:literal,)*) => {
        pub const CASES: &[Case] =
            &[$(Case { name: stringify!($name), bf16: $bf16, cpu: $name::<Cpu<'static>>, cuda: $name::<Cuda> },)*];
    };
}

cases! {
    embedding 4e-3,
    rmsnorm 8e-3,
    rmsnorm_odd 8e-3,
    rmsnorm_offset 8e-3,
    layernorm 8e-3,
    norm_without_scale 8e-3,
    elementwise 8e-3,
    linear 8e-3,
    bias 8e-3,
    rope 8e-3,
    rope_interleaved 8e-3,
    swiglu 8e-3,
    geglu 8e-3,
    relu_squared 8e-3,
    mixture 2e-2,
    mixture_tiles 2e-2,
    mixture_shared 2e-2,
    mixture_ties 2e-2,
    attention 1e-2,
    attention_grouped 1e-2,
    attention_window 1e-2,
    attention_wide 1e-2,
    attention_widest 1e-2,
    attention_capped 1e-2,
    attention_mma_64 1e-2,
    attention_mma_128 1e-2,
    attention_mma_window 1e-2,
    cross_entropy 1e-2,
    cross_entropy_smoothed 1e-2,
    cross_entropy_capped 1e-2,
    bf16_gradient 1e-7,
    adamw 1e-5,
    adamw8bit 1e-5,
    adafactor 1e-5,
    lion 1e-5,
    sgd 1e-5,
}

fn weight<B: Maker>(b: &B, shape: (usize, usize), seed: u64, trainable: bool) -> B::Weight {
    let kind = if trainable { WeightKind::Trainable } else { WeightKind::Frozen };
    b.of_kind(stored(shape, seed, kind), kind)
}

/// Values as a checkpoint has them: in bfloat16 for a weight that has no other, which they fit exactly.
fn stored((rows, cols): (usize, usize), seed: u64, kind: WeightKind) -> Stored<'static> {
    let values = numbers(rows * cols, seed);
    let (known, bytes): (Known, Vec<u8>) = match kind {
        WeightKind::Rounded => {
            let bytes = values.iter().flat_map(|x| half::bf16::from_f32(*x).to_le_bytes());
            (Known::BF16, bytes.collect())
        }
        _ => (Known::F32, values.iter().flat_map(|x| x.to_le_bytes()).collect()),
    };
    Stored { dtype: Box::leak(Box::new(Dtype::Known(known))), bytes: bytes.leak(), rows, cols }
}

fn acts<B: Backend>(b: &B, n: usize, seed: u64) -> B::Buffer {
    let mut buffer = b.activations(n);
    b.set(&mut buffer, &numbers(n, seed)).unwrap();
    buffer
}

fn floats<B: Backend>(b: &B, n: usize, seed: u64) -> B::Buffer {
    let mut buffer = b.zeros(n);
    b.set(&mut buffer, &numbers(n, seed)).unwrap();
    buffer
}

fn host<B: Backend>(b: &B, buffers: &[&B::Buffer]) -> Vec<Vec<f32>> {
    buffers.iter().map(|buffer| b.to_host(buffer).unwrap_or_default().into_owned()).collect()
}

fn embedding<B: Maker>(b: &mut B) -> Vec<Vec<f32>> {
    let ids = [4, 0, 4, 2, 4, 6, 0];
    let mut all = Vec::new();
    for (cols, padding_idx) in [(33, None), (40, None), (40, Some(4))] {
        let table = weight(b, (7, cols), 1, true);
        let (mut out, mut grad) = (b.activations(7 * cols), floats(b, 7 * cols, 2));
        b.embedding_forward(&table, &ids, &mut out);
        b.embedding_backward(&acts(b, 7 * cols, 3), &ids, padding_idx, &mut grad, cols);
        all.extend(host(b, &[&out, &grad]));
    }
    all
}

/// Which norm it is.
#[derive(Clone, Copy)]
struct NormCase {
    offset: f32,
    centered: bool,
    has_scale: bool,
}

const RMS: NormCase = NormCase { offset: 0.0, centered: false, has_scale: true };

fn norm<B: Maker>(b: &mut B, rows: usize, cols: usize, case: NormCase) -> Vec<Vec<f32>> {
    let NormCase { offset, centered, has_scale } = case;
    let (x, dout) = (acts(b, rows * cols, 1), acts(b, rows * cols, 2));
    let weight = weight(b, (1, cols), 3, false);
    let weight = has_scale.then_some(&weight);
    let (mut out, shape) = (b.activations(rows * cols), (rows, cols));
    let mut statistics = Statistics { rstd: b.zeros(rows), mean: centered.then(|| b.zeros(rows)) };
    b.norm_forward(&x, weight, shape, RowNorm { eps: 1e-5, offset }, &mut out, &mut statistics);
    let (mut dx, mut dweight) = (acts(b, rows * cols, 4), floats(b, cols, 5));
    let inputs = NormInputs { dout: &dout, x: &x, weight, offset, statistics: &statistics, shape };
    b.norm_backward(inputs, Some(&mut dx), Some(&mut dweight));
    host(b, &[&out, &statistics.rstd, &dx, &dweight])
}

fn rmsnorm<B: Maker>(b: &mut B) -> Vec<Vec<f32>> {
    norm(b, 3, 576, RMS)
}

fn rmsnorm_odd<B: Maker>(b: &mut B) -> Vec<Vec<f32>> {
    norm(b, 131, 37, RMS)
}

fn rmsnorm_offset<B: Maker>(b: &mut B) -> Vec<Vec<f32>> {
    let case = NormCase { offset: 1.0, ..RMS };
    [norm(b, 5, 576, case), norm(b, 7, 37, case)].concat()
}

fn layernorm<B: Maker>(b: &mut B) -> Vec<Vec<f32>> {
    let case = NormCase { centered: true, ..RMS };
    [norm(b, 5, 576, case), norm(b, 131, 37, case), norm(b, 7, 37, NormCase { offset: 1.0, ..case })].concat()
}

fn norm_without_scale<B: Maker>(b: &mut B) -> Vec<Vec<f32>> {
    let case = NormCase { has_scale: false, centered: true, ..RMS };
    [norm(b, 5, 576, case), norm(b, 7, 37, NormCase { centered: false, ..case })].concat()
}

fn elementwise<B: Maker>(b: &mut B) -> Vec<Vec<f32>> {
    let n = 1037;
    let (mut x, mut out) = (acts(b, n, 1), acts(b, n, 2));
    b.scale(&mut x, n - 1, 0.75);
    b.add(&x, n - 2, &mut out);
    let (source, target) = (Columns { first: 3, of: 51 }, Columns { first: 40, of: 73 });
    b.copy_columns((&x, source), (&mut out, target), (14, 33));
    host(b, &[&x, &out])
}

fn linear<B: Maker>(b: &mut B) -> Vec<Vec<f32>> {
    let (rows, outer, inner) = (5, 19, 33);
    let w = weight(b, (outer, inner), 1, true);
    let (x, dout) = (acts(b, rows * inner, 2), acts(b, rows * outer, 3));
    let (mut out, mut dx, mut dw) =
        (acts(b, rows * outer, 4), b.activations(rows * inner), floats(b, outer * inner, 5));
    b.linear_forward(&x, &w, rows, &mut out, true);
    b.linear_backward_input(&dout, &w, rows, &mut dx, false);
    let shape = LinearShape { rows, out_features: outer, in_features: inner };
    b.linear_backward_weight(&dout, &x, shape, &mut dw, true);
    host(b, &[&out, &dx, &dw])
}

fn bias<B: Maker>(b: &mut B) -> Vec<Vec<f32>> {
    let (rows, cols) = (70, 300);
    let w = weight(b, (1, cols), 1, true);
    let (mut out, mut dbias) = (acts(b, rows * cols, 2), floats(b, cols, 3));
    b.bias_forward(&w, rows, &mut out);
    b.bias_backward(&acts(b, rows * cols, 4), rows, &mut dbias);
    host(b, &[&out, &dbias])
}

fn rotate<B: Maker>(b: &mut B, half: usize, head_dim: usize, interleaved: bool) -> Vec<Vec<f32>> {
    let (heads, offsets) = (3, [0u32, 4, 5, 11]);
    let angles = |f: fn(f32) -> f32| (0..6 * half).map(|i| f(i as f32 * 0.7)).collect();
    let (cos, sin) = (angles(f32::cos), angles(f32::sin));
    let table = RopeTable { cos, sin, half, head_dim, interleaved };
    let sequences = Sequences { offsets: &offsets };
    [Rotation::Forward, Rotation::Backward]
        .into_iter()
        .flat_map(|rotation| {
            let mut x = acts(b, 11 * heads * head_dim, 1);
            b.rope(&mut x, heads, sequences, &table, rotation);
            host(b, &[&x])
        })
        .collect()
}

fn rope<B: Maker>(b: &mut B) -> Vec<Vec<f32>> {
    [rotate(b, 5, 10, false), rotate(b, 3, 10, false)].concat()
}

fn rope_interleaved<B: Maker>(b: &mut B) -> Vec<Vec<f32>> {
    [rotate(b, 5, 10, true), rotate(b, 3, 10, true)].concat()
}

fn swiglu<B: Maker>(b: &mut B) -> Vec<Vec<f32>> {
    let n = 1037;
    let (mut gate, mut up, mut out) = (acts(b, n, 1), acts(b, n, 2), b.activations(n));
    b.swiglu_forward(&gate, &up, n, &mut out);
    b.swiglu_backward(&acts(b, n, 3), n, &mut gate, &mut up);
    host(b, &[&out, &gate, &up])
}

fn geglu<B: Maker>(b: &mut B) -> Vec<Vec<f32>> {
    let n = 1037;
    let (mut gate, mut up, mut out) = (acts(b, n, 1), acts(b, n, 2), b.activations(n));
    b.geglu_forward(&gate, &up, n, &mut out);
    b.geglu_backward(&acts(b, n, 3), n, &mut gate, &mut up);
    host(b, &[&out, &gate, &up])
}

fn relu_squared<B: Maker>(b: &mut B) -> Vec<Vec<f32>> {
    let n = 1037;
    let (mut x, mut out) = (acts(b, n, 1), b.activations(n));
    b.relu_squared_forward(&x, n, &mut out);
    b.relu_squared_backward(&acts(b, n, 3), n, &mut x);
    host(b, &[&out, &x])
}

fn attend<B: Maker>(b: &mut B, shape: AttentionShape, offsets: &[u32]) -> Vec<Vec<f32>> {
    let sequences = Sequences { offsets };
    let AttentionShape { heads, kv_heads, head_dim, .. } = shape;
    let (n, m) = (sequences.tokens() * heads * head_dim, sequences.tokens() * kv_heads * head_dim);
    let (mut q, mut k, mut v) = (acts(b, n, 1), acts(b, m, 2), acts(b, m, 3));
    let (mut out, mut lse) = (b.activations(n), b.zeros(sequences.tokens() * heads));
    let layout = AttentionLayout { shape, sequences };
    b.attention_forward(QueryKeyValue { q: &q, k: &k, v: &v }, layout, &mut out, &mut lse);
    let forward = host(b, &[&out, &lse]);
    let output = AttentionOutput { dout: &acts(b, n, 4), out: &out, lse: &lse };
    b.attention_backward(output, layout, QueryKeyValueMut { q: &mut q, k: &mut k, v: &mut v });
    [forward, host(b, &[&q, &k, &v])].concat()
}

fn attention<B: Maker>(b: &mut B) -> Vec<Vec<f32>> {
    attend(b, AttentionShape { heads: 2, kv_heads: 2, head_dim: 64, window: None, soft_cap: None }, &[0, 35])
}

fn attention_grouped<B: Maker>(b: &mut B) -> Vec<Vec<f32>> {
    attend(
        b,
        AttentionShape { heads: 6, kv_heads: 2, head_dim: 20, window: None, soft_cap: None },
        &[0, 1, 18, 53],
    )
}

fn attention_window<B: Maker>(b: &mut B) -> Vec<Vec<f32>> {
    attend(
        b,
        AttentionShape { heads: 2, kv_heads: 1, head_dim: 16, window: Some(7), soft_cap: None },
        &[0, 50, 59],
    )
}

fn attention_wide<B: Maker>(b: &mut B) -> Vec<Vec<f32>> {
    attend(
        b,
        AttentionShape { heads: 2, kv_heads: 1, head_dim: 128, window: Some(20), soft_cap: None },
        &[0, 33],
    )
}

fn attention_widest<B: Maker>(b: &mut B) -> Vec<Vec<f32>> {
    attend(b, AttentionShape { heads: 1, kv_heads: 1, head_dim: 160, window: None, soft_cap: None }, &[0, 19])
}

/// Heads that tensor cores would take without the cap, and of another width.
fn attention_capped<B: Maker>(b: &mut B) -> Vec<Vec<f32>> {
    let shape = |head_dim, cap| AttentionShape {
        heads: 2,
        kv_heads: 1,
        head_dim,
        window: Some(40),
        soft_cap: Some(cap),
    };
    [attend(b, shape(64, 0.5), &[0, 66]), attend(b, shape(20, 2.0), &[0, 1, 18, 53])].concat()
}

/// Grouped heads over several tiles, a sequence of one token, one of a whole tile, one of a tile and one.
fn attention_mma_64<B: Maker>(b: &mut B) -> Vec<Vec<f32>> {
    attend(
        b,
        AttentionShape { heads: 4, kv_heads: 2, head_dim: 64, window: None, soft_cap: None },
        &[0, 1, 65, 130, 279],
    )
}

fn attention_mma_128<B: Maker>(b: &mut B) -> Vec<Vec<f32>> {
    attend(
        b,
        AttentionShape { heads: 3, kv_heads: 1, head_dim: 128, window: None, soft_cap: None },
        &[0, 63, 230],
    )
}

/// Windows that end within a tile, and tiles of keys of which only the window hides a part.
fn attention_mma_window<B: Maker>(b: &mut B) -> Vec<Vec<f32>> {
    let shape =
        |window| AttentionShape { heads: 2, kv_heads: 2, head_dim: 64, window: Some(window), soft_cap: None };
    [3, 50, 70, 133].into_iter().flat_map(|window| attend(b, shape(window), &[0, 200, 217])).collect()
}

/// Attention of one head of this width.
pub fn attention_of_width(b: &mut Cuda, head_dim: usize) {
    let shape = AttentionShape { heads: 1, kv_heads: 1, head_dim, window: None, soft_cap: None };
    let x = b.activations(2 * head_dim);
    let (mut out, mut lse) = (b.activations(2 * head_dim), b.zeros(2));
    let layout = AttentionLayout { shape, sequences: Sequences { offsets: &[0, 2] } };
    b.attention_forward(QueryKeyValue { q: &x, k: &x, v: &x }, layout, &mut out, &mut lse);
}

fn cross_entropy<B: Maker>(b: &mut B) -> Vec<Vec<f32>> {
    cross_entropy_of(b, 0.0, None)
}

fn cross_entropy_smoothed<B: Maker>(b: &mut B) -> Vec<Vec<f32>> {
    cross_entropy_of(b, 0.3, None)
}

fn cross_entropy_capped<B: Maker>(b: &mut B) -> Vec<Vec<f32>> {
    [cross_entropy_of(b, 0.0, Some(1.5)), cross_entropy_of(b, 0.3, Some(1.5))].concat()
}

fn cross_entropy_of<B: Maker>(b: &mut B, label_smoothing: f32, soft_cap: Option<f32>) -> Vec<Vec<f32>> {
    let (tokens, vocab, cols) = (9, 701, 24);
    let (weight, hidden) = (weight(b, (vocab, cols), 1, true), acts(b, tokens * cols, 2));
    let head = || Head { weight: &weight, soft_cap };
    let targets = Targets { rows: &[0, 2, 3, 8], ids: &[700, 0, 3, 350], label_smoothing };
    let (mut dhidden, mut dweight) = (acts(b, tokens * cols, 3), floats(b, vocab * cols, 4));
    let gradients = HeadGradients {
        factors: &[0.25, -0.5, 1.5, 0.125],
        hidden: Some(&mut dhidden),
        weight: Some(&mut dweight),
        accumulate: true,
    };
    b.cross_entropy(&hidden, head(), targets, Some(gradients));
    b.cross_entropy(&hidden, head(), targets, None);
    [vec![b.losses()], host(b, &[&dhidden, &dweight])].concat()
}

/// A trainable tensor.
struct Trained<B: Backend> {
    weight: B::Weight,
    grad: B::Buffer,
    state: B::State,
    mask: Option<B::Mask>,
    rounding: Option<Rounding>,
}

/// Three steps of three tensors, two with a mask, one longer than a block's piece; norms, values and states.
fn three_steps<B: Maker>(b: &mut B, optimizer: Optimizer, lr: f64, kind: WeightKind) -> Vec<Vec<f32>> {
    let shapes: [(usize, usize, bool); 3] = [(3, 7, false), (1, 70, true), (130, 131, true)];
    let mut all: Vec<Trained<B>> = Vec::new();
    for (i, (rows, cols, masked)) in shapes.into_iter().enumerate() {
        let n = rows * cols;
        let bits =
            (0..n.div_ceil(64) as u64).map(|i| 0x9669_f00f_3c5a_81e7_u64.rotate_left(i as u32)).collect();
        let mask = masked.then(|| b.mask(bits));
        let weight = b.of_kind(stored((rows, cols), 1, kind), kind);
        let state = b.state(&optimizer.state_parts(rows, cols));
        let rounding = (kind == WeightKind::Rounded).then(|| Rounding::new(3, 1, &format!("tensor {i}")));
        all.push(Trained { weight, grad: floats(b, n, 2), state, mask, rounding });
    }
    let mut norms = Vec::new();
    for count in 1..=3 {
        for (i, tensor) in all.iter_mut().enumerate() {
            let n = shapes[i].0 * shapes[i].1;
            b.set(&mut tensor.grad, &numbers(n, 10 * count + i as u64)).unwrap();
        }
        let mut grads: Vec<MaskedGrad<'_, B>> = Vec::new();
        for Trained { grad, mask, .. } in &mut all {
            grads.push(MaskedGrad { grad, mask: mask.as_ref(), pull: None });
        }
        norms.push(b.mask_and_square_sum(&mut grads) as f32);
        let mut tensors: Vec<UpdateTensor<'_, B>> = Vec::new();
        for Trained { weight, grad, state, mask, rounding } in &mut all {
            tensors.push(UpdateTensor {
                weight,
                grad,
                state,
                mask: mask.as_ref(),
                weight_decay: 0.1,
                momentum_share: None,
                rounding: *rounding,
            });
        }
        b.update(&mut tensors, &OptimizerStep { optimizer, lr, count, grad_scale: 0.5 });
    }
    let mut results = vec![norms];
    for Trained { weight, grad, state, .. } in &all {
        results.push(b.weight_to_host(weight).unwrap().into_owned());
        results.extend(host(b, &[grad]));
        for values in b.state_to_host(state).unwrap().iter() {
            results.push(match values {
                StateValues::Floats(values) => values.to_vec(),
                StateValues::Codes(codes) => codes.iter().map(|code| f32::from(*code)).collect(),
            });
        }
    }
    results
}

/// Two passes of a step, of lengths that are and are not multiples of what a thread takes: the same bits.
fn bf16_gradient<B: Maker>(b: &mut B) -> Vec<Vec<f32>> {
    let mut results = Vec::new();
    for n in [64, 2048 + 5, 16_384 * 2 + 13] {
        let (mut sum, mut grad) = (b.bf16_gradient(n), b.zeros(n));
        for (pass, factor) in [(0, 1.0 / 3.0), (1, 0.1), (2, 1e-4)] {
            let values: Vec<f32> = numbers(n, 5 + pass).iter().map(|x| x * factor).collect();
            b.set(&mut grad, &values).unwrap();
            b.add_to_bf16_gradient(&grad, pass > 0, &mut sum);
        }
        b.widen_bf16_gradient(&sum, &mut grad);
        results.extend(host(b, &[&grad]));
    }
    results
}

const ADAM: Adam = Adam { beta1: 0.9, beta2: 0.99, eps: 1e-8 };

fn adamw<B: Maker>(b: &mut B) -> Vec<Vec<f32>> {
    three_steps(b, Optimizer::AdamW(ADAM), 1e-2, WeightKind::Trainable)
}

fn adamw8bit<B: Maker>(b: &mut B) -> Vec<Vec<f32>> {
    three_steps(b, Optimizer::AdamW8bit(ADAM), 1e-2, WeightKind::Trainable)
}

fn adafactor<B: Maker>(b: &mut B) -> Vec<Vec<f32>> {
    three_steps(b, Optimizer::Adafactor(Adafactor::default()), 1e-1, WeightKind::Trainable)
}

fn lion<B: Maker>(b: &mut B) -> Vec<Vec<f32>> {
    three_steps(b, Optimizer::Lion(Lion { beta1: 0.9, beta2: 0.99 }), 1e-2, WeightKind::Trainable)
}

fn sgd<B: Maker>(b: &mut B) -> Vec<Vec<f32>> {
    let steps =
        |b: &mut B, momentum| three_steps(b, Optimizer::Sgd(Sgd { momentum }), 0.1, WeightKind::Trainable);
    [steps(b, 0.0), steps(b, 0.9)].concat()
}

/// Weights in bfloat16 alone, under each optimizer.
pub fn rounded<B: Maker>(b: &mut B) -> Vec<Vec<f32>> {
    let optimizers = [
        Optimizer::AdamW(ADAM),
        Optimizer::AdamW8bit(ADAM),
        Optimizer::Lion(Lion { beta1: 0.9, beta2: 0.99 }),
        Optimizer::Sgd(Sgd { momentum: 0.9 }),
        Optimizer::Adafactor(Adafactor::default()),
    ];
    optimizers
        .into_iter()
        .flat_map(|optimizer| three_steps(b, optimizer, 1e-2, WeightKind::Rounded))
        .collect()
}

/// Losses and gradients of a small model on seven passes of two shapes, alternating and repeated. With `as_passes`
/// the backend may record them as graphs.
pub fn passes<B: Maker>(b: &mut B, as_passes: bool) -> Vec<Vec<f32>> {
    let (tokens, vocab, cols) = (12, 19, 16);
    let shape = AttentionShape { heads: 2, kv_heads: 2, head_dim: 8, window: None, soft_cap: None };
    let (table, head) = (weight(b, (vocab, cols), 1, true), weight(b, (vocab, cols), 2, true));
    let angles = |f: fn(f32) -> f32| (0..tokens * 4).map(|i| f(i as f32 * 0.3)).collect();
    let (cos, sin) = (angles(f32::cos), angles(f32::sin));
    let rope = RopeTable { cos, sin, half: 4, head_dim: 8, interleaved: false };
    let [mut q, mut k, mut v, mut out, mut dhidden] = [(); 5].map(|()| b.activations(tokens * cols));
    let (mut lse, mut dtable, mut dhead) =
        (b.zeros(tokens * 2), b.zeros(vocab * cols), b.zeros(vocab * cols));
    let mut all = Vec::new();
    for (i, other) in [false, true, false, true, false, true, true].into_iter().enumerate() {
        let offsets: &[u32] = if other { &[0, 3, 12] } else { &[0, 7, 12] };
        let ids: Vec<u32> = (0..12).map(|t| (t * t + 5 * i as u32) % 19).collect();
        let rows: Vec<u32> = (0..5)
            .map(|r| (r * 2 + i as u32) % 12)
            .collect::<std::collections::BTreeSet<_>>()
            .into_iter()
            .collect();
        let sequences = Sequences { offsets };
        let targets = Targets { rows: &rows, ids: &ids[..rows.len()], label_smoothing: 0.0 };
        let factors: Vec<f32> = (0..rows.len()).map(|row| 0.2 + 0.1 * (row + i) as f32).collect();
        let pass = TrainingPass { ids: &ids, sequences, targets, factors: &factors, accumulate: false };
        let mut work = |b: &mut B| {
            b.clear(&mut dtable);
            for x in [&mut q, &mut k, &mut v] {
                b.embedding_forward(&table, &ids, x);
            }
            b.rope(&mut q, 2, sequences, &rope, Rotation::Forward);
            b.rope(&mut k, 2, sequences, &rope, Rotation::Forward);
            let layout = AttentionLayout { shape, sequences };
            b.attention_forward(QueryKeyValue { q: &q, k: &k, v: &v }, layout, &mut out, &mut lse);
            let (hidden, weight) = (Some(&mut dhidden), Some(&mut dhead));
            let gradients = HeadGradients { factors: pass.factors, hidden, weight, accumulate: false };
            let head = Head { weight: &head, soft_cap: None };
            b.cross_entropy(&out, head, targets, Some(gradients));
            let output = AttentionOutput { dout: &dhidden, out: &out, lse: &lse };
            b.attention_backward(output, layout, QueryKeyValueMut { q: &mut q, k: &mut k, v: &mut v });
            b.embedding_backward(&v, &ids, Some(5), &mut dtable, cols);
        };
        if as_passes {
            b.training_pass(&pass, work);
        } else {
            work(b);
        }
        all.push(b.losses());
        all.extend(host(b, &[&dtable, &dhead, &q, &k]));
    }
    all
}

/// Seconds of a copy of a buffer, and of a step of AdamW over half the elements of a tensor, each the best of
/// three runs of `times`.
pub fn adamw_seconds(b: &mut Cuda, (rows, cols): (usize, usize), times: u64) -> [f64; 2] {
    let n = rows * cols;
    let dtype = Dtype::Known(Known::BF16);
    let bytes = vec![0x3c; 2 * n];
    let mut weight = b.trainable(Stored { dtype: &dtype, bytes: &bytes, rows, cols }).unwrap();
    let (grad, small) = (b.zeros(n), b.zeros(1));
    let optimizer = Optimizer::AdamW(ADAM);
    let (mut copied, mut state) = (b.zeros(n), b.state(&optimizer.state_parts(rows, cols)));
    let mask = b.mask((0..n.div_ceil(64) as u64).map(|i| i ^ 0x5a5a_5a5a_0ff0_33cc).collect());
    let step = OptimizerStep { optimizer, lr: 1e-3, count: 1, grad_scale: 1.0 };
    let mut best = [f64::INFINITY; 2];
    for run in 0..6 {
        b.to_host(&small).unwrap();
        let clock = std::time::Instant::now();
        for _ in 0..times {
            if run % 2 == 0 {
                b.copy(&grad, &mut copied, n);
                continue;
            }
            let tensor = UpdateTensor {
                weight: &mut weight,
                grad: &grad,
                state: &mut state,
                mask: Some(&mask),
                weight_decay: 0.1,
                momentum_share: None,
                rounding: None,
            };
            b.update(&mut [tensor], &step);
        }
        b.to_host(&small).unwrap();
        best[run % 2] = best[run % 2].min(clock.elapsed().as_secs_f64() / times as f64);
    }
    best
}
