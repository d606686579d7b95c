// A mock of cuBLASLt: column-major products in f64, of float, bfloat16 and eight-bit floats,
// D = alpha scale(A) scale(B) op(A) op(B) + beta C.
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <initializer_list>
#include <new>
#include <string>

#define API extern "C" __attribute__((visibility("default"))) int
enum { INVALID_VALUE = 7, NOT_SUPPORTED = 15 };
enum { F32 = 0, BF16 = 14, E4M3 = 28, E5M2 = 29 };  // cudaDataType
struct Desc { int32_t op_a = 0, op_b = 0; const float *scale_a = nullptr, *scale_b = nullptr; };
struct Layout { int type; uint64_t rows, cols; int64_t ld; };

// The value of an eight-bit float, from its definition.
static double small(unsigned code, int mantissa_bits, int bias, bool infinite) {
    int mantissa = code & ((1 << mantissa_bits) - 1), exponent = (code & 0x7f) >> mantissa_bits;
    double sign = code & 0x80 ? -1 : 1;
    if (infinite && exponent == 0x7f >> mantissa_bits) return mantissa ? NAN : sign * INFINITY;
    if (!infinite && (code & 0x7f) == 0x7f) return NAN;
    if (exponent == 0) return sign * ldexp(mantissa, 1 - bias - mantissa_bits);
    return sign * ldexp((1 << mantissa_bits) + mantissa, exponent - bias - mantissa_bits);
}
static double load(const void* p, int type, size_t i) {
    if (type == F32) return ((const float*)p)[i];
    if (type == E4M3) return small(((const uint8_t*)p)[i], 3, 7, false);
    if (type == E5M2) return small(((const uint8_t*)p)[i], 2, 15, true);
    uint32_t bits = (uint32_t)((const uint16_t*)p)[i] << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}
static void store(void* p, int type, size_t i, double x) {
    float f = (float)x;
    if (type == F32) { ((float*)p)[i] = f; return; }
    uint32_t bits;
    memcpy(&bits, &f, 4);
    bool nan = (bits & 0x7fffffff) > 0x7f800000;
    ((uint16_t*)p)[i] = nan ? 0x7fc0 : (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

extern "C" __attribute__((visibility("default"))) size_t cublasLtGetVersion() { return 130000; }
API cublasLtCreate(void** h) { *h = malloc(1); return 0; }
API cublasLtDestroy(void* h) { free(h); return 0; }
API cublasLtMatmulDescCreate(void** d, int compute, int scale) {
    if (compute != 68 || scale != F32) return NOT_SUPPORTED;  // CUBLAS_COMPUTE_32F
    *d = new Desc;
    return 0;
}
API cublasLtMatmulDescDestroy(void* d) { delete (Desc*)d; return 0; }
API cublasLtMatmulDescSetAttribute(void* d, int attribute, const void* value, size_t size) {
    auto* desc = (Desc*)d;
    if (size == 8 && (attribute == 17 || attribute == 18)) {  // A_SCALE_POINTER, B_SCALE_POINTER
        memcpy(attribute == 17 ? &desc->scale_a : &desc->scale_b, value, 8);
        return 0;
    }
    if (size != 4 || (attribute != 3 && attribute != 4)) return INVALID_VALUE;  // TRANSA, TRANSB
    memcpy(attribute == 3 ? &desc->op_a : &desc->op_b, value, 4);
    return 0;
}
API cublasLtMatrixLayoutCreate(void** l, int type, uint64_t rows, uint64_t cols, int64_t ld) {
    if (type != F32 && type != BF16 && type != E4M3 && type != E5M2) return NOT_SUPPORTED;
    *l = new Layout{type, rows, cols, ld};
    return 0;
}
API cublasLtMatrixLayoutDestroy(void* l) { delete (Layout*)l; return 0; }
API cublasLtMatmulPreferenceCreate(void** p) { *p = malloc(1); return 0; }
API cublasLtMatmulPreferenceDestroy(void* p) { free(p); return 0; }
API cublasLtMatmulPreferenceSetAttribute(void*, int, const void*, size_t) { return 0; }

struct Heuristic { uint64_t algo[8]; size_t workspace; int state; float waves; int reserved[4]; };
API cublasLtMatmulAlgoGetHeuristic(void*, void*, void*, void*, void*, void*, void*, int, Heuristic* out, int* n) {
    memset(out, 0, sizeof *out);
    out->algo[0] = 42;
    *n = 1;
    return 0;
}
struct Product {
    float alpha, beta;
    const void *a, *b, *c;
    void* d;
    Layout x, y, z, w;
    Desc op;
    uint64_t m, n, k;
};
static bool eight_bits(int type) { return type == E4M3 || type == E5M2; }
// What products of eight-bit floats take on Hopper: transposed A, plain B, not twice e5m2, lines of 16 bytes.
static bool takes_eight_bits(const Product& p) {
    auto line = [](const Layout& l, const void* at) {
        size_t width = eight_bits(l.type) ? 1 : l.type == BF16 ? 2 : 4;
        return (size_t)at % 16 == 0 && l.rows * width % 16 == 0 && l.ld * width % 16 == 0;
    };
    bool types = eight_bits(p.x.type) && eight_bits(p.y.type) && !(p.x.type == E5M2 && p.y.type == E5M2);
    bool scaled = p.op.scale_a && p.op.scale_b && (size_t)p.op.scale_a % 4 == 0 && (size_t)p.op.scale_b % 4 == 0;
    return types && scaled && p.op.op_a && !p.op.op_b && line(p.x, p.a) && line(p.y, p.b) && line(p.z, p.c) && line(p.w, p.d);
}
static void multiply(void* data) {
    auto& p = *(Product*)data;
    double alpha = p.alpha;
    if (eight_bits(p.x.type)) alpha *= (double)*p.op.scale_a * *p.op.scale_b;
    for (uint64_t j = 0; j < p.n; j++)
        for (uint64_t i = 0; i < p.m; i++) {
            double sum = 0;
            for (uint64_t l = 0; l < p.k; l++)
                sum += load(p.a, p.x.type, p.op.op_a ? i * p.x.ld + l : l * p.x.ld + i) *
                       load(p.b, p.y.type, p.op.op_b ? l * p.y.ld + j : j * p.y.ld + l);
            double old = p.beta == 0 ? 0 : p.beta * load(p.c, p.z.type, j * p.z.ld + i);
            store(p.d, p.w.type, j * p.w.ld + i, alpha * sum + old);
        }
}
API cublasLtMatmul(void*, void* desc, const float* alpha, const void* a, void* la, const void* b, void* lb,
                   const float* beta, const void* c, void* lc, void* d, void* ld, const uint64_t* algo, void*, size_t,
                   void*) {
    auto *x = (Layout*)la, *y = (Layout*)lb, *z = (Layout*)lc, *w = (Layout*)ld;
    auto* op = (Desc*)desc;
    if (!algo || algo[0] != 42) return INVALID_VALUE;
    uint64_t m = op->op_a ? x->cols : x->rows, k = op->op_a ? x->rows : x->cols;
    uint64_t n = op->op_b ? y->rows : y->cols, k2 = op->op_b ? y->cols : y->rows;
    if (k != k2 || w->rows != m || w->cols != n || z->rows != m || z->cols != n) return INVALID_VALUE;
    if (x->type != y->type && !(eight_bits(x->type) && eight_bits(y->type))) return INVALID_VALUE;
    if (eight_bits(z->type) || eight_bits(w->type) || z->type != w->type) return NOT_SUPPORTED;
    for (auto* l : {x, y, z, w}) if (l->ld < (int64_t)l->rows) return INVALID_VALUE;
    Product product{*alpha, *beta, a, b, c, d, *x, *y, *z, *w, *op, m, n, k};
    if (eight_bits(x->type) && !takes_eight_bits(product)) return NOT_SUPPORTED;
    // Goes to the stream of the mock driver, which lies beside this file.
    static auto enqueue = [] {
        Dl_info self;
        dladdr((void*)&cublasLtCreate, &self);
        std::string dir = self.dli_fname;
        void* driver = dlopen((dir.substr(0, dir.rfind('/') + 1) + "libcuda.so").c_str(), RTLD_NOW | RTLD_NOLOAD);
        return driver ? (void (*)(void (*)(void*), void*))dlsym(driver, "mock_enqueue") : nullptr;
    }();
    if (!enqueue) return NOT_SUPPORTED;
    enqueue(multiply, new (malloc(sizeof(Product))) Product(product));
    return 0;
}
