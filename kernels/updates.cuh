// What the steps of all optimizers share: the table of tensors, masks, and where values are kept.

const u32 PIECE = 16384;

// A tensor of the table; its blocks start at first_piece. Values are in `master`, with a copy in the type of weights
// where that is another one, or without a master in `copy` alone, which is then bfloat16 and rounded stochastically.
struct Updated {
    float* master;
    work* copy;
    const float* grad;
    void* state[4];
    const u32* mask;
    u64 len;
    u64 first_piece;
    u32 key0, key1;
    // 1 - lr * weight_decay; of sgd, the weight decay.
    float decay;
    u32 padding;
};

// The last tensor whose first piece is not after this block.
template <class Tensor>
__device__ __forceinline__ const Tensor* tensor_of_block(const Tensor* tensors, u32 count) {
    u32 low = 0, high = count;
    while (high - low > 1) {
        u32 middle = (low + high) / 2;
        if (tensors[middle].first_piece <= blockIdx.x) low = middle;
        else high = middle;
    }
    return tensors + low;
}

__device__ __forceinline__ bool is_trainable(const u32* mask, u64 i) { return !mask || mask[i / 32] >> (i % 32) & 1; }

__device__ __forceinline__ float value_of(const Updated* t, u64 i) {
    return t->master ? t->master[i] : to_float(t->copy[i]);
}

// The draw of 16 bits of element i. CPU twin: src/optimizer/rounding.rs
__device__ __forceinline__ u32 rounding_draw(u64 i, u32 step, u32 key0, u32 key1) {
    const u32 DOMAIN = 8;
    Words words = philox(i / 128 * 16 + i % 16, DOMAIN, key0, key1, step);
    u32 half = (u32)(i % 128) / 16, word = word_of(words, half / 2);
    return half % 2 ? word >> 16 : word & 0xffffu;
}

// Adds a draw below 2^16 to the bits that bfloat16 cuts off. NaN becomes a quiet NaN.
__device__ __forceinline__ void put_rounded(bf16* to, float x, u32 draw) {
    u32 bits = __float_as_uint(x);
    bool special = (bits & 0x7f800000u) == 0x7f800000u;
    u32 quiet = bits & 0x007fffffu ? 0x40u : 0;
    to->bits = (unsigned short)(special ? bits >> 16 | quiet : (bits + draw) >> 16);
}
// In float there is always a master.
__device__ __forceinline__ void put_rounded(float*, float, u32) {}

__device__ __forceinline__ void set_value(const Updated* t, u64 i, float x, u32 step) {
    if (t->master) {
        t->master[i] = x;
        if (t->copy) put(&t->copy[i], x);
    } else {
        put_rounded(&t->copy[i], x, rounding_draw(i, step, t->key0, t->key1));
    }
}
