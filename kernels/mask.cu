// mask: element masks of Bernoulli draws by the Philox generator, and the merge by a mask
// bit i = (word(i / each) < threshold) != flip;  out = M ? base + scale (tuned - base) : base
// bits one per element, least significant first; base, tuned, out [n] work
// source: Philox4x32-10, Salmon et al. 2011; task arithmetic, Ilharco et al. 2022, arXiv:2212.04089
// CPU twin: src/plan/philox.rs, src/plan/mask.rs
// launch: one thread per 32 elements; merge one thread per element

// Word j of the domain decides on elements j * each .. (j + 1) * each
KERNEL(256) bernoulli_mask(u32 key0, u32 key1, u32 domain, u64 threshold, u32 flip, u64 each, u64 n,
                           u32* __restrict__ bits) {
    u64 first = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * 32;
    if (first >= n) return;
    u64 block = ~(u64)0;
    Words words = {{0, 0, 0, 0}};
    u32 out = 0;
    for (u32 l = 0; l < 32 && first + l < n; l++) {
        u64 index = each == 1 ? first + l : (first + l) / each;
        if (index / 4 != block) {
            block = index / 4;
            words = philox(block, domain, key0, key1);
        }
        u32 word = word_of(words, index % 4);
        out |= (u32)((word < threshold) != (flip != 0)) << l;
    }
    bits[first / 32] = out;
}

// A kept element is a copy: with scale 1 the merged ones are those of `tuned`.
KERNEL(256) masked_merge(const work* __restrict__ base, const work* __restrict__ tuned, const u32* __restrict__ bits,
                         float scale, u64 n, work* __restrict__ out) {
    u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    work value = base[i];
    if (bits[i / 32] >> (i % 32) & 1) {
        float b = to_float(base[i]), t = to_float(tuned[i]);
        if (scale == 1.0f) value = tuned[i];
        else put(&value, __fadd_rn(b, __fmul_rn(scale, __fsub_rn(t, b))));
    }
    out[i] = value;
}
