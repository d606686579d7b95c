// float8: activations and gradients as eight-bit floats with one scale, for products with frozen matrices
// scale = max |x| / largest, code = nearest(x / scale), ties to even;  largest: 448 of e4m3, 57344 of e5m2
// x [n] work, partials [blocks] float, codes [n], scales [2] float: that of the codes, and 1; n is a multiple of 16
// source: Micikevicius et al. 2022, arXiv:2209.05433; torch.float8_e4m3fn, torch.float8_e5m2
// CPU twin: src/backend/float8.rs, src/backend/cpu/float8.rs
// launch: at most 1024 blocks, each over pieces of 4096 elements; transpose (columns / 64, rows / 64)

typedef unsigned char u8;

// The code of a type of MANTISSA bits of mantissa and an exponent of this BIAS. NaN stays NaN; what lies beyond the
// largest number, of code LARGEST, becomes it. Integers and one sum, so that every generation compiles it.
template <int MANTISSA, int BIAS, u32 LARGEST>
__device__ __forceinline__ u8 float8_of(float x) {
    const int CUT = 23 - MANTISSA;
    u32 bits = __float_as_uint(x), sign = bits >> 24 & 0x80u, magnitude = bits & 0x7fffffffu, code;
    if (magnitude > 0x7f800000u) {
        code = 0x7fu;
    } else if (magnitude < (u32)(128 - BIAS) << 23) {
        // Numbers of this exponent are as far apart as subnormal numbers of the type.
        const u32 unit = (u32)(128 - BIAS + CUT) << 23;
        code = __float_as_uint(__fadd_rn(__uint_as_float(magnitude), __uint_as_float(unit))) - unit;
    } else {
        u32 rounded = (magnitude + (1u << (CUT - 1)) - 1u + (magnitude >> CUT & 1u)) >> CUT;
        code = min(rounded - ((u32)(127 - BIAS) << MANTISSA), LARGEST);
    }
    return (u8)(sign | code);
}

// partials[b] = max |x| over the pieces of block b; a NaN is passed over
KERNEL(256) float8_largest(const work* __restrict__ x, u64 n, float* __restrict__ partials) {
    typedef Pack<work> P;
    float most = 0;
    for (u64 piece = (u64)blockIdx.x * 4096; piece < n; piece += (u64)gridDim.x * 4096) {
#pragma unroll
        for (u32 at = 0; at < 4096; at += 256 * P::N) {
            u64 i = piece + at + threadIdx.x * P::N;
            if (i >= n) continue;
            P a = *(const P*)(x + i);
#pragma unroll
            for (int l = 0; l < P::N; l++) {
                float y = __uint_as_float(__float_as_uint(to_float(a.v[l])) & 0x7fffffffu);
                most = y > most ? y : most;
            }
        }
    }
    most = block_max(most);
    if (threadIdx.x == 0) partials[blockIdx.x] = most;
}

// The codes of x, and the scale that the partial maxima give, which every block computes for itself.
template <int MANTISSA, int BIAS, u32 LARGEST>
__device__ __forceinline__ void float8_cast(const work* __restrict__ x, u64 n, const float* __restrict__ partials,
                                            u32 count, float largest, u8* __restrict__ codes, float* __restrict__ scales) {
    float most = 0;
    for (u32 p = threadIdx.x; p < count; p += 256) most = partials[p] > most ? partials[p] : most;
    most = block_max(most) / largest;
    // The least normal number, so that the inverse is finite.
    const float least = __uint_as_float(0x00800000u);
    float scale = most > least ? most : least, inverse = 1.0f / scale;
    if (blockIdx.x == 0 && threadIdx.x == 0) {
        scales[0] = scale;
        scales[1] = 1.0f;
    }
    typedef Pack<work> P;
    for (u64 piece = (u64)blockIdx.x * 4096; piece < n; piece += (u64)gridDim.x * 4096) {
        u64 i = piece + threadIdx.x * 16;
        if (i >= n) continue;
        Pack<u8> out;
#pragma unroll
        for (int at = 0; at < 16; at += P::N) {
            P a = *(const P*)(x + i + at);
#pragma unroll
            for (int l = 0; l < P::N; l++) {
                out.v[at + l] = float8_of<MANTISSA, BIAS, LARGEST>(__fmul_rn(to_float(a.v[l]), inverse));
            }
        }
        *(Pack<u8>*)(codes + i) = out;
    }
}

KERNEL(256) float8_cast_e4m3(const work* __restrict__ x, u64 n, const float* __restrict__ partials, u32 count,
                             unsigned char* __restrict__ codes, float* __restrict__ scales) {
    float8_cast<3, 7, 0x7eu>(x, n, partials, count, 448.0f, codes, scales);
}

KERNEL(256) float8_cast_e5m2(const work* __restrict__ x, u64 n, const float* __restrict__ partials, u32 count,
                             unsigned char* __restrict__ codes, float* __restrict__ scales) {
    float8_cast<2, 15, 0x7bu>(x, n, partials, count, 57344.0f, codes, scales);
}

// out[c][r] = codes[r][c]; rows and cols are multiples of 4
KERNEL(256) float8_transpose(const unsigned char* __restrict__ codes, u32 rows, u32 cols,
                             unsigned char* __restrict__ out) {
    __shared__ u8 tile[64][68];
    u32 first_row = blockIdx.y * 64, first_col = blockIdx.x * 64, four = threadIdx.x % 16 * 4;
    for (u32 line = threadIdx.x / 16; line < 64; line += 16) {
        u32 r = first_row + line, c = first_col + four;
        if (r < rows && c < cols) *(u32*)&tile[line][four] = *(const u32*)(codes + (u64)r * cols + c);
    }
    __syncthreads();
    for (u32 line = threadIdx.x / 16; line < 64; line += 16) {
        u32 c = first_col + line, r = first_row + four;
        if (c >= cols || r >= rows) continue;
        u32 packed = tile[four][line] | (u32)tile[four + 1][line] << 8 | (u32)tile[four + 2][line] << 16 |
                     (u32)tile[four + 3][line] << 24;
        *(u32*)(out + (u64)c * rows + r) = packed;
    }
}
