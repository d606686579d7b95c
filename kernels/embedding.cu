// embedding: the row of the table for every token, and the gradient of the table
// out[t] = table[ids[t]];  grad[ids[t]] += dout[t], tokens in order
// table [V, D] work, ids [T] u32, out and dout [T, D] work, grad [V, D] float
// source: the lookup of transformers; a sum per token id, sorted on the host, needs no atomics
// CPU twin: src/backend/cpu/embedding.rs
// launch: forward one block per token; backward (tokens, columns / 256), for as many ids as there are

KERNEL(256) embedding_forward(const work* __restrict__ table, const u32* __restrict__ ids, u32 cols,
                              work* __restrict__ out) {
    const work* from = table + (u64)ids[blockIdx.x] * cols;
    work* to = out + (u64)blockIdx.x * cols;
    if (cols % Pack<work>::N == 0) {
        for (u32 i = threadIdx.x; i < cols / Pack<work>::N; i += blockDim.x)
            ((Pack<work>*)to)[i] = ((const Pack<work>*)from)[i];
    } else {
        for (u32 i = threadIdx.x; i < cols; i += blockDim.x) to[i] = from[i];
    }
}

// Tokens tokens[starts[i]..starts[i + 1]] have id ids[i]; an empty group does nothing.
KERNEL(256) embedding_backward(const work* __restrict__ dout, const u32* __restrict__ tokens,
                               const u32* __restrict__ starts, const u32* __restrict__ ids, u32 cols,
                               float* __restrict__ grad) {
    u32 c = blockIdx.y * blockDim.x + threadIdx.x;
    if (c >= cols || starts[blockIdx.x] == starts[blockIdx.x + 1]) return;
    float* to = grad + (u64)ids[blockIdx.x] * cols + c;
    float sum = *to;
    for (u32 i = starts[blockIdx.x]; i < starts[blockIdx.x + 1]; i++) sum += to_float(dout[(u64)tokens[i] * cols + c]);
    *to = sum;
}
