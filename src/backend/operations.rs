//! The trait `Backend`, and the arguments that hold its buffers. What an optimizer does is in `updates`.

use std::borrow::Cow;

use super::arguments::{
    AttentionLayout, AttentionShape, Columns, ElementBytes, LinearShape, Rehearsal, RopeTable, Rotation,
    RowNorm, Sequences, Statistics, Targets, TrainingPass,
};
use super::mixture_operations::MixtureOperations;
use crate::Result;

/// What the gradients of a norm over rows are computed from.
#[derive(Debug)]
pub struct NormInputs<'a, B: Backend + ?Sized> {
    /// Gradient of the output, `[rows, cols]`.
    pub dout: &'a B::Buffer,
    /// Input of the forward pass, `[rows, cols]`.
    pub x: &'a B::Buffer,
    /// Scale, `[cols]`; `None`: 1.
    pub weight: Option<&'a B::Weight>,
    /// Added to the scale.
    pub offset: f32,
    /// Of the forward pass.
    pub statistics: &'a Statistics<B::Buffer>,
    /// Rows and columns.
    pub shape: (usize, usize),
}

/// The output head: logits `hidden · weightᵀ`.
#[derive(Debug)]
pub struct Head<'a, B: Backend + ?Sized> {
    /// `[V, D]`.
    pub weight: &'a B::Weight,
    /// Logits `z` become `c · tanh(z / c)` with this `c`; `None`: they are left.
    pub soft_cap: Option<f32>,
}

/// Query `[T, H, E]`, key and value `[T, K, E]`.
#[derive(Debug)]
pub struct QueryKeyValue<'a, Buffer> {
    /// Query.
    pub q: &'a Buffer,
    /// Key.
    pub k: &'a Buffer,
    /// Value.
    pub v: &'a Buffer,
}

/// As [`QueryKeyValue`], to be overwritten.
#[derive(Debug)]
pub struct QueryKeyValueMut<'a, Buffer> {
    /// Query.
    pub q: &'a mut Buffer,
    /// Key.
    pub k: &'a mut Buffer,
    /// Value.
    pub v: &'a mut Buffer,
}

/// The output of attention with its gradient, `[T, H, E]` each.
#[derive(Debug)]
pub struct AttentionOutput<'a, Buffer> {
    /// Gradient of the output.
    pub dout: &'a Buffer,
    /// The output.
    pub out: &'a Buffer,
    /// Log-sum-exp of the scores, `[T, H]`.
    pub lse: &'a Buffer,
}

/// Outputs and constants of the backward pass of a cross-entropy.
#[derive(Debug)]
pub struct HeadGradients<'a, Buffer> {
    /// The factor of each target's loss: 1 / (target tokens of the optimizer step) for their mean.
    pub factors: &'a [f32],
    /// `[T, D]`, overwritten; `None` when nothing below the head is trainable.
    pub hidden: Option<&'a mut Buffer>,
    /// `[V, D]`; `None` for a frozen head.
    pub weight: Option<&'a mut Buffer>,
    /// Add to `weight` instead of overwriting it.
    pub accumulate: bool,
}

/// The operations. Forward writes its outputs; backward takes the gradient of the output and adds to, or
/// overwrites, the gradients of the inputs as each method says.
pub trait Backend: MixtureOperations {
    /// Tokens of one pass at most, unless one sequence has more: enough for fast matrix products, few enough to
    /// bound the memory of activations whatever the batch size is.
    fn tokens_at_once(&self) -> usize;
    /// Bytes of memory for an element of each sort.
    fn element_bytes(&self) -> ElementBytes;
    /// Whether all operations so far were computed. An operation returns no error; after the first fault nothing
    /// more is computed, and losses and norms are NaN.
    ///
    /// # Errors
    /// [`crate::Error::Device`] with the first fault.
    fn check(&self) -> Result<()>;

    /// Runs `work` without computing anything and returns the most bytes of device memory that it has allocated at once; where memory
    /// is not planned, runs nothing and returns `None`. After [`Rehearsal::Reserve`], the same work allocates no more.
    fn rehearse(&mut self, rehearsal: Rehearsal, work: impl FnOnce(&mut Self)) -> Option<u64>;
    /// Runs `work`: forward, head and backward of `pass`, always of one model with one set of activations. It reads
    /// nothing back to the host. A device may record it as a graph and replay the graph for passes of the same shape.
    fn training_pass(&mut self, pass: &TrainingPass<'_>, work: impl FnMut(&mut Self));

    /// A buffer of `len` zeros in `f32`: for gradients of weights, moments and statistics.
    fn zeros(&self, len: usize) -> Self::Buffer;
    /// A buffer of `len` zeros for activations and their gradients, in the compute dtype of the device.
    fn activations(&self, len: usize) -> Self::Buffer;
    /// A mask of these bits, least significant first: 1 = trainable.
    fn mask(&self, bits: Vec<u64>) -> Self::Mask;
    /// Sets all elements to zero.
    fn clear(&self, buffer: &mut Self::Buffer);
    /// Copies the first `len` elements.
    fn copy(&self, from: &Self::Buffer, to: &mut Self::Buffer, len: usize);
    /// The elements, on the host.
    ///
    /// # Errors
    /// As [`Backend::check`].
    fn to_host<'b>(&self, buffer: &'b Self::Buffer) -> Result<Cow<'b, [f32]>>;
    /// Sets the elements from the host; lengths agree.
    ///
    /// # Errors
    /// As [`Backend::check`].
    fn set(&self, buffer: &mut Self::Buffer, values: &[f32]) -> Result<()>;
    /// The values of a trainable weight, on the host.
    ///
    /// # Errors
    /// As [`Backend::check`].
    fn weight_to_host<'w>(&self, weight: &'w Self::Weight) -> Result<Cow<'w, [f32]>>;
    /// Sets the values of a trainable weight.
    ///
    /// # Errors
    /// As [`Backend::check`].
    fn set_weight(&self, weight: &mut Self::Weight, values: &[f32]) -> Result<()>;

    /// `out[t] = table[ids[t]]`, `[T, D]`.
    fn embedding_forward(&mut self, table: &Self::Weight, ids: &[u32], out: &mut Self::Buffer);
    /// `grad[ids[t]] += dout[t]`, tokens in order, but for tokens of id `padding_idx`. A backend is given one
    /// `padding_idx` only.
    fn embedding_backward(
        &mut self,
        dout: &Self::Buffer,
        ids: &[u32],
        padding_idx: Option<u32>,
        grad: &mut Self::Buffer,
        cols: usize,
    );

    /// `out = (x − μ) · rstd · (weight + offset)` of each row, and its [`Statistics`], which say whether `μ` is the mean of
    /// the row or 0; a missing weight is 1. `shape` is rows and columns. RMSNorm: Zhang and Sennrich 2019; LayerNorm: Ba et
    /// al. 2016.
    fn norm_forward(
        &mut self,
        x: &Self::Buffer,
        weight: Option<&Self::Weight>,
        shape: (usize, usize),
        norm: RowNorm,
        out: &mut Self::Buffer,
        statistics: &mut Statistics<Self::Buffer>,
    );
    /// Adds to `dx` and to `dweight`, each unless it is `None`. `dout` and `dx` may not be one buffer.
    fn norm_backward(
        &mut self,
        inputs: NormInputs<'_, Self>,
        dx: Option<&mut Self::Buffer>,
        dweight: Option<&mut Self::Buffer>,
    );

    /// `out = x · weightᵀ`, `[rows, out_features]`; added to `out` with `accumulate`.
    fn linear_forward(
        &mut self,
        x: &Self::Buffer,
        weight: &Self::Weight,
        rows: usize,
        out: &mut Self::Buffer,
        accumulate: bool,
    );
    /// [`Backend::linear_forward`] of one input with each weight, into the output beside it.
    fn linears_forward(
        &mut self,
        x: &Self::Buffer,
        rows: usize,
        outputs: &mut [(&Self::Weight, &mut Self::Buffer)],
    ) {
        for (weight, out) in outputs {
            self.linear_forward(x, weight, rows, out, false);
        }
    }
    /// `dx = dout · weight`, `[rows, in_features]`; added to `dx` with `accumulate`.
    fn linear_backward_input(
        &mut self,
        dout: &Self::Buffer,
        weight: &Self::Weight,
        rows: usize,
        dx: &mut Self::Buffer,
        accumulate: bool,
    );
    /// `dweight = doutᵀ · x`, `[out_features, in_features]`; added to `dweight` with `accumulate`.
    fn linear_backward_weight(
        &mut self,
        dout: &Self::Buffer,
        x: &Self::Buffer,
        shape: LinearShape,
        dweight: &mut Self::Buffer,
        accumulate: bool,
    );
    /// `out[t] += bias`.
    fn bias_forward(&mut self, bias: &Self::Weight, rows: usize, out: &mut Self::Buffer);
    /// `dbias += Σ_t dout[t]`.
    fn bias_backward(&mut self, dout: &Self::Buffer, rows: usize, dbias: &mut Self::Buffer);

    /// `x *= factor`, the first `len` elements.
    fn scale(&mut self, x: &mut Self::Buffer, len: usize, factor: f32);
    /// `out += x`, the first `len` elements.
    fn add(&mut self, x: &Self::Buffer, len: usize, out: &mut Self::Buffer);
    /// Copies columns of one matrix to another; `shape` is the number of rows and of columns that are copied.
    fn copy_columns(
        &mut self,
        from: (&Self::Buffer, Columns),
        to: (&mut Self::Buffer, Columns),
        shape: (usize, usize),
    );

    /// Rotates the pairs of every head of `x`, `[T, heads, E]`, in place. Positions restart with each sequence. Su et
    /// al. 2021; pairs of halves as `rotate_half` of transformers, or of neighbours as in the paper.
    fn rope(
        &mut self,
        x: &mut Self::Buffer,
        heads: usize,
        sequences: Sequences<'_>,
        table: &RopeTable,
        rotation: Rotation,
    );

    /// `out = softmax(q · kᵀ / √E) · v`, causal and inside each sequence, with the scores capped where the shape has a
    /// cap; `lse` is `[T, H]`.
    fn attention_forward(
        &mut self,
        inputs: QueryKeyValue<'_, Self::Buffer>,
        layout: AttentionLayout<'_>,
        out: &mut Self::Buffer,
        lse: &mut Self::Buffer,
    );
    /// Overwrites query, key and value with their gradients.
    fn attention_backward(
        &mut self,
        output: AttentionOutput<'_, Self::Buffer>,
        layout: AttentionLayout<'_>,
        inputs: QueryKeyValueMut<'_, Self::Buffer>,
    );

    /// Follows [`Backend::attention_forward`] of `rows` tokens with a sink for each head, `[H]`: a logit that joins the softmax
    /// of every query and has no value. `out` is multiplied by `e^lse / (e^lse + e^sink)`, and `lse` becomes the logarithm of
    /// that sum. Xiao et al. 2023, arXiv:2309.17453; gpt-oss, arXiv:2508.10925.
    fn sinks_forward(
        &mut self,
        sinks: &Self::Weight,
        shape: (AttentionShape, usize),
        out: &mut Self::Buffer,
        lse: &mut Self::Buffer,
    );
    /// `dsinks −= Σ_t e^(sink − lse) · (dout · out)` over the tokens of each head, with `out` and `lse` as
    /// [`Backend::sinks_forward`] leaves them. The gradients of query, key and value are those of
    /// [`Backend::attention_backward`].
    fn sinks_backward(
        &mut self,
        sinks: &Self::Weight,
        output: AttentionOutput<'_, Self::Buffer>,
        shape: (AttentionShape, usize),
        dsinks: &mut Self::Buffer,
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

    /// `out = gelu(gate) · up`, `len` elements, with the tanh form of GELU. Hendrycks and Gimpel 2016, Shazeer 2020.
    fn geglu_forward(&mut self, gate: &Self::Buffer, up: &Self::Buffer, len: usize, out: &mut Self::Buffer);
    /// Overwrites `gate` and `up` with their gradients.
    fn geglu_backward(
        &mut self,
        dout: &Self::Buffer,
        len: usize,
        gate: &mut Self::Buffer,
        up: &mut Self::Buffer,
    );

    /// `out = max(x, 0)²`, `len` elements. So et al. 2021, arXiv:2109.08668.
    fn relu_squared_forward(&mut self, x: &Self::Buffer, len: usize, out: &mut Self::Buffer);
    /// Overwrites `x` with its gradient.
    fn relu_squared_backward(&mut self, dout: &Self::Buffer, len: usize, x: &mut Self::Buffer);

    /// Whether a pass may have rotary tables of its own, for sequences whose length decides their frequencies.
    fn rope_tables_of_passes(&self) -> bool;

    /// Cross-entropy of each target with `p = softmax(logits)` of the head, in nats, and the gradients of their sum, each
    /// times its factor: `−(1 − ε) log p[id] − ε / V · Σ log p` with the `ε` of [`Targets::label_smoothing`], which is the
    /// negative log-likelihood at 0. Only the logits of a chunk of rows are in memory at once. [`Backend::losses`]
    /// returns the losses. Szegedy et al. 2015, arXiv:1512.00567, section 7.
    fn cross_entropy(
        &mut self,
        hidden: &Self::Buffer,
        head: Head<'_, Self>,
        targets: Targets<'_>,
        gradients: Option<HeadGradients<'_, Self::Buffer>>,
    );
    /// The losses of all cross-entropies since the last call, in order.
    fn losses(&mut self) -> Vec<f32>;
}
