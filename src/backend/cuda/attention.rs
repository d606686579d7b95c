//! Attention: `kernels/attention_mma.cu` for heads of 64 and 128 in bf16, `kernels/attention.cu` for all others.

use super::ComputeDtype;
use super::buffer::Buffer;
use super::device::{Arg, Device, Memory};
use super::sequences::OnGpu;
use crate::backend::{AttentionShape, Sequences};

/// Rows of a block of `attention_delta`.
const DELTA_ROWS: usize = 4;

/// Scratch of the backward pass.
#[derive(Debug, Default)]
pub(super) struct Attention {
    delta: Memory,
    dq: Memory,
}

/// The kernels for a head, and the bytes of shared memory that each needs.
struct Kernels {
    forward: (String, usize),
    query: (String, usize),
    key: (String, usize),
    /// Rows of a tile.
    rows: usize,
}

impl Kernels {
    /// `None` for a head that is too wide.
    fn of(head_dim: usize, working: ComputeDtype) -> Option<Self> {
        match (working, head_dim) {
            (ComputeDtype::Bf16, 64) => Some(Self::tensor_cores(64, 64)),
            (ComputeDtype::Bf16, 128) => Some(Self::tensor_cores(128, 32)),
            (_, ..=64) => Some(Self::general(64, head_dim)),
            (_, 65..=128) => Some(Self::general(128, head_dim)),
            (_, 129..=256) => Some(Self::general(256, head_dim)),
            _ => None,
        }
    }

    /// `kernels/attention_mma.cu`; `step` others meet a tile at once in the backward pass.
    fn tensor_cores(head_dim: usize, step: usize) -> Self {
        const ROWS: usize = 64;
        const FORWARD_STEP: usize = 64;
        let bytes = |rows: usize| rows * (head_dim + 8) * 2;
        // Two of what comes, so that one is copied while the other is used.
        let backward = bytes(2 * ROWS + 4 * step);
        Self {
            forward: (format!("attention_mma_forward_{head_dim}"), bytes(ROWS + 4 * FORWARD_STEP)),
            query: (format!("attention_mma_query_{head_dim}"), backward),
            key: (format!("attention_mma_key_{head_dim}"), backward + 4 * step * 4),
            rows: ROWS,
        }
    }

    /// `kernels/attention.cu`, built for heads of at most `size` elements.
    fn general(size: usize, head_dim: usize) -> Self {
        const ROWS: usize = 16;
        const LANES: usize = 32;
        // Tiles of rows, of what they meet, and of scores, in `f32`.
        let bytes = |rows: usize, others: usize, scores: usize| {
            4 * (rows * ROWS * head_dim + others * LANES * (head_dim + 1) + scores * ROWS * LANES)
        };
        Self {
            forward: (format!("attention_forward_{size}"), bytes(1, 1, 1)),
            query: (format!("attention_backward_query_{size}"), bytes(2, 2, 1)),
            key: (format!("attention_backward_key_{size}"), bytes(2, 2, 2)),
            rows: ROWS,
        }
    }
}

/// Heads, key/value heads, width, window, scale.
fn numbers(shape: AttentionShape) -> [Arg; 5] {
    let AttentionShape { heads, kv_heads, head_dim, window } = shape;
    let number = |n: usize| Arg::U32(u32::try_from(n).unwrap_or(u32::MAX));
    let scale = 1.0 / (head_dim as f32).sqrt();
    [number(heads), number(kv_heads), number(head_dim), number(window.unwrap_or(usize::MAX)), Arg::F32(scale)]
}

impl Attention {
    /// See [`crate::backend::Backend::attention_forward`].
    pub(super) fn forward(
        (device, of, on_gpu): (&Device, ComputeDtype, &mut OnGpu),
        [q, k, v]: [&Buffer; 3],
        shape: AttentionShape,
        sequences: Sequences<'_>,
        out: &Buffer,
        lse: &Buffer,
    ) {
        let AttentionShape { heads, kv_heads, head_dim, .. } = shape;
        let Some(kernels) = Kernels::of(head_dim, of) else { return too_wide(device, head_dim) };
        let tokens = sequences.tokens();
        let (wide, narrow) = (tokens * heads * head_dim, tokens * kv_heads * head_dim);
        let (tiles, count) = on_gpu.tiles(device, sequences, kernels.rows);
        let mut args =
            vec![q.arg(device, wide, of), k.arg(device, narrow, of), v.arg(device, narrow, of), tiles];
        args.extend(numbers(shape));
        args.extend([out.arg(device, wide, of), lse.arg(device, tokens * heads, ComputeDtype::F32)]);
        let (name, shared) = kernels.forward;
        device.launch(&name, (count, heads), shared, &args);
    }

    /// See [`crate::backend::Backend::attention_backward`].
    pub(super) fn backward(
        &mut self,
        (device, of, on_gpu): (&Device, ComputeDtype, &mut OnGpu),
        [dout, out, lse]: [&Buffer; 3],
        shape: AttentionShape,
        sequences: Sequences<'_>,
        [q, k, v]: [&mut Buffer; 3],
    ) {
        let AttentionShape { heads, kv_heads, head_dim, .. } = shape;
        let Some(kernels) = Kernels::of(head_dim, of) else { return too_wide(device, head_dim) };
        let tokens = sequences.tokens();
        let (wide, narrow) = (tokens * heads * head_dim, tokens * kv_heads * head_dim);
        let rows = tokens * heads;
        device.reserve(&mut self.delta, 4 * rows);
        device.reserve(&mut self.dq, wide * of.bytes());
        let pointer = |memory: &Memory, bytes| Arg::Pointer(device.pointer(memory, bytes).unwrap_or(0));
        let (delta, dq) = (pointer(&self.delta, 4 * rows), pointer(&self.dq, wide * of.bytes()));
        let (tiles, count) = on_gpu.tiles(device, sequences, kernels.rows);
        let [dout, out] = [dout, out].map(|x| x.arg(device, wide, of));
        let lse = lse.arg(device, rows, ComputeDtype::F32);
        let (q_arg, k_arg, v_arg) =
            (q.arg(device, wide, of), k.arg(device, narrow, of), v.arg(device, narrow, of));

        let args = [dout, out, Arg::U32(rows as u32), Arg::U32(head_dim as u32), delta];
        device.launch("attention_delta", (rows.div_ceil(DELTA_ROWS), 1), 0, &args);

        let mut args = vec![dout, q_arg, k_arg, v_arg, lse, delta, tiles];
        args.extend(numbers(shape));
        args.push(dq);
        let (name, shared) = kernels.query;
        device.launch(&name, (count, heads), shared, &args);

        let mut args = vec![dout, q_arg, lse, delta, tiles];
        args.extend(numbers(shape));
        args.extend([k_arg, v_arg]);
        let (name, shared) = kernels.key;
        device.launch(&name, (count, kv_heads), shared, &args);
        device.copy(&self.dq, &mut q.memory, wide * of.bytes());
    }
}

fn too_wide(device: &Device, head_dim: usize) {
    device.fail(format!("head_dim {head_dim} is not supported on the GPU, at most 256 is; use --device cpu"));
}
