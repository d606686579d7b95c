//! Rotary position embedding: `kernels/rope.cu`.

use std::collections::VecDeque;
use std::sync::Arc;

use super::argument::Arg;
use super::buffer::Buffer;
use super::context::Context;
use super::device::Device;
use super::memory::Memory;
use crate::backend::{RopeTable, Rotation, Sequences};

/// Tables that are kept on the GPU: more than any family has in one pass.
const TABLES: usize = 4;

/// The tables that were uploaded last, on the GPU.
#[derive(Debug, Default)]
pub(super) struct Rope {
    uploaded: VecDeque<UploadedTable>,
}

/// A table with its copy on the GPU.
#[derive(Debug)]
struct UploadedTable {
    host: RopeTable,
    cos: Memory,
    sin: Memory,
}

impl UploadedTable {
    fn new(device: &Device, table: &RopeTable) -> Self {
        let upload = |values: &[f32]| {
            let memory = device.alloc(std::mem::size_of_val(values));
            device.upload(values, &memory);
            memory
        };
        Self { host: table.clone(), cos: upload(&table.cos), sin: upload(&table.sin) }
    }
}

impl Rope {
    /// See [`crate::backend::Backend::rope`].
    ///
    /// # Panics
    /// When a sequence is longer than the table.
    pub(super) fn rotate(
        &mut self,
        context: &mut Context,
        x: &Buffer,
        heads: usize,
        sequences: Sequences<'_>,
        table: &RopeTable,
        rotation: Rotation,
    ) {
        let (half, tokens) = (table.half, sequences.tokens());
        let longest = sequences.ranges().map(|range| range.len()).max().unwrap_or(0);
        assert!(longest * half <= table.cos.len(), "the table holds the longest sequence");
        let found = self.uploaded.iter().position(|uploaded| Arc::ptr_eq(&uploaded.host.cos, &table.cos));
        let at = found.unwrap_or_else(|| {
            if self.uploaded.len() == TABLES {
                self.uploaded.pop_front();
            }
            self.uploaded.push_back(UploadedTable::new(&context.device, table));
            self.uploaded.len() - 1
        });
        let uploaded = &self.uploaded[at];
        let args = [
            context.activations(x, tokens * heads * table.head_dim),
            context.memory(&uploaded.cos, uploaded.cos.bytes()),
            context.memory(&uploaded.sin, uploaded.sin.bytes()),
            context.sequences.positions(&context.device, sequences),
            Arg::U32(heads as u32),
            Arg::U32(half as u32),
            Arg::U32(table.head_dim as u32),
            Arg::U32(u32::from(table.interleaved)),
            Arg::F32(if rotation == Rotation::Forward { 1.0 } else { -1.0 }),
        ];
        context.device.launch("rope", (tokens, 1), 0, &args);
    }
}
