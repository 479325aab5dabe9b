// What a step does beside the engine: new rows into the cache, and the next token of each slot.
//
// Compiled at start for the device that is there (NVRTC). Sums are added in a fixed order, so that
// the same logits, seed and position give the same token. The formulas of `choose` are those of
// llmengine_server/sampling.py, in float32.

typedef unsigned int u32;
typedef unsigned long long u64;

// What a kernel is to do for which rows: written by the host, or once for all decode steps.
struct Control {
    int first_slot;  // row r of the batch is slot first_slot + r
    int rows;        // rows that count; those beyond are idle
    int past;        // where new rows go in the cache; -1: where the slot says
    int count;       // new rows that count, of each row of the batch
    int choose;      // 0: only tell whether the logits are finite
    int length;      // tokens of the sequence after this step; -1: one more than the slot says
};

struct Recipe {
    float temperature;  // 0: the largest logit
    float top_p;
    float repetition;
    float presence;
    float frequency;
    int top_k;
    int banned_until;
    int penalised;
};

struct Row {
    const float* logits;
    const u32* counts;  // null: no penalties
    const u32* bans;    // null: nothing is banned
    Recipe recipe;
    int vocabulary;
    float largest;

    __device__ float at(int token) const {
        float x = logits[token];
        if (counts) {
            u32 times = counts[token];
            if (times) {
                x = x > 0 ? x / recipe.repetition : x * recipe.repetition;
                x -= recipe.presence + recipe.frequency * (float)times;
            }
        }
        if (bans && (bans[token >> 5] >> (token & 31) & 1)) x = __int_as_float(0xff800000);
        return x;
    }

    // Softmax without its division: the largest weight is 1.
    __device__ float weight(float x) const { return expf((x - largest) / recipe.temperature); }
};

// Larger floats have larger keys.
__device__ u32 key_of(float x) {
    u32 bits = __float_as_uint(x);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

__device__ float value_of(u32 key) {
    return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

__device__ u64 larger(u64 a, u64 b) { return a > b ? a : b; }

__device__ u64 block_max(u64 value) {
    __shared__ u64 parts[32];
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    for (int d = 16; d; d >>= 1) value = larger(value, __shfl_down_sync(~0u, value, d));
    if (lane == 0) parts[warp] = value;
    __syncthreads();
    if (warp == 0) {
        value = lane < (int)(blockDim.x >> 5) ? parts[lane] : 0;
        for (int d = 16; d; d >>= 1) value = larger(value, __shfl_down_sync(~0u, value, d));
        if (lane == 0) parts[0] = value;
    }
    __syncthreads();
    value = parts[0];
    __syncthreads();
    return value;
}

// Every thread gets the sums over all threads.
template <int N>
__device__ void block_sum(float (&values)[N]) {
    __shared__ float parts[32][N];
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    for (int n = 0; n < N; ++n)
        for (int d = 16; d; d >>= 1) values[n] += __shfl_down_sync(~0u, values[n], d);
    if (lane == 0)
        for (int n = 0; n < N; ++n) parts[warp][n] = values[n];
    __syncthreads();
    if (warp == 0) {
        for (int n = 0; n < N; ++n) {
            float value = lane < (int)(blockDim.x >> 5) ? parts[lane][n] : 0.0f;
            for (int d = 16; d; d >>= 1) value += __shfl_down_sync(~0u, value, d);
            __syncwarp();
            if (lane == 0) parts[0][n] = value;
        }
    }
    __syncthreads();
    for (int n = 0; n < N; ++n) values[n] = parts[0][n];
    __syncthreads();
}

// The sum over the threads up to this one; `total` is that over all of them.
template <typename T>
__device__ T block_scan(T value, T& total) {
    __shared__ T parts[32];
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    for (int d = 1; d < 32; d <<= 1) {
        T before = __shfl_up_sync(~0u, value, d);
        if (lane >= d) value += before;
    }
    if (lane == 31) parts[warp] = value;
    __syncthreads();
    T offset = 0;
    total = 0;
    for (int w = 0; w < warps; ++w) {
        if (w == warp) offset = total;
        total += parts[w];
    }
    __syncthreads();
    return value + offset;
}

// The largest key from which on the tokens come to the target; what those above it come to.
struct Place {
    u32 key;
    float above;
};

// Tokens are counted, or weighed. STRICT: they must exceed the target.
template <bool COUNT, bool STRICT>
__device__ Place find(const Row& row, float target) {
    u64 low = 0, high = 1ull << 32;
    float above = 0;
    while (high - low > 1) {
        u64 step = (high - low) >> 2;  // 2^32 is 4^16: it always divides
        u32 first = (u32)(low + step), second = (u32)(low + 2 * step);
        u32 third = (u32)(low + 3 * step);
        float sums[3] = {0, 0, 0};
        for (int token = threadIdx.x; token < row.vocabulary; token += blockDim.x) {
            float x = row.at(token);
            u32 key = key_of(x);
            if (key >= first) {
                float part = COUNT ? 1.0f : row.weight(x);
                sums[0] += part;
                if (key >= second) sums[1] += part;
                if (key >= third) sums[2] += part;
            }
        }
        block_sum(sums);
        int up = 0;
        while (up < 3 && (STRICT ? sums[up] > target : sums[up] >= target)) ++up;
        if (up < 3) {
            above = sums[up];
            high = low + (up + 1) * step;
        }
        low += up * step;
    }
    return {(u32)low, above};
}

// The sum of all weights, or of those above a key.
__device__ float weigh(const Row& row, bool all, u32 above) {
    float sums[1] = {0};
    for (int token = threadIdx.x; token < row.vocabulary; token += blockDim.x) {
        float x = row.at(token);
        if (all || key_of(x) > above) sums[0] += row.weight(x);
    }
    block_sum(sums);
    return sums[0];
}

// The token number `index` of those with this key, in the order of their ids; the last one if
// there are fewer.
__device__ int pick_equal(const Row& row, u32 key, int index) {
    __shared__ int found;
    int share = (row.vocabulary + blockDim.x - 1) / blockDim.x;
    int begin = min((int)threadIdx.x * share, row.vocabulary);
    int end = min(begin + share, row.vocabulary);
    int mine = 0, total;
    for (int token = begin; token < end; ++token) mine += key_of(row.at(token)) == key;
    int upto = block_scan(mine, total);
    index = min(index, total - 1);
    if (threadIdx.x == 0) found = 0;
    __syncthreads();
    int before = upto - mine;
    if (before <= index && index < upto) {
        for (int token = begin; token < end; ++token) {
            if (key_of(row.at(token)) == key && before++ == index) found = token;
        }
    }
    __syncthreads();
    return found;
}

// The token at `number` of all of them, in the order of their ids.
__device__ int pick_ordered(const Row& row, double number) {
    __shared__ int found;
    int share = (row.vocabulary + blockDim.x - 1) / blockDim.x;
    int begin = min((int)threadIdx.x * share, row.vocabulary);
    int end = min(begin + share, row.vocabulary);
    float mine = 0, total;
    int last = -1;
    for (int token = begin; token < end; ++token) {
        float weight = row.weight(row.at(token));
        mine += weight;
        if (weight > 0) last = token;
    }
    float upto = block_scan(mine, total);
    float target = (float)(number * total);
    // Where rounding carries the target to the total itself.
    int likely = (int)block_max((u64)(last + 1)) - 1;
    if (threadIdx.x == 0) found = likely;
    __syncthreads();
    float before = upto - mine;
    if (before <= target && target < upto && last >= 0) {
        int token = begin;
        for (; token < last; ++token) {
            before += row.weight(row.at(token));
            if (before > target) break;
        }
        // Neighbours' borders may overlap by a rounding: the first one counts.
        atomicMin(&found, token);
    }
    __syncthreads();
    return found;
}

__device__ int draw(const Row& row, double number) {
    const Recipe& recipe = row.recipe;
    bool filtered = recipe.top_k > 0 && recipe.top_k < row.vocabulary;
    if (!filtered && recipe.top_p >= 1) return pick_ordered(row, number);
    // Tokens above `border` are in, and `level` of those that have it, lower ids first.
    u32 border = 0;
    float level = (float)row.vocabulary, kept;
    if (filtered) {
        Place place = find<true, false>(row, (float)recipe.top_k);
        border = place.key;
        level = recipe.top_k - place.above;
        kept = weigh(row, false, border) + level * row.weight(value_of(border));
    } else {
        kept = weigh(row, true, 0);
    }
    if (recipe.top_p < 1) {
        float target = recipe.top_p * kept;
        Place place = find<false, false>(row, target);
        if (place.key >= border) {
            float weight = row.weight(value_of(place.key));
            float needed = fmaxf(ceilf((target - place.above) / weight), 1.0f);
            level = place.key > border ? needed : fminf(level, needed);
            border = place.key;
            kept = place.above + level * weight;
        }
    }
    float target = (float)(number * kept);
    Place place = find<false, true>(row, target);
    if (place.key < border) return pick_equal(row, border, (int)level - 1);
    float weight = row.weight(value_of(place.key));
    float index = fmaxf(floorf((target - place.above) / weight), 0.0f);
    if (place.key == border) index = fminf(index, level - 1);
    return pick_equal(row, place.key, (int)index);
}

// One block a row of `[rows, vocabulary]`, of a multiple of 32 threads. `results`: two numbers a
// slot: the token, and whether all logits and cache rows are finite.
extern "C" __global__ void choose(const float* logits, int vocabulary, const Control* control,
                                  int* ids, int* pasts, u32* spoiled, const Recipe* recipes,
                                  u32* counts, const u32* bans, const double* numbers,
                                  int* results) {
    if ((int)blockIdx.x >= control->rows) return;
    int slot = control->first_slot + blockIdx.x;
    int length = control->length >= 0 ? control->length : pasts[slot] + 1;
    Row row;
    row.logits = logits + (u64)blockIdx.x * vocabulary;
    row.recipe = recipes[slot];
    row.vocabulary = vocabulary;
    row.counts = row.recipe.penalised ? counts + (u64)slot * vocabulary : nullptr;
    row.bans = length < row.recipe.banned_until ? bans + (u64)slot * ((vocabulary + 31) / 32)
                                                : nullptr;
    u64 best = 0;
    float broken[1] = {spoiled[slot] ? 1.0f : 0.0f};
    for (int token = threadIdx.x; token < vocabulary; token += blockDim.x) {
        if (!isfinite(row.logits[token])) broken[0] = 1;
        best = larger(best, (u64)key_of(row.at(token)) << 32 | (u32)~token);
    }
    best = block_max(best);
    block_sum(broken);
    bool finite = broken[0] == 0;
    int token = (int)~(u32)best;
    row.largest = value_of((u32)(best >> 32));
    if (control->choose && finite && row.recipe.temperature > 0) token = draw(row, numbers[slot]);
    __syncthreads();
    if (threadIdx.x) return;
    // A token for the next step must be one, whatever the logits are.
    if (!finite) token = 0;
    results[2 * slot] = token;
    results[2 * slot + 1] = finite;
    pasts[slot] = length;
    spoiled[slot] = 0;
    if (!control->choose) return;
    ids[slot] = token;
    if (row.counts) counts[(u64)slot * vocabulary + token] += 1;
}

// New rows, keys `[layers, rows, heads, width, tokens]` and values `[layers, rows, heads, tokens,
// width]`, into the cache: grid (rows, 2 * layers, heads). A value that is not finite (all bits of
// `exponent` set) is stored as 0 and reported. Strides are in elements.
template <typename T>
__device__ void scatter(const T* keys, const T* values, T* cache, u64 layer_stride,
                        u64 value_offset, int length, int tokens, int width,
                        const Control* control, const int* pasts, u32* spoiled, u32 exponent) {
    if ((int)blockIdx.x >= control->rows) return;
    int slot = control->first_slot + blockIdx.x;
    int past = control->past >= 0 ? control->past : pasts[slot];
    int head = blockIdx.z, heads = gridDim.z, layer = blockIdx.y >> 1;
    bool is_value = blockIdx.y & 1;
    u64 unit = (u64)width * tokens;
    const T* rows = (is_value ? values : keys) +
                    (((u64)layer * gridDim.x + blockIdx.x) * heads + head) * unit;
    T* target = cache + layer * layer_stride + (is_value ? value_offset : 0) +
                ((u64)slot * heads + head) * width * length;
    for (int i = threadIdx.x; i < (int)unit; i += blockDim.x) {
        int token = is_value ? i / width : i % tokens;
        int at = is_value ? i % width : i / tokens;
        if (token >= control->count || past + token >= length) continue;
        T value = rows[i];
        if ((value & exponent) == exponent) {
            spoiled[slot] = 1;
            value = 0;
        }
        u64 place = is_value ? (u64)(past + token) * width + at : (u64)at * length + past + token;
        target[place] = value;
    }
}

extern "C" __global__ void scatter_2(const unsigned short* keys, const unsigned short* values,
                                     unsigned short* cache, u64 layer_stride, u64 value_offset,
                                     int length, int tokens, int width, const Control* control,
                                     const int* pasts, u32* spoiled, u32 exponent) {
    scatter(keys, values, cache, layer_stride, value_offset, length, tokens, width, control, pasts,
            spoiled, exponent);
}

extern "C" __global__ void scatter_4(const u32* keys, const u32* values, u32* cache,
                                     u64 layer_stride, u64 value_offset, int length, int tokens,
                                     int width, const Control* control, const int* pasts,
                                     u32* spoiled, u32 exponent) {
    scatter(keys, values, cache, layer_stride, value_offset, length, tokens, width, control, pasts,
            spoiled, exponent);
}

// Rows of another length: block r copies `kept` of row r and fills it up with zeros to `to_row`.
// In units of 16 bytes.
extern "C" __global__ void lay(uint4* to, u64 to_row, const uint4* from, u64 from_row, u64 kept) {
    to += blockIdx.x * to_row;
    from += blockIdx.x * from_row;
    for (u64 i = threadIdx.x; i < to_row; i += blockDim.x)
        to[i] = i < kept ? from[i] : make_uint4(0, 0, 0, 0);
}

// The first rows of one slot to another: grid (2 * layers, heads). `row` is a row of the cache at
// its present length, `kept` what is copied of it, for keys; for values `slab` and `kept_slab`, a
// whole head. In units of 16 bytes, but width.
extern "C" __global__ void move_rows(uint4* cache, u64 layer_stride, u64 value_offset, int width,
                                     u64 row, u64 kept, u64 slab, u64 kept_slab, int source,
                                     int target) {
    int heads = gridDim.y, head = blockIdx.y;
    cache += (blockIdx.x >> 1) * layer_stride;
    if (blockIdx.x & 1) {
        const uint4* from = cache + value_offset + ((u64)source * heads + head) * slab;
        uint4* to = cache + value_offset + ((u64)target * heads + head) * slab;
        for (u64 i = threadIdx.x; i < kept_slab; i += blockDim.x) to[i] = from[i];
        return;
    }
    const uint4* from = cache + ((u64)source * heads + head) * width * row;
    uint4* to = cache + ((u64)target * heads + head) * width * row;
    for (u64 i = threadIdx.x; i < width * kept; i += blockDim.x) {
        u64 place = i / kept * row + i % kept;
        to[place] = from[place];
    }
}

// What is kept of a slot beside its rows, to another: one block.
extern "C" __global__ void move_state(int* ids, int* pasts, u32* spoiled, Recipe* recipes,
                                      u32* counts, u32* bans, int vocabulary, int source,
                                      int target) {
    int words = (vocabulary + 31) / 32;
    if (recipes[source].penalised) {
        for (int i = threadIdx.x; i < vocabulary; i += blockDim.x)
            counts[(u64)target * vocabulary + i] = counts[(u64)source * vocabulary + i];
    }
    for (int i = threadIdx.x; i < words; i += blockDim.x)
        bans[(u64)target * words + i] = bans[(u64)source * words + i];
    if (threadIdx.x) return;
    ids[target] = ids[source];
    pasts[target] = pasts[source];
    spoiled[target] = spoiled[source];
    recipes[target] = recipes[source];
}

// Adds tokens to the counts of one slot, `[vocabulary]`.
extern "C" __global__ void count(u32* counts, const int* tokens, int length) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < length) atomicAdd(counts + tokens[i], 1u);
}
