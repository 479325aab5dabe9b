// Enough of CUDA to run session/cuda_kernels.cu on a CPU: a block is a set of threads, blocks run
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
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline float __int_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline void atomicAdd(unsigned* at, unsigned by) { std::atomic_ref<unsigned>(*at) += by; }
inline void atomicMin(int* at, int value) {
    std::atomic_ref<int> shared(*at);
    for (int now = shared; now > value && !shared.compare_exchange_weak(now, value);) {
    }
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
