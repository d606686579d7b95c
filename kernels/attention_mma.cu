// attention_mma: attention of heads of 64 or 128 elements of bf16 on tensor cores, forward and backward
// out = softmax(q k^T / sqrt(E)) v;  p = exp(s - lse), ds = p (dout v^T - dout . out), dq = ds k, dk = ds^T q, dv = p^T dout
// q, out, dout, dq [T, H, E] bf16, k, v, dk, dv [T, K, E] bf16, lse and delta [T, H] float
// source: Dao 2023, arXiv:2307.08691
// CPU twin: src/backend/cpu/attention.rs
// launch: (tiles of 64 rows of one sequence, heads), four warps of sixteen rows

// Rows of a tile.
const u32 TILE = 64;
const float LOG2_E = 1.4426950408889634f, LN_2 = 0.6931471805599453f;

// Elements between two rows in shared memory: eight rows lie in different banks.
#define PITCH (E + 8)

// Begins to copy rows first.. of one head of x [T, heads, E]; zeros from `end` on.
template <int E>
__device__ __forceinline__ void fetch_rows(const bf16* x, u32 first, u32 rows, u32 end, u32 heads, u32 head, bf16* to) {
    for (u32 i = threadIdx.x; i < rows * (E / 8); i += blockDim.x) {
        u32 r = i / (E / 8), e = i % (E / 8) * 8;
        bool zeros = first + r >= end;
        u32 t = zeros ? first : first + r;
        copy_async(to + r * PITCH + e, x + ((u64)t * heads + head) * E + e, zeros);
    }
}

// s = the sixteen rows of this warp times `STEP` others: fragments c of eight others each.
template <int E, int STEP>
__device__ __forceinline__ void scores(const bf16* rows, const bf16* others, float s[STEP / 8][4]) {
    u32 lane = threadIdx.x & 31;
#pragma unroll
    for (int n = 0; n < STEP / 8; n++) s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0;
#pragma unroll
    for (int e = 0; e < E; e += 16) {
        u32 a[4], b[4];
        load_matrices(a, rows + (lane & 15) * PITCH + e + (lane >> 4) * 8);
#pragma unroll
        for (int n = 0; n < STEP; n += 16) {
            load_matrices(b, others + (n + (lane & 7) + (lane >> 4) * 8) * PITCH + e + (lane >> 3 & 1) * 8);
            mma(s[n / 8], a, b[0], b[1]);
            mma(s[n / 8 + 1], a, b[2], b[3]);
        }
    }
}

// sum += p times the `STEP` others; p as `scores` leaves it, rounded to bf16.
template <int E, int STEP>
__device__ __forceinline__ void add_products(const float p[STEP / 8][4], const bf16* others, float sum[E / 8][4]) {
    u32 lane = threadIdx.x & 31;
#pragma unroll
    for (int n = 0; n < STEP; n += 16) {
        const float *x = p[n / 8], *y = p[n / 8 + 1];
        u32 a[4] = {pair(x[0], x[1]), pair(x[2], x[3]), pair(y[0], y[1]), pair(y[2], y[3])}, b[4];
#pragma unroll
        for (int e = 0; e < E; e += 16) {
            load_transposed(b, others + (n + (lane & 15)) * PITCH + e + (lane >> 4) * 8);
            mma(sum[e / 8], a, b[0], b[1]);
            mma(sum[e / 8 + 1], a, b[2], b[3]);
        }
    }
}

// Writes the sixteen rows of a warp, those before `end`: row r times factor[r / 8].
template <int E>
__device__ __forceinline__ void store_fragments(const float sum[E / 8][4], const float factor[2], u32 first, u32 end,
                                                u32 heads, u32 head, bf16* out) {
    u32 lane = threadIdx.x & 31;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        u32 t = first + lane / 4 + 8 * half;
        if (t >= end) continue;
        u32* row = (u32*)(out + ((u64)t * heads + head) * E) + (lane & 3);
#pragma unroll
        for (int n = 0; n < E / 8; n++)
            row[4 * n] = pair(sum[n][2 * half] * factor[half], sum[n][2 * half + 1] * factor[half]);
    }
}

// Over the four lanes that hold a row.
__device__ __forceinline__ float row_sum(float x) {
    x += __shfl_xor_sync(ALL, x, 1);
    return x + __shfl_xor_sync(ALL, x, 2);
}
__device__ __forceinline__ float row_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(ALL, x, 1));
    return fmaxf(x, __shfl_xor_sync(ALL, x, 2));
}

// Online softmax: adds a step of scores to the running maximum and sum of two rows; s becomes 2^(s - most).
template <int E, int STEP>
__device__ __forceinline__ void soften(float s[STEP / 8][4], float most[2], float sum[2], float acc[E / 8][4]) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float larger = most[half], total = 0;
#pragma unroll
        for (int n = 0; n < STEP / 8; n++) larger = fmaxf(larger, fmaxf(s[n][2 * half], s[n][2 * half + 1]));
        larger = row_max(larger);
        // A row without a visible key so far: all of its scores are minus infinity.
        float base = larger == NEGATIVE_INFINITY ? 0.0f : larger, shrink = exp2f(most[half] - base);
#pragma unroll
        for (int n = 0; n < STEP / 8; n++) {
            float x = s[n][2 * half] = exp2f(s[n][2 * half] - base);
            float y = s[n][2 * half + 1] = exp2f(s[n][2 * half + 1] - base);
            total += x + y;
        }
        most[half] = larger;
        sum[half] = sum[half] * shrink + total;
#pragma unroll
        for (int n = 0; n < E / 8; n++) {
            acc[n][2 * half] *= shrink;
            acc[n][2 * half + 1] *= shrink;
        }
    }
}

template <int E, int STEP>
__device__ __forceinline__ void mma_forward(const bf16* q, const bf16* k, const bf16* v, Tile tile, Heads h, bf16* out,
                                            float* lse, bf16* shared) {
    u32 head = blockIdx.y, kv = head / (h.heads / h.kv_heads), warp = threadIdx.x / 32, lane = threadIdx.x & 31;
    bf16 *qs = shared, *ks = qs + TILE * PITCH, *vs = ks + 2 * STEP * PITCH;
    u32 last = min(tile.first + TILE, tile.end), row = tile.first + warp * 16;
    u32 seen = tile.first - tile.begin < h.window ? tile.begin : tile.first + 1 - h.window;
    float most[2] = {NEGATIVE_INFINITY, NEGATIVE_INFINITY}, sum[2] = {0, 0}, acc[E / 8][4] = {}, s[STEP / 8][4];
    float scale = h.scale * LOG2_E;
    fetch_rows<E>(q, tile.first, TILE, last, h.heads, head, qs);
    fetch_rows<E>(k, seen, STEP, last, h.kv_heads, kv, ks);
    fetch_rows<E>(v, seen, STEP, last, h.kv_heads, kv, vs);
    end_copies();
    for (u32 first = seen, turn = 0; first < last; first += STEP, turn ^= 1) {
        if (first + STEP < last) {
            fetch_rows<E>(k, first + STEP, STEP, last, h.kv_heads, kv, ks + (turn ^ 1) * STEP * PITCH);
            fetch_rows<E>(v, first + STEP, STEP, last, h.kv_heads, kv, vs + (turn ^ 1) * STEP * PITCH);
        }
        end_copies();
        wait_copies<1>();
        __syncthreads();
        scores<E, STEP>(qs + warp * 16 * PITCH, ks + turn * STEP * PITCH, s);
        bool all = first + STEP <= tile.first + 1 && tile.first + TILE - 1 - first < h.window;
#pragma unroll
        for (int n = 0; n < STEP / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                u32 query = row + lane / 4 + (i & 2) * 4, key = first + 8 * n + 2 * (lane & 3) + (i & 1);
                s[n][i] = all || sees(query, key, last, h.window) ? s[n][i] * scale : NEGATIVE_INFINITY;
            }
        soften<E, STEP>(s, most, sum, acc);
        add_products<E, STEP>(s, vs + turn * STEP * PITCH, acc);
        __syncthreads();
    }
    float factor[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float total = row_sum(sum[half]);
        u32 t = row + lane / 4 + 8 * half;
        factor[half] = 1.0f / total;
        if ((lane & 3) == 0 && t < last) lse[(u64)t * h.heads + head] = most[half] * LN_2 + logf(total);
    }
    store_fragments<E>(acc, factor, row, last, h.heads, head, out);
}

template <int E, int STEP>
__device__ __forceinline__ void mma_query(const bf16* dout, const bf16* q, const bf16* k, const bf16* v, const float* lse,
                                          const float* delta, Tile tile, Heads h, bf16* dq, bf16* shared) {
    u32 head = blockIdx.y, kv = head / (h.heads / h.kv_heads), warp = threadIdx.x / 32, lane = threadIdx.x & 31;
    bf16 *qs = shared, *os = qs + TILE * PITCH, *ks = os + TILE * PITCH, *vs = ks + 2 * STEP * PITCH;
    u32 last = min(tile.first + TILE, tile.end), row = tile.first + warp * 16;
    u32 seen = tile.first - tile.begin < h.window ? tile.begin : tile.first + 1 - h.window;
    float acc[E / 8][4] = {}, s[STEP / 8][4], dp[STEP / 8][4], of_row[2], minus[2], scale = h.scale * LOG2_E;
    fetch_rows<E>(q, tile.first, TILE, last, h.heads, head, qs);
    fetch_rows<E>(dout, tile.first, TILE, last, h.heads, head, os);
    fetch_rows<E>(k, seen, STEP, last, h.kv_heads, kv, ks);
    fetch_rows<E>(v, seen, STEP, last, h.kv_heads, kv, vs);
    end_copies();
#pragma unroll
    for (int half = 0; half < 2; half++) {
        u32 t = row + lane / 4 + 8 * half;
        of_row[half] = t < last ? lse[(u64)t * h.heads + head] * LOG2_E : 0.0f;
        minus[half] = t < last ? delta[(u64)t * h.heads + head] : 0.0f;
    }
    for (u32 first = seen, turn = 0; first < last; first += STEP, turn ^= 1) {
        if (first + STEP < last) {
            fetch_rows<E>(k, first + STEP, STEP, last, h.kv_heads, kv, ks + (turn ^ 1) * STEP * PITCH);
            fetch_rows<E>(v, first + STEP, STEP, last, h.kv_heads, kv, vs + (turn ^ 1) * STEP * PITCH);
        }
        end_copies();
        wait_copies<1>();
        __syncthreads();
        scores<E, STEP>(qs + warp * 16 * PITCH, ks + turn * STEP * PITCH, s);
        scores<E, STEP>(os + warp * 16 * PITCH, vs + turn * STEP * PITCH, dp);
        bool all = first + STEP <= tile.first + 1 && tile.first + TILE - 1 - first < h.window;
#pragma unroll
        for (int n = 0; n < STEP / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                u32 query = row + lane / 4 + (i & 2) * 4, key = first + 8 * n + 2 * (lane & 3) + (i & 1);
                bool in = all || sees(query, key, last, h.window);
                float p = in ? exp2f(s[n][i] * scale - of_row[i / 2]) : 0.0f;
                s[n][i] = p * (dp[n][i] - minus[i / 2]);
            }
        add_products<E, STEP>(s, ks + turn * STEP * PITCH, acc);
        __syncthreads();
    }
    float factor[2] = {h.scale, h.scale};
    store_fragments<E>(acc, factor, row, last, h.heads, head, dq);
}

// Begins to copy what a tile of keys is multiplied with: `STEP` queries of one head.
template <int E, int STEP>
__device__ __forceinline__ void fetch_queries(const bf16* dout, const bf16* q, const float* lse, const float* delta,
                                              u32 first, u32 end, Heads h, u32 head, bf16* qs, bf16* os, float* of_query) {
    fetch_rows<E>(q, first, STEP, end, h.heads, head, qs);
    fetch_rows<E>(dout, first, STEP, end, h.heads, head, os);
    if (threadIdx.x < STEP) {
        u32 t = first + threadIdx.x;
        of_query[threadIdx.x] = t < end ? lse[(u64)t * h.heads + head] * LOG2_E : 0.0f;
        of_query[STEP + threadIdx.x] = t < end ? delta[(u64)t * h.heads + head] : 0.0f;
    }
}

// Overwrites k and v: only this block reads its rows.
template <int E, int STEP>
__device__ __forceinline__ void mma_key(const bf16* dout, const bf16* q, const float* lse, const float* delta, Tile tile,
                                        Heads h, bf16* k, bf16* v, bf16* shared) {
    u32 kv = blockIdx.y, group = h.heads / h.kv_heads, warp = threadIdx.x / 32, lane = threadIdx.x & 31;
    bf16 *ks = shared, *vs = ks + TILE * PITCH, *qs = vs + TILE * PITCH, *os = qs + 2 * STEP * PITCH;
    float* of_query = (float*)(os + 2 * STEP * PITCH);
    u32 last = min(tile.first + TILE, tile.end), row = tile.first + warp * 16;
    // The end of the queries that attend to the last key of the tile.
    u32 end = tile.end - (last - 1) < h.window ? tile.end : last - 1 + h.window;
    u32 steps = (end - tile.first + STEP - 1) / STEP, turns = group * steps;
    float dk[E / 8][4] = {}, dv[E / 8][4] = {}, s[STEP / 8][4], dp[STEP / 8][4], scale = h.scale * LOG2_E;
    fetch_rows<E>(k, tile.first, TILE, last, h.kv_heads, kv, ks);
    fetch_rows<E>(v, tile.first, TILE, last, h.kv_heads, kv, vs);
    fetch_queries<E, STEP>(dout, q, lse, delta, tile.first, end, h, kv * group, qs, os, of_query);
    end_copies();
    for (u32 i = 0; i < turns; i++) {
        u32 first = tile.first + i % steps * STEP, turn = i & 1, next = i + 1;
        if (next < turns)
            fetch_queries<E, STEP>(dout, q, lse, delta, tile.first + next % steps * STEP, end, h, kv * group + next / steps,
                                   qs + (turn ^ 1) * STEP * PITCH, os + (turn ^ 1) * STEP * PITCH,
                                   of_query + (turn ^ 1) * 2 * STEP);
        end_copies();
        wait_copies<1>();
        __syncthreads();
        scores<E, STEP>(ks + warp * 16 * PITCH, qs + turn * STEP * PITCH, s);
        scores<E, STEP>(vs + warp * 16 * PITCH, os + turn * STEP * PITCH, dp);
        bool all = first + 1 >= tile.first + TILE && first + STEP <= end && first + STEP - 1 - tile.first < h.window;
#pragma unroll
        for (int n = 0; n < STEP / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                u32 at = 8 * n + 2 * (lane & 3) + (i & 1), key = row + lane / 4 + (i & 2) * 4;
                const float* of = of_query + turn * 2 * STEP + at;
                bool in = all || sees(first + at, key, end, h.window);
                float p = in ? exp2f(s[n][i] * scale - of[0]) : 0.0f;
                s[n][i] = p;
                dp[n][i] = p * (dp[n][i] - of[STEP]);
            }
        add_products<E, STEP>(s, os + turn * STEP * PITCH, dv);
        add_products<E, STEP>(dp, qs + turn * STEP * PITCH, dk);
        __syncthreads();
    }
    float factor[2] = {h.scale, h.scale}, one[2] = {1, 1};
    store_fragments<E>(dk, factor, row, last, h.kv_heads, kv, k);
    store_fragments<E>(dv, one, row, last, h.kv_heads, kv, v);
}

#define ATTENTION(name, STEP)                                                                                        \
    KERNEL(128) attention_mma_forward_##name(                                                                        \
        const bf16* __restrict__ q, const bf16* __restrict__ k, const bf16* __restrict__ v,                          \
        const u32* __restrict__ tiles, u32 heads, u32 kv_heads, u32 width, u32 window, float scale,                  \
        bf16* __restrict__ out, float* __restrict__ lse) {                                                           \
        DYNAMIC_SHARED(shared);                                                                                      \
        Tile tile = ((const Tile*)tiles)[blockIdx.x];                                                                \
        Heads h = {heads, kv_heads, width, window, scale, 0};                                                        \
        mma_forward<name, 64>(q, k, v, tile, h, out, lse, (bf16*)shared);                                            \
    }                                                                                                                \
    KERNEL(128) attention_mma_query_##name(                                                                          \
        const bf16* __restrict__ dout, const bf16* __restrict__ q, const bf16* __restrict__ k,                       \
        const bf16* __restrict__ v, const float* __restrict__ lse, const float* __restrict__ delta,                  \
        const u32* __restrict__ tiles, u32 heads, u32 kv_heads, u32 width, u32 window, float scale,                  \
        bf16* __restrict__ dq) {                                                                                     \
        DYNAMIC_SHARED(shared);                                                                                      \
        Tile tile = ((const Tile*)tiles)[blockIdx.x];                                                                \
        Heads h = {heads, kv_heads, width, window, scale, 0};                                                        \
        mma_query<name, STEP>(dout, q, k, v, lse, delta, tile, h, dq, (bf16*)shared);                                \
    }                                                                                                                \
    KERNEL(128) attention_mma_key_##name(                                                                            \
        const bf16* __restrict__ dout, const bf16* __restrict__ q, const float* __restrict__ lse,                    \
        const float* __restrict__ delta, const u32* __restrict__ tiles, u32 heads, u32 kv_heads, u32 width,          \
        u32 window, float scale, bf16* __restrict__ k, bf16* __restrict__ v) {                                       \
        DYNAMIC_SHARED(shared);                                                                                      \
        Tile tile = ((const Tile*)tiles)[gridDim.x - 1 - blockIdx.x];                                                \
        Heads h = {heads, kv_heads, width, window, scale, 0};                                                        \
        mma_key<name, STEP>(dout, q, lse, delta, tile, h, k, v, (bf16*)shared);                                      \
    }

ATTENTION(64, 64)
ATTENTION(128, 32)
#undef ATTENTION
#undef PITCH
