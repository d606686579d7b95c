// Types and reductions of all kernels. The source compiles with NVRTC, which has no headers, and with g++ through
// tests/mock_cuda/shim.h, which defines HOST_SHIM.
//
// `work` is the type of weights and activations: float, or bfloat16 with COMPUTE_BF16. Sums, statistics,
// moments, master weights and gradients of weights are float. Nothing is summed in an order that depends on
// timing: no atomics.
#ifndef HOST_SHIM
#define KERNEL(threads) extern "C" __global__ void __launch_bounds__(threads)
#define DYNAMIC_SHARED(name) extern __shared__ __align__(16) float name[]
#endif

typedef unsigned int u32;
typedef unsigned long long u64;

struct bf16 {
    unsigned short bits;
};

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bf16 x) { return __uint_as_float((u32)x.bits << 16); }

// One rounding, to nearest even; NaN stays a quiet NaN.
__device__ __forceinline__ void put(float* to, float x) { *to = x; }
__device__ __forceinline__ void put(bf16* to, float x) {
    u32 bits = __float_as_uint(x);
    bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
    u32 rounded = nan ? bits >> 16 | 0x40u : (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
    to->bits = (unsigned short)rounded;
}

#ifdef COMPUTE_BF16
typedef bf16 work;
#else
typedef float work;
#endif

// 16 bytes, moved at once.
template <class T>
struct alignas(16) Pack {
    static const int N = 16 / sizeof(T);
    T v[16 / sizeof(T)];
};

const u32 ALL = 0xffffffffu;
#define NEGATIVE_INFINITY __uint_as_float(0xff800000u)

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int o = 16; o > 0; o >>= 1) x += __shfl_xor_sync(ALL, x, o);
    return x;
}

__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (int o = 16; o > 0; o >>= 1) {
        float y = __shfl_xor_sync(ALL, x, o);
        x = y > x ? y : x;
    }
    return x;
}

// Sum over the block, in one order, for every thread. The block is of whole warps.
__device__ __forceinline__ float block_sum(float x) {
    __shared__ float part[32];
    x = warp_sum(x);
    if ((threadIdx.x & 31) == 0) part[threadIdx.x >> 5] = x;
    __syncthreads();
    float total = 0;
    for (u32 w = 0; w < blockDim.x >> 5; w++) total += part[w];
    __syncthreads();
    return total;
}

// As block_sum.
__device__ __forceinline__ float block_max(float x) {
    __shared__ float part[32];
    x = warp_max(x);
    if ((threadIdx.x & 31) == 0) part[threadIdx.x >> 5] = x;
    __syncthreads();
    float most = part[0];
    for (u32 w = 1; w < blockDim.x >> 5; w++) most = part[w] > most ? part[w] : most;
    __syncthreads();
    return most;
}

// As block_sum.
__device__ __forceinline__ double block_sum(double x) {
    __shared__ double part[32];
#pragma unroll
    for (int o = 16; o > 0; o >>= 1) x += __shfl_xor_sync(ALL, x, o);
    if ((threadIdx.x & 31) == 0) part[threadIdx.x >> 5] = x;
    __syncthreads();
    double total = 0;
    for (u32 w = 0; w < blockDim.x >> 5; w++) total += part[w];
    __syncthreads();
    return total;
}
