// philox: Philox4x32-10, Salmon et al. 2011. CPU twin: src/plan/philox.rs

struct Words {
    u32 v[4];
};

// The words of a block; `last` is the last word of the counter.
__device__ __forceinline__ Words philox(u64 block, u32 domain, u32 key0, u32 key1, u32 last = 0) {
    Words c = {{(u32)block, (u32)(block >> 32), domain, last}};
#pragma unroll
    for (int round = 0; round < 10; round++) {
        u64 low = (u64)0xD2511F53u * c.v[0], high = (u64)0xCD9E8D57u * c.v[2];
        c = {{(u32)(high >> 32) ^ c.v[1] ^ key0, (u32)high, (u32)(low >> 32) ^ c.v[3] ^ key1, (u32)low}};
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    return c;
}

__device__ __forceinline__ u32 word_of(const Words& words, u32 which) {
    return which == 0 ? words.v[0] : which == 1 ? words.v[1] : which == 2 ? words.v[2] : words.v[3];
}
