//! The operations of a Llama-family model, forward and backward, and of its optimizer.
//!
//! [`Backend`] is the one trait of this crate. It knows no file names, no tensor names and no layers: the
//! model in `llama` is written once over it.
//!
//! Shape letters: `T` tokens of a micro-batch (all its sequences, one after the other, without padding),
//! `D` hidden_size, `H` heads, `K` key/value heads, `E` head_dim, `F` intermediate_size, `V` vocab_size.
//! Every buffer is row-major.

mod choice;
mod cpu;
#[cfg(feature = "cuda")]
#[expect(unsafe_code, reason = "a driver is spoken to through pointers; each use says why it is sound")]
pub mod cuda;
mod diagnosis;

use std::borrow::Cow;
use std::sync::Arc;

use crate::Result;

pub use choice::{ComputeDtype, Device, DeviceChoice};
pub use cpu::{Cpu, gemm_gflops};
pub use diagnosis::{Diagnosis, Gpu, LibraryReport, Missing, diagnose};

/// The values of a parameter as a checkpoint stores them.
#[derive(Debug, Clone, Copy)]
pub struct Stored<'a> {
    /// Element type.
    pub dtype: &'a crate::checkpoint::Dtype,
    /// Little-endian elements.
    pub bytes: &'a [u8],
    /// Output features; 1 for a vector.
    pub rows: usize,
    /// Input features, or the length of a vector.
    pub cols: usize,
}

/// The sequences of a micro-batch: sequence `i` is tokens `offsets[i]..offsets[i + 1]`.
#[derive(Debug, Clone, Copy)]
pub struct Sequences<'a> {
    /// Starts at 0 and ends at `T`.
    pub offsets: &'a [u32],
}

impl Sequences<'_> {
    /// Number of tokens.
    pub fn tokens(&self) -> usize {
        self.offsets.last().map_or(0, |end| *end as usize)
    }

    /// The token range of each sequence.
    pub fn ranges(&self) -> impl Iterator<Item = std::ops::Range<usize>> + '_ {
        self.offsets.windows(2).map(|w| w[0] as usize..w[1] as usize)
    }
}

/// Shape of an attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionShape {
    /// Query heads `H`.
    pub heads: usize,
    /// Key/value heads `K`, a divisor of `H`.
    pub kv_heads: usize,
    /// Elements of a head `E`.
    pub head_dim: usize,
    /// A query sees itself and the `window - 1` tokens before it; `None`: all before it.
    pub window: Option<usize>,
}

/// Cosines and sines of rotary position embedding, `[positions, E / 2]` each. Shared, so that a device knows the
/// table that it holds already.
#[derive(Debug, Clone)]
pub struct RopeTable {
    /// cos(position · frequency) · scale.
    pub cos: Arc<[f32]>,
    /// sin(position · frequency) · scale.
    pub sin: Arc<[f32]>,
    /// Frequencies, `E / 2`.
    pub half: usize,
}

/// Which way to rotate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rotation {
    /// By the angle of the position.
    Forward,
    /// Back: the transpose, for gradients.
    Backward,
}

/// How many of `rows` rows of the last hidden state have their logits in memory at once, in equal parts: enough
/// that preparing the head for a matrix product costs little.
pub fn head_rows(rows: usize, vocab: usize) -> usize {
    const LOGITS: usize = 1 << 24;
    const MULTIPLE: usize = 32;
    let most = (LOGITS / vocab.max(1)).max(MULTIPLE) / MULTIPLE * MULTIPLE;
    let parts = rows.div_ceil(most).max(1);
    rows.div_ceil(parts).next_multiple_of(MULTIPLE).min(most).min(rows.max(1))
}

/// Rows of the last hidden state that predict a token, and the tokens they should predict.
#[derive(Debug, Clone, Copy)]
pub struct Targets<'a> {
    /// Row indices into `[T, D]`, ascending.
    pub rows: &'a [u32],
    /// Token ids, each below `V`.
    pub ids: &'a [u32],
}

/// Whole sequences that go through the model together, and what is learnt from them.
#[derive(Debug, Clone, Copy)]
pub struct Part<'a> {
    /// `T` ids below `V`.
    pub ids: &'a [u32],
    /// How they divide into sequences.
    pub sequences: Sequences<'a>,
    /// What they predict.
    pub targets: Targets<'a>,
    /// As [`HeadGradients::scale`].
    pub scale: f32,
    /// Gradients are added to those of the parts before.
    pub accumulate: bool,
}

/// What a rehearsal is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rehearsal {
    /// To know what memory is needed: nothing is allocated.
    Count,
    /// To allocate it.
    Reserve,
}

/// Where the gradients of a cross-entropy go.
#[derive(Debug)]
pub struct HeadGradients<'a, Buffer> {
    /// Factor of the sum of losses: 1 / (target tokens of the optimizer step).
    pub scale: f32,
    /// `[T, D]`, overwritten; `None` when nothing below the head is trainable.
    pub hidden: Option<&'a mut Buffer>,
    /// `[V, D]`; `None` for a frozen head.
    pub weight: Option<&'a mut Buffer>,
    /// Add to `weight` instead of overwriting it.
    pub accumulate: bool,
}

/// A trainable parameter with what its optimizer step reads and writes.
#[derive(Debug)]
pub struct AdamTensor<'a, B: Backend + ?Sized> {
    /// The values.
    pub weight: &'a mut B::Weight,
    /// The gradient.
    pub grad: &'a B::Buffer,
    /// First moment.
    pub exp_avg: &'a mut B::Buffer,
    /// Second moment.
    pub exp_avg_sq: &'a mut B::Buffer,
    /// Which elements are trainable; `None`: all are.
    pub mask: Option<&'a B::Mask>,
    /// Decoupled weight decay.
    pub weight_decay: f32,
}

/// A gradient with the mask of its tensor.
#[derive(Debug)]
pub struct MaskedGrad<'a, B: Backend + ?Sized> {
    /// The gradient.
    pub grad: &'a mut B::Buffer,
    /// Which elements are trainable; `None`: all are.
    pub mask: Option<&'a B::Mask>,
}

/// Bytes that a backend holds for each element.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ElementBytes {
    /// Of an activation.
    pub activation: u64,
    /// Of a trainable tensor: values, gradient and moments.
    pub trainable: u64,
    /// Of a frozen tensor.
    pub frozen: u64,
}

/// Constants of one AdamW step, as `torch.optim.AdamW` names them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamStep {
    /// Learning rate of this step.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Steps taken, this one included.
    pub step: u64,
    /// Factor of every gradient, from clipping.
    pub grad_scale: f32,
}

/// The operations. Forward writes its outputs; backward takes the gradient of the output and adds to, or
/// writes, the gradients of the inputs as each method says.
pub trait Backend {
    /// Activations, gradients, moments: `f32` on the CPU.
    type Buffer: std::fmt::Debug;
    /// A parameter: frozen as it is stored, or trainable in `f32`.
    type Weight: std::fmt::Debug;
    /// One bit per element of a tensor.
    type Mask: std::fmt::Debug;

    /// Tokens that go through the model at once, unless one sequence has more: enough for fast matrix products,
    /// few enough to bound the memory of activations whatever the batch size is.
    fn tokens_at_once(&self) -> usize;
    /// What memory is needed for.
    fn element_bytes(&self) -> ElementBytes;
    /// Whether everything up to here was computed. Operations do not fail one by one; after a fault, losses and
    /// norms are NaN.
    ///
    /// # Errors
    /// [`crate::Error::Device`] with the first fault.
    fn check(&self) -> Result<()>;

    /// Bytes of device memory that `work` allocates, which is run without computing anything; `None`, without
    /// running it, where memory is not planned. After a reserve, the same work allocates no more.
    fn rehearse(&mut self, rehearsal: Rehearsal, work: impl FnOnce(&mut Self)) -> Option<u64>;
    /// Does `work`: forward, head and backward of `part`, of one model with one set of activations. It reads
    /// nothing back. A device may record it and, for parts of the same shape, run what it has recorded.
    fn part(&mut self, part: &Part<'_>, work: impl FnMut(&mut Self));

    /// A buffer of `len` zeros in `f32`: for gradients of weights, moments and statistics.
    fn zeros(&self, len: usize) -> Self::Buffer;
    /// A buffer of `len` zeros for activations and their gradients, in the type that the device computes with.
    fn activations(&self, len: usize) -> Self::Buffer;
    /// A mask of these bits, least significant first: 1 = trainable.
    fn mask(&self, bits: Vec<u64>) -> Self::Mask;
    /// Sets all elements to zero.
    fn clear(&self, buffer: &mut Self::Buffer);
    /// Copies the first `len` elements.
    fn copy(&self, from: &Self::Buffer, to: &mut Self::Buffer, len: usize);
    /// The elements, on the host.
    fn to_host<'b>(&self, buffer: &'b Self::Buffer) -> Result<Cow<'b, [f32]>>;
    /// Sets the elements from the host; lengths agree.
    fn set(&self, buffer: &mut Self::Buffer, values: &[f32]) -> Result<()>;
    /// The values of a trainable weight, on the host.
    fn weight_to_host<'w>(&self, weight: &'w Self::Weight) -> Result<Cow<'w, [f32]>>;
    /// Sets the values of a trainable weight.
    fn set_weight(&self, weight: &mut Self::Weight, values: &[f32]) -> Result<()>;

    /// `out[t] = table[ids[t]]`, `[T, D]`.
    fn embedding_forward(&mut self, table: &Self::Weight, ids: &[u32], out: &mut Self::Buffer);
    /// `grad[ids[t]] += dout[t]`, tokens in order.
    fn embedding_backward(&mut self, dout: &Self::Buffer, ids: &[u32], grad: &mut Self::Buffer, cols: usize);

    /// `out = x · rstd · weight` with `rstd = 1 / √(mean(x²) + eps)` of each row. Zhang and Sennrich 2019.
    fn rmsnorm_forward(
        &mut self,
        x: &Self::Buffer,
        weight: &Self::Weight,
        rows: usize,
        eps: f32,
        out: &mut Self::Buffer,
        rstd: &mut Self::Buffer,
    );
    /// Adds to `dx` (where wanted) and to `dweight` (where trainable). `dout` and `dx` may not be one buffer.
    #[expect(clippy::too_many_arguments, reason = "what the derivative of a norm depends on")]
    fn rmsnorm_backward(
        &mut self,
        dout: &Self::Buffer,
        x: &Self::Buffer,
        weight: &Self::Weight,
        rstd: &Self::Buffer,
        rows: usize,
        dx: Option<&mut Self::Buffer>,
        dweight: Option<&mut Self::Buffer>,
    );

    /// `out = x · weightᵀ`, `[rows, out features]`; added to `out` with `accumulate`.
    fn linear_forward(
        &mut self,
        x: &Self::Buffer,
        weight: &Self::Weight,
        rows: usize,
        out: &mut Self::Buffer,
        accumulate: bool,
    );
    /// `dx = dout · weight`, `[rows, in features]`; added to `dx` with `accumulate`.
    fn linear_backward_input(
        &mut self,
        dout: &Self::Buffer,
        weight: &Self::Weight,
        rows: usize,
        dx: &mut Self::Buffer,
        accumulate: bool,
    );
    /// `dweight = doutᵀ · x`, `[out features, in features]`; added with `accumulate`.
    fn linear_backward_weight(
        &mut self,
        dout: &Self::Buffer,
        x: &Self::Buffer,
        rows: usize,
        shape: (usize, usize),
        dweight: &mut Self::Buffer,
        accumulate: bool,
    );
    /// `out[t] += bias`.
    fn bias_forward(&mut self, bias: &Self::Weight, rows: usize, out: &mut Self::Buffer);
    /// `dbias += Σ_t dout[t]`.
    fn bias_backward(&mut self, dout: &Self::Buffer, rows: usize, dbias: &mut Self::Buffer);

    /// Rotates the halves of every head of `x`, `[T, heads, E]`, in place. Positions restart with each
    /// sequence. Su et al. 2021, in the layout of transformers (`rotate_half`).
    fn rope(
        &mut self,
        x: &mut Self::Buffer,
        heads: usize,
        sequences: Sequences<'_>,
        table: &RopeTable,
        rotation: Rotation,
    );

    /// `out = softmax(q · kᵀ / √E) · v`, causal and inside each sequence; `lse` is `[T, H]`.
    #[expect(clippy::too_many_arguments, reason = "query, key, value, output and their shape")]
    fn attention_forward(
        &mut self,
        q: &Self::Buffer,
        k: &Self::Buffer,
        v: &Self::Buffer,
        shape: AttentionShape,
        sequences: Sequences<'_>,
        out: &mut Self::Buffer,
        lse: &mut Self::Buffer,
    );
    /// Overwrites `q`, `k`, `v` with their gradients.
    #[expect(clippy::too_many_arguments, reason = "query, key, value, output and their shape")]
    fn attention_backward(
        &mut self,
        dout: &Self::Buffer,
        out: &Self::Buffer,
        lse: &Self::Buffer,
        shape: AttentionShape,
        sequences: Sequences<'_>,
        q: &mut Self::Buffer,
        k: &mut Self::Buffer,
        v: &mut Self::Buffer,
    );

    /// `out = silu(gate) · up`, `len` elements. Shazeer 2020.
    fn swiglu_forward(&mut self, gate: &Self::Buffer, up: &Self::Buffer, len: usize, out: &mut Self::Buffer);
    /// Overwrites `gate` and `up` with their gradients.
    fn swiglu_backward(
        &mut self,
        dout: &Self::Buffer,
        len: usize,
        gate: &mut Self::Buffer,
        up: &mut Self::Buffer,
    );

    /// Negative log-likelihood of each target under `softmax(hidden · weightᵀ)`, in nats, and the gradients
    /// of their scaled sum. The logits of a few rows exist at a time. [`Backend::losses`] gives the losses.
    fn cross_entropy(
        &mut self,
        hidden: &Self::Buffer,
        weight: &Self::Weight,
        targets: Targets<'_>,
        gradients: Option<HeadGradients<'_, Self::Buffer>>,
    );
    /// The losses of all cross-entropies since the last call, in order.
    fn losses(&mut self) -> Vec<f32>;

    /// Zeroes what the masks freeze, and gives the sum of squares of the rest, the same for any thread count.
    fn mask_and_square_sum(&mut self, grads: &mut [MaskedGrad<'_, Self>]) -> f64;
    /// One step of AdamW over all `tensors`. Loshchilov and Hutter 2019.
    fn adamw(&mut self, tensors: &mut [AdamTensor<'_, Self>], step: &AdamStep);
}
