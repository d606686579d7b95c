// adafactor: one step of one tensor, the second moment of a matrix by its means over columns and over rows
// r += f (mean_c g^2 - r), c += f (mean_r g^2 - c), u = g / sqrt(max(r c / mean(r), eps1^2)), w = decay w - alpha u
// tensor `which` of the table; grad, r [rows], c [cols] or, of a vector, the variance [cols] float; values as in updates.cuh
// source: Shazeer and Stern 2018, arXiv:1804.04235; constants as torch.optim.Adafactor
// CPU twin: src/backend/cpu/adafactor.rs
// launch: in this order; one block per row; one thread per column and piece of rows; one block; one block per piece of PIECE elements

KERNEL(256) adafactor_rows(const Updated* __restrict__ tensors, u32 which, u32 cols, float fresh, float grad_scale) {
    const Updated* t = tensors + which;
    float* row_var = (float*)t->state[0];
    u64 row = blockIdx.x;
    double sum = 0;
    for (u32 c = threadIdx.x; c < cols; c += blockDim.x) {
        float g = t->grad[row * cols + c];
        sum += (double)g * g;
    }
    sum = block_sum(sum);
    if (threadIdx.x) return;
    float mean = (float)(sum * ((double)grad_scale * grad_scale) / cols);
    row_var[row] += fresh * (mean - row_var[row]);
}

// partials[piece, c] = sum over the rows of the piece
KERNEL(256) adafactor_columns(const Updated* __restrict__ tensors, u32 which, u32 rows, u32 cols, u32 rows_of_piece,
                              double* __restrict__ partials) {
    const Updated* t = tensors + which;
    u32 c = blockIdx.x * blockDim.x + threadIdx.x, first = blockIdx.y * rows_of_piece;
    if (c >= cols) return;
    double sum = 0;
    for (u32 r = first; r < rows && r < first + rows_of_piece; r++) {
        float g = t->grad[(u64)r * cols + c];
        sum += (double)g * g;
    }
    partials[(u64)blockIdx.y * cols + c] = sum;
}

KERNEL(256) adafactor_column_means(const Updated* __restrict__ tensors, u32 which, u32 rows, u32 cols, u32 pieces,
                                   const double* __restrict__ partials, float fresh, float grad_scale) {
    float* col_var = (float*)tensors[which].state[1];
    u32 c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= cols) return;
    double sum = 0;
    for (u32 p = 0; p < pieces; p++) sum += partials[(u64)p * cols + c];
    float mean = (float)(sum * ((double)grad_scale * grad_scale) / rows);
    col_var[c] += fresh * (mean - col_var[c]);
}

// Of a vector: the variance of each element
KERNEL(256) adafactor_vector(const Updated* __restrict__ tensors, u32 which, float fresh, float grad_scale) {
    const Updated* t = tensors + which;
    float* variance = (float*)t->state[0];
    u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= t->len) return;
    float g = t->grad[i] * grad_scale;
    variance[i] += fresh * (g * g - variance[i]);
}

// scalars[0] = the mean of the row means
KERNEL(1024) adafactor_mean(const Updated* __restrict__ tensors, u32 which, u32 rows, float eps1,
                            float* __restrict__ scalars) {
    const float* row_var = (const float*)tensors[which].state[0];
    double sum = 0;
    for (u32 r = threadIdx.x; r < rows; r += blockDim.x) sum += row_var[r];
    sum = block_sum(sum);
    float mean = (float)(sum / rows);
    if (threadIdx.x == 0) scalars[0] = mean > eps1 ? mean : eps1;
}

// The update of element i, before it is scaled to the tensor.
__device__ __forceinline__ float adafactor_of(const Updated* t, u64 i, u32 cols, float mean, float eps1, float scale) {
    const float *rows = (const float*)t->state[0], *columns = (const float*)t->state[1];
    float variance = columns ? rows[i / cols] * columns[i % cols] / mean : rows[i];
    float least = eps1 * eps1;
    return t->grad[i] * scale / sqrtf(variance > least ? variance : least);
}

// partials[piece] = sums of the squares of values and of updates
KERNEL(256) adafactor_squares(const Updated* __restrict__ tensors, u32 which, u32 cols, float eps1, float grad_scale,
                              const float* __restrict__ scalars, double* __restrict__ partials) {
    const Updated* t = tensors + which;
    u64 first = (u64)blockIdx.x * PIECE, last = first + PIECE < t->len ? first + PIECE : t->len;
    double values = 0, updates = 0;
    for (u64 i = first + threadIdx.x; i < last; i += blockDim.x) {
        float w = value_of(t, i), u = adafactor_of(t, i, cols, scalars[0], eps1, grad_scale);
        values += (double)w * w;
        updates += (double)u * u;
    }
    values = block_sum(values);
    updates = block_sum(updates);
    if (threadIdx.x) return;
    partials[2 * blockIdx.x] = values;
    partials[2 * blockIdx.x + 1] = updates;
}

// scalars[1] = max(rms(w), eps2) rate / max(rms(u) / d, 1)
KERNEL(1024) adafactor_alpha(const Updated* __restrict__ tensors, u32 which, u32 pieces,
                             const double* __restrict__ partials, float rate, float eps2, float d,
                             float* __restrict__ scalars) {
    double values = 0, updates = 0;
    for (u32 p = threadIdx.x; p < pieces; p += blockDim.x) {
        values += partials[2 * p];
        updates += partials[2 * p + 1];
    }
    values = block_sum(values);
    updates = block_sum(updates);
    if (threadIdx.x) return;
    double n = (double)tensors[which].len, size = sqrt(values / n), length = sqrt(updates / n) / d;
    scalars[1] = (float)((size > eps2 ? size : eps2) * rate / (length > 1 ? length : 1));
}

KERNEL(256) adafactor(const Updated* __restrict__ tensors, u32 which, u32 cols, float eps1, float grad_scale,
                      const float* __restrict__ scalars, u32 step) {
    const Updated* t = tensors + which;
    u64 first = (u64)blockIdx.x * PIECE, last = first + PIECE < t->len ? first + PIECE : t->len;
    for (u64 i = first + threadIdx.x; i < last; i += blockDim.x) {
        if (!is_trainable(t->mask, i)) continue;
        float u = adafactor_of(t, i, cols, scalars[0], eps1, grad_scale);
        set_value(t, i, value_of(t, i) * t->decay - scalars[1] * u, step);
    }
}
