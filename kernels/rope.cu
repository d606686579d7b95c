// rope: rotary position embedding, in place, forward and backward
// (a, b) -> (a cos - b sin, b cos + a sin) for the pairs (i, i + half) or, interleaved, (2i, 2i + 1); sign -1 rotates back
// x [T, heads, E] work, cos and sin [positions, half] float, positions [T] u32; the first 2 half elements of a head
// source: Su et al. 2021, arXiv:2104.09864, in the layouts of transformers
// CPU twin: src/backend/cpu/rope.rs
// launch: one block per token

KERNEL(256) rope(work* __restrict__ x, const float* __restrict__ cos, const float* __restrict__ sin,
                 const u32* __restrict__ positions, u32 heads, u32 half, u32 head_dim,
                 u32 interleaved, float sign) {
    u64 angles = (u64)positions[blockIdx.x] * half;
    work* row = x + (u64)blockIdx.x * heads * head_dim;
    for (u32 i = threadIdx.x; i < heads * half; i += blockDim.x) {
        u32 pair = i % half;
        work* first = row + (i / half) * head_dim + (interleaved ? 2 * pair : pair);
        work* second = first + (interleaved ? 1 : half);
        float a = to_float(*first), b = to_float(*second);
        float c = cos[angles + pair], s = sign * sin[angles + pair];
        put(first, a * c - b * s);
        put(second, b * c + a * s);
    }
}
