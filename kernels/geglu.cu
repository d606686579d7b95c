// geglu: the gated product of the MLP with the tanh form of GELU, forward and backward
// out = g s u, s = 1 / (1 + exp(-2 r (g + 0.044715 g^3))), r = sqrt(2 / pi);  gate, up, out, dout [n] work
// du = dout g s, dg = dout u s (1 + 2 g (1 - s) r (1 + 3 * 0.044715 g^2)), in place of g and u
// source: Hendrycks and Gimpel 2016, arXiv:1606.08415; Shazeer 2020, arXiv:2002.05202
// CPU twin: src/backend/cpu/geglu.rs
// launch: 16 bytes per thread

#define GELU_ROOT 0.7978845608f
#define GELU_CUBE 0.044715f

__device__ __forceinline__ float gelu_share(float g) {
    return 1.0f / (1.0f + expf(-2.0f * GELU_ROOT * (g + GELU_CUBE * g * g * g)));
}

KERNEL(256) geglu_forward(const work* __restrict__ gate, const work* __restrict__ up, u64 n, work* __restrict__ out) {
    typedef Pack<work> P;
    u64 at = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * P::N;
    if (at + P::N <= n) {
        P g = *(const P*)(gate + at), u = *(const P*)(up + at);
#pragma unroll
        for (int l = 0; l < P::N; l++) {
            float x = to_float(g.v[l]);
            put(&g.v[l], x * gelu_share(x) * to_float(u.v[l]));
        }
        *(P*)(out + at) = g;
        return;
    }
    for (u64 i = at; i < n; i++) {
        float x = to_float(gate[i]);
        put(&out[i], x * gelu_share(x) * to_float(up[i]));
    }
}

__device__ __forceinline__ void geglu_gradient(float dout, work* gate, work* up) {
    float g = to_float(*gate), u = to_float(*up), s = gelu_share(g);
    float slope = GELU_ROOT * (1.0f + 3.0f * GELU_CUBE * g * g);
    put(up, dout * g * s);
    put(gate, dout * u * s * (1.0f + 2.0f * g * (1.0f - s) * slope));
}

KERNEL(256) geglu_backward(const work* __restrict__ dout, u64 n, work* __restrict__ gate, work* __restrict__ up) {
    typedef Pack<work> P;
    u64 at = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * P::N;
    if (at + P::N <= n) {
        P d = *(const P*)(dout + at), g = *(P*)(gate + at), u = *(P*)(up + at);
#pragma unroll
        for (int l = 0; l < P::N; l++) geglu_gradient(to_float(d.v[l]), &g.v[l], &u.v[l]);
        *(P*)(gate + at) = g;
        *(P*)(up + at) = u;
        return;
    }
    for (u64 i = at; i < n; i++) geglu_gradient(to_float(dout[i]), &gate[i], &up[i]);
}
