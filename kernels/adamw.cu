// adamw: one step over all trainable tensors
// m = b1 m + (1 - b1) g, v = b2 v + (1 - b2) g^2, w = decay w - step m / (sqrt(v) root + eps), g = grad * clip
// table of tensors; grad, m, v float; values as in updates.cuh; mask one bit per element (1 = trainable) or null
// source: Loshchilov and Hutter 2019, arXiv:1711.05101; constants as torch.optim.AdamW
// CPU twin: src/backend/cpu/adamw.rs
// launch: one block per piece of PIECE elements over all tensors

KERNEL(256) adamw(const Updated* __restrict__ tensors, u32 count, float beta1, float one_minus_beta1, float beta2,
                  float one_minus_beta2, float step_size, float root, float eps, float grad_scale, u32 step) {
    const Updated* t = tensor_of_block(tensors, count);
    float *exp_avg = (float*)t->state[0], *exp_avg_sq = (float*)t->state[1];
    u64 first = (blockIdx.x - t->first_piece) * PIECE;
    u64 last = first + PIECE < t->len ? first + PIECE : t->len;
    for (u64 at = first + 4 * threadIdx.x; at < last; at += 4 * blockDim.x) {
        u32 bits = t->mask ? t->mask[at / 32] >> (at % 32) & 15 : 15;
        bool whole = at + 4 <= last;
        Pack<float> w, g, m, v;
        if (whole) {
            g = *(const Pack<float>*)(t->grad + at);
            m = *(const Pack<float>*)(exp_avg + at);
            v = *(const Pack<float>*)(exp_avg_sq + at);
        } else {
#pragma unroll
            for (u32 l = 0; l < 4; l++) {
                bool in = at + l < last;
                g.v[l] = in ? t->grad[at + l] : 0;
                m.v[l] = in ? exp_avg[at + l] : 0;
                v.v[l] = in ? exp_avg_sq[at + l] : 0;
            }
        }
        if (whole && t->master) {
            w = *(const Pack<float>*)(t->master + at);
        } else {
#pragma unroll
            for (u32 l = 0; l < 4; l++) w.v[l] = at + l < last ? value_of(t, at + l) : 0;
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
            *(Pack<float>*)(exp_avg + at) = m;
            *(Pack<float>*)(exp_avg_sq + at) = v;
        }
        if (whole && t->master) *(Pack<float>*)(t->master + at) = w;
#pragma unroll
        for (u32 l = 0; l < 4; l++) {
            if (at + l >= last) continue;
            if (!whole) {
                exp_avg[at + l] = m.v[l];
                exp_avg_sq[at + l] = v.v[l];
            }
            if (!whole || !t->master) set_value(t, at + l, w.v[l], step);
            else if (t->copy) put(&t->copy[at + l], w.v[l]);
        }
    }
}
