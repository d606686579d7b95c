// grouped_product: products of the routes of each expert with the matrix of that expert
// out[r] = a[rows[r]] w_e^T, or a[rows[r]] w_e, for the routes r of expert e;  g_e = sum over them of a[rows[r]]^T b[other_rows[r]]
// a [., K], w_e [N, K], or [K, N], out [R, N] work; or a [., M], b [., N] work, g_e [M, N] float; weights and gradients: an address for each expert, null for none
// source: Gale et al. 2022, arXiv:2211.15841; tensor cores as kernels/attention_mma.cu
// CPU twin: src/backend/cpu/mixture.rs
// launch: rows (tiles of 64 routes of one expert, columns / 128); weights (64 x 128 tiles of a gradient, experts)

// Rows and columns of a tile of results, and how much of the sum is in shared memory at once.
const u32 GROUP_ROWS = 64, GROUP_COLUMNS = 128;
const u32 GROUP_STEP = 64 / sizeof(work);
// Elements between two lines in shared memory, beside their width.
#ifdef COMPUTE_BF16
const u32 GROUP_PAD = 8;
#else
const u32 GROUP_PAD = 1;
#endif
// Elements of shared memory for the larger layout of either operand.
const u32 GROUP_A = (GROUP_ROWS + GROUP_PAD) * (GROUP_STEP + GROUP_PAD);
const u32 GROUP_B = (GROUP_COLUMNS + GROUP_PAD) * (GROUP_STEP + GROUP_PAD);
#define GROUP_SHARED(name) __shared__ Pack<work> name[2 * (GROUP_A + GROUP_B) / Pack<work>::N + 1]

// Begins to copy lines first.. of x [., cols], or of x[rows], from `column` on; zeros from line `end` and beyond `cols`.
template <u32 LINES, u32 WIDTH>
__device__ __forceinline__ void fetch_lines(const work* x, const u32* rows, u32 first, u32 end, u32 cols, u32 column,
                                            work* to) {
#ifdef COMPUTE_BF16
    if (cols % 8 == 0) {
        for (u32 i = threadIdx.x; i < LINES * (WIDTH / 8); i += blockDim.x) {
            u32 line = i / (WIDTH / 8), c = i % (WIDTH / 8) * 8;
            bool zeros = first + line >= end || column + c >= cols;
            u64 row = zeros ? 0 : rows ? rows[first + line] : first + line;
            copy_async(to + line * (WIDTH + GROUP_PAD) + c, x + row * cols + (zeros ? 0 : column + c), zeros);
        }
        return;
    }
#endif
    for (u32 i = threadIdx.x; i < LINES * WIDTH; i += blockDim.x) {
        u32 line = i / WIDTH, c = i % WIDTH;
        work value = {};
        if (first + line < end && column + c < cols) {
            u64 row = rows ? rows[first + line] : first + line;
            value = x[row * cols + column + c];
        }
        to[line * (WIDTH + GROUP_PAD) + c] = value;
    }
}

// Where element i of a thread's 64 sums lies in the tile.
__device__ __forceinline__ u32 group_row(u32 i) {
#ifdef COMPUTE_BF16
    return threadIdx.x / 64 * 32 + i / 32 * 16 + (threadIdx.x & 31) / 4 + (i & 2) * 4;
#else
    return threadIdx.x / 16 + 8 * (i / 8);
#endif
}
__device__ __forceinline__ u32 group_column(u32 i) {
#ifdef COMPUTE_BF16
    return threadIdx.x / 32 % 2 * 64 + i % 32 / 4 * 8 + 2 * (threadIdx.x & 3) + (i & 1);
#else
    return threadIdx.x % 16 + 16 * (i % 8);
#endif
}

// sum += a b over a step; a [64, step] or, with A_LINES, [step, 64]; b [step, 128] with B_LINES, otherwise [128, step].
template <bool A_LINES, bool B_LINES>
__device__ __forceinline__ void add_step(const work* a, const work* b, float sum[64]) {
    const u32 a_pitch = (A_LINES ? GROUP_ROWS : GROUP_STEP) + GROUP_PAD;
    const u32 b_pitch = (B_LINES ? GROUP_COLUMNS : GROUP_STEP) + GROUP_PAD;
#ifdef COMPUTE_BF16
    u32 lane = threadIdx.x & 31, row = threadIdx.x / 64 * 32, column = threadIdx.x / 32 % 2 * 64;
#pragma unroll
    for (u32 k = 0; k < GROUP_STEP; k += 16) {
        u32 x[2][4], y[4];
#pragma unroll
        for (u32 m = 0; m < 2; m++) {
            if (A_LINES)
                load_transposed(x[m], a + (k + (lane & 7) + (lane >> 4) * 8) * a_pitch + row + 16 * m + (lane >> 3 & 1) * 8);
            else
                load_matrices(x[m], a + (row + 16 * m + (lane & 15)) * a_pitch + k + (lane >> 4) * 8);
        }
#pragma unroll
        for (u32 n = 0; n < 64; n += 16) {
            if (B_LINES)
                load_transposed(y, b + (k + (lane & 15)) * b_pitch + column + n + (lane >> 4) * 8);
            else
                load_matrices(y, b + (column + n + (lane & 7) + (lane >> 4) * 8) * b_pitch + k + (lane >> 3 & 1) * 8);
#pragma unroll
            for (u32 m = 0; m < 2; m++) {
                mma(sum + 32 * m + n / 2, x[m], y[0], y[1]);
                mma(sum + 32 * m + n / 2 + 4, x[m], y[2], y[3]);
            }
        }
    }
#else
    u32 row = threadIdx.x / 16, column = threadIdx.x % 16;
#pragma unroll 4
    for (u32 k = 0; k < GROUP_STEP; k++) {
        float x[8], y[8];
#pragma unroll
        for (u32 i = 0; i < 8; i++) {
            x[i] = A_LINES ? a[k * a_pitch + row + 8 * i] : a[(row + 8 * i) * a_pitch + k];
            y[i] = B_LINES ? b[k * b_pitch + column + 16 * i] : b[(column + 16 * i) * b_pitch + k];
        }
#pragma unroll
        for (u32 i = 0; i < 64; i++) sum[i] += x[i / 8] * y[i % 8];
    }
#endif
}

// out[r] = a[rows[r]] w_e^T, or w_e with B_LINES, of the routes and columns of this block; added to out with `accumulate`.
template <bool B_LINES>
__device__ __forceinline__ void product_of_rows(const work* a, const u32* rows, const u64* weights, const u32* tiles,
                                                const u32* offsets, u32 experts, u32 inner, u32 cols, u32 accumulate,
                                                work* out, work* shared) {
    u32 expert = tiles[2 * blockIdx.x], first = tiles[2 * blockIdx.x + 1], column = blockIdx.y * GROUP_COLUMNS;
    if (expert == experts) return;
    const work* w = (const work*)weights[expert];
    u32 end = offsets[expert + 1];
    work *as = shared, *bs = shared + 2 * GROUP_A;
    float sum[64] = {};
    for (u32 k = 0, turn = 0; k < inner + GROUP_STEP; k += GROUP_STEP, turn ^= 1) {
        if (k < inner) {
            fetch_lines<GROUP_ROWS, GROUP_STEP>(a, rows, first, end, inner, k, as + turn * GROUP_A);
            if (B_LINES) fetch_lines<GROUP_STEP, GROUP_COLUMNS>(w, 0, k, inner, cols, column, bs + turn * GROUP_B);
            else fetch_lines<GROUP_COLUMNS, GROUP_STEP>(w, 0, column, cols, inner, k, bs + turn * GROUP_B);
        }
        end_copies();
        if (k == 0) continue;
        wait_copies<1>();
        __syncthreads();
        add_step<false, B_LINES>(as + (turn ^ 1) * GROUP_A, bs + (turn ^ 1) * GROUP_B, sum);
        __syncthreads();
    }
#pragma unroll
    for (u32 i = 0; i < 64; i++) {
        u32 r = first + group_row(i), c = column + group_column(i);
        if (r >= end || c >= cols) continue;
        work* to = out + (u64)r * cols + c;
        put(to, accumulate ? to_float(*to) + sum[i] : sum[i]);
    }
}

KERNEL(128) grouped_forward(const work* __restrict__ a, const u32* __restrict__ rows, const u64* __restrict__ weights,
                            const u32* __restrict__ tiles, const u32* __restrict__ offsets, u32 experts, u32 inner,
                            u32 cols, u32 accumulate, work* __restrict__ out) {
    GROUP_SHARED(shared);
    product_of_rows<false>(a, rows, weights, tiles, offsets, experts, inner, cols, accumulate, out, (work*)shared);
}

KERNEL(128) grouped_backward_input(const work* __restrict__ a, const u32* __restrict__ rows,
                                   const u64* __restrict__ weights, const u32* __restrict__ tiles,
                                   const u32* __restrict__ offsets, u32 experts, u32 inner, u32 cols, u32 accumulate,
                                   work* __restrict__ out) {
    GROUP_SHARED(shared);
    product_of_rows<true>(a, rows, weights, tiles, offsets, experts, inner, cols, accumulate, out, (work*)shared);
}

KERNEL(128) grouped_backward_weight(const work* __restrict__ a, const u32* __restrict__ rows, const work* __restrict__ b,
                                    const u32* __restrict__ other_rows, const u64* __restrict__ gradients,
                                    const u32* __restrict__ offsets, u32 outer, u32 cols, u32 accumulate) {
    GROUP_SHARED(shared);
    float* gradient = (float*)gradients[blockIdx.y];
    if (!gradient) return;
    u32 across = (cols + GROUP_COLUMNS - 1) / GROUP_COLUMNS;
    u32 row = blockIdx.x / across * GROUP_ROWS, column = blockIdx.x % across * GROUP_COLUMNS;
    u32 first = offsets[blockIdx.y], end = offsets[blockIdx.y + 1];
    work *as = (work*)shared, *bs = as + 2 * GROUP_A;
    float sum[64] = {};
    for (u32 r = first, turn = 0; r < end + GROUP_STEP; r += GROUP_STEP, turn ^= 1) {
        if (r < end) {
            fetch_lines<GROUP_STEP, GROUP_ROWS>(a, rows, r, end, outer, row, as + turn * GROUP_A);
            fetch_lines<GROUP_STEP, GROUP_COLUMNS>(b, other_rows, r, end, cols, column, bs + turn * GROUP_B);
        }
        end_copies();
        if (r == first) continue;
        wait_copies<1>();
        __syncthreads();
        add_step<true, true>(as + (turn ^ 1) * GROUP_A, bs + (turn ^ 1) * GROUP_B, sum);
        __syncthreads();
    }
#pragma unroll
    for (u32 i = 0; i < 64; i++) {
        u32 m = row + group_row(i), c = column + group_column(i);
        if (m >= outer || c >= cols) continue;
        float* to = gradient + (u64)m * cols + c;
        *to = accumulate ? *to + sum[i] : sum[i];
    }
}
