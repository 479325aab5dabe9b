// Enough of CUDA to run the kernels of session/*.cu on a CPU: a block is a set of threads, blocks run
// one after the other. For tests of the kernels' arithmetic, not of their speed.
#pragma once
#include <algorithm>
#include <atomic>
#include <barrier>
#include <bit>
#include <cmath>
#include <cstring>
#include <memory>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __shared__ static
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __launch_bounds__(threads)

using std::isfinite;
using std::max;
using std::min;

struct Index {
    unsigned x, y, z;
};
struct uint4 {
    unsigned x, y, z, w;
};
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

static thread_local Index threadIdx, blockIdx;
static Index blockDim, gridDim;
static std::barrier<>* block_barrier;
static std::vector<std::unique_ptr<std::barrier<>>> warp_barriers;
static unsigned long long lanes[1024];

inline void __syncthreads() { block_barrier->arrive_and_wait(); }
inline void __syncwarp() { warp_barriers[threadIdx.x >> 5]->arrive_and_wait(); }

template <typename T>
T exchange(T value, int lane) {
    unsigned long long raw = 0;
    std::memcpy(&raw, &value, sizeof value);
    lanes[threadIdx.x] = raw;
    __syncwarp();
    int mine = threadIdx.x & 31;
    raw = lanes[(threadIdx.x & ~31u) + (lane < 0 || lane > 31 ? mine : lane)];
    std::memcpy(&value, &raw, sizeof value);
    __syncwarp();
    return value;
}
template <typename T>
T __shfl_down_sync(unsigned, T value, int by) {
    return exchange(value, (int)(threadIdx.x & 31) + by);
}
template <typename T>
T __shfl_up_sync(unsigned, T value, int by) {
    return exchange(value, (int)(threadIdx.x & 31) - by);
}
template <typename T>
T __shfl_xor_sync(unsigned, T value, int by) {
    return exchange(value, (int)(threadIdx.x & 31) ^ by);
}
inline void __threadfence() { std::atomic_thread_fence(std::memory_order_seq_cst); }
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline float __int_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline unsigned atomicAdd(unsigned* at, unsigned by) {
    return std::atomic_ref<unsigned>(*at).fetch_add(by);
}
inline void atomicMin(int* at, int value) {
    std::atomic_ref<int> shared(*at);
    for (int now = shared; now > value && !shared.compare_exchange_weak(now, value);) {
    }
}

inline float wide_half(unsigned short bits) { return (float)std::bit_cast<_Float16>(bits); }
inline unsigned short narrow_half(float x) { return std::bit_cast<unsigned short>((_Float16)x); }

// What the lanes of a warp show each other, which then all of them read.
static unsigned held[1024][6];
static const unsigned short* rows_held[1024];

template <bool BRAIN>
float wide_part(unsigned pair, int high) {
    unsigned short bits = (unsigned short)(high ? pair >> 16 : pair);
    return BRAIN ? __uint_as_float((unsigned)bits << 16) : wide_half(bits);
}

// By the tables of the PTX ISA: lane 4 g + t holds a[g and g + 8][2 t, 2 t + 1, 2 t + 8, 2 t + 9],
// b[2 t, 2 t + 1, 2 t + 8, 2 t + 9][g] and sums[g and g + 8][2 t, 2 t + 1].
template <bool BRAIN>
void multiply(float (&sums)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    unsigned own[6] = {a[0], a[1], a[2], a[3], b0, b1};
    std::memcpy(held[threadIdx.x], own, sizeof own);
    __syncwarp();
    unsigned first = threadIdx.x & ~31u, lane = threadIdx.x & 31;
    for (int i = 0; i < 4; ++i) {
        unsigned row = lane / 4, column = lane % 4 * 2 + (i & 1);
        for (unsigned k = 0; k < 16; ++k) {
            unsigned from_a = first + row * 4 + k % 8 / 2, from_b = first + column * 4 + k % 8 / 2;
            sums[i] += wide_part<BRAIN>(held[from_a][k / 8 * 2 + (i >> 1)], k & 1) *
                       wide_part<BRAIN>(held[from_b][4 + k / 8], k & 1);
        }
    }
    __syncwarp();
}

inline void fetch(void* to, const void* from, bool there) {
    if (there)
        std::memcpy(to, from, 16);
    else
        std::memset(to, 0, 16);
}
inline void depart() {}
template <int LEFT>
void arrive() {}
inline float seen_by_all(const float* at) { return *at; }

template <bool TRANSPOSED>
void load_matrices(unsigned (&to)[4], const unsigned short* row) {
    rows_held[threadIdx.x] = row;
    __syncwarp();
    unsigned first = threadIdx.x & ~31u, lane = threadIdx.x & 31;
    for (unsigned m = 0; m < 4; ++m) {
        auto at = [&](unsigned r, unsigned c) {
            return (unsigned)(TRANSPOSED ? rows_held[first + m * 8 + c][r]
                                         : rows_held[first + m * 8 + r][c]);
        };
        unsigned r = lane / 4, c = lane % 4 * 2;
        to[m] = at(r, c) | at(r, c + 1) << 16;
    }
    __syncwarp();
}

template <typename... A, size_t... I>
void call(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
    kernel(*(A*)arguments[I]...);
}

template <typename... A>
void launch(void (*kernel)(A...), Index grid, unsigned threads, void** arguments) {
    gridDim = grid;
    blockDim = {threads, 1, 1};
    std::barrier<> whole(threads);
    block_barrier = &whole;
    warp_barriers.clear();
    for (unsigned warp = 0; warp * 32 < threads; ++warp)
        warp_barriers.push_back(std::make_unique<std::barrier<>>(std::min(32u, threads - warp * 32)));
    auto run = [&](unsigned index) {
        threadIdx = {index, 0, 0};
        for (unsigned z = 0; z < grid.z; ++z)
            for (unsigned y = 0; y < grid.y; ++y)
                for (unsigned x = 0; x < grid.x; ++x) {
                    blockIdx = {x, y, z};
                    call(kernel, arguments, std::index_sequence_for<A...>());
                    whole.arrive_and_wait();
                }
    };
    std::vector<std::thread> team;
    for (unsigned index = 0; index < threads; ++index) team.emplace_back(run, index);
    for (auto& thread : team) thread.join();
}
