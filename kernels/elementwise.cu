// elementwise: multiples and sums of whole buffers
// x *= factor;  out += x
// x, out [n] work
// source: torch.Tensor.mul_ and torch.Tensor.add_
// CPU twin: src/backend/cpu/elementwise.rs
// launch: 16 bytes per thread

KERNEL(256) scale(work* __restrict__ x, u64 n, float factor) {
    typedef Pack<work> P;
    u64 at = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * P::N;
    if (at + P::N <= n) {
        P a = *(P*)(x + at);
#pragma unroll
        for (int l = 0; l < P::N; l++) put(&a.v[l], to_float(a.v[l]) * factor);
        *(P*)(x + at) = a;
        return;
    }
    for (u64 i = at; i < n; i++) put(&x[i], to_float(x[i]) * factor);
}

KERNEL(256) add(const work* __restrict__ x, u64 n, work* __restrict__ out) {
    typedef Pack<work> P;
    u64 at = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * P::N;
    if (at + P::N <= n) {
        P a = *(const P*)(x + at), b = *(P*)(out + at);
#pragma unroll
        for (int l = 0; l < P::N; l++) put(&b.v[l], to_float(b.v[l]) + to_float(a.v[l]));
        *(P*)(out + at) = b;
        return;
    }
    for (u64 i = at; i < n; i++) put(&out[i], to_float(out[i]) + to_float(x[i]));
}
