//! Attention: `kernels/attention.cu`.

use super::Working;
use super::buffer::Buffer;
use super::device::{Arg, Device, Memory};
use super::sequences::{OnCard, ROWS};
use crate::backend::{AttentionShape, Sequences};

/// Keys that meet a tile at once, and warps of a block, as in the kernels.
const LANES: usize = 32;
const WARPS: usize = 4;

/// Scratch of the backward pass.
#[derive(Debug, Default)]
pub(super) struct Attention {
    delta: Memory,
    dq: Memory,
}

/// The build of the kernels for a head; `None` for one that is too wide.
fn size(head_dim: usize) -> Option<&'static str> {
    match head_dim {
        ..=64 => Some("64"),
        65..=128 => Some("128"),
        129..=256 => Some("256"),
        _ => None,
    }
}

/// Heads, key/value heads, width, window, scale.
fn numbers(shape: AttentionShape) -> [Arg; 5] {
    let AttentionShape { heads, kv_heads, head_dim, window } = shape;
    let number = |n: usize| Arg::U32(u32::try_from(n).unwrap_or(u32::MAX));
    let scale = 1.0 / (head_dim as f32).sqrt();
    [number(heads), number(kv_heads), number(head_dim), number(window.unwrap_or(usize::MAX)), Arg::F32(scale)]
}

/// Shared memory: `rows` tiles of rows, `others` of what they meet, `scores` of scores for each row of a warp.
fn shared(width: usize, rows: usize, others: usize, scores: usize) -> usize {
    4 * (rows * ROWS * width + others * LANES * (width + 1) + scores * WARPS * (ROWS / WARPS) * LANES)
}

impl Attention {
    /// See [`crate::backend::Backend::attention_forward`].
    pub(super) fn forward(
        (device, of, on_card): (&Device, Working, &mut OnCard),
        [q, k, v]: [&Buffer; 3],
        shape: AttentionShape,
        sequences: Sequences<'_>,
        out: &Buffer,
        lse: &Buffer,
    ) {
        let AttentionShape { heads, kv_heads, head_dim, .. } = shape;
        let Some(size) = size(head_dim) else { return too_wide(device, head_dim) };
        let tokens = sequences.tokens();
        let (wide, narrow) = (tokens * heads * head_dim, tokens * kv_heads * head_dim);
        let (tiles, count) = on_card.tiles(device, sequences);
        let mut args =
            vec![q.arg(device, wide, of), k.arg(device, narrow, of), v.arg(device, narrow, of), tiles];
        args.extend(numbers(shape));
        args.extend([out.arg(device, wide, of), lse.arg(device, tokens * heads, Working::F32)]);
        let shared = shared(head_dim, 1, 1, 1);
        device.launch(&format!("attention_forward_{size}"), (count, heads), shared, &args);
    }

    /// See [`crate::backend::Backend::attention_backward`].
    pub(super) fn backward(
        &mut self,
        (device, of, on_card): (&Device, Working, &mut OnCard),
        [dout, out, lse]: [&Buffer; 3],
        shape: AttentionShape,
        sequences: Sequences<'_>,
        [q, k, v]: [&mut Buffer; 3],
    ) {
        let AttentionShape { heads, kv_heads, head_dim, .. } = shape;
        let Some(size) = size(head_dim) else { return too_wide(device, head_dim) };
        let tokens = sequences.tokens();
        let (wide, narrow) = (tokens * heads * head_dim, tokens * kv_heads * head_dim);
        let rows = tokens * heads;
        device.reserve(&mut self.delta, 4 * rows);
        device.reserve(&mut self.dq, wide * of.bytes());
        let pointer = |memory: &Memory, bytes| Arg::Pointer(device.pointer(memory, bytes).unwrap_or(0));
        let (delta, dq) = (pointer(&self.delta, 4 * rows), pointer(&self.dq, wide * of.bytes()));
        let (tiles, count) = on_card.tiles(device, sequences);
        let [dout, out] = [dout, out].map(|x| x.arg(device, wide, of));
        let lse = lse.arg(device, rows, Working::F32);
        let (q_arg, k_arg, v_arg) =
            (q.arg(device, wide, of), k.arg(device, narrow, of), v.arg(device, narrow, of));

        let args = [dout, out, Arg::U32(rows as u32), Arg::U32(head_dim as u32), delta];
        device.launch("attention_delta", (rows.div_ceil(WARPS), 1), 0, &args);

        let mut args = vec![dout, q_arg, k_arg, v_arg, lse, delta, tiles];
        args.extend(numbers(shape));
        args.push(dq);
        let shared_query = shared(head_dim, 2, 2, 1);
        device.launch(&format!("attention_backward_query_{size}"), (count, heads), shared_query, &args);

        let mut args = vec![dout, q_arg, lse, delta, tiles];
        args.extend(numbers(shape));
        args.extend([k_arg, v_arg]);
        let shared_key = shared(head_dim, 2, 2, 2);
        device.launch(&format!("attention_backward_key_{size}"), (count, kv_heads), shared_key, &args);
        device.copy(&self.dq, &mut q.memory, wide * of.bytes());
    }
}

fn too_wide(device: &Device, head_dim: usize) {
    device
        .fail(format!("head_dim {head_dim} is not supported on the card, at most 256 is; use --device cpu"));
}
