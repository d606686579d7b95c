// Tensor cores: products of 16 x 16 by 16 x 8 elements of bf16 by a warp, and the loads of their operands.
//
// tests/mock_cuda/mma.h implements the same in C++. Of a fragment, with g = lane / 4 and t = lane % 4, a lane holds pairs:
// a  [16, 16]  rows g and g + 8 at columns 2 t, then both at columns 2 t + 8
// b  [16, 8]   rows 2 t, then 2 t + 8, of column g
// c  [16, 8]   row g at columns 2 t and 2 t + 1, then row g + 8
// source: PTX ISA 9.0, mma.m16n8k16 and ldmatrix
#ifndef HOST_SHIM

// c += a b
__device__ __forceinline__ void mma(float c[4], const u32 a[4], u32 b0, u32 b1) {
    asm(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Four matrices of 8 x 8: lane l says where row l % 8 of matrix l / 8 begins, and gets of each matrix the pair at
// row l / 4, columns 2 (l % 4) and the next.
__device__ __forceinline__ void load_matrices(u32 x[4], const bf16* row) {
    u32 at = (u32)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(at)
                 : "memory");
}

// As load_matrices, each matrix transposed.
__device__ __forceinline__ void load_transposed(u32 x[4], const bf16* row) {
    u32 at = (u32)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(at)
                 : "memory");
}

// Two numbers as bf16, `low` first in memory.
__device__ __forceinline__ u32 pair(float low, float high) {
    u32 x;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(x) : "f"(high), "f"(low));
    return x;
}

// Begins to copy 16 bytes to shared memory, or zeros.
__device__ __forceinline__ void copy_async(void* to, const void* from, bool zeros) {
    u32 at = (u32)__cvta_generic_to_shared(to), bytes = zeros ? 0 : 16;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(from), "r"(bytes) : "memory");
}

// Ends a group of copies of this thread.
__device__ __forceinline__ void end_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits for the copies of this thread, except those of the last N groups.
template <int N>
__device__ __forceinline__ void wait_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

#endif
