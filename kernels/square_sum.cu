// square_sum: the sum of squares of all gradients, whose elements are zeroed where their mask freezes them
// total = sum g^2
// tables of tensors; grad float, mask one bit per element (1 = trainable) or null, partials and total double
// source: torch.nn.utils.clip_grad_norm_
// CPU twin: src/backend/cpu/square_sum.rs
// launch: one block per piece of PIECE elements over all tensors; sum_squares one block

// The blocks of the tensor start at first_piece.
struct Gradient {
    float* grad;
    const u32* mask;
    u64 len;
    u64 first_piece;
};

// Zeroes what the mask freezes; partials[piece] = sum of squares of the rest
KERNEL(256) masked_square_sum(const Gradient* __restrict__ tensors, u32 count, double* __restrict__ partials) {
    const Gradient* t = tensor_of_block(tensors, count);
    u64 first = (blockIdx.x - t->first_piece) * PIECE;
    u64 last = first + PIECE < t->len ? first + PIECE : t->len;
    double sum = 0;
    for (u64 i = first + threadIdx.x; i < last; i += blockDim.x) {
        float g = t->grad[i];
        if (!is_trainable(t->mask, i)) t->grad[i] = g = 0;
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
