// Attention of new tokens over the KV cache and themselves, and their rows into the cache.
//
// Compiled at start for the device and one model (NVRTC), with ELEMENT (0 float32, 1 float16, 2
// bfloat16), HEAD_DIM and GROUP, the query heads that share a key. Scores, softmax and sums are
// float32. Softmax over blocks of keys keeps a running maximum and sum: Milakov and Gimelshein,
// "Online normalizer calculation for softmax", 2018; `attend_one` adds parts of one sequence that
// several blocks took: Dao and others, "Flash-Decoding", 2023.
//
// Tensors, T the element, tokens of a batch padded on the right: `heads`, a token's query, key and
// value heads one behind the other, `[rows, tokens, kv_heads * (GROUP + 2), HEAD_DIM]`; cosine and
// sine float32 `[rows, tokens, HEAD_DIM / 2]`; the output, one head for each of the query,
// `[rows, tokens, kv_heads * GROUP, HEAD_DIM]`. The cache is `[layers][keys, values]`
// of `[slots, kv_heads, length, HEAD_DIM]`.

typedef unsigned int u32;
typedef unsigned short u16;
typedef long long i64;
typedef unsigned long long u64;

#ifdef __CUDACC__
__device__ float wide_half(u16 bits) {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
    return x;
}

__device__ u16 narrow_half(float x) {
    u16 bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
}

// One multiplication of the tensor cores, of a warp: sums[16, 8] += a[16, 16] b[16, 8]. Who holds
// what: PTX ISA, "Matrix Fragments for mma.m16n8k16".
template <bool BRAIN>
__device__ void multiply(float (&sums)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    if constexpr (BRAIN)
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7},"
            " {%8,%9}, {%0,%1,%2,%3};"
            : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    else
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7},"
            " {%8,%9}, {%0,%1,%2,%3};"
            : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Four matrices of 8 by 8 from shared memory; lane l names row l % 8 of matrix l / 8.
template <bool TRANSPOSED>
__device__ void load_matrices(u32 (&to)[4], const u16* row) {
    u32 at = (u32)__cvta_generic_to_shared(row);
    if constexpr (TRANSPOSED)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(at) : "memory");
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(at) : "memory");
}

// 16 bytes to shared memory, zeros where they are not `there`; see `arrive`.
__device__ void fetch(void* to, const void* from, bool there) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 : : "r"((u32)__cvta_generic_to_shared(to)), "l"(from), "r"(there ? 16 : 0)
                 : "memory");
}

// Closes a batch of fetches.
__device__ void depart() { asm volatile("cp.async.commit_group;" : : : "memory"); }

// Waits for all batches of this thread but the newest `LEFT`.
template <int LEFT>
__device__ void arrive() { asm volatile("cp.async.wait_group %0;" : : "n"(LEFT) : "memory"); }

// What another block has just written.
__device__ float seen_by_all(const float* at) { return __ldcg(at); }
#endif

#if ELEMENT == 0
typedef float T;
__device__ float wide(T x) { return x; }
__device__ T narrow(float x) { return x; }
__device__ bool is_finite(T x) { return isfinite(x); }
#elif ELEMENT == 1
typedef u16 T;
__device__ float wide(T x) { return wide_half(x); }
__device__ T narrow(float x) { return narrow_half(x); }
__device__ bool is_finite(T x) { return (x & 0x7c00) != 0x7c00; }
#else
typedef u16 T;
__device__ float wide(T x) { return __uint_as_float((u32)x << 16); }
__device__ T narrow(float x) {
    u32 bits = __float_as_uint(x);
    // Half of the last kept bit, less one where that bit is 0: ties go to even.
    return x != x ? 0x7fc0 : (u16)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
__device__ bool is_finite(T x) { return (x & 0x7f80) != 0x7f80; }
#endif

constexpr int THREADS = 128;
constexpr int HALF = HEAD_DIM / 2;
// Numbers that one instruction reads.
constexpr int PACK = 16 / sizeof(T);

union Pack {
    uint4 whole;
    T parts[PACK];
};

// The engine's input `cache`, all int64: addresses, and numbers of elements.
struct Cache {
    i64 first_slot;  // row r of the batch is slot first_slot + r
    i64 live;        // rows that count; those beyond are idle
    T* rows;
    i64 layer_stride;
    i64 value_offset;
    i64 length;
    u32* spoiled;    // [slots]: set where a row was not finite
    float* partial;  // [rows, heads, splits, HEAD_DIM + 2]
    u32* arrived;    // [rows, kv_heads * SUBGROUPS], 0 between kernels
};

__device__ T* rows_of(const Cache& cache, int layer, bool values, int slot, int kv, int kv_heads) {
    return cache.rows + layer * cache.layer_stride + (values ? cache.value_offset : 0) +
           ((i64)slot * kv_heads + kv) * cache.length * HEAD_DIM;
}

// A head of a token, `at` of all tokens: first those of the query, then of key, then of value.
__device__ const T* head_of(const T* heads, i64 at, int kv_heads, int head) {
    return heads + (at * kv_heads * (GROUP + 2) + head) * HEAD_DIM;
}

// A number to be kept; one that is not finite would spoil whoever has the slot next.
__device__ T kept(T x, u32* spoiled) {
    if (is_finite(x)) return x;
    *spoiled = 1;
    return narrow(0);
}

__device__ float turned(const T* head, int at, const float* cosine, const float* sine) {
    int pair = at < HALF ? at : at - HALF;
    float low = wide(head[pair]), high = wide(head[pair + HALF]);
    return at < HALF ? low * cosine[pair] - high * sine[pair]
                     : high * cosine[pair] + low * sine[pair];
}

// The row of one new token, `at` of all tokens, into the cache at `place`, of one key-value head, by
// all threads of a block.
__device__ void append(const T* heads, i64 at, int kv_heads, int kv, const float* cosine,
                       const float* sine, T* keys, T* values, int place, u32* spoiled) {
    const T* key = head_of(heads, at, kv_heads, kv_heads * GROUP + kv);
    const T* value = head_of(heads, at, kv_heads, kv_heads * (GROUP + 1) + kv);
    keys += (i64)place * HEAD_DIM;
    values += (i64)place * HEAD_DIM;
    for (int i = threadIdx.x; i < HEAD_DIM; i += blockDim.x) {
        keys[i] = kept(narrow(turned(key, i, cosine, sine)), spoiled);
        values[i] = kept(value[i], spoiled);
    }
}

// New rows of a prompt: grid (tokens, kv_heads, rows).
extern "C" __global__ void append_rows(const T* heads, const float* cosine, const float* sine,
                                       const int* past_lens, const int* new_lens,
                                       const Cache* table, int layer) {
    Cache cache = *table;
    int token = blockIdx.x, kv = blockIdx.y, row = blockIdx.z;
    int tokens = gridDim.x, kv_heads = gridDim.y;
    int place = past_lens[row] + token, slot = (int)cache.first_slot + row;
    if (row >= cache.live || token >= new_lens[row] || place >= cache.length) return;
    i64 at = (i64)row * tokens + token;
    append(heads, at, kv_heads, kv, cosine + at * HALF, sine + at * HALF,
           rows_of(cache, layer, false, slot, kv, kv_heads),
           rows_of(cache, layer, true, slot, kv, kv_heads), place, cache.spoiled + slot);
}

__device__ constexpr int largest_divisor(int number, int most) {
    while (number % most) --most;
    return most;
}
// Query heads of a block; a group that is larger is shared among several.
constexpr int HEADS = largest_divisor(GROUP, 8);
constexpr int SUBGROUPS = GROUP / HEADS;

__device__ constexpr int lanes_for(int packs) {
    int lanes = 1;
    while (lanes < packs && lanes < 32) lanes *= 2;
    return lanes;
}
// Threads that share a row of the cache, the packs of each, and the rows that are read at once.
constexpr int LANES = lanes_for(HEAD_DIM / PACK);
constexpr int PACKS = (HEAD_DIM / PACK + LANES - 1) / LANES;
constexpr int STREAMS = THREADS / LANES;
constexpr int AHEAD = HEADS > 4 || PACKS > 1 ? 2 : 4;
// Of a sequence, each to a block.
constexpr int MOST_PARTS = 32;
// Below every score, and so far from the end of float32 that differences stay finite.
constexpr float LOWEST = -1e30f;

// What a block takes of a sequence that `count` blocks share.
struct Part {
    int begin, end, count;
};

// Of `seen` rows, this block's, at least `least` if there are as many: more parts would take longer
// to be added up than they save. All but the last block's are a multiple of `step`.
__device__ Part part_of(int seen, int step, int least) {
    int share = max((seen + (int)gridDim.x - 1) / (int)gridDim.x, least);
    share = (share + step - 1) / step * step;
    int begin = blockIdx.x * share;
    return {begin, min(begin + share, seen), (seen + share - 1) / share};
}

// What up to `MOST` of a block have each added up of its rows.
template <int MOST>
struct Shares {
    float sums[MOST][HEADS][HEAD_DIM];
    float peaks[MOST][HEADS], weights[MOST][HEADS];
    float part_peaks[HEADS][MOST_PARTS], part_weights[HEADS][MOST_PARTS];
    bool last;
};

// The output of a token that does not count.
__device__ void leave(T* out) {
    if (blockIdx.x == 0)
        for (int i = threadIdx.x; i < HEADS * HEAD_DIM; i += blockDim.x) out[i] = narrow(0);
}

// Adds up the shares of a block's takers, then, in the block that is done last, those of all blocks.
// `at`: the token of all tokens; `out`: its heads of this block.
template <int MOST>
__device__ void settle(Shares<MOST>& shares, int takers, const Cache& cache, T* out, i64 at,
                       Part part) {
    __syncthreads();
    i64 first = (at * gridDim.y + blockIdx.y) * HEADS;
    float* partial = cache.partial + first * gridDim.x * (HEAD_DIM + 2);
    for (int i = threadIdx.x; i < HEADS * HEAD_DIM; i += blockDim.x) {
        int h = i / HEAD_DIM, d = i % HEAD_DIM;
        float higher = LOWEST, total = 0, whole = 0;
        for (int s = 0; s < takers; ++s) higher = fmaxf(higher, shares.peaks[s][h]);
        for (int s = 0; s < takers; ++s) {
            float share = exp2f(shares.peaks[s][h] - higher);
            total += share * shares.weights[s][h];
            whole += share * shares.sums[s][h][d];
        }
        if (part.count == 1) {
            out[i] = narrow(whole / total);
            continue;
        }
        float* to = partial + ((i64)h * gridDim.x + blockIdx.x) * (HEAD_DIM + 2);
        to[d] = whole;
        if (d == 0) {
            to[HEAD_DIM] = higher;
            to[HEAD_DIM + 1] = total;
        }
    }
    if (part.count == 1) return;
    __threadfence();
    __syncthreads();
    u32* arrived = cache.arrived + at * gridDim.y + blockIdx.y;
    if (threadIdx.x == 0) shares.last = atomicAdd(arrived, 1u) == part.count - 1;
    __syncthreads();
    if (!shares.last) return;
    __threadfence();
    for (int i = threadIdx.x; i < HEADS * part.count; i += blockDim.x) {
        int h = i / part.count, s = i % part.count;
        const float* from = partial + ((i64)h * gridDim.x + s) * (HEAD_DIM + 2);
        shares.part_peaks[h][s] = seen_by_all(from + HEAD_DIM);
        shares.part_weights[h][s] = seen_by_all(from + HEAD_DIM + 1);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < HEADS * HEAD_DIM; i += blockDim.x) {
        int h = i / HEAD_DIM, d = i % HEAD_DIM;
        const float* from = partial + (i64)h * gridDim.x * (HEAD_DIM + 2) + d;
        float higher = LOWEST, total = 0, whole = 0;
        for (int s = 0; s < part.count; ++s) higher = fmaxf(higher, shares.part_peaks[h][s]);
#pragma unroll 8
        for (int s = 0; s < part.count; ++s) {
            float share = exp2f(shares.part_peaks[h][s] - higher);
            total += share * shares.part_weights[h][s];
            whole += share * seen_by_all(from + s * (HEAD_DIM + 2));
        }
        out[i] = narrow(whole / total);
    }
    if (threadIdx.x == 0) *arrived = 0;
}

// One token of a row: grid (splits, kv_heads * SUBGROUPS, rows * tokens). FRESH: its own row is
// not yet in the cache, and tokens is 1. `scale` includes log2(e). With several splits each takes
// a part of the sequence, and the one that is done last adds them up.
template <bool FRESH>
__device__ void attend(const T* heads, const float* cosine, const float* sine,
                       const int* past_lens, const int* new_lens, const Cache* table, T* output,
                       int layer, int tokens, float scale) {
    __shared__ float turned_query[HEADS][HEAD_DIM];
    __shared__ Shares<STREAMS> shares;
    Cache cache = *table;
    int kv_heads = gridDim.y / SUBGROUPS, kv = blockIdx.y / SUBGROUPS;
    int row = blockIdx.z / tokens, token = blockIdx.z % tokens;
    int first_head = kv * GROUP + blockIdx.y % SUBGROUPS * HEADS;
    i64 at = blockIdx.z;
    T* out = output + (at * kv_heads * GROUP + first_head) * HEAD_DIM;
    if (row >= cache.live || token >= new_lens[row]) {
        leave(out);
        return;
    }
    int slot = (int)cache.first_slot + row;
    int place = min(past_lens[row] + token, (int)cache.length - 1), seen = place + 1;
    Part part = part_of(seen, STREAMS * AHEAD, 1);
    int begin = part.begin, end = part.end;
    if (begin >= seen) return;

    T* keys = rows_of(cache, layer, false, slot, kv, kv_heads);
    T* values = rows_of(cache, layer, true, slot, kv, kv_heads);
    const float *turn = cosine + at * HALF, *shift = sine + at * HALF;
    const T* mine = head_of(heads, at, kv_heads, first_head);
    for (int i = threadIdx.x; i < HEADS * HEAD_DIM; i += THREADS) {
        int head = i / HEAD_DIM, d = i % HEAD_DIM;
        turned_query[head][d] = scale * turned(mine + head * HEAD_DIM, d, turn, shift);
    }
    if (FRESH && end == seen)
        append(heads, at, kv_heads, kv, turn, shift, keys, values, place, cache.spoiled + slot);
    __syncthreads();

    int lane = threadIdx.x % LANES, stream = threadIdx.x / LANES;
    float q[HEADS][PACKS * PACK], sum[HEADS][PACKS * PACK], peak[HEADS], weight[HEADS];
    for (int h = 0; h < HEADS; ++h) {
        peak[h] = LOWEST;
        weight[h] = 0;
        for (int p = 0; p < PACKS; ++p)
            for (int i = 0; i < PACK; ++i) {
                int d = (p * LANES + lane) * PACK + i;
                q[h][p * PACK + i] = d < HEAD_DIM ? turned_query[h][d] : 0;
                sum[h][p * PACK + i] = 0;
            }
    }
    Pack k[AHEAD][PACKS], v[AHEAD][PACKS], next_k[AHEAD][PACKS], next_v[AHEAD][PACKS];
    auto load = [&](Pack(&k)[AHEAD][PACKS], Pack(&v)[AHEAD][PACKS], int base) {
#pragma unroll
        for (int a = 0; a < AHEAD; ++a) {
            int r = min(base + a * STREAMS + stream, end - 1);
#pragma unroll
            for (int p = 0; p < PACKS; ++p) {
                int d = (p * LANES + lane) * PACK;
                i64 from = (i64)r * HEAD_DIM + (d < HEAD_DIM ? d : 0);
                k[a][p].whole = *(const uint4*)(keys + from);
                v[a][p].whole = *(const uint4*)(values + from);
            }
        }
    };
    load(k, v, begin);
    for (int base = begin; base < end; base += STREAMS * AHEAD) {
        // The next rows are on their way while these are added up.
        if (base + STREAMS * AHEAD < end) load(next_k, next_v, base + STREAMS * AHEAD);
        float score[AHEAD][HEADS];
#pragma unroll
        for (int a = 0; a < AHEAD; ++a) {
#pragma unroll
            for (int h = 0; h < HEADS; ++h) score[a][h] = 0;
#pragma unroll
            for (int i = 0; i < PACKS * PACK; ++i) {
                float x = wide(k[a][i / PACK].parts[i % PACK]);
#pragma unroll
                for (int h = 0; h < HEADS; ++h) score[a][h] += q[h][i] * x;
            }
            bool there = base + a * STREAMS + stream < end;
#pragma unroll
            for (int h = 0; h < HEADS; ++h) {
                for (int d = LANES / 2; d; d >>= 1)
                    score[a][h] += __shfl_xor_sync(~0u, score[a][h], d);
                if (!there) score[a][h] = 2 * LOWEST;
            }
        }
#pragma unroll
        for (int h = 0; h < HEADS; ++h) {
            float higher = peak[h];
#pragma unroll
            for (int a = 0; a < AHEAD; ++a) higher = fmaxf(higher, score[a][h]);
            float lower = exp2f(peak[h] - higher);
            peak[h] = higher;
            weight[h] *= lower;
#pragma unroll
            for (int i = 0; i < PACKS * PACK; ++i) sum[h][i] *= lower;
#pragma unroll
            for (int a = 0; a < AHEAD; ++a) {
                score[a][h] = exp2f(score[a][h] - higher);
                weight[h] += score[a][h];
            }
        }
#pragma unroll
        for (int a = 0; a < AHEAD; ++a)
#pragma unroll
            for (int i = 0; i < PACKS * PACK; ++i) {
                float x = wide(v[a][i / PACK].parts[i % PACK]);
#pragma unroll
                for (int h = 0; h < HEADS; ++h) sum[h][i] += score[a][h] * x;
            }
#pragma unroll
        for (int a = 0; a < AHEAD; ++a)
#pragma unroll
            for (int p = 0; p < PACKS; ++p) {
                k[a][p] = next_k[a][p];
                v[a][p] = next_v[a][p];
            }
    }
    for (int h = 0; h < HEADS; ++h) {
        if (lane == 0) {
            shares.peaks[stream][h] = peak[h];
            shares.weights[stream][h] = weight[h];
        }
        for (int i = 0; i < PACKS * PACK; ++i) {
            int d = (i / PACK * LANES + lane) * PACK + i % PACK;
            if (d < HEAD_DIM) shares.sums[stream][h][d] = sum[h][i];
        }
    }
    settle(shares, STREAMS, cache, out, at, part);
}

// A decode step: one token a row, whose own row goes into the cache first.
extern "C" __global__ void __launch_bounds__(THREADS)
    attend_one(const T* heads, const float* cosine, const float* sine, const int* past_lens,
               const int* new_lens, const Cache* table, T* output, int layer, int tokens,
               float scale) {
    attend<true>(heads, cosine, sine, past_lens, new_lens, table, output, layer, tokens, scale);
}

// A prompt, token by token: for what the tensor cores do not take. After `append_rows`.
extern "C" __global__ void __launch_bounds__(THREADS)
    attend_each(const T* heads, const float* cosine, const float* sine, const int* past_lens,
                const int* new_lens, const Cache* table, T* output, int layer, int tokens,
                float scale) {
    attend<false>(heads, cosine, sine, past_lens, new_lens, table, output, layer, tokens, scale);
}

#if ELEMENT && HEAD_DIM % 16 == 0 && HEAD_DIM <= 256 && \
    (!defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800)
constexpr int WARPS = THREADS / 32;
// Tokens of a block, 16 a warp, and cache rows that it holds at once.
constexpr int TILE = 16 * WARPS;
constexpr int STAGE = HEAD_DIM <= 128 ? 64 : 32;
// Rows begin in different banks of shared memory.
constexpr int PITCH = HEAD_DIM + 8;

__device__ u32 pair_of(float low, float high) {
    return (u32)narrow(low) | (u32)narrow(high) << 16;
}

#if HEAD_DIM == 64 || HEAD_DIM == 128
// Rows that a warp takes at once, warps of a block at most, and rows that are worth a part.
constexpr int KEYS = 16;
constexpr int STEP_WARPS = 8;
constexpr int LEAST_PART = 128;

// What a lane, the `group`-th four's `place`-th, holds of KEYS rows. Both products may take the
// numbers of a row in any order that is the same on either side, so that every read is of 16 bytes.
struct Rows {
    // Of keys `group` and `group + 8`: 8 numbers from `32 c + 8 place` on.
    Pack keys[2][HEAD_DIM / 32];
    // Of keys 2 place, 2 place + 1, and those + 8: 8 numbers from `64 w + 8 group` on.
    Pack values[4][HEAD_DIM / 64];
};

// Rows from `first` on; of those beyond the last one, `end - 1`, that one.
__device__ void take(Rows& rows, const T* keys, const T* values, int first, int end, int lane) {
    int group = lane >> 2, place = lane & 3;
#pragma unroll
    for (int t = 0; t < 2; ++t) {
        i64 key = min(first + t * 8 + group, end - 1);
#pragma unroll
        for (int c = 0; c < HEAD_DIM / 32; ++c)
            rows.keys[t][c].whole = *(const uint4*)(keys + key * HEAD_DIM + c * 32 + place * 8);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        i64 key = min(first + place * 2 + (i & 1) + (i >> 1) * 8, end - 1);
#pragma unroll
        for (int w = 0; w < HEAD_DIM / 64; ++w)
            rows.values[i][w].whole = *(const uint4*)(values + key * HEAD_DIM + w * 64 + group * 8);
    }
}

__device__ u32 word_of(const Pack& pack, int at) {
    return at == 0 ? pack.whole.x : at == 1 ? pack.whole.y : at == 2 ? pack.whole.z : pack.whole.w;
}

// Halves of two words, the low ones or the high ones.
__device__ u32 halves(u32 first, u32 second, bool high) {
    return high ? first >> 16 | (second & 0xffff0000u) : (first & 0xffffu) | second << 16;
}

// `attend_one` by the tensor cores, for which the group's heads are the rows of a product. Blocks of
// up to STEP_WARPS whole warps.
extern "C" __global__ void __launch_bounds__(STEP_WARPS * 32)
    attend_step(const T* heads, const float* cosine, const float* sine, const int* past_lens,
                const int* new_lens, const Cache* table, T* output, int layer, int tokens,
                float scale) {
    __shared__ __align__(16) T turned_query[HEADS][HEAD_DIM];
    __shared__ Shares<STEP_WARPS> shares;
    Cache cache = *table;
    int kv_heads = gridDim.y / SUBGROUPS, kv = blockIdx.y / SUBGROUPS, row = blockIdx.z;
    int first_head = kv * GROUP + blockIdx.y % SUBGROUPS * HEADS;
    i64 at = row;
    T* out = output + (at * kv_heads * GROUP + first_head) * HEAD_DIM;
    if (row >= cache.live || new_lens[row] < 1) {
        leave(out);
        return;
    }
    int slot = (int)cache.first_slot + row;
    int place = min(past_lens[row], (int)cache.length - 1), seen = place + 1;
    Part part = part_of(seen, KEYS, LEAST_PART);
    if (part.begin >= seen) return;
    T* keys = rows_of(cache, layer, false, slot, kv, kv_heads);
    T* values = rows_of(cache, layer, true, slot, kv, kv_heads);
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, group = lane >> 2, column = lane & 3;
    int base = part.begin + warp * KEYS;
    // Old rows are on their way while the query is turned; the new one has to be there first.
    bool fresh = part.end == seen;
    Rows rows;
    if (!fresh && base < part.end) take(rows, keys, values, base, part.end, lane);
    const float *turn = cosine + at * HALF, *shift = sine + at * HALF;
    const T* mine = head_of(heads, at, kv_heads, first_head);
    for (int i = threadIdx.x; i < HEADS * HEAD_DIM; i += blockDim.x)
        turned_query[i / HEAD_DIM][i % HEAD_DIM] =
            narrow(turned(mine + i / HEAD_DIM * HEAD_DIM, i % HEAD_DIM, turn, shift));
    if (fresh)
        append(heads, at, kv_heads, kv, turn, shift, keys, values, place, cache.spoiled + slot);
    __syncthreads();
    if (fresh && base < part.end) take(rows, keys, values, base, part.end, lane);

    Pack query[HEAD_DIM / 32];
#pragma unroll
    for (int c = 0; c < HEAD_DIM / 32; ++c)
        if (group < HEADS)
            query[c].whole = *(const uint4*)&turned_query[group][c * 32 + column * 8];
        else
            query[c].whole = make_uint4(0, 0, 0, 0);
    float sums[HEAD_DIM / 8][4] = {}, peak = LOWEST, weight = 0;
    for (; base < part.end; base += blockDim.x / 32 * KEYS) {
        float scores[2][4] = {};
#pragma unroll
        for (int c = 0; c < HEAD_DIM / 32; ++c)
#pragma unroll
            for (int half = 0; half < 4; half += 2) {
                u32 a[4] = {word_of(query[c], half), 0, word_of(query[c], half + 1), 0};
#pragma unroll
                for (int t = 0; t < 2; ++t)
                    multiply<ELEMENT == 2>(scores[t], a, word_of(rows.keys[t][c], half),
                                           word_of(rows.keys[t][c], half + 1));
            }
        float higher = peak;
#pragma unroll
        for (int t = 0; t < 2; ++t)
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                bool there = base + t * 8 + column * 2 + i < part.end;
                scores[t][i] = there ? scores[t][i] * scale : 2 * LOWEST;
                higher = fmaxf(higher, scores[t][i]);
            }
        higher = fmaxf(higher, __shfl_xor_sync(~0u, higher, 1));
        higher = fmaxf(higher, __shfl_xor_sync(~0u, higher, 2));
        float lower = exp2f(peak - higher);
        peak = higher;
        weight *= lower;
#pragma unroll
        for (int t = 0; t < 2; ++t)
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                scores[t][i] = exp2f(scores[t][i] - peak);
                weight += scores[t][i];
            }
        u32 a[4] = {pair_of(scores[0][0], scores[0][1]), 0, pair_of(scores[1][0], scores[1][1]), 0};
#pragma unroll
        for (int w = 0; w < HEAD_DIM / 64; ++w)
#pragma unroll
            for (int j = 0; j < 8; ++j) {
                float(&sum)[4] = sums[w * 8 + j];
                sum[0] *= lower;
                sum[1] *= lower;
                u32 b[4];
#pragma unroll
                for (int i = 0; i < 4; ++i) b[i] = word_of(rows.values[i][w], j / 2);
                multiply<ELEMENT == 2>(sum, a, halves(b[0], b[1], j & 1),
                                       halves(b[2], b[3], j & 1));
            }
        // Other warps compute while these rows are on their way.
        int following = base + blockDim.x / 32 * KEYS;
        if (following < part.end) take(rows, keys, values, following, part.end, lane);
    }
    weight += __shfl_xor_sync(~0u, weight, 1);
    weight += __shfl_xor_sync(~0u, weight, 2);
    if (group < HEADS) {
        if (column == 0) {
            shares.peaks[warp][group] = peak;
            shares.weights[warp][group] = weight;
        }
#pragma unroll
        for (int n = 0; n < HEAD_DIM / 8; ++n)
#pragma unroll
            for (int i = 0; i < 2; ++i)
                shares.sums[warp][group][n / 8 * 64 + (column * 2 + i) * 8 + n % 8] = sums[n][i];
    }
    settle(shares, blockDim.x / 32, cache, out, at, part);
}
#endif

// Rows of the cache from `first` on are on their way to shared memory; beyond `end` are zeros.
__device__ void stage(u16 (*to)[PITCH], const T* from, int first, int end) {
    constexpr int packs = HEAD_DIM / PACK;
    for (int i = threadIdx.x; i < STAGE * packs; i += THREADS) {
        int r = i / packs, d = i % packs * PACK;
        bool there = first + r < end;
        fetch(&to[r][d], from + (i64)(there ? first + r : 0) * HEAD_DIM + d, there);
    }
    depart();
}

// A prompt by the tensor cores: grid (tokens / TILE, heads, rows). After `append_rows`.
extern "C" __global__ void __launch_bounds__(THREADS)
    attend_many(const T* heads, const float* cosine, const float* sine, const int* past_lens,
                const int* new_lens, const Cache* table, T* output, int layer, int tokens,
                float scale) {
    __shared__ __align__(16) u16 keys[STAGE][PITCH];
    __shared__ __align__(16) u16 values[STAGE][PITCH];
    constexpr int STEPS = HEAD_DIM / 16, COLUMNS = STAGE / 8, WIDTH = HEAD_DIM / 8;
    Cache cache = *table;
    int head = blockIdx.y, row = blockIdx.z, first = blockIdx.x * TILE;
    int kv = head / GROUP, kv_heads = gridDim.y / GROUP, slot = (int)cache.first_slot + row;
    int past = past_lens[row], count = row < cache.live ? new_lens[row] : 0;
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, group = lane >> 2, place = lane & 3;
    // The two tokens whose scores this thread holds.
    int low = first + warp * 16 + group, high = low + 8;
    float sums[WIDTH][4] = {}, peak[2] = {LOWEST, LOWEST}, weight[2] = {0, 0};
    if (first < count) {
        u32 q[STEPS][4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            int token = min(i & 1 ? high : low, tokens - 1);
            i64 at = (i64)row * tokens + token;
            const T* mine = head_of(heads, at, kv_heads, head);
            const float *turn = cosine + at * HALF, *shift = sine + at * HALF;
#pragma unroll
            for (int s = 0; s < STEPS; ++s) {
                int d = s * 16 + place * 2 + (i & 2 ? 8 : 0);
                q[s][i] = pair_of(turned(mine, d, turn, shift), turned(mine, d + 1, turn, shift));
            }
        }
        const T* key_rows = rows_of(cache, layer, false, slot, kv, kv_heads);
        const T* value_rows = rows_of(cache, layer, true, slot, kv, kv_heads);
        int end = min(past + min(first + TILE, count), (int)cache.length);
        stage(keys, key_rows, 0, end);
        for (int base = 0; base < end; base += STAGE) {
            stage(values, value_rows, base, end);
            arrive<1>();
            __syncthreads();
            float scores[COLUMNS][4];
#pragma unroll
            for (int c = 0; c < COLUMNS; c += 2) {
                for (int i = 0; i < 4; ++i) scores[c][i] = scores[c + 1][i] = 0;
#pragma unroll
                for (int s = 0; s < STEPS; ++s) {
                    u32 b[4];
                    int matrix = lane >> 3;
                    load_matrices<false>(
                        b, &keys[c * 8 + (matrix >> 1) * 8 + (lane & 7)][s * 16 + (matrix & 1) * 8]);
                    multiply<ELEMENT == 2>(scores[c], q[s], b[0], b[1]);
                    multiply<ELEMENT == 2>(scores[c + 1], q[s], b[2], b[3]);
                }
            }
            __syncthreads();
            stage(keys, key_rows, base + STAGE, end);
            bool whole = base + STAGE <= past + first + 1;
            float higher[2] = {peak[0], peak[1]};
#pragma unroll
            for (int c = 0; c < COLUMNS; ++c)
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    int at = base + c * 8 + place * 2 + (i & 1);
                    float x = scores[c][i] * scale;
                    if (!whole && at > past + (i < 2 ? low : high)) x = 2 * LOWEST;
                    scores[c][i] = x;
                    higher[i >> 1] = fmaxf(higher[i >> 1], x);
                }
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                higher[half] = fmaxf(higher[half], __shfl_xor_sync(~0u, higher[half], 1));
                higher[half] = fmaxf(higher[half], __shfl_xor_sync(~0u, higher[half], 2));
                float lower = exp2f(peak[half] - higher[half]);
                peak[half] = higher[half];
                weight[half] *= lower;
#pragma unroll
                for (int w = 0; w < WIDTH; ++w) {
                    sums[w][2 * half] *= lower;
                    sums[w][2 * half + 1] *= lower;
                }
            }
#pragma unroll
            for (int c = 0; c < COLUMNS; ++c)
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    scores[c][i] = exp2f(scores[c][i] - peak[i >> 1]);
                    weight[i >> 1] += scores[c][i];
                }
            arrive<1>();
            __syncthreads();
#pragma unroll
            for (int c = 0; c < COLUMNS; c += 2) {
                u32 a[4] = {pair_of(scores[c][0], scores[c][1]), pair_of(scores[c][2], scores[c][3]),
                            pair_of(scores[c + 1][0], scores[c + 1][1]),
                            pair_of(scores[c + 1][2], scores[c + 1][3])};
#pragma unroll
                for (int w = 0; w < WIDTH; w += 2) {
                    u32 b[4];
                    int matrix = lane >> 3;
                    load_matrices<true>(
                        b, &values[c * 8 + (matrix & 1) * 8 + (lane & 7)][w * 8 + (matrix >> 1) * 8]);
                    multiply<ELEMENT == 2>(sums[w], a, b[0], b[1]);
                    multiply<ELEMENT == 2>(sums[w + 1], a, b[2], b[3]);
                }
            }
            __syncthreads();
        }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        int token = half ? high : low;
        weight[half] += __shfl_xor_sync(~0u, weight[half], 1);
        weight[half] += __shfl_xor_sync(~0u, weight[half], 2);
        if (token >= tokens) continue;
        float part = token < count ? 1 / weight[half] : 0;
        T* out = output + (((i64)row * tokens + token) * gridDim.y + head) * HEAD_DIM;
#pragma unroll
        for (int w = 0; w < WIDTH; ++w)
            *(u32*)(out + w * 8 + place * 2) =
                pair_of(sums[w][2 * half] * part, sums[w][2 * half + 1] * part);
    }
}
#endif
