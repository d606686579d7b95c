// rmsnorm: root mean square norm, forward and backward
// out = x * rstd * s, s = w + offset, rstd = 1 / sqrt(mean(x^2) + eps);  dx += rstd (s dout - x rstd^2 mean(s dout x))
// x, out, dout, dx [rows, cols] work, w [cols] work, rstd [rows] float, dw [cols] float
// source: Zhang and Sennrich 2019, arXiv:1910.07467
// CPU twin: src/backend/cpu/rmsnorm.rs
// launch: one block per row; weight gradient (columns / 256, pieces of rows), then sum_partials

KERNEL(256) rmsnorm_forward(const work* __restrict__ x, const work* __restrict__ w, u32 cols, float eps, float offset,
                            work* __restrict__ out, float* __restrict__ rstd) {
    typedef Pack<work> P;
    u64 at = (u64)blockIdx.x * cols;
    bool whole = cols % P::N == 0;
    float squares = 0;
    if (whole) {
        for (u32 i = threadIdx.x; i < cols / P::N; i += blockDim.x) {
            P a = ((const P*)(x + at))[i];
#pragma unroll
            for (int l = 0; l < P::N; l++) squares += to_float(a.v[l]) * to_float(a.v[l]);
        }
    } else {
        for (u32 i = threadIdx.x; i < cols; i += blockDim.x) squares += to_float(x[at + i]) * to_float(x[at + i]);
    }
    float r = 1.0f / sqrtf(block_sum(squares) / cols + eps);
    if (threadIdx.x == 0) rstd[blockIdx.x] = r;
    if (whole) {
        for (u32 i = threadIdx.x; i < cols / P::N; i += blockDim.x) {
            P a = ((const P*)(x + at))[i], b = ((const P*)w)[i];
#pragma unroll
            for (int l = 0; l < P::N; l++) put(&a.v[l], to_float(a.v[l]) * r * (to_float(b.v[l]) + offset));
            ((P*)(out + at))[i] = a;
        }
    } else {
        for (u32 i = threadIdx.x; i < cols; i += blockDim.x) put(&out[at + i], to_float(x[at + i]) * r * (to_float(w[i]) + offset));
    }
}

KERNEL(256) rmsnorm_backward_input(const work* __restrict__ dout, const work* __restrict__ x,
                                   const work* __restrict__ w, const float* __restrict__ rstd, u32 cols,
                                   float offset, work* __restrict__ dx) {
    typedef Pack<work> P;
    u64 at = (u64)blockIdx.x * cols;
    bool whole = cols % P::N == 0;
    float r = rstd[blockIdx.x], dot = 0;
    if (whole) {
        for (u32 i = threadIdx.x; i < cols / P::N; i += blockDim.x) {
            P a = ((const P*)(x + at))[i], b = ((const P*)w)[i], d = ((const P*)(dout + at))[i];
#pragma unroll
            for (int l = 0; l < P::N; l++) dot += to_float(d.v[l]) * (to_float(b.v[l]) + offset) * to_float(a.v[l]);
        }
    } else {
        for (u32 i = threadIdx.x; i < cols; i += blockDim.x)
            dot += to_float(dout[at + i]) * (to_float(w[i]) + offset) * to_float(x[at + i]);
    }
    float mean = block_sum(dot) * r * r / cols;
    if (whole) {
        for (u32 i = threadIdx.x; i < cols / P::N; i += blockDim.x) {
            P a = ((const P*)(x + at))[i], b = ((const P*)w)[i], d = ((const P*)(dout + at))[i];
            P sum = ((P*)(dx + at))[i];
#pragma unroll
            for (int l = 0; l < P::N; l++) {
                float s = to_float(d.v[l]) * (to_float(b.v[l]) + offset);
                put(&sum.v[l], to_float(sum.v[l]) + r * (s - to_float(a.v[l]) * mean));
            }
            ((P*)(dx + at))[i] = sum;
        }
    } else {
        for (u32 i = threadIdx.x; i < cols; i += blockDim.x) {
            float s = to_float(dout[at + i]) * (to_float(w[i]) + offset);
            put(&dx[at + i], to_float(dx[at + i]) + r * (s - to_float(x[at + i]) * mean));
        }
    }
}

// partials[p] = sum over rows p * each .. (p + 1) * each of dout * x * rstd
KERNEL(256) rmsnorm_backward_weight(const work* __restrict__ dout, const work* __restrict__ x,
                                    const float* __restrict__ rstd, u32 rows, u32 cols, u32 each,
                                    float* __restrict__ partials) {
    u32 c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= cols) return;
    u32 first = blockIdx.y * each, last = first + each < rows ? first + each : rows;
    float sum = 0;
    for (u32 t = first; t < last; t++) {
        u64 i = (u64)t * cols + c;
        sum += to_float(dout[i]) * to_float(x[i]) * rstd[t];
    }
    partials[(u64)blockIdx.y * cols + c] = sum;
}
