// rope: rotary position embedding, in place, forward and backward
// (a, b) -> (a cos - b sin, b cos + a sin) for the pairs (i, i + E/2) of every head; sign -1 rotates back
// x [T, heads, E] work, cos and sin [positions, E/2] float, positions [T] u32
// source: Su et al. 2021, arXiv:2104.09864, in the layout of transformers (rotate_half)
// CPU twin: src/backend/cpu/rope.rs
// launch: one block per token

KERNEL(256) rope(work* __restrict__ x, const float* __restrict__ cos, const float* __restrict__ sin,
                 const u32* __restrict__ positions, u32 heads, u32 half, float sign) {
    u64 angles = (u64)positions[blockIdx.x] * half;
    work* row = x + (u64)blockIdx.x * heads * 2 * half;
    for (u32 i = threadIdx.x; i < heads * half; i += blockDim.x) {
        u32 pair = i % half;
        work* first = row + (i / half) * 2 * half + pair;
        float a = to_float(first[0]), b = to_float(first[half]);
        float c = cos[angles + pair], s = sign * sin[angles + pair];
        put(&first[0], a * c - b * s);
        put(&first[half], b * c + a * s);
    }
}
