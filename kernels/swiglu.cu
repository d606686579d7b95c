// swiglu: the gated product of the MLP, forward and backward
// out = g s u, s = 1 / (1 + exp(-g));  du = dout g s, dg = dout u s (1 + g (1 - s)), in place of g and u
// gate, up, out, dout [n] work
// source: Shazeer 2020, arXiv:2002.05202
// CPU twin: src/backend/cpu/swiglu.rs
// launch: 16 bytes per thread

KERNEL(256) swiglu_forward(const work* __restrict__ gate, const work* __restrict__ up, u64 n, work* __restrict__ out) {
    typedef Pack<work> P;
    u64 at = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * P::N;
    if (at + P::N <= n) {
        P g = *(const P*)(gate + at), u = *(const P*)(up + at);
#pragma unroll
        for (int l = 0; l < P::N; l++) {
            float x = to_float(g.v[l]);
            put(&g.v[l], x / (1.0f + expf(-x)) * to_float(u.v[l]));
        }
        *(P*)(out + at) = g;
        return;
    }
    for (u64 i = at; i < n; i++) {
        float x = to_float(gate[i]);
        put(&out[i], x / (1.0f + expf(-x)) * to_float(up[i]));
    }
}

__device__ __forceinline__ void swiglu_gradient(float dout, work* gate, work* up) {
    float g = to_float(*gate), u = to_float(*up), s = 1.0f / (1.0f + expf(-g));
    put(up, dout * g * s);
    put(gate, dout * u * s * (1.0f + g * (1.0f - s)));
}

KERNEL(256) swiglu_backward(const work* __restrict__ dout, u64 n, work* __restrict__ gate, work* __restrict__ up) {
    typedef Pack<work> P;
    u64 at = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * P::N;
    if (at + P::N <= n) {
        P d = *(const P*)(dout + at), g = *(P*)(gate + at), u = *(P*)(up + at);
#pragma unroll
        for (int l = 0; l < P::N; l++) swiglu_gradient(to_float(d.v[l]), &g.v[l], &u.v[l]);
        *(P*)(gate + at) = g;
        *(P*)(up + at) = u;
        return;
    }
    for (u64 i = at; i < n; i++) swiglu_gradient(to_float(dout[i]), &gate[i], &up[i]);
}
