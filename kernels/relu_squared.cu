// relu_squared: the squared ReLU, forward and backward
// out = max(x, 0)^2;  dx = 2 max(x, 0) dout, in place of x
// x, out, dout [n] work
// source: So et al. 2021, arXiv:2109.08668
// CPU twin: src/backend/cpu/relu_squared.rs
// launch: 16 bytes per thread

KERNEL(256) relu_squared_forward(const work* __restrict__ x, u64 n, work* __restrict__ out) {
    typedef Pack<work> P;
    u64 at = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * P::N;
    if (at + P::N <= n) {
        P a = *(const P*)(x + at);
#pragma unroll
        for (int l = 0; l < P::N; l++) {
            float positive = fmaxf(to_float(a.v[l]), 0.0f);
            put(&a.v[l], positive * positive);
        }
        *(P*)(out + at) = a;
        return;
    }
    for (u64 i = at; i < n; i++) {
        float positive = fmaxf(to_float(x[i]), 0.0f);
        put(&out[i], positive * positive);
    }
}

KERNEL(256) relu_squared_backward(const work* __restrict__ dout, u64 n, work* __restrict__ x) {
    typedef Pack<work> P;
    u64 at = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * P::N;
    if (at + P::N <= n) {
        P d = *(const P*)(dout + at), a = *(P*)(x + at);
#pragma unroll
        for (int l = 0; l < P::N; l++) put(&a.v[l], 2.0f * fmaxf(to_float(a.v[l]), 0.0f) * to_float(d.v[l]));
        *(P*)(x + at) = a;
        return;
    }
    for (u64 i = at; i < n; i++) put(&x[i], 2.0f * fmaxf(to_float(x[i]), 0.0f) * to_float(dout[i]));
}
