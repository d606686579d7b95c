// The functions of kernels/mma.cuh for the host: each lane publishes its registers and reads those of the others.
// A copy to shared memory is carried out when its thread waits for it; without a wait it never is.
#pragma once

inline float shim_float(unsigned bits) { return __uint_as_float(bits << 16); }

// Of the pair in register `reg` of `lane` of this warp, the low or the high half.
inline float shim_half(unsigned lane, unsigned reg, unsigned high) {
    unsigned bits = shim::fibers[shim::current->warp * 32 + lane].registers[reg];
    return shim_float(high ? bits >> 16 : bits & 0xffff);
}

inline void mma(float c[4], const unsigned a[4], unsigned b0, unsigned b1) {
    unsigned all[6] = {a[0], a[1], a[2], a[3], b0, b1};
    memcpy(shim::current->registers, all, sizeof all);
    shim::warp_barrier(~0u);
    unsigned lane = shim::current->lane;
    for (unsigned i = 0; i < 4; i++) {
        unsigned row = lane / 4 + (i & 2) * 4, column = 2 * (lane & 3) + (i & 1);
        for (unsigned k = 0; k < 16; k++) {
            float x = shim_half(row % 8 * 4 + k % 8 / 2, row / 8 + 2 * (k / 8), k & 1);
            float y = shim_half(column * 4 + k % 8 / 2, 4 + k / 8, k & 1);
            c[i] += x * y;
        }
    }
    shim::warp_barrier(~0u);
}

inline void shim_matrices(unsigned x[4], const void* row, bool transposed) {
    if ((uintptr_t)row % 16) shim::fault = "a row of a matrix lies at no multiple of 16 bytes";
    shim::current->slot = (uint64_t)row;
    shim::warp_barrier(~0u);
    unsigned lane = shim::current->lane;
    for (unsigned m = 0; m < 4; m++) {
        unsigned half[2];
        for (unsigned i = 0; i < 2; i++) {
            unsigned r = lane / 4, c = 2 * (lane & 3) + i;
            if (transposed) std::swap(r, c);
            half[i] = ((const uint16_t*)shim::fibers[shim::current->warp * 32 + 8 * m + r].slot)[c];
        }
        x[m] = half[0] | half[1] << 16;
    }
    shim::warp_barrier(~0u);
}
inline void load_matrices(unsigned x[4], const void* row) { shim_matrices(x, row, false); }
inline void load_transposed(unsigned x[4], const void* row) { shim_matrices(x, row, true); }

inline unsigned pair(float low, float high) {
    auto round = [](float x) {
        unsigned bits = __float_as_uint(x);
        if (x != x) return bits >> 16 | 0x40u;
        return (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
    };
    return round(low) | round(high) << 16;
}

inline void copy_async(void* to, const void* from, bool zeros) {
    if ((uintptr_t)to % 16 || (uintptr_t)from % 16) shim::fault = "a copy lies at no multiple of 16 bytes";
    shim::current->copies.back().push_back({to, from, zeros});
}
inline void end_copies() { shim::current->copies.emplace_back(); }
template <int N>
void wait_copies() {
    auto& groups = shim::current->copies;
    while (groups.size() > N + 1) {
        for (auto& copy : groups.front()) {
            if (copy.zeros) memset(copy.to, 0, 16);
            else memcpy(copy.to, copy.from, 16);
        }
        groups.pop_front();
    }
}
