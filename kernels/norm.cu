// norm: RMSNorm and LayerNorm of rows, forward and backward
// out = (x - m) * rstd * s, s = w + offset (1 without w), rstd = 1 / sqrt(mean((x - m)^2) + eps), m = mean(x) for LayerNorm, 0 for RMSNorm
// dx += rstd (s dout - mean(s dout) - (x - m) rstd^2 mean(s dout (x - m))), for RMSNorm without mean(s dout); x, out, dout, dx [rows, cols] work, w [cols] work (null: none), rstd and means [rows] float (null: RMSNorm), dw [cols] float
// source: Zhang and Sennrich 2019, arXiv:1910.07467; Ba et al. 2016, arXiv:1607.06450
// CPU twin: src/backend/cpu/norm.rs
// launch: one block per row; weight gradient (columns / 256, pieces of rows), then sum_partials

// The scales of `Pack<work>::N` columns.
__device__ __forceinline__ void scales(const work* w, u32 i, float offset, float s[Pack<work>::N]) {
    typedef Pack<work> P;
    if (!w) {
#pragma unroll
        for (int l = 0; l < P::N; l++) s[l] = 1.0f;
        return;
    }
    P b = ((const P*)w)[i];
#pragma unroll
    for (int l = 0; l < P::N; l++) s[l] = to_float(b.v[l]) + offset;
}

__device__ __forceinline__ float scale_at(const work* w, u32 i, float offset) { return w ? to_float(w[i]) + offset : 1.0f; }

KERNEL(256) norm_forward(const work* __restrict__ x, const work* __restrict__ w, u32 cols, float eps, float offset,
                         work* __restrict__ out, float* __restrict__ rstd, float* __restrict__ means) {
    typedef Pack<work> P;
    u64 at = (u64)blockIdx.x * cols;
    bool whole = cols % P::N == 0;
    float m = 0;
    if (means) {
        float total = 0;
        for (u32 i = threadIdx.x; i < cols; i += blockDim.x) total += to_float(x[at + i]);
        m = block_sum(total) / cols;
        if (threadIdx.x == 0) means[blockIdx.x] = m;
    }
    float squares = 0;
    if (whole) {
        for (u32 i = threadIdx.x; i < cols / P::N; i += blockDim.x) {
            P a = ((const P*)(x + at))[i];
#pragma unroll
            for (int l = 0; l < P::N; l++) {
                float c = to_float(a.v[l]) - m;
                squares += c * c;
            }
        }
    } else {
        for (u32 i = threadIdx.x; i < cols; i += blockDim.x) {
            float c = to_float(x[at + i]) - m;
            squares += c * c;
        }
    }
    float r = 1.0f / sqrtf(block_sum(squares) / cols + eps);
    if (threadIdx.x == 0) rstd[blockIdx.x] = r;
    if (whole) {
        for (u32 i = threadIdx.x; i < cols / P::N; i += blockDim.x) {
            P a = ((const P*)(x + at))[i];
            float s[P::N];
            scales(w, i, offset, s);
#pragma unroll
            for (int l = 0; l < P::N; l++) put(&a.v[l], (to_float(a.v[l]) - m) * r * s[l]);
            ((P*)(out + at))[i] = a;
        }
    } else {
        for (u32 i = threadIdx.x; i < cols; i += blockDim.x)
            put(&out[at + i], (to_float(x[at + i]) - m) * r * scale_at(w, i, offset));
    }
}

KERNEL(256) norm_backward_input(const work* __restrict__ dout, const work* __restrict__ x, const work* __restrict__ w,
                                const float* __restrict__ rstd, const float* __restrict__ means, u32 cols,
                                float offset, work* __restrict__ dx) {
    typedef Pack<work> P;
    u64 at = (u64)blockIdx.x * cols;
    bool whole = cols % P::N == 0;
    float r = rstd[blockIdx.x], m = means ? means[blockIdx.x] : 0.0f, dot = 0, total = 0;
    if (whole) {
        for (u32 i = threadIdx.x; i < cols / P::N; i += blockDim.x) {
            P a = ((const P*)(x + at))[i], d = ((const P*)(dout + at))[i];
            float s[P::N];
            scales(w, i, offset, s);
#pragma unroll
            for (int l = 0; l < P::N; l++) {
                float scaled = to_float(d.v[l]) * s[l];
                dot += scaled * (to_float(a.v[l]) - m);
                total += scaled;
            }
        }
    } else {
        for (u32 i = threadIdx.x; i < cols; i += blockDim.x) {
            float scaled = to_float(dout[at + i]) * scale_at(w, i, offset);
            dot += scaled * (to_float(x[at + i]) - m);
            total += scaled;
        }
    }
    float along = block_sum(dot) * r * r / cols, shift = means ? block_sum(total) / cols : 0.0f;
    if (whole) {
        for (u32 i = threadIdx.x; i < cols / P::N; i += blockDim.x) {
            P a = ((const P*)(x + at))[i], d = ((const P*)(dout + at))[i];
            P sum = ((P*)(dx + at))[i];
            float s[P::N];
            scales(w, i, offset, s);
#pragma unroll
            for (int l = 0; l < P::N; l++) {
                float by_x = (to_float(a.v[l]) - m) * along;
                put(&sum.v[l], to_float(sum.v[l]) + r * (to_float(d.v[l]) * s[l] - shift - by_x));
            }
            ((P*)(dx + at))[i] = sum;
        }
    } else {
        for (u32 i = threadIdx.x; i < cols; i += blockDim.x) {
            float scaled = to_float(dout[at + i]) * scale_at(w, i, offset);
            put(&dx[at + i], to_float(dx[at + i]) + r * (scaled - shift - (to_float(x[at + i]) - m) * along));
        }
    }
}

// partials[p] = sum over rows p * each .. (p + 1) * each of dout * (x - m) * rstd
KERNEL(256) norm_backward_weight(const work* __restrict__ dout, const work* __restrict__ x,
                                 const float* __restrict__ rstd, const float* __restrict__ means, u32 rows, u32 cols,
                                 u32 each, float* __restrict__ partials) {
    u32 c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= cols) return;
    u32 first = blockIdx.y * each, last = first + each < rows ? first + each : rows;
    float sum = 0;
    for (u32 t = first; t < last; t++) {
        u64 i = (u64)t * cols + c;
        sum += to_float(dout[i]) * (to_float(x[i]) - (means ? means[t] : 0.0f)) * rstd[t];
    }
    partials[(u64)blockIdx.y * cols + c] = sum;
}
