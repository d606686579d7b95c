//! Attention: `kernels/attention_mma.cu` for heads of 64 and 128 in bf16 without a cap of the scores,
//! `kernels/attention.cu` for all others.

use super::argument::Arg;
use super::buffer::Buffer;
use super::context::Context;
use super::device::Device;
use super::memory::Memory;
use crate::backend::{
    AttentionLayout, AttentionOutput, AttentionShape, ComputeDtype, QueryKeyValue, QueryKeyValueMut,
};

/// Rows of a block of `attention_delta`.
const DELTA_ROWS: usize = 4;

/// Work memory of the backward pass.
#[derive(Debug, Default)]
pub(super) struct Attention {
    /// `dout · out` of each token and head.
    delta: Memory,
    /// Gradient of the query. The kernel of the keys still reads the query, so it is copied there last.
    dq: Memory,
}

/// A kernel, and the bytes of dynamic shared memory that it needs.
struct Kernel {
    name: String,
    shared: usize,
}

impl Kernel {
    fn new(name: String, shared: usize) -> Self {
        Self { name, shared }
    }

    fn launch(&self, device: &Device, grid: (usize, usize), args: &[Arg]) {
        device.launch(&self.name, grid, self.shared, args);
    }
}

/// The kernels for one size of heads.
struct Kernels {
    /// The kernels cap the scores.
    caps: bool,
    forward: Kernel,
    /// Gradient of the query.
    query: Kernel,
    /// Gradients of key and value.
    key: Kernel,
    /// Rows of a tile.
    rows: usize,
}

impl Kernels {
    /// `None` for a head that is too wide.
    fn of(shape: AttentionShape, compute_dtype: ComputeDtype) -> Option<Self> {
        let AttentionShape { head_dim, soft_cap, .. } = shape;
        match (compute_dtype, head_dim) {
            (ComputeDtype::Bf16, 64) if soft_cap.is_none() => Some(Self::tensor_cores(64, 64)),
            (ComputeDtype::Bf16, 128) if soft_cap.is_none() => Some(Self::tensor_cores(128, 32)),
            (_, ..=256) if soft_cap.is_some() => Some(Self::general("capped_256", head_dim)),
            (_, ..=64) => Some(Self::general("64", head_dim)),
            (_, 65..=128) => Some(Self::general("128", head_dim)),
            (_, 129..=256) => Some(Self::general("256", head_dim)),
            _ => None,
        }
    }

    /// `kernels/attention_mma.cu`; its backward pass handles `step` rows of the other operand at once.
    fn tensor_cores(head_dim: usize, step: usize) -> Self {
        const ROWS: usize = 64;
        const FORWARD_STEP: usize = 64;
        let bytes = |rows: usize| rows * (head_dim + 8) * 2;
        // Double buffers for the other operand: one is copied while the other is used.
        let backward = bytes(2 * ROWS + 4 * step);
        Self {
            forward: Kernel::new(format!("attention_mma_forward_{head_dim}"), bytes(ROWS + 4 * FORWARD_STEP)),
            query: Kernel::new(format!("attention_mma_query_{head_dim}"), backward),
            key: Kernel::new(format!("attention_mma_key_{head_dim}"), backward + 4 * step * 4),
            rows: ROWS,
            caps: false,
        }
    }

    /// `kernels/attention.cu`, the kernels of this name.
    fn general(size: &str, head_dim: usize) -> Self {
        const ROWS: usize = 16;
        const LANES: usize = 32;
        // Tiles of rows, of the other operand, and of scores, in `f32`.
        let bytes = |rows: usize, others: usize, scores: usize| {
            4 * (rows * ROWS * head_dim + others * LANES * (head_dim + 1) + scores * ROWS * LANES)
        };
        Self {
            forward: Kernel::new(format!("attention_forward_{size}"), bytes(1, 1, 1)),
            query: Kernel::new(format!("attention_backward_query_{size}"), bytes(2, 2, 1)),
            key: Kernel::new(format!("attention_backward_key_{size}"), bytes(2, 2, 2)),
            rows: ROWS,
            caps: true,
        }
    }
}

/// Heads, key/value heads, width, window, scale and, where the kernels cap the scores, the cap: 0 for none.
fn shape_args(kernels: &Kernels, shape: AttentionShape) -> Vec<Arg> {
    let AttentionShape { heads, kv_heads, head_dim, window, soft_cap } = shape;
    let number = |n: usize| Arg::U32(u32::try_from(n).unwrap_or(u32::MAX));
    let numbers = [heads, kv_heads, head_dim, window.unwrap_or(usize::MAX)].map(number);
    let scale = Arg::F32(1.0 / (head_dim as f32).sqrt());
    let cap = kernels.caps.then(|| Arg::F32(soft_cap.unwrap_or(0.0)));
    numbers.into_iter().chain([scale]).chain(cap).collect()
}

/// Number of elements of a query, and of a key or value.
fn elements(layout: AttentionLayout<'_>) -> (usize, usize) {
    let AttentionShape { heads, kv_heads, head_dim, .. } = layout.shape;
    let tokens = layout.sequences.tokens();
    (tokens * heads * head_dim, tokens * kv_heads * head_dim)
}

impl Attention {
    /// See [`crate::backend::Backend::attention_forward`].
    pub(super) fn forward(
        context: &mut Context,
        inputs: &QueryKeyValue<'_, Buffer>,
        layout: AttentionLayout<'_>,
        out: &Buffer,
        lse: &Buffer,
    ) {
        let AttentionLayout { shape, sequences } = layout;
        let Some(kernels) = Kernels::of(shape, context.compute_dtype) else {
            return too_wide(&context.device, shape.head_dim);
        };
        let (of_query, of_key) = elements(layout);
        let tiles = context.sequences.tiles(&context.device, sequences, kernels.rows);
        let mut args = vec![
            context.activations(inputs.q, of_query),
            context.activations(inputs.k, of_key),
            context.activations(inputs.v, of_key),
            tiles.table,
        ];
        args.extend(shape_args(&kernels, shape));
        args.push(context.activations(out, of_query));
        args.push(context.floats(lse, sequences.tokens() * shape.heads));
        kernels.forward.launch(&context.device, (tiles.count, shape.heads), &args);
    }

    /// See [`crate::backend::Backend::attention_backward`].
    pub(super) fn backward(
        &mut self,
        context: &mut Context,
        output: &AttentionOutput<'_, Buffer>,
        layout: AttentionLayout<'_>,
        inputs: QueryKeyValueMut<'_, Buffer>,
    ) {
        let AttentionLayout { shape, sequences } = layout;
        let Some(kernels) = Kernels::of(shape, context.compute_dtype) else {
            return too_wide(&context.device, shape.head_dim);
        };
        let (of_query, of_key) = elements(layout);
        let rows = sequences.tokens() * shape.heads;
        let query_bytes = of_query * context.compute_dtype.bytes();
        context.device.reserve(&mut self.delta, 4 * rows);
        context.device.reserve(&mut self.dq, query_bytes);
        let tiles = context.sequences.tiles(&context.device, sequences, kernels.rows);
        let (delta, dq) = (context.memory(&self.delta, 4 * rows), context.memory(&self.dq, query_bytes));
        let [dout, out, q] = [output.dout, output.out, &*inputs.q].map(|x| context.activations(x, of_query));
        let [k, v] = [&*inputs.k, &*inputs.v].map(|x| context.activations(x, of_key));
        let lse = context.floats(output.lse, rows);
        let device = &context.device;

        let args = [dout, out, Arg::U32(rows as u32), Arg::U32(shape.head_dim as u32), delta];
        device.launch("attention_delta", (rows.div_ceil(DELTA_ROWS), 1), 0, &args);
        let numbers = shape_args(&kernels, shape);
        let args = [&[dout, q, k, v, lse, delta, tiles.table][..], &numbers, &[dq]].concat();
        kernels.query.launch(device, (tiles.count, shape.heads), &args);
        let args = [&[dout, q, lse, delta, tiles.table][..], &numbers, &[k, v]].concat();
        kernels.key.launch(device, (tiles.count, shape.kv_heads), &args);
        device.copy(&self.dq, &mut inputs.q.memory, query_bytes);
    }
}

fn too_wide(device: &Device, head_dim: usize) {
    device.fail(format!("head_dim {head_dim} is not supported on the GPU, at most 256 is; use --device cpu"));
}
