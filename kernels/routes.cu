// routes: which token has which expert of a mixture, and with what weight, forward and backward; the load of a router and its loss
// p = softmax(logits), its k largest, of equals the first;  w = p / S, S the sum of those k or 1;  dp = (dw - sum w dw) / S, dz = p (dp - sum p dp), dp also from the loss c N sum f P
// probabilities [T, N] float, weights and dweights [R] float with R = k T, offsets [N + 1], tokens [R], of_tokens and experts [T, k] u32, tiles (expert, first route) u32, dlogits [T, N] work
// source: Fedus et al. 2021, arXiv:2101.03961; Jiang et al. 2024, arXiv:2401.04088
// CPU twin: src/backend/cpu/routes.rs
// launch: choose and backward a warp per token; count and place a block per piece of tokens; offsets one block; load as bias_backward; loss one block

// Whether probability p of expert e comes before q of expert f.
__device__ __forceinline__ bool before(float p, u32 e, float q, u32 f) { return p > q || (p == q && e < f); }

// logits become probabilities; chosen and shares [T, k]: the experts, most probable first, and their weights.
KERNEL(256) routes_choose(u32 rows, u32 experts, u32 each, u32 normalised, float* probabilities, u32* chosen, float* shares) {
    u32 token = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x & 31;
    if (token >= rows) return;
    float* p = probabilities + (u64)token * experts;
    float most = NEGATIVE_INFINITY, sum = 0;
    for (u32 e = lane; e < experts; e += 32) most = p[e] > most ? p[e] : most;
    most = warp_max(most);
    for (u32 e = lane; e < experts; e += 32) sum += expf(p[e] - most);
    float inverse = 1.0f / warp_sum(sum);
    for (u32 e = lane; e < experts; e += 32) p[e] = expf(p[e] - most) * inverse;
    u32* own = chosen + (u64)token * each;
    float of_last = __uint_as_float(0x7f800000u), total = 0;
    u32 last = 0;
    for (u32 j = 0; j < each; j++) {
        float best = NEGATIVE_INFINITY;
        u32 expert = experts;
        for (u32 e = lane; e < experts; e += 32)
            if (before(of_last, last, p[e], e) && before(p[e], e, best, expert)) best = p[e], expert = e;
#pragma unroll
        for (int o = 16; o > 0; o >>= 1) {
            float q = __shfl_xor_sync(ALL, best, o);
            u32 f = __shfl_xor_sync(ALL, expert, o);
            if (before(q, f, best, expert)) best = q, expert = f;
        }
        // Only where probabilities are no numbers is there no other.
        if (expert == experts) expert = j;
        of_last = best, last = expert, total += best;
        if (lane == 0) own[j] = expert;
    }
    __syncwarp();
    for (u32 j = lane; j < each; j += 32) shares[(u64)token * each + j] = p[own[j]] / (normalised ? total : 1.0f);
}

// starts[piece, e] = routes to expert e from the tokens piece * 64 .. of a piece
KERNEL(256) routes_count(const u32* __restrict__ chosen, u32 routes, u32 of_piece, u32 experts, u32* __restrict__ starts) {
    u32 first = blockIdx.x * of_piece, end = min(first + of_piece, routes);
    for (u32 e = threadIdx.x; e < experts; e += blockDim.x) {
        u32 count = 0;
        for (u32 i = first; i < end; i++) count += chosen[i] == e;
        starts[(u64)blockIdx.x * experts + e] = count;
    }
}

// From counts of pieces to the first route of each expert and piece; the tiles of 64 routes of one expert, then tiles of none.
KERNEL(256) routes_offsets(u32 pieces, u32 experts, u32 most_tiles, u32* starts, u32* offsets, u32* tiles) {
    for (u32 e = threadIdx.x; e < experts; e += blockDim.x) {
        u32 sum = 0;
        for (u32 piece = 0; piece < pieces; piece++) sum += starts[(u64)piece * experts + e];
        offsets[e + 1] = sum;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        offsets[0] = 0;
        for (u32 e = 0, end = 0; e < experts; e++) offsets[e + 1] = end += offsets[e + 1];
    }
    __syncthreads();
    for (u32 e = threadIdx.x; e <= experts; e += blockDim.x) {
        u32 tile = 0;
        for (u32 f = 0; f < e; f++) tile += (offsets[f + 1] - offsets[f] + 63) / 64;
        u32 route = offsets[e], next = e < experts ? tile + (offsets[e + 1] - route + 63) / 64 : most_tiles;
        for (; tile < next; tile++, route += 64) tiles[2 * tile] = e, tiles[2 * tile + 1] = route;
    }
    for (u32 e = threadIdx.x; e < experts; e += blockDim.x) {
        u32 start = offsets[e];
        for (u32 piece = 0; piece < pieces; piece++) {
            u32* at = starts + (u64)piece * experts + e;
            u32 count = *at;
            *at = start;
            start += count;
        }
    }
}

// The routes of a piece: by expert, then by token.
KERNEL(256) routes_place(const u32* __restrict__ chosen, const float* __restrict__ shares, const u32* __restrict__ starts,
                         u32 routes, u32 of_piece, u32 each, u32 experts, u32* __restrict__ tokens,
                         float* __restrict__ weights, u32* __restrict__ of_tokens, u32* __restrict__ of_experts) {
    u32 first = blockIdx.x * of_piece, end = min(first + of_piece, routes);
    for (u32 e = threadIdx.x; e < experts; e += blockDim.x) {
        u32 route = starts[(u64)blockIdx.x * experts + e];
        for (u32 i = first; i < end; i++) {
            if (chosen[i] != e) continue;
            u32 token = i / each, place = token * each;
            for (u32 j = token * each; j < (token + 1) * each; j++) place += chosen[j] < e;
            tokens[route] = token;
            weights[route] = shares[i];
            of_tokens[place] = route;
            of_experts[place] = e;
            route++;
        }
    }
}

// From the gradients of the weights of routes to those of the logits; of_probabilities [N] may be null.
KERNEL(256) routes_backward(const float* __restrict__ probabilities, const float* __restrict__ weights,
                            const float* __restrict__ dweights, const u32* __restrict__ of_tokens,
                            const u32* __restrict__ of_experts, const float* __restrict__ of_probabilities, u32 rows,
                            u32 experts, u32 each, u32 normalised, work* __restrict__ dlogits) {
    u32 token = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x & 31;
    if (token >= rows) return;
    const float* p = probabilities + (u64)token * experts;
    const u32 *own = of_tokens + (u64)token * each, *of = of_experts + (u64)token * each;
    float mean = 0, sum = 1, along = 0;
    if (normalised) {
        sum = 0;
        for (u32 j = lane; j < each; j += 32) mean += weights[own[j]] * dweights[own[j]], sum += p[of[j]];
        mean = warp_sum(mean);
        sum = warp_sum(sum);
    }
    for (u32 j = lane; j < each; j += 32) along += p[of[j]] * (dweights[own[j]] - mean) / sum;
    if (of_probabilities)
        for (u32 e = lane; e < experts; e += 32) along += p[e] * of_probabilities[e];
    along = warp_sum(along);
    for (u32 e = lane; e < experts; e += 32) {
        float dp = of_probabilities ? of_probabilities[e] : 0.0f;
        for (u32 j = 0; j < each; j++)
            if (of[j] == e) dp += (dweights[own[j]] - mean) / sum;
        put(&dlogits[(u64)token * experts + e], p[e] * (dp - along));
    }
}

// partials[piece] = sum over rows piece * each .. of the probabilities
KERNEL(256) routes_load(const float* __restrict__ probabilities, u32 rows, u32 cols, u32 each, float* __restrict__ partials) {
    u32 c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= cols) return;
    u32 first = blockIdx.y * each, last = first + each < rows ? first + each : rows;
    float sum = 0;
    for (u32 t = first; t < last; t++) sum += probabilities[(u64)t * cols + c];
    partials[(u64)blockIdx.y * cols + c] = sum;
}

// counts += routes of each expert
KERNEL(256) routes_add_counts(const u32* __restrict__ offsets, u32 experts, float* __restrict__ counts) {
    u32 e = blockIdx.x * blockDim.x + threadIdx.x;
    if (e < experts) counts[e] += (float)(offsets[e + 1] - offsets[e]);
}

// loss += factor N sum f P, of_probabilities = factor N f / tokens; f = counts / tokens, P = sums / tokens
KERNEL(256) routes_loss(const float* __restrict__ counts, const float* __restrict__ sums, u32 experts, float tokens,
                        float factor, float* __restrict__ of_probabilities, float* __restrict__ loss) {
    float sum = 0, scale = factor * (float)experts / tokens;
    for (u32 e = threadIdx.x; e < experts; e += blockDim.x) {
        float share = counts[e] / tokens;
        of_probabilities[e] = scale * share;
        sum += share * sums[e];
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) *loss += scale * sum;
}
