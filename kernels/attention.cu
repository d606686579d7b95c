// attention: causal softmax attention inside each sequence, forward and backward, without storing the score matrix
// out = softmax(s) v, s = q k^T / sqrt(E) or its soft cap;  p = exp(s - lse), ds = p (dout v^T - dout . out) s', dq = ds k, dk = ds^T q, dv = p^T dout
// q, out, dout, dq [T, H, E] work, k, v, dk, dv [T, K, E] work, lse and delta [T, H] float, E at most 32 C
// source: Dao et al. 2022, arXiv:2205.14135; Dao 2023, arXiv:2307.08691
// CPU twin: src/backend/cpu/attention.rs
// launch: (tiles of 16 rows of one sequence, heads), four warps of four rows; delta one warp per token and head

// Rows of a tile, and of a warp.
const u32 ROWS = 16;
const u32 EACH = 4;
// Keys (in key_tile, queries) that a tile is multiplied with at once: one per lane.
const u32 LANES = 32;

struct Tile {
    u32 first;  // token
    u32 begin;  // of the sequence
    u32 end;
};

struct Heads {
    u32 heads;
    u32 kv_heads;
    u32 width;   // E
    u32 window;  // a query sees itself and the window - 1 tokens before it
    float scale;
    float cap;  // where scores are capped, s becomes cap tanh(s / cap)
};

// A score from q . k. The tangent is 1 - 2 / (exp(2 x) + 1), to within 2e-7.
template <bool CAPPED>
__device__ __forceinline__ float score_of(float product, Heads h) {
    float s = product * h.scale;
    return CAPPED ? h.cap - __fdividef(2.0f * h.cap, expf(2.0f * s / h.cap) + 1.0f) : s;
}

// By how much a score grows with q . k * scale.
template <bool CAPPED>
__device__ __forceinline__ float slope_of(float score, Heads h) {
    float t = score / h.cap;
    return CAPPED ? 1.0f - t * t : 1.0f;
}

// Rows first.. of one head of x [T, heads, width] into out, rows `stride` apart; zeros from `end` on.
__device__ __forceinline__ void load_rows(const work* x, u32 first, u32 rows, u32 end, u32 heads, u32 head, u32 width,
                                          float* out, u32 stride) {
    for (u32 i = threadIdx.x; i < rows * width; i += blockDim.x) {
        u32 r = i / width, e = i % width, t = first + r;
        out[r * stride + e] = t < end ? to_float(x[((u64)t * heads + head) * width + e]) : 0.0f;
    }
}

__device__ __forceinline__ bool sees(u32 query, u32 key, u32 end, u32 window) {
    return key <= query && query < end && query - key < window;
}

// s[r] = rows[r] . other[lane]
__device__ __forceinline__ void dots(const float* rows, const float* other, u32 width, float s[EACH]) {
#pragma unroll
    for (u32 r = 0; r < EACH; r++) s[r] = 0;
    const float* mine = other + (threadIdx.x & 31) * (width + 1);
    for (u32 e = 0; e < width; e++) {
        float x = mine[e];
#pragma unroll
        for (u32 r = 0; r < EACH; r++) s[r] += rows[r * width + e] * x;
    }
}

// sum[r][c] += sum over j of p[r][j] * other[j][32 c + lane]
template <int C>
__device__ __forceinline__ void accumulate(const float* p, const float* other, u32 width, float sum[EACH][C]) {
    for (u32 j = 0; j < LANES; j++) {
#pragma unroll
        for (int c = 0; c < C; c++) {
            u32 e = 32 * c + (threadIdx.x & 31);
            float x = e < width ? other[j * (width + 1) + e] : 0.0f;
#pragma unroll
            for (u32 r = 0; r < EACH; r++) sum[r][c] += p[r * LANES + j] * x;
        }
    }
}

template <int C>
__device__ __forceinline__ void store_rows(const float sum[EACH][C], const float factor[EACH], u32 first, u32 end,
                                           u32 heads, u32 head, u32 width, work* out) {
#pragma unroll
    for (u32 r = 0; r < EACH; r++) {
        u32 t = first + r;
#pragma unroll
        for (int c = 0; c < C; c++) {
            u32 e = 32 * c + (threadIdx.x & 31);
            if (t < end && e < width) put(&out[((u64)t * heads + head) * width + e], sum[r][c] * factor[r]);
        }
    }
}

template <int C, bool CAPPED>
__device__ __forceinline__ void forward_tile(const work* q, const work* k, const work* v, Tile tile, Heads h,
                                             work* out, float* lse, float* shared) {
    u32 head = blockIdx.y, kv = head / (h.heads / h.kv_heads), warp = threadIdx.x / 32, lane = threadIdx.x & 31;
    float* qs = shared;
    float* ks = qs + ROWS * h.width;
    float* ps = ks + LANES * (h.width + 1) + warp * EACH * LANES;
    u32 last = tile.first + ROWS < tile.end ? tile.first + ROWS : tile.end, row = tile.first + warp * EACH;
    u32 seen = tile.first - tile.begin < h.window ? tile.begin : tile.first + 1 - h.window;
    load_rows(q, tile.first, ROWS, last, h.heads, head, h.width, qs, h.width);
    float most[EACH], sum[EACH], acc[EACH][C], s[EACH];
#pragma unroll
    for (u32 r = 0; r < EACH; r++) {
        most[r] = NEGATIVE_INFINITY;
        sum[r] = 0;
#pragma unroll
        for (int c = 0; c < C; c++) acc[r][c] = 0;
    }
    for (u32 first = seen; first < last; first += LANES) {
        __syncthreads();
        load_rows(k, first, LANES, last, h.kv_heads, kv, h.width, ks, h.width + 1);
        __syncthreads();
        dots(qs + warp * EACH * h.width, ks, h.width, s);
#pragma unroll
        for (u32 r = 0; r < EACH; r++) {
            bool in = sees(row + r, first + lane, last, h.window);
            float score = in ? score_of<CAPPED>(s[r], h) : NEGATIVE_INFINITY;
            float larger = warp_max(score);
            larger = larger > most[r] ? larger : most[r];
            float p = in ? expf(score - larger) : 0.0f;
            float shrink = most[r] == NEGATIVE_INFINITY ? 0.0f : expf(most[r] - larger);
            most[r] = larger;
            sum[r] = sum[r] * shrink + warp_sum(p);
            ps[r * LANES + lane] = p;
#pragma unroll
            for (int c = 0; c < C; c++) acc[r][c] *= shrink;
        }
        __syncthreads();
        load_rows(v, first, LANES, last, h.kv_heads, kv, h.width, ks, h.width + 1);
        __syncthreads();
        accumulate<C>(ps, ks, h.width, acc);
    }
    float factor[EACH];
#pragma unroll
    for (u32 r = 0; r < EACH; r++) {
        factor[r] = 1.0f / sum[r];
        if (lane == 0 && row + r < last) lse[(u64)(row + r) * h.heads + head] = most[r] + logf(sum[r]);
    }
    store_rows<C>(acc, factor, row, last, h.heads, head, h.width, out);
}

template <int C, bool CAPPED>
__device__ __forceinline__ void query_tile(const work* dout, const work* q, const work* k, const work* v,
                                           const float* lse, const float* delta, Tile tile, Heads h, work* dq,
                                           float* shared) {
    u32 head = blockIdx.y, kv = head / (h.heads / h.kv_heads), warp = threadIdx.x / 32, lane = threadIdx.x & 31;
    float* qs = shared;
    float* ds = qs + ROWS * h.width;
    float* ks = ds + ROWS * h.width;
    float* vs = ks + LANES * (h.width + 1);
    float* ps = vs + LANES * (h.width + 1) + warp * EACH * LANES;
    u32 last = tile.first + ROWS < tile.end ? tile.first + ROWS : tile.end, row = tile.first + warp * EACH;
    u32 seen = tile.first - tile.begin < h.window ? tile.begin : tile.first + 1 - h.window;
    load_rows(q, tile.first, ROWS, last, h.heads, head, h.width, qs, h.width);
    load_rows(dout, tile.first, ROWS, last, h.heads, head, h.width, ds, h.width);
    float acc[EACH][C], s[EACH], dp[EACH], of_row[EACH], minus[EACH], one[EACH];
#pragma unroll
    for (u32 r = 0; r < EACH; r++) {
        u64 at = (u64)(row + r) * h.heads + head;
        of_row[r] = row + r < last ? lse[at] : 0.0f;
        minus[r] = row + r < last ? delta[at] : 0.0f;
        one[r] = 1.0f;
#pragma unroll
        for (int c = 0; c < C; c++) acc[r][c] = 0;
    }
    for (u32 first = seen; first < last; first += LANES) {
        __syncthreads();
        load_rows(k, first, LANES, last, h.kv_heads, kv, h.width, ks, h.width + 1);
        load_rows(v, first, LANES, last, h.kv_heads, kv, h.width, vs, h.width + 1);
        __syncthreads();
        dots(qs + warp * EACH * h.width, ks, h.width, s);
        dots(ds + warp * EACH * h.width, vs, h.width, dp);
#pragma unroll
        for (u32 r = 0; r < EACH; r++) {
            bool in = sees(row + r, first + lane, last, h.window);
            float score = score_of<CAPPED>(s[r], h), p = in ? expf(score - of_row[r]) : 0.0f;
            ps[r * LANES + lane] = p * (dp[r] - minus[r]) * slope_of<CAPPED>(score, h) * h.scale;
        }
        __syncwarp();
        accumulate<C>(ps, ks, h.width, acc);
    }
    store_rows<C>(acc, one, row, last, h.heads, head, h.width, dq);
}

// Overwrites k and v: only this block reads its rows.
template <int C, bool CAPPED>
__device__ __forceinline__ void key_tile(const work* dout, const work* q, const float* lse, const float* delta,
                                         Tile tile, Heads h, work* k, work* v, float* shared) {
    u32 kv = blockIdx.y, group = h.heads / h.kv_heads, warp = threadIdx.x / 32, lane = threadIdx.x & 31;
    float* ks = shared;
    float* vs = ks + ROWS * h.width;
    float* qs = vs + ROWS * h.width;
    float* os = qs + LANES * (h.width + 1);
    float* ps = os + LANES * (h.width + 1) + warp * EACH * LANES;
    float* ds = os + LANES * (h.width + 1) + (4 + warp) * EACH * LANES;
    u32 last = tile.first + ROWS < tile.end ? tile.first + ROWS : tile.end, row = tile.first + warp * EACH;
    // The end of the queries that attend to the last key of the tile.
    u32 end = tile.end - (last - 1) < h.window ? tile.end : last - 1 + h.window;
    load_rows(k, tile.first, ROWS, last, h.kv_heads, kv, h.width, ks, h.width);
    load_rows(v, tile.first, ROWS, last, h.kv_heads, kv, h.width, vs, h.width);
    float dk[EACH][C], dv[EACH][C], s[EACH], dp[EACH], one[EACH];
#pragma unroll
    for (u32 r = 0; r < EACH; r++) {
        one[r] = 1.0f;
#pragma unroll
        for (int c = 0; c < C; c++) dk[r][c] = dv[r][c] = 0;
    }
    for (u32 head = kv * group; head < (kv + 1) * group; head++) {
        for (u32 first = tile.first; first < end; first += LANES) {
            __syncthreads();
            load_rows(q, first, LANES, end, h.heads, head, h.width, qs, h.width + 1);
            load_rows(dout, first, LANES, end, h.heads, head, h.width, os, h.width + 1);
            __syncthreads();
            dots(ks + warp * EACH * h.width, qs, h.width, s);
            dots(vs + warp * EACH * h.width, os, h.width, dp);
            u32 query = first + lane;
            u64 at = (u64)query * h.heads + head;
            float of_query = query < end ? lse[at] : 0.0f, minus = query < end ? delta[at] : 0.0f;
#pragma unroll
            for (u32 r = 0; r < EACH; r++) {
                bool in = row + r < last && sees(query, row + r, end, h.window);
                float score = score_of<CAPPED>(s[r], h), p = in ? expf(score - of_query) : 0.0f;
                ps[r * LANES + lane] = p;
                ds[r * LANES + lane] = p * (dp[r] - minus) * slope_of<CAPPED>(score, h) * h.scale;
            }
            __syncwarp();
            accumulate<C>(ps, os, h.width, dv);
            accumulate<C>(ds, qs, h.width, dk);
        }
    }
    store_rows<C>(dk, one, row, last, h.kv_heads, kv, h.width, k);
    store_rows<C>(dv, one, row, last, h.kv_heads, kv, h.width, v);
}

#define ATTENTION(name, C, CAPPED)                                                                                    \
    KERNEL(128) attention_forward_##name(const work* __restrict__ q, const work* __restrict__ k,                      \
                                         const work* __restrict__ v, const u32* __restrict__ tiles, u32 heads,        \
                                         u32 kv_heads, u32 width, u32 window, float scale, float cap, work* __restrict__ out,\
                                         float* __restrict__ lse) {                                                   \
        DYNAMIC_SHARED(shared);                                                                                       \
        Tile tile = ((const Tile*)tiles)[blockIdx.x];                                                                 \
        Heads h = {heads, kv_heads, width, window, scale, cap};                                                       \
        forward_tile<C, CAPPED>(q, k, v, tile, h, out, lse, shared);                                                  \
    }                                                                                                                 \
    KERNEL(128) attention_backward_query_##name(                                                                      \
        const work* __restrict__ dout, const work* __restrict__ q, const work* __restrict__ k,                        \
        const work* __restrict__ v, const float* __restrict__ lse, const float* __restrict__ delta,                   \
        const u32* __restrict__ tiles, u32 heads, u32 kv_heads, u32 width, u32 window, float scale,                   \
        float cap, work* __restrict__ dq) {                                                                           \
        DYNAMIC_SHARED(shared);                                                                                       \
        Tile tile = ((const Tile*)tiles)[blockIdx.x];                                                                 \
        Heads h = {heads, kv_heads, width, window, scale, cap};                                                       \
        query_tile<C, CAPPED>(dout, q, k, v, lse, delta, tile, h, dq, shared);                                        \
    }                                                                                                                 \
    KERNEL(128) attention_backward_key_##name(const work* __restrict__ dout, const work* __restrict__ q,              \
                                              const float* __restrict__ lse, const float* __restrict__ delta,         \
                                              const u32* __restrict__ tiles, u32 heads, u32 kv_heads, u32 width,      \
                                              u32 window, float scale, float cap, work* __restrict__ k, work* __restrict__ v) {\
        DYNAMIC_SHARED(shared);                                                                                       \
        Tile tile = ((const Tile*)tiles)[blockIdx.x];                                                                 \
        Heads h = {heads, kv_heads, width, window, scale, cap};                                                       \
        key_tile<C, CAPPED>(dout, q, lse, delta, tile, h, k, v, shared);                                              \
    }

ATTENTION(64, 2, false)
ATTENTION(128, 4, false)
ATTENTION(256, 8, false)
ATTENTION(capped_256, 8, true)
#undef ATTENTION

// delta = dout . out of each token and head
KERNEL(128) attention_delta(const work* __restrict__ dout, const work* __restrict__ out, u32 rows, u32 width,
                            float* __restrict__ delta) {
    u32 row = blockIdx.x * 4 + threadIdx.x / 32;
    if (row >= rows) return;
    float sum = 0;
    for (u32 e = threadIdx.x & 31; e < width; e += 32) {
        u64 i = (u64)row * width + e;
        sum += to_float(dout[i]) * to_float(out[i]);
    }
    sum = warp_sum(sum);
    if ((threadIdx.x & 31) == 0) delta[row] = sum;
}
