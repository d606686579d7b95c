// cross_entropy: loss and gradient of the logits of target rows; gathers and scatters those rows
// loss = log sum exp(logits) - (1 - e) logits[id] - e mean(logits);  dlogits = factor (softmax(logits) - (1 - e) onehot(id) - e / V); e: label smoothing; with a cap c the logits are c tanh(z / c) of what is read, and the gradient is that of z
// logits [n, V] float, dlogits [n, V] work (may be the logits where work is float), losses [n] float, factors [n] float (null: no gradient)
// source: online softmax, Milakov and Gimelshein 2018, arXiv:1805.02867; label smoothing, Szegedy et al. 2015, arXiv:1512.00567
// CPU twin: src/backend/cpu/cross_entropy.rs
// launch: one block per row

__device__ __forceinline__ float capped(float z, float cap) { return cap == 0.0f ? z : cap * tanhf(z / cap); }

KERNEL(512) cross_entropy(const float* logits, const u32* __restrict__ ids, u32 vocab, float label_smoothing, float cap,
                          const float* __restrict__ factors, work* dlogits, float* __restrict__ losses) {
    const float* row = logits + (u64)blockIdx.x * vocab;
    u32 id = ids[blockIdx.x];
    float target = capped(row[id], cap), most = NEGATIVE_INFINITY, sum = 0, all = 0;
    for (u32 i = threadIdx.x; i < vocab; i += blockDim.x) {
        float x = capped(row[i], cap);
        if (x > most) {
            sum *= expf(most - x);
            most = x;
        }
        sum += expf(x - most);
        all += x;
    }
    float largest = block_max(most);
    sum = block_sum(sum * expf(most - largest));
    float mean = block_sum(all) / vocab, of_target = 1 - label_smoothing;
    if (threadIdx.x == 0) losses[blockIdx.x] = logf(sum) + largest - of_target * target - label_smoothing * mean;
    if (!factors) return;
    float factor = factors[blockIdx.x], of_exp = factor / sum, of_each = factor * label_smoothing / vocab;
    work* out = dlogits + (u64)blockIdx.x * vocab;
    for (u32 i = threadIdx.x; i < vocab; i += blockDim.x) {
        float x = capped(row[i], cap), slope = cap == 0.0f ? 1.0f : 1.0f - x * x / (cap * cap);
        float p = expf(x - largest) * of_exp - of_each;
        put(&out[i], (i == id ? p - of_target * factor : p) * slope);
    }
}

// out[i] = from[rows[i]]
KERNEL(256) gather_rows(const work* __restrict__ from, const u32* __restrict__ rows, u32 cols, work* __restrict__ out) {
    const work* row = from + (u64)rows[blockIdx.x] * cols;
    for (u32 c = threadIdx.x; c < cols; c += blockDim.x) out[(u64)blockIdx.x * cols + c] = row[c];
}

// out[rows[i]] = from[i]; no row twice
KERNEL(256) scatter_rows(const work* __restrict__ from, const u32* __restrict__ rows, u32 cols, work* __restrict__ out) {
    work* row = out + (u64)rows[blockIdx.x] * cols;
    for (u32 c = threadIdx.x; c < cols; c += blockDim.x) row[c] = from[(u64)blockIdx.x * cols + c];
}
