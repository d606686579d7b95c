// sgd: one step over all trainable tensors
// g = grad * clip + decay w, m = momentum m + g, w = w - lr m; without a state m = g
// table of tensors; grad, m float or null; values as in updates.cuh; mask one bit per element (1 = trainable) or null
// source: torch.optim.SGD
// CPU twin: src/backend/cpu/sgd.rs
// launch: one block per piece of PIECE elements over all tensors

KERNEL(256) sgd(const Updated* __restrict__ tensors, u32 count, float momentum, float lr, float grad_scale, u32 step) {
    const Updated* t = tensor_of_block(tensors, count);
    float* buffer = (float*)t->state[0];
    u64 first = (blockIdx.x - t->first_piece) * PIECE;
    u64 last = first + PIECE < t->len ? first + PIECE : t->len;
    for (u64 i = first + threadIdx.x; i < last; i += blockDim.x) {
        if (!is_trainable(t->mask, i)) continue;
        float w = value_of(t, i), m = t->grad[i] * grad_scale + t->decay * w;
        if (buffer) buffer[i] = m = momentum * buffer[i] + m;
        set_value(t, i, w - lr * m, step);
    }
}
