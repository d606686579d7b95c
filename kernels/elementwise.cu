// elementwise: multiples, sums and columns of whole buffers
// x *= factor;  out += x;  columns of one matrix into another
// x, out [n] work, matrices [rows, columns] work
// source: torch.Tensor.mul_, torch.Tensor.add_, torch.Tensor.copy_
// CPU twin: src/backend/cpu/elementwise.rs
// launch: 16 bytes per thread; columns one block per row

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

// to[row][to_first + c] = from[row][from_first + c], c below cols; rows of from_of and to_of elements
KERNEL(256) copy_columns(const work* __restrict__ from, u32 from_first, u32 from_of, u32 cols, u32 to_first, u32 to_of,
                         work* __restrict__ to) {
    const work* source = from + (u64)blockIdx.x * from_of + from_first;
    work* target = to + (u64)blockIdx.x * to_of + to_first;
    for (u32 c = threadIdx.x; c < cols; c += blockDim.x) target[c] = source[c];
}
