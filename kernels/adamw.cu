// adamw: one step over all trainable tensors, and before it the sum of squares of their gradients
// m = b1 m + (1 - b1) g, v = b2 v + (1 - b2) g^2, w = decay w - step m / (sqrt(v) root + eps), g = grad * clip
// tables of tensors; master, grad, m, v float, copy work, mask one bit per element (1 = trainable) or null
// source: Loshchilov and Hutter 2019, arXiv:1711.05101; constants as torch.optim.AdamW
// CPU twin: src/backend/cpu/adamw.rs
// launch: one block per piece of PIECE elements over all tensors; sum_squares one block

const u32 PIECE = 16384;

// The blocks of the tensor start at first_piece.
struct Gradient {
    float* grad;
    const u32* mask;
    u64 len;
    u64 first_piece;
};

struct Trained {
    float* master;
    work* copy;
    const float* grad;
    float* exp_avg;
    float* exp_avg_sq;
    const u32* mask;
    u64 len;
    u64 first_piece;
    float decay;
    u32 padding;
};

// The last tensor whose first piece is not after this block.
template <class Tensor>
__device__ __forceinline__ const Tensor* tensor_of_block(const Tensor* tensors, u32 count) {
    u32 low = 0, high = count;
    while (high - low > 1) {
        u32 middle = (low + high) / 2;
        if (tensors[middle].first_piece <= blockIdx.x) low = middle;
        else high = middle;
    }
    return tensors + low;
}

// Zeroes what the mask freezes; partials[piece] = sum of squares of the rest
KERNEL(256) masked_square_sum(const Gradient* __restrict__ tensors, u32 count, double* __restrict__ partials) {
    const Gradient* t = tensor_of_block(tensors, count);
    u64 first = (blockIdx.x - t->first_piece) * PIECE;
    u64 last = first + PIECE < t->len ? first + PIECE : t->len;
    double sum = 0;
    for (u64 i = first + threadIdx.x; i < last; i += blockDim.x) {
        float g = t->grad[i];
        if (t->mask && !(t->mask[i / 32] >> (i % 32) & 1)) t->grad[i] = g = 0;
        sum += (double)g * g;
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}

// out = sum of the partials
KERNEL(1024) sum_squares(const double* __restrict__ partials, u32 n, double* __restrict__ out) {
    double sum = 0;
    for (u32 i = threadIdx.x; i < n; i += blockDim.x) sum += partials[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) *out = sum;
}

KERNEL(256) adamw(const Trained* __restrict__ tensors, u32 count, float beta1, float one_minus_beta1, float beta2,
                  float one_minus_beta2, float step_size, float root, float eps, float grad_scale) {
    const Trained* t = tensor_of_block(tensors, count);
    u64 first = (blockIdx.x - t->first_piece) * PIECE;
    u64 last = first + PIECE < t->len ? first + PIECE : t->len;
    for (u64 at = first + 4 * threadIdx.x; at < last; at += 4 * blockDim.x) {
        u32 bits = t->mask ? t->mask[at / 32] >> (at % 32) & 15 : 15;
        bool whole = at + 4 <= last;
        Pack<float> w, g, m, v;
        if (whole) {
            w = *(const Pack<float>*)(t->master + at);
            g = *(const Pack<float>*)(t->grad + at);
            m = *(const Pack<float>*)(t->exp_avg + at);
            v = *(const Pack<float>*)(t->exp_avg_sq + at);
        } else {
#pragma unroll
            for (u32 l = 0; l < 4; l++) {
                bool in = at + l < last;
                w.v[l] = in ? t->master[at + l] : 0;
                g.v[l] = in ? t->grad[at + l] : 0;
                m.v[l] = in ? t->exp_avg[at + l] : 0;
                v.v[l] = in ? t->exp_avg_sq[at + l] : 0;
            }
        }
#pragma unroll
        for (u32 l = 0; l < 4; l++) {
            if (!(bits >> l & 1)) continue;
            float grad = g.v[l] * grad_scale;
            m.v[l] = beta1 * m.v[l] + one_minus_beta1 * grad;
            v.v[l] = beta2 * v.v[l] + one_minus_beta2 * grad * grad;
            w.v[l] = w.v[l] * t->decay - step_size * m.v[l] / (sqrtf(v.v[l]) * root + eps);
        }
        if (whole) {
            *(Pack<float>*)(t->master + at) = w;
            *(Pack<float>*)(t->exp_avg + at) = m;
            *(Pack<float>*)(t->exp_avg_sq + at) = v;
        }
#pragma unroll
        for (u32 l = 0; l < 4; l++) {
            if (at + l >= last) continue;
            if (!whole) {
                t->master[at + l] = w.v[l];
                t->exp_avg[at + l] = m.v[l];
                t->exp_avg_sq[at + l] = v.v[l];
            }
            if (t->copy) put(&t->copy[at + l], w.v[l]);
        }
    }
}
