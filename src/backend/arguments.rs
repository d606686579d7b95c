//! Arguments of the operations: shapes, tokens and constants, all on the host.

use std::sync::Arc;

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

/// The sequences of a pass: sequence `i` is tokens `offsets[i]..offsets[i + 1]`.
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

/// Sizes of a linear layer that is applied to `rows` rows. Its weight is `[out_features, in_features]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinearShape {
    /// Rows of the input and of the output.
    pub rows: usize,
    /// Columns of the output.
    pub out_features: usize,
    /// Columns of the input.
    pub in_features: usize,
}

/// Shape of an attention.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionShape {
    /// Query heads `H`.
    pub heads: usize,
    /// Key/value heads `K`, a divisor of `H`.
    pub kv_heads: usize,
    /// Elements of a head `E`.
    pub head_dim: usize,
    /// Sliding window: a query attends to itself and to the `window - 1` tokens before it; `None`: to all before it.
    pub window: Option<usize>,
    /// Scores `s` become `c · tanh(s / c)` with this `c`; `None`: they are left.
    pub soft_cap: Option<f32>,
}

/// The shape of an attention and the sequences that it is applied to.
#[derive(Debug, Clone, Copy)]
pub struct AttentionLayout<'a> {
    /// Heads and window.
    pub shape: AttentionShape,
    /// No query attends to a token of another sequence.
    pub sequences: Sequences<'a>,
}

/// The constants of a norm over rows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RowNorm {
    /// Added to the mean square.
    pub eps: f32,
    /// Added to the scale: 1 where a family stores its scales less 1, otherwise 0.
    pub offset: f32,
}

/// What a norm over rows leaves for its backward pass, `[rows]` each.
#[derive(Debug)]
pub struct Statistics<Buffer> {
    /// `1 / √(mean((x − μ)²) + eps)`.
    pub rstd: Buffer,
    /// The mean `μ` of each row, which makes the norm a LayerNorm; `None` for RMSNorm, where `μ` is 0.
    pub mean: Option<Buffer>,
}

/// Columns of a matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Columns {
    /// The first of them.
    pub first: usize,
    /// Columns of the whole matrix.
    pub of: usize,
}

/// Cosines and sines of rotary position embedding, `[positions, half]` each. Shared, so that a device recognises a
/// table that it has uploaded already.
#[derive(Debug, Clone)]
pub struct RopeTable {
    /// cos(position · frequency) · scale.
    pub cos: Arc<[f32]>,
    /// sin(position · frequency) · scale.
    pub sin: Arc<[f32]>,
    /// Number of frequencies: the first `2 · half` elements of a head are rotated, at most `E`.
    pub half: usize,
    /// `E`.
    pub head_dim: usize,
    /// Elements `(2i, 2i + 1)` of a head are a pair, instead of `(i, i + half)`.
    pub interleaved: bool,
}

/// The direction of a rotary embedding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rotation {
    /// By the angle of the position.
    Forward,
    /// By the negative angle: the transpose, for gradients.
    Backward,
}

/// Rows of the last hidden state that predict a token, and the tokens they should predict.
#[derive(Debug, Clone, Copy)]
pub struct Targets<'a> {
    /// Row indices into `[T, D]`, ascending.
    pub rows: &'a [u32],
    /// Token ids, each below `V`.
    pub ids: &'a [u32],
    /// The share `ε` of the probability that is spread evenly over all `V` tokens, 0 to below 1.
    pub label_smoothing: f32,
}

/// How many of `rows` target rows have their logits in memory at once. The chunks are of nearly equal size, and large
/// enough that widening the weight of the head costs little beside the matrix product.
pub fn head_rows(rows: usize, vocab: usize) -> usize {
    const LOGITS: usize = 1 << 24;
    const MULTIPLE: usize = 32;
    let most = (LOGITS / vocab.max(1)).max(MULTIPLE) / MULTIPLE * MULTIPLE;
    let chunks = rows.div_ceil(most).max(1);
    rows.div_ceil(chunks).next_multiple_of(MULTIPLE).min(most).min(rows.max(1))
}

/// One forward and backward pass over whole sequences: a micro-batch, or a piece of one.
#[derive(Debug, Clone, Copy)]
pub struct TrainingPass<'a> {
    /// `T` token ids below `V`.
    pub ids: &'a [u32],
    /// How they divide into sequences.
    pub sequences: Sequences<'a>,
    /// What they predict.
    pub targets: Targets<'a>,
    /// As [`HeadGradients::factors`](super::HeadGradients::factors).
    pub factors: &'a [f32],
    /// Add the gradients to those of the passes before.
    pub accumulate: bool,
}

/// The purpose of a rehearsal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rehearsal {
    /// To count the memory that is needed: nothing is allocated.
    Count,
    /// To allocate it.
    Reserve,
}

/// Bytes that a backend holds for each element.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ElementBytes {
    /// Of an activation.
    pub activation: u64,
    /// Of the values of a trainable tensor with a master in `f32`.
    pub trainable: u64,
    /// Of the values of a trainable tensor in bfloat16.
    pub rounded: u64,
    /// Of a gradient.
    pub gradient: u64,
    /// Of a frozen tensor.
    pub frozen: u64,
    /// Of a frozen matrix in eight-bit floats.
    pub float8: u64,
}

/// How a weight is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightKind {
    /// As it is stored, never written.
    Frozen,
    /// A matrix of a linear layer in e4m3 with one scale, never written: see [`Float8Matrix`](super::Float8Matrix).
    Float8,
    /// Trainable, with values in `f32`.
    Trainable,
    /// Trainable, with values in bfloat16 alone, which every step rounds stochastically.
    Rounded,
}
