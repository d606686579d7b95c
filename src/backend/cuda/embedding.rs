//! Token embedding: `kernels/embedding.cu`.

use super::ComputeDtype;
use super::buffer::{Buffer, Weight};
use super::device::{Arg, Device};
use super::staged::Staged;

/// What the kernels read besides.
#[derive(Debug, Default)]
pub(super) struct Embedding {
    ids: Staged<u32>,
    tokens: Staged<u32>,
    starts: Staged<u32>,
    distinct: Staged<u32>,
    /// Times that tokens were sorted.
    sorted: u64,
}

impl Embedding {
    /// See [`crate::backend::Backend::embedding_forward`].
    pub(super) fn forward(
        &self,
        device: &Device,
        of: ComputeDtype,
        table: &Weight,
        ids: &[u32],
        out: &Buffer,
    ) {
        assert!(ids.iter().all(|id| (*id as usize) < table.rows), "token ids are below the vocabulary size");
        let out = out.arg(device, ids.len() * table.cols, of);
        let args = [table.arg(device, of), self.place(device, ids), Arg::U32(table.cols as u32), out];
        device.launch("embedding_forward", (ids.len(), 1), 0, &args);
    }

    /// See [`crate::backend::Backend::embedding_backward`].
    pub(super) fn backward(
        &mut self,
        device: &Device,
        dout: (&Buffer, ComputeDtype),
        ids: &[u32],
        grad: &Buffer,
        cols: usize,
    ) {
        assert!(ids.iter().all(|id| (*id as usize + 1) * cols <= grad.len), "token ids are in the gradient");
        self.sorted += 1;
        let [tokens, starts, distinct] = self.place_sorted(device, ids);
        let args = [
            dout.0.arg(device, ids.len() * cols, dout.1),
            tokens,
            starts,
            distinct,
            Arg::U32(cols as u32),
            grad.arg(device, grad.len, ComputeDtype::F32),
        ];
        device.launch("embedding_backward", (ids.len(), cols.div_ceil(256)), 0, &args);
    }

    /// Times that [`Embedding::backward`] was called.
    pub(super) fn sorted(&self) -> u64 {
        self.sorted
    }

    /// Brings the ids to the GPU.
    pub(super) fn place(&self, device: &Device, ids: &[u32]) -> Arg {
        self.ids.put_batch(device, ids)
    }

    /// Brings to the GPU: the tokens in the order of their ids, where each id begins, and the ids. There are as
    /// many as tokens, empty ones last, so that the work does not depend on the ids.
    pub(super) fn place_sorted(&self, device: &Device, ids: &[u32]) -> [Arg; 3] {
        let mut tokens: Vec<u32> = (0..ids.len() as u32).collect();
        // Stable: the tokens of one id stay in their order.
        tokens.sort_by_key(|t| ids[*t as usize]);
        let id_of = |t: &u32| ids[*t as usize];
        let groups: Vec<&[u32]> = tokens.chunk_by(|a, b| id_of(a) == id_of(b)).collect();
        let mut distinct: Vec<u32> = groups.iter().map(|group| id_of(&group[0])).collect();
        let mut starts = vec![0u32];
        starts.extend(groups.iter().scan(0, |end, group| {
            *end += group.len() as u32;
            Some(*end)
        }));
        distinct.resize(ids.len(), 0);
        starts.resize(ids.len() + 1, ids.len() as u32);
        [
            self.tokens.put_batch(device, &tokens),
            self.starts.put_batch(device, &starts),
            self.distinct.put_batch(device, &distinct),
        ]
    }
}
