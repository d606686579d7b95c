// Kernels with faults planted, run under all three schedules: what the shim must catch. Prints one line for each
// kernel: its name, then for each schedule the result, or "stopped".
#include "shim.h"

// Sums over the block; a missing barrier lets a thread read what others have not written yet.
template <bool BARRIER>
static void block_total(const float* x, float* out) {
    __shared__ float part[64];
    part[threadIdx.x] = x[threadIdx.x];
    if (BARRIER) __syncthreads();
    float total = 0;
    for (unsigned i = 0; i < blockDim.x; i++) total += part[i];
    out[threadIdx.x] = total;
    __syncthreads();
    part[threadIdx.x] = -1000;
}
KERNEL(64) sound(const float* x, float* out) { block_total<true>(x, out); }
KERNEL(64) missing_barrier(const float* x, float* out) { block_total<false>(x, out); }

// Half of the block never reaches the barrier.
KERNEL(64) barrier_in_a_branch(const float* x, float* out) {
    if (threadIdx.x < 32) __syncthreads();
    out[threadIdx.x] = x[threadIdx.x];
}
// Each half waits at a barrier of its own.
KERNEL(64) two_barriers(const float* x, float* out) {
    if (threadIdx.x < 32) {
        __syncthreads();
    } else {
        __syncthreads();
    }
    out[threadIdx.x] = x[threadIdx.x];
}
// Reads a lane that takes no part.
KERNEL(64) shuffle_outside_the_mask(const float* x, float* out) {
    out[threadIdx.x] = x[threadIdx.x];
    if ((threadIdx.x & 31) < 16) out[threadIdx.x] = __shfl_sync(0xffffu, x[threadIdx.x], 20);
}

// A copy to shared memory that is read before anybody has waited for it.
template <bool WAIT>
static void through_shared(const float* x, float* out) {
    alignas(16) __shared__ float part[64];
    part[threadIdx.x] = -1;
    __syncthreads();
    if (threadIdx.x < 16) copy_async(part + 4 * threadIdx.x, x + 4 * threadIdx.x, false);
    end_copies();
    if (WAIT) wait_copies<0>();
    __syncthreads();
    out[threadIdx.x] = part[threadIdx.x];
}
KERNEL(64) copy_waited_for(const float* x, float* out) { through_shared<true>(x, out); }
KERNEL(64) copy_not_waited_for(const float* x, float* out) { through_shared<false>(x, out); }

// Half of a warp takes part in a product of the warp.
KERNEL(64) half_a_warp(const float* x, float* out) {
    float c[4] = {};
    unsigned a[4] = {};
    if ((threadIdx.x & 31) < 16) mma(c, a, 0, 0);
    else __syncthreads();
    out[threadIdx.x] = x[threadIdx.x] + c[0];
}

template <class Kernel>
static void show(const char* name, Kernel kernel) {
    printf("%s", name);
    for (int schedule = 0; schedule < 3; schedule++) {
        alignas(16) float in[64], out[64];
        for (int i = 0; i < 64; i++) in[i] = (float)i;
        const float* x = in;
        float* y = out;
        void* args[] = {&x, &y};
        unsigned grid[3] = {1, 1, 1}, block[3] = {64, 1, 1};
        if (shim::launch(kernel, grid, block, 0, args, schedule)) {
            printf(" stopped");
            continue;
        }
        double sum = 0;
        for (float value : out) sum += value;
        printf(" %g", sum);
    }
    printf("\n");
}

int main() {
    show("sound", sound);
    show("missing_barrier", missing_barrier);
    show("barrier_in_a_branch", barrier_in_a_branch);
    show("two_barriers", two_barriers);
    show("shuffle_outside_the_mask", shuffle_outside_the_mask);
    show("copy_waited_for", copy_waited_for);
    show("copy_not_waited_for", copy_not_waited_for);
    show("half_a_warp", half_a_warp);
}
