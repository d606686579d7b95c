// linear: the bias of a linear layer; its products are cuBLASLt's
// out[t] += bias;  dbias += sum_t dout[t], in pieces of rows and then over the pieces in order
// out, dout [rows, cols] work, bias [cols] work, dbias [cols] float, partials [pieces, cols] float
// source: torch.nn.Linear
// CPU twin: src/backend/cpu/linear.rs
// launch: forward (rows, columns / 256); backward (columns / 256, pieces); sum_partials (columns / 256)

KERNEL(256) bias_forward(const work* __restrict__ bias, u32 cols, work* __restrict__ out) {
    u32 c = blockIdx.y * blockDim.x + threadIdx.x;
    if (c >= cols) return;
    work* to = out + (u64)blockIdx.x * cols + c;
    put(to, to_float(*to) + to_float(bias[c]));
}

// partials[p] = sum over rows p * each .. (p + 1) * each
KERNEL(256) bias_backward(const work* __restrict__ dout, u32 rows, u32 cols, u32 each, float* __restrict__ partials) {
    u32 c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= cols) return;
    u32 first = blockIdx.y * each, last = first + each < rows ? first + each : rows;
    float sum = 0;
    for (u32 t = first; t < last; t++) sum += to_float(dout[(u64)t * cols + c]);
    partials[(u64)blockIdx.y * cols + c] = sum;
}

// out += sum over pieces, in order: the second stage of the gradients of vectors
KERNEL(256) sum_partials(const float* __restrict__ partials, u32 pieces, u32 cols, float* __restrict__ out) {
    u32 c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= cols) return;
    float sum = out[c];
    for (u32 p = 0; p < pieces; p++) sum += partials[(u64)p * cols + c];
    out[c] = sum;
}
