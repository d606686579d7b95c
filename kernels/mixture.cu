// mixture: what a mixture of experts computes for each row beside its products
// out[t] += sum over the routes r of t, ascending, of w[r] y[r], + sigmoid(s[t]) z[t];  dw[r] = dact[r] . act[r], then both rows times w[r];  ds = dw s (1 - s)
// y [R, D], z and out [T, D], act and dact [R, F] work; w, dw [R], s [T] float; of_tokens [T, k] u32
// source: Jiang et al. 2024, arXiv:2401.04088; the shared expert of Qwen2-MoE, arXiv:2407.10671
// CPU twin: src/backend/cpu/mixture.rs
// launch: combine (tokens, columns / 256); weigh one warp per row; shares and slopes one thread per row

// weights null: 1. shared null: no shared expert; shares are then not read.
KERNEL(256) mixture_combine(const work* __restrict__ routed, const u32* __restrict__ of_tokens,
                            const float* __restrict__ weights, u32 each, const work* __restrict__ shared,
                            const float* __restrict__ shares, u32 cols, work* __restrict__ out) {
    u32 c = blockIdx.y * blockDim.x + threadIdx.x, token = blockIdx.x;
    if (c >= cols) return;
    work* to = out + (u64)token * cols + c;
    float sum = to_float(*to);
    for (u32 j = 0; j < each; j++) {
        u32 route = of_tokens[(u64)token * each + j];
        float y = to_float(routed[(u64)route * cols + c]);
        sum += weights ? weights[route] * y : y;
    }
    if (shared) sum += shares[token] * to_float(shared[(u64)token * cols + c]);
    put(to, sum);
}

// dweights = dact . act of each row; then both rows are multiplied by its weight.
KERNEL(256) mixture_weigh(const float* __restrict__ weights, u32 rows, u32 cols, work* __restrict__ dact,
                          work* __restrict__ act, float* __restrict__ dweights) {
    u32 row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x & 31;
    if (row >= rows) return;
    work *d = dact + (u64)row * cols, *a = act + (u64)row * cols;
    float sum = 0, weight = weights[row];
    for (u32 c = lane; c < cols; c += 32) {
        float x = to_float(d[c]), y = to_float(a[c]);
        sum += x * y;
        put(&d[c], x * weight);
        put(&a[c], y * weight);
    }
    sum = warp_sum(sum);
    if (lane == 0) dweights[row] = sum;
}

// shares = 1 / (1 + exp(-shares))
KERNEL(256) mixture_shares(u32 rows, float* __restrict__ shares) {
    u32 row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row < rows) shares[row] = 1.0f / (1.0f + expf(-shares[row]));
}

// Through the sigmoid.
KERNEL(256) mixture_slopes(const float* __restrict__ dshares, const float* __restrict__ shares, u32 rows,
                           work* __restrict__ slopes) {
    u32 row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row < rows) put(&slopes[row], dshares[row] * shares[row] * (1.0f - shares[row]));
}
