// What a step does beside the engine: the next token of each slot, and what goes with its sequence.
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

// The row of a slot as its recipe wants it, without what was banned before `length` tokens.
__device__ Row row_of(const float* logits, int vocabulary, const Recipe& recipe, int slot,
                      int length, const u32* counts, const u32* bans) {
    Row row;
    row.logits = logits + (u64)blockIdx.y * vocabulary;
    row.recipe = recipe;
    row.vocabulary = vocabulary;
    row.counts = recipe.penalised ? counts + (u64)slot * vocabulary : nullptr;
    row.bans = length < recipe.banned_until ? bans + (u64)slot * ((vocabulary + 31) / 32)
                                            : nullptr;
    return row;
}

constexpr u64 BROKEN = ~0ull;

// Each block looks at a part of a row of `[rows, vocabulary]`: grid (parts, rows). `seen`, `[rows,
// parts]`: its largest key and that token, lower ids first; BROKEN where a logit is not finite.
extern "C" __global__ void survey(const float* logits, int vocabulary, const Control* control,
                                  const int* pasts, const Recipe* recipes, const u32* counts,
                                  const u32* bans, u64* seen) {
    if ((int)blockIdx.y >= control->rows) return;
    int slot = control->first_slot + blockIdx.y;
    int length = control->length >= 0 ? control->length : pasts[slot] + 1;
    Row row = row_of(logits, vocabulary, recipes[slot], slot, length, counts, bans);
    u64 best = 0;
    for (int token = blockIdx.x * blockDim.x + threadIdx.x; token < vocabulary;
         token += gridDim.x * blockDim.x) {
        u64 found = (u64)key_of(row.at(token)) << 32 | (u32)~token;
        best = larger(best, isfinite(row.logits[token]) ? found : BROKEN);
    }
    best = block_max(best);
    if (threadIdx.x == 0) seen[blockIdx.y * gridDim.x + blockIdx.x] = best;
}

// One block a row, of a multiple of 32 threads, at least `parts`: grid (1, rows). `results`: two
// numbers a slot: the token, and whether all logits and cache rows are finite.
extern "C" __global__ void choose(const float* logits, int vocabulary, const Control* control,
                                  int* ids, int* pasts, u32* spoiled, const Recipe* recipes,
                                  u32* counts, const u32* bans, const double* numbers,
                                  const u64* seen, int parts, int* results) {
    if ((int)blockIdx.y >= control->rows) return;
    int slot = control->first_slot + blockIdx.y;
    int length = control->length >= 0 ? control->length : pasts[slot] + 1;
    Row row = row_of(logits, vocabulary, recipes[slot], slot, length, counts, bans);
    u64 mine = (int)threadIdx.x < parts ? seen[blockIdx.y * parts + threadIdx.x] : 0;
    u64 best = block_max(spoiled[slot] ? BROKEN : mine);
    bool finite = best != BROKEN;
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

// The first rows of one slot to another: grid (2 * layers, heads); a slot's heads have `slab`
// units of 16 bytes each, of which `kept` are copied.
extern "C" __global__ void move_rows(uint4* cache, u64 half, u64 slab, u64 kept, int source,
                                     int target) {
    cache += blockIdx.x * half;
    const uint4* from = cache + ((u64)source * gridDim.y + blockIdx.y) * slab;
    uint4* to = cache + ((u64)target * gridDim.y + blockIdx.y) * slab;
    for (u64 i = threadIdx.x; i < kept; i += blockDim.x) to[i] = from[i];
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
