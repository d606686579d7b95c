//! Token embedding: `kernels/embedding.cu`.

use super::argument::Arg;
use super::buffer::{Buffer, Weight};
use super::cached_upload::CachedUpload;
use super::context::Context;
use super::device::Device;

/// Tables that the kernels read.
#[derive(Debug, Default)]
pub(super) struct Embedding {
    ids: CachedUpload<u32>,
    groups: TokenGroups,
    /// The id whose row gets no gradient.
    pub(super) padding_idx: Option<u32>,
    /// Number of calls of [`Embedding::backward`].
    backward_calls: u64,
}

/// The tokens of a pass grouped by id. Each table is as long as there can be groups, one per token, so that the work
/// does not depend on the ids; unused groups are empty and last.
#[derive(Debug, Default)]
struct TokenGroups {
    /// Tokens, sorted by id.
    tokens: CachedUpload<u32>,
    /// Group `i` is `tokens[starts[i]..starts[i + 1]]`.
    starts: CachedUpload<u32>,
    /// The id of each group.
    ids: CachedUpload<u32>,
}

impl TokenGroups {
    /// Uploads tokens, starts and ids. The tokens of id `padding_idx` are in no group.
    fn put(&self, device: &Device, ids: &[u32], padding_idx: Option<u32>) -> [Arg; 3] {
        let mut tokens: Vec<u32> =
            (0..ids.len() as u32).filter(|t| Some(ids[*t as usize]) != padding_idx).collect();
        let grouped = tokens.len() as u32;
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
        starts.resize(ids.len() + 1, grouped);
        tokens.resize(ids.len(), 0);
        [
            self.tokens.put_for_pass(device, &tokens),
            self.starts.put_for_pass(device, &starts),
            self.ids.put_for_pass(device, &distinct),
        ]
    }
}

impl Embedding {
    /// See [`crate::backend::Backend::embedding_forward`].
    pub(super) fn forward(&self, context: &Context, table: &Weight, ids: &[u32], out: &Buffer) {
        assert!(ids.iter().all(|id| (*id as usize) < table.rows), "token ids are below the vocabulary size");
        let args = [
            context.weight(table),
            self.put_ids(&context.device, ids),
            Arg::U32(table.cols as u32),
            context.activations(out, ids.len() * table.cols),
        ];
        context.device.launch("embedding_forward", (ids.len(), 1), 0, &args);
    }

    /// See [`crate::backend::Backend::embedding_backward`].
    pub(super) fn backward(
        &mut self,
        context: &Context,
        dout: &Buffer,
        ids: &[u32],
        grad: &Buffer,
        cols: usize,
    ) {
        assert!(ids.iter().all(|id| (*id as usize + 1) * cols <= grad.len), "token ids are in the gradient");
        self.backward_calls += 1;
        let [tokens, starts, group_ids] = self.groups.put(&context.device, ids, self.padding_idx);
        let args = [
            context.activations(dout, ids.len() * cols),
            tokens,
            starts,
            group_ids,
            Arg::U32(cols as u32),
            context.floats(grad, grad.len),
        ];
        context.device.launch("embedding_backward", (ids.len(), cols.div_ceil(256)), 0, &args);
    }

    /// Number of calls of [`Embedding::backward`].
    pub(super) fn backward_calls(&self) -> u64 {
        self.backward_calls
    }

    /// Uploads the ids.
    pub(super) fn put_ids(&self, device: &Device, ids: &[u32]) -> Arg {
        self.ids.put_for_pass(device, ids)
    }

    /// Uploads the tables of [`Embedding::backward`].
    pub(super) fn put_groups(&self, device: &Device, ids: &[u32]) {
        self.groups.put(device, ids, self.padding_idx);
    }
}
