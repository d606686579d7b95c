// Runs CUDA kernels as C++ on the CPU: a fiber for each thread of a block, blocks one after another.
//
// A fiber runs until it meets a barrier or ends. The order in which fibers run is the schedule:
// 0 forward, 1 reverse, 2 random. Reported are: a barrier that some threads never reach, threads that wait
// at different barriers, a shuffle from a lane outside its mask. Races show as results that differ between
// schedules. Not modelled: warps in lock step, memory order, speed.
#pragma once
#define HOST_SHIM
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <sys/mman.h>
#include <type_traits>
#include <utility>
#include <vector>
#ifndef __x86_64__
#include <ucontext.h>
#endif

#define __global__
#define __device__ static
#define __forceinline__ inline
#define __shared__ static
#define KERNEL(threads) extern "C" void
#define DYNAMIC_SHARED(name) float* name = (float*)shim::dynamic_shared

struct uint3 { unsigned x, y, z; };

namespace shim {
struct Copy {
    void* to;
    const void* from;
    bool zeros;
};
enum State { READY, AT_BLOCK_BARRIER, AT_WARP_BARRIER, DONE };
struct Fiber {
#ifdef __x86_64__
    void* stack;
#else
    ucontext_t context;
#endif
    State state;
    uint3 thread;
    unsigned lane, warp, mask, site;
    uint64_t slot;
    unsigned registers[6];
    // Groups of copies that were begun; the last is open.
    std::deque<std::vector<Copy>> copies;
};
constexpr size_t STACK = 64 * 1024;
inline std::vector<Fiber> fibers;
inline Fiber* current;
inline char *stacks, *dynamic_shared;
inline size_t stacks_made;
inline const char* fault;
inline void (*body)(void*);
inline void* body_argument;
inline uint3 block_index, block_size, grid_size;

#ifdef __x86_64__
// Saves the callee-saved registers and the stack of one fiber, restores those of another.
extern "C" void shim_switch(void** save, void* load);
asm(R"(.text
.weak shim_switch
shim_switch:
  pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
  movq %rsp,(%rdi); movq %rsi,%rsp
  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
  ret
)");
inline void* scheduler;
inline void leave() { shim_switch(&current->stack, scheduler); }
inline void enter(Fiber& f) { shim_switch(&scheduler, f.stack); }
#else
inline ucontext_t scheduler;
inline void leave() { swapcontext(&current->context, &scheduler); }
inline void enter(Fiber& f) { swapcontext(&scheduler, &f.context); }
#endif

inline void entry() {
    body(body_argument);
    current->state = DONE;
    leave();
    abort();
}

inline void prepare(Fiber& f, char* bottom) {
    f.state = READY;
    f.copies.assign(1, {});
#ifdef __x86_64__
    void** top = (void**)((uintptr_t)(bottom + STACK) & ~uintptr_t(15));
    *--top = nullptr;
    *--top = (void*)entry;
    for (int i = 0; i < 6; i++) *--top = nullptr;
    f.stack = top;
#else
    getcontext(&f.context);
    f.context.uc_stack = {};
    f.context.uc_stack.ss_sp = bottom;
    f.context.uc_stack.ss_size = STACK;
    makecontext(&f.context, entry, 0);
#endif
}

inline void block_barrier(unsigned site) {
    current->state = AT_BLOCK_BARRIER;
    current->site = site;
    leave();
}
inline void warp_barrier(unsigned mask) {
    current->state = AT_WARP_BARRIER;
    current->mask = mask;
    leave();
}

template <class T>
T exchange(unsigned mask, T value, unsigned source) {
    static_assert(sizeof(T) <= 8);
    memcpy(&current->slot, &value, sizeof value);
    warp_barrier(mask);
    size_t from = current->warp * 32 + source;
    if (source < 32 && from < fibers.size()) {
        if (!(mask >> source & 1)) fault = "a shuffle reads a lane outside its mask";
        memcpy(&value, &fibers[from].slot, sizeof value);
    }
    warp_barrier(mask);
    return value;
}

// Resumes warps whose lanes all wait. Returns whether there are any.
inline bool release_warps() {
    bool any = false;
    for (size_t first = 0; first < fibers.size(); first += 32) {
        unsigned waiting = 0, wanted = 0, exist = 0;
        size_t end = first + 32 < fibers.size() ? first + 32 : fibers.size();
        for (size_t i = first; i < end; i++) {
            exist |= 1u << (i - first);
            if (fibers[i].state != AT_WARP_BARRIER) continue;
            waiting |= 1u << (i - first);
            wanted |= fibers[i].mask;
        }
        if (!waiting || (wanted & exist) != waiting) continue;
        for (size_t i = first; i < end; i++)
            if (fibers[i].state == AT_WARP_BARRIER) fibers[i].state = READY;
        any = true;
    }
    return any;
}

// Resumes the block when all of its threads wait at one barrier.
inline bool release_block() {
    unsigned site = 0;
    for (auto& f : fibers) {
        if (f.state != AT_BLOCK_BARRIER) return false;
        if (site && f.site != site) fault = "threads wait at different __syncthreads";
        site = f.site;
    }
    for (auto& f : fibers) f.state = READY;
    return true;
}

inline bool run_block(int schedule, uint64_t& random) {
    size_t n = fibers.size();
    std::vector<size_t> order(n);
    for (size_t i = 0; i < n; i++) prepare(fibers[i], stacks + i * STACK);
    for (;;) {
        for (size_t i = 0; i < n; i++) order[i] = schedule == 1 ? n - 1 - i : i;
        for (size_t i = n; schedule == 2 && i > 1; i--) {
            random = random * 6364136223846793005ull + 1442695040888963407ull;
            std::swap(order[i - 1], order[(random >> 33) % i]);
        }
        bool ran = false;
        size_t done = 0;
        for (size_t i : order) {
            if (fibers[i].state == READY) {
                current = &fibers[i];
                ran = true;
                enter(fibers[i]);
            }
            done += fibers[i].state == DONE;
        }
        if (done == n) return true;
        bool released = release_warps();
        released = release_block() || released;
        if (!ran && !released) {
            fault = "a barrier that not all threads reach";
            return false;
        }
    }
}

template <class... A>
struct Call {
    void (*kernel)(A...);
    void** args;
    template <size_t... I>
    void go(std::index_sequence<I...>) { kernel(*(std::remove_reference_t<A>*)args[I]...); }
    static void run(void* self) { ((Call*)self)->go(std::index_sequence_for<A...>{}); }
};

template <class... A>
int launch(void (*kernel)(A...), const unsigned* grid, const unsigned* block, size_t shared, void** args, int schedule) {
    Call<A...> call{kernel, args};
    body = &Call<A...>::run;
    body_argument = &call;
    fault = nullptr;
    size_t n = (size_t)block[0] * block[1] * block[2];
    if (stacks_made < n) {
        if (stacks) munmap(stacks, stacks_made * STACK);
        stacks = (char*)mmap(nullptr, n * STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        stacks_made = n;
    }
    std::vector<char> memory(shared + 16);
    dynamic_shared = (char*)(((uintptr_t)memory.data() + 15) & ~uintptr_t(15));
    fibers.assign(n, Fiber{});
    block_size = {block[0], block[1], block[2]};
    grid_size = {grid[0], grid[1], grid[2]};
    for (unsigned i = 0; i < n; i++) {
        fibers[i].thread = {i % block[0], i / block[0] % block[1], i / block[0] / block[1]};
        fibers[i].lane = i & 31;
        fibers[i].warp = i >> 5;
    }
    uint64_t random = 1;
    for (unsigned z = 0; z < grid[2]; z++)
        for (unsigned y = 0; y < grid[1]; y++)
            for (unsigned x = 0; x < grid[0]; x++) {
                block_index = {x, y, z};
                memset(memory.data(), 0xff, memory.size());
                if (!run_block(schedule, random) || fault) {
                    fprintf(stderr, "shim: %s\n", fault);
                    return 1;
                }
            }
    return 0;
}
}  // namespace shim

#define threadIdx (shim::current->thread)
#define blockIdx (shim::block_index)
#define blockDim (shim::block_size)
#define gridDim (shim::grid_size)
#define __syncthreads() shim::block_barrier(__LINE__)
inline void __syncwarp(unsigned mask = ~0u) { shim::warp_barrier(mask); }
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes) {
    return shim::exchange(mask, value, shim::current->lane ^ (unsigned)lanes);
}
template <class T>
T __shfl_sync(unsigned mask, T value, int lane) {
    return shim::exchange(mask, value, (unsigned)lane & 31);
}

inline float __uint_as_float(unsigned bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}
inline unsigned __float_as_uint(float x) {
    unsigned bits;
    memcpy(&bits, &x, 4);
    return bits;
}
inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
inline float __fdividef(float a, float b) { return a / b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }

#include "mma.h"

// One function for each kernel, which the mock driver finds by name.
#define LAUNCHER(name)                                                                                               \
    extern "C" int launch_##name(const unsigned* g, const unsigned* b, size_t s, void** a, int schedule) {           \
        return shim::launch(name, g, b, s, a, schedule);                                                             \
    }
