// adamw8bit: one step of AdamW over all tensors whose moments have 8 bits
// m = map1[c1] max1, v = map2[c2] max2; the step of adamw; max = largest of 256 elements, c = code of the value nearest to m / max
// table of tensors; grad float; state c1, max1, c2, max2: codes of 8 bits, and float for each 256 of them; values as in updates.cuh
// source: Dettmers et al. 2022, arXiv:2110.02861; maps and blocks as bitsandbytes.optim.AdamW8bit
// CPU twin: src/backend/cpu/adamw8bit.rs
// launch: one block of 256 threads per piece of PIECE elements over all tensors

// The number of midpoints below x: the code of the nearest value, of two the smaller.
__device__ __forceinline__ u32 nearest_code(const float* midpoints, float x) {
    u32 code = 0;
#pragma unroll
    for (u32 step = 128; step > 0; step /= 2)
        if (midpoints[code + step - 1] < x) code += step;
    return code;
}

// maps: values of the signed map, its midpoints, values of the unsigned map, its midpoints, 256 each
KERNEL(256) adamw8bit(const Updated* __restrict__ tensors, u32 count, const float* __restrict__ maps, float beta1,
                      float one_minus_beta1, float beta2, float one_minus_beta2, float step_size, float root, float eps,
                      float grad_scale, u32 step) {
    __shared__ float map[4][256];
    for (u32 i = threadIdx.x; i < 4 * 256; i += blockDim.x) map[i / 256][i % 256] = maps[i];
    __syncthreads();
    const Updated* t = tensor_of_block(tensors, count);
    unsigned char *codes1 = (unsigned char*)t->state[0], *codes2 = (unsigned char*)t->state[2];
    float *max1 = (float*)t->state[1], *max2 = (float*)t->state[3];
    u64 first = (blockIdx.x - t->first_piece) * PIECE;
    u64 last = first + PIECE < t->len ? first + PIECE : t->len;
    for (u64 begin = first; begin < last; begin += 256) {
        u64 i = begin + threadIdx.x, block = begin / 256;
        bool in = i < last;
        float m = 0, v = 0, w = 0;
        if (in) {
            float grad = t->grad[i] * grad_scale;
            m = beta1 * (map[0][codes1[i]] * max1[block]) + one_minus_beta1 * grad;
            v = beta2 * (map[2][codes2[i]] * max2[block]) + one_minus_beta2 * grad * grad;
            w = value_of(t, i) * t->decay - step_size * m / (sqrtf(v) * root + eps);
        }
        float most1 = block_max(m < 0 ? -m : m), most2 = block_max(v);
        if (in) {
            codes1[i] = (unsigned char)nearest_code(map[1], m / (most1 > 0 ? most1 : 1));
            codes2[i] = (unsigned char)nearest_code(map[3], v / (most2 > 0 ? most2 : 1));
            if (is_trainable(t->mask, i)) set_value(t, i, w, step);
        }
        // The barrier in block_max stands between the reads of max1 and max2 and these writes.
        if (threadIdx.x == 0) {
            max1[block] = most1;
            max2[block] = most2;
        }
    }
}
