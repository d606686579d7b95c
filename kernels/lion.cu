// lion: one step over all trainable tensors
// w = decay w - lr sign(b1 m + (1 - b1) g), m = b2 m + (1 - b2) g, g = grad * clip
// table of tensors; grad, m float; values as in updates.cuh; mask one bit per element (1 = trainable) or null
// source: Chen et al. 2023, arXiv:2302.06675, algorithm 2
// CPU twin: src/backend/cpu/lion.rs
// launch: one block per piece of PIECE elements over all tensors

KERNEL(256) lion(const Updated* __restrict__ tensors, u32 count, float beta1, float one_minus_beta1, float beta2,
                 float one_minus_beta2, float lr, float grad_scale, u32 step) {
    const Updated* t = tensor_of_block(tensors, count);
    float* exp_avg = (float*)t->state[0];
    u64 first = (blockIdx.x - t->first_piece) * PIECE;
    u64 last = first + PIECE < t->len ? first + PIECE : t->len;
    for (u64 i = first + threadIdx.x; i < last; i += blockDim.x) {
        if (!is_trainable(t->mask, i)) continue;
        float grad = t->grad[i] * grad_scale, m = exp_avg[i];
        float mean = beta1 * m + one_minus_beta1 * grad;
        float sign = (float)((mean > 0) - (mean < 0));
        exp_avg[i] = beta2 * m + one_minus_beta2 * grad;
        set_value(t, i, value_of(t, i) * t->decay - lr * sign, step);
    }
}
