//! Rotary position embedding: `kernels/rope.cu`.

use std::sync::Arc;

use super::ComputeDtype;
use super::buffer::Buffer;
use super::device::{Arg, Device, Memory};
use super::sequences::OnGpu;
use crate::backend::{RopeTable, Rotation, Sequences};

/// The table that was used last, on the GPU.
#[derive(Debug, Default)]
pub(super) struct Rope {
    table: Option<(RopeTable, Memory, Memory)>,
}

impl Rope {
    /// See [`crate::backend::Backend::rope`].
    ///
    /// # Panics
    /// When a sequence is longer than the table.
    pub(super) fn rotate(
        &mut self,
        (device, of, on_gpu): (&Device, ComputeDtype, &mut OnGpu),
        x: &Buffer,
        heads: usize,
        sequences: Sequences<'_>,
        table: &RopeTable,
        rotation: Rotation,
    ) {
        let (half, tokens) = (table.half, sequences.tokens());
        let longest = sequences.ranges().map(|range| range.len()).max().unwrap_or(0);
        assert!(longest * half <= table.cos.len(), "the table holds the longest sequence");
        let held = self.table.as_ref().is_some_and(|(held, ..)| Arc::ptr_eq(&held.cos, &table.cos));
        if !held {
            let place = |values: &[f32]| {
                let memory = device.alloc(std::mem::size_of_val(values));
                device.upload(values, &memory);
                memory
            };
            self.table = Some((table.clone(), place(&table.cos), place(&table.sin)));
        }
        let Some((_, cos, sin)) = &self.table else { unreachable!("the table was just placed") };
        let angles = |memory: &Memory| Arg::Pointer(device.pointer(memory, memory.bytes()).unwrap_or(0));
        let args = [
            x.arg(device, tokens * heads * 2 * half, of),
            angles(cos),
            angles(sin),
            on_gpu.positions(device, sequences),
            Arg::U32(heads as u32),
            Arg::U32(half as u32),
            Arg::F32(if rotation == Rotation::Forward { 1.0 } else { -1.0 }),
        ];
        device.launch("rope", (tokens, 1), 0, &args);
    }
}
