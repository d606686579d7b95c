// bf16_gradient: gradients in bfloat16 between the backward pass and the update
// sum = bf16(sum + grad), or bf16(grad) for the first pass of a step;  grad = sum
// grad [n] float, sum [n] bfloat16
// source: a .grad of PyTorch in bfloat16, to which every backward pass adds
// CPU twin: src/backend/cpu/bf16_gradient.rs
// launch: 8 elements per thread

KERNEL(256) add_to_bf16_gradient(const float* __restrict__ grad, u64 n, u32 accumulate, bf16* __restrict__ sum) {
    u64 at = 8 * ((u64)blockIdx.x * blockDim.x + threadIdx.x);
    if (at + 8 <= n) {
        Pack<float> low = *(const Pack<float>*)(grad + at), high = *(const Pack<float>*)(grad + at + 4);
        Pack<bf16> s;
        if (accumulate) s = *(const Pack<bf16>*)(sum + at);
#pragma unroll
        for (int l = 0; l < 8; l++) {
            float g = l < 4 ? low.v[l % 4] : high.v[l % 4];
            put(&s.v[l], accumulate ? to_float(s.v[l]) + g : g);
        }
        *(Pack<bf16>*)(sum + at) = s;
        return;
    }
    for (u64 i = at; i < n; i++) put(&sum[i], accumulate ? to_float(sum[i]) + grad[i] : grad[i]);
}

KERNEL(256) widen_bf16_gradient(const bf16* __restrict__ sum, u64 n, float* __restrict__ grad) {
    u64 at = 8 * ((u64)blockIdx.x * blockDim.x + threadIdx.x);
    if (at + 8 <= n) {
        Pack<bf16> s = *(const Pack<bf16>*)(sum + at);
        Pack<float> low, high;
#pragma unroll
        for (int l = 0; l < 4; l++) {
            low.v[l] = to_float(s.v[l]);
            high.v[l] = to_float(s.v[l + 4]);
        }
        *(Pack<float>*)(grad + at) = low;
        *(Pack<float>*)(grad + at + 4) = high;
        return;
    }
    for (u64 i = at; i < n; i++) grad[i] = to_float(sum[i]);
}
