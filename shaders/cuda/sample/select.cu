// A token at random among the likely ones (top-k; top-p, arXiv:1904.09751), without putting all of them in order.
//
// Each question is the same: which candidate, in descending order, is the first at which a sum reaches a target? The sum is one of
// candidates (top-k) or of weights (top-p, and the draw itself). A histogram of counts and weights over the distance to the largest
// logit tells in which bin that candidate lies; the few candidates of that bin, or of all bins down to it, are gathered; among them
// the digits of their keys (logit, then index) lead to it, histogram by histogram.
//
// Weights are integers (fixed point), so that sums do not depend on the order of atomics. `parts` blocks share a vector, and the
// last of them to finish a launch goes on alone: launches are `sample_begin`, `sample_weigh`, and `sample_gather` once for each
// question; those that have nothing left to do return. A single block does all of it in `sample_alone`. Scratch of a vector: State.
// Compiled for X and RUN like argmax, or any type.
#include "argmax/common.cuh"
#include "common/math.cuh"

#define THREADS 512
#define DIGIT 11
#define BINS (1u << DIGIT)
// Bins of a thread, where the block scans them.
#define EACH (BINS / THREADS)
// Bins of a distance in which a weight falls by a factor of e.
#define FINENESS 64.0f
#define MOST_PARTS 128
// Candidates that are gathered at most; and so many from the top on, with which all questions can be answered.
#define MOST_LISTED 8192
#define TOGETHER 2048
// Elements that a block gathers before it asks for room.
#define MOST_OWN 1024

enum Question : u32 { ASK_TOP_K, ASK_TOP_P, ASK_DRAW, ASK_NOTHING };

struct SampleParams {
    Rows x;
    // The vectors of this launch begin with this one.
    u64 first;
    u64 top_k;
    float inverse_temperature, top_p;
    u32 parts, dtype;
    // A weight of 1 is 2^scale.
    u32 scale;
    u32 has_top_k, has_top_p;
    // Which launch of `sample_gather` this is.
    u32 turn;
};

struct Bin {
    u64 weight;
    u64 count;
};

struct State {
    // By distance: the largest logits first.
    Bin bins[BINS];
    // Keys of the parts' largest logits.
    u64 tops[MOST_PARTS];
    // Keys of gathered candidates, in any order.
    u64 list[MOST_LISTED];
    // The sum that is looked for, and what lies before the bins that are looked at.
    u64 target, before_weight, before_count;
    u32 first_bin, last_bin;
    // What the next launch is to answer: see Task. One word, which blocks of this launch may read while it changes.
    u32 task;
    // Number of the largest logit.
    u32 top;
    u32 gathered;
    // Blocks that have finished the launch.
    u32 finished;
    u32 unused[2];
};

// A question for the launch of that turn.
struct Task {
    u32 question, turn;
    // Whether candidates are gathered, or looked for in the whole vector each time.
    u32 listed;

    __device__ __forceinline__ Task(u32 question, u32 turn, u32 listed) : question(question), turn(turn), listed(listed) {}
    __device__ __forceinline__ explicit Task(u32 word) : question(word & 15), turn(word >> 8), listed(word >> 4 & 1) {}
    __device__ __forceinline__ u32 word() const {
        return turn << 8 | listed << 4 | question;
    }
};

// What another block of this launch wrote.
DEVICE u64 fresh(const u64 &value) {
    return *const_cast<const volatile u64 *>(&value);
}
DEVICE u32 fresh(const u32 &value) {
    return *const_cast<const volatile u32 *>(&value);
}

// Sums in 64 bits by atomics of 32.
struct Histogram {
    u32 low[BINS], high[BINS], counts[BINS];

    __device__ __forceinline__ void clear() {
        for (u32 bin = threadIdx.x; bin < BINS; bin += THREADS) {
            low[bin] = 0;
            high[bin] = 0;
            counts[bin] = 0;
        }
        __syncthreads();
    }
    __device__ __forceinline__ void add(u32 bin, u64 weight) {
        const u32 part = (u32)weight, before = atomicAdd(&low[bin], part);
        // whoever overflows carries
        const u32 more = (u32)(weight >> 32) + (before + part < before);
        if (more != 0) {
            atomicAdd(&high[bin], more);
        }
        atomicAdd(&counts[bin], 1u);
    }
    __device__ __forceinline__ Bin bin(u32 at) const {
        return Bin{(u64)high[at] << 32 | low[at], counts[at]};
    }
};

// One vector's sampling, as a block sees it.
struct Sampling {
    const SampleParams &p;
    State &state;
    Histogram &histogram;
    const void *x;
    u64 start;
    u32 top, turn;

    __device__ __forceinline__ u64 weight(u32 number) const {
        // equal values have no distance, infinite ones neither
        const float share = number == top ? 1.0f : exp_fast((value_of(number) - value_of(top)) * p.inverse_temperature);
        return (u64)(share * float_of((127u + p.scale) << 23));
    }

    // The bin of a logit's distance to the largest; larger logits have no higher ones.
    __device__ __forceinline__ u32 bin(float value) const {
        const float distance = (value_of(top) - value) * fminf(p.inverse_temperature * FINENESS, 3.0e38f);
        return (u32)fminf(distance, (float)(BINS - 1));
    }

    // Calls `f(key)` for each candidate of the bins that are looked at.
    template <class F> __device__ __forceinline__ void candidates(u32 listed, u32 first_bin, u32 last_bin, F f) const {
        if (listed) {
            const u32 count = fresh(state.gathered);
            for (u32 i = threadIdx.x; i < count; i += THREADS) {
                f(fresh(state.list[i]));
            }
            return;
        }
        for_runs<2>(x, start, p.dtype, threadIdx.x, THREADS, p.x.len / RUN, [&](float value, u64 index) {
            const u32 own = bin(value);
            if (own >= first_bin && own <= last_bin) {
                f(order_key(value, index));
            }
        });
    }
};

// Whether this block is the last of its vector; then it sees what the others wrote.
DEVICE bool is_last(const SampleParams &p, State &state) {
    __shared__ u32 last;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        last = atomicAdd(&state.finished, 1u) == p.parts - 1;
        if (last) {
            // for the next launch
            state.finished = 0;
        }
    }
    __syncthreads();
    if (last) {
        __threadfence();
    }
    return last;
}

struct Found {
    u32 bin;
    u64 before_weight, before_count;
    Bin own;
};

// The first of BINS bins at which the sum reaches the target; `get(i)` is the i-th. Whole block: all get the result.
template <class F> DEVICE Found find(u64 target, bool by_count, u64 before_weight, u64 before_count, F get) {
    __shared__ u64 warps[THREADS / WARP_SIZE];
    __shared__ Found found;
    Bin own[EACH];
    u64 weight = 0, count = 0;
#pragma unroll
    for (u32 i = 0; i < EACH; i++) {
        own[i] = get(threadIdx.x * EACH + i);
        weight += own[i].weight;
        count += own[i].count;
    }
    u64 weights = before_weight + scan_block<Sum>(weight, warps) - weight;
    u64 counts = before_count + scan_block<Sum>(count, warps) - count;
#pragma unroll
    for (u32 i = 0; i < EACH; i++) {
        const u64 sum = by_count ? counts : weights, more = by_count ? own[i].count : own[i].weight;
        if (sum < target && sum + more >= target) {
            found = Found{threadIdx.x * EACH + i, weights, counts, own[i]};
        }
        weights += own[i].weight;
        counts += own[i].count;
    }
    __syncthreads();
    const Found result = found;
    __syncthreads();
    return result;
}

// The draw's target: the sum has to exceed this share of the mass. Also for what is no number in [0, 1): the last candidate, or the
// first.
DEVICE u64 draw(u64 mass, float uniform) {
    const double share = uniform < 1.0f ? (uniform > 0.0f ? (double)uniform : 0.0) : 1.0;
    const u64 below = (u64)(share * (double)mass);
    return (below < mass ? below : mass - 1) + 1;
}

DEVICE u64 share_of(u64 mass, float top_p) {
    const u64 enough = (u64)ceil((double)top_p * (double)mass);
    return enough < 1 ? 1 : enough < mass ? enough : mass;
}

// The question behind one that left a mass of candidates, and its target.
DEVICE u32 next_question(const SampleParams &p, u32 question, u64 mass, float uniform, u64 &target) {
    const bool cut = question == ASK_TOP_K && p.has_top_p;
    target = cut ? share_of(mass, p.top_p) : draw(mass, uniform);
    return cut ? ASK_TOP_P : ASK_DRAW;
}

// Chooses the bins in which a question is answered. Whole block.
DEVICE void plan(const Sampling &s, u32 question, u64 target) {
    State &state = s.state;
    Found found = find(target, question == ASK_TOP_K, 0, 0, [&](u32 i) {
        return Bin{fresh(state.bins[i].weight), fresh(state.bins[i].count)};
    });
    const bool together = found.before_count + found.own.count <= TOGETHER;
    if (threadIdx.x == 0) {
        // what a block goes through at once need not be gathered
        const bool listed = s.p.x.len > TOGETHER && (together || found.own.count <= MOST_LISTED);
        state.task = Task(question, s.turn + 1, listed).word();
        state.target = target;
        state.first_bin = together ? 0 : found.bin;
        state.last_bin = found.bin;
        state.before_weight = together ? 0 : found.before_weight;
        state.before_count = together ? 0 : found.before_count;
        state.gathered = 0;
        state.top = s.top;
    }
    __syncthreads();
}

// Gathers this part's candidates.
DEVICE void gather(const Sampling &s, u32 first_bin, u32 last_bin, const Part &part) {
    __shared__ u64 own[MOST_OWN];
    __shared__ u32 count, room;
    if (threadIdx.x == 0) {
        count = 0;
    }
    __syncthreads();
    for_runs<4>(s.x, s.start, s.p.dtype, part.first + threadIdx.x, THREADS, part.end, [&](float value, u64 index) {
        const u32 bin = s.bin(value);
        if (bin >= first_bin && bin <= last_bin) {
            const u32 at = atomicAdd(&count, 1u);
            if (at < MOST_OWN) {
                own[at] = order_key(value, index);
            } else {
                s.state.list[atomicAdd(&s.state.gathered, 1u)] = order_key(value, index);
            }
        }
    });
    __syncthreads();
    const u32 kept = count < MOST_OWN ? count : MOST_OWN;
    if (threadIdx.x == 0 && kept > 0) {
        room = atomicAdd(&s.state.gathered, kept);
    }
    __syncthreads();
    for (u32 i = threadIdx.x; i < kept; i += THREADS) {
        s.state.list[room + i] = own[i];
    }
}

// The candidate at which the sum reaches the target, and the weight of all through it. Whole block.
DEVICE u64 select(const Sampling &s, u32 question, u32 listed, u64 target, u64 &mass) {
    __shared__ u64 lowest[THREADS / WARP_SIZE], highest[THREADS / WARP_SIZE];
    __shared__ u64 chosen;
    const State &state = s.state;
    const u32 first_bin = state.first_bin, last_bin = state.last_bin;
    u64 before_weight = state.before_weight, before_count = state.before_count;
    // the highest bits are common
    u64 low = 0, high = 0;
    s.candidates(listed, first_bin, last_bin, [&](u64 key) {
        low = Max::apply(low, ~key);
        high = Max::apply(high, key);
    });
    low = ~reduce_row<Max>(low, lowest);
    high = reduce_row<Max>(high, highest);
    // keys that agree in the bits from `known` on are left
    u32 known = 64 - (u32)__clzll((i64)(low ^ high));
    u64 prefix = high;
    if (threadIdx.x == 0) {
        chosen = high;
    }
    __syncthreads();
    while (true) {
        const u32 shift = known > DIGIT ? known - DIGIT : 0;
        const u32 mask = (1u << (known - shift)) - 1;
        s.histogram.clear();
        s.candidates(listed, first_bin, last_bin, [&](u64 key) {
            // two shifts, since one by 64 is none
            if (known == 64 || key >> known == prefix >> known) {
                s.histogram.add((u32)(key >> shift) & mask, s.weight((u32)(key >> 32)));
            }
        });
        __syncthreads();
        const Found found = find(target, question == ASK_TOP_K, before_weight, before_count,
                                 [&](u32 i) { return s.histogram.bin(BINS - 1 - i); });
        const u64 digit = BINS - 1 - found.bin;
        prefix = known == 64 ? digit << shift : (prefix >> known << known) | digit << shift;
        known = shift;
        before_weight = found.before_weight;
        before_count = found.before_count;
        if (found.own.count == 1 || shift == 0) {
            s.candidates(listed, first_bin, last_bin, [&](u64 key) {
                if (key >> known == prefix >> known) {
                    chosen = key;
                }
            });
            __syncthreads();
            mass = before_weight + found.own.weight;
            const u64 key = chosen;
            __syncthreads();
            return key;
        }
    }
}

// Answers questions by the candidates at hand, until one asks for others. Whole block.
DEVICE void answer(const Sampling &s, const Task &task, float uniform, i32 *__restrict__ id) {
    State &state = s.state;
    u32 question = task.question;
    u64 target = state.target;
    const u32 first_bin = state.first_bin;
    while (true) {
        u64 mass;
        const u64 key = select(s, question, task.listed, target, mass);
        if (question == ASK_DRAW) {
            if (threadIdx.x == 0) {
                *id = (i32)index_of(key);
                state.task = Task(ASK_NOTHING, 0, 0).word();
            }
            __syncthreads();
            return;
        }
        question = next_question(s.p, question, mass, uniform, target);
        if (first_bin != 0) {
            plan(s, question, target);
            return;
        }
    }
}

// The largest of all parts, where that is the answer: NaN, an infinity, an only candidate.
DEVICE bool is_answer(const SampleParams &p, u64 best) {
    const float value = value_of((u32)(best >> 32));
    return value - value != 0.0f || (p.has_top_k && p.top_k == 1);
}

DEVICE u64 largest(const SampleParams &p, const void *x, u64 start, const Part &part) {
    __shared__ u64 shared[THREADS / WARP_SIZE];
    u64 most = 0;
    for_runs<4>(x, start, p.dtype, part.first + threadIdx.x, THREADS, part.end,
                [&most](float value, u64 index) { most = Max::apply(most, order_key(value, index)); });
    most = reduce_row<Max>(most, shared);
    __syncthreads();
    return most;
}

// Weighs this part's logits.
DEVICE void weigh(const Sampling &s, const Part &part) {
    s.histogram.clear();
    for_runs<4>(s.x, s.start, s.p.dtype, part.first + threadIdx.x, THREADS, part.end,
                [&](float value, u64) { s.histogram.add(s.bin(value), s.weight(ordered(value))); });
    __syncthreads();
}

// The first question, when all are weighed. Whole block.
DEVICE void begin(const Sampling &s, float uniform) {
    __shared__ u64 warps[THREADS / WARP_SIZE];
    u64 weight = 0;
    for (u32 i = 0; i < EACH; i++) {
        weight += fresh(s.state.bins[threadIdx.x * EACH + i].weight);
    }
    const u64 mass = reduce_row<Sum>(weight, warps);
    const SampleParams &p = s.p;
    const u32 question = p.has_top_k ? ASK_TOP_K : p.has_top_p ? ASK_TOP_P : ASK_DRAW;
    const u64 target = p.has_top_k ? p.top_k : p.has_top_p ? share_of(mass, p.top_p) : draw(mass, uniform);
    __syncthreads();
    plan(s, question, target);
}

// ---- several blocks a vector ----

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    sample_begin(const __grid_constant__ SampleParams p, const void *__restrict__ x, State *__restrict__ states) {
    take_turn();
    const u32 own = blockIdx.x / p.parts, at = blockIdx.x - own * p.parts;
    State &state = states[own];
    const u64 most = largest(p, x, p.x.start_of(p.first + own), Part(p.x.len, at, p.parts));
    if (threadIdx.x == 0) {
        state.tops[at] = most;
    }
    if (at == 0) {
        for (u32 bin = threadIdx.x; bin < BINS; bin += THREADS) {
            state.bins[bin] = Bin{0, 0};
        }
        if (threadIdx.x == 0) {
            state.finished = 0;
            state.task = Task(ASK_NOTHING, 0, 0).word();
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    sample_weigh(const __grid_constant__ SampleParams p, const void *__restrict__ x, const float *__restrict__ uniform,
                 State *__restrict__ states, i32 *__restrict__ ids) {
    take_turn();
    __shared__ Histogram histogram;
    __shared__ u64 keys[THREADS / WARP_SIZE];
    const u32 own = blockIdx.x / p.parts, at = blockIdx.x - own * p.parts;
    const u64 vector = p.first + own;
    State &state = states[own];
    const u64 best = reduce_row<Max>(threadIdx.x < p.parts ? state.tops[threadIdx.x] : 0ull, keys);
    if (is_answer(p, best)) {
        if (threadIdx.x == 0 && at == 0) {
            ids[vector] = (i32)index_of(best);
        }
        return;
    }
    const Sampling s{p, state, histogram, x, p.x.start_of(vector), (u32)(best >> 32), 0};
    weigh(s, Part(p.x.len, at, p.parts));
    for (u32 i = threadIdx.x; i < BINS; i += THREADS) {
        const Bin bin = histogram.bin(i);
        if (bin.count != 0) {
            atomicAdd(&state.bins[i].weight, bin.weight);
            atomicAdd(&state.bins[i].count, bin.count);
        }
    }
    if (is_last(p, state)) {
        begin(s, uniform[vector]);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    sample_gather(const __grid_constant__ SampleParams p, const void *__restrict__ x, const float *__restrict__ uniform,
                  State *__restrict__ states, i32 *__restrict__ ids) {
    take_turn();
    __shared__ Histogram histogram;
    const u32 own = blockIdx.x / p.parts, at = blockIdx.x - own * p.parts;
    const u64 vector = p.first + own;
    State &state = states[own];
    const Task task(fresh(state.task));
    if (task.question == ASK_NOTHING || task.turn != p.turn || (!task.listed && at != 0)) {
        return;
    }
    const Sampling s{p, state, histogram, x, p.x.start_of(vector), state.top, p.turn};
    if (task.listed) {
        gather(s, state.first_bin, state.last_bin, Part(p.x.len, at, p.parts));
        if (!is_last(p, state)) {
            return;
        }
    }
    answer(s, task, uniform[vector], ids + vector);
}

// ---- one block a vector ----

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    sample_alone(const __grid_constant__ SampleParams p, const void *__restrict__ x, const float *__restrict__ uniform,
                 State *__restrict__ states, i32 *__restrict__ ids) {
    take_turn();
    __shared__ Histogram histogram;
    const u64 vector = p.first + blockIdx.x;
    State &state = states[blockIdx.x];
    const Part all(p.x.len, 0, 1);
    const u64 best = largest(p, x, p.x.start_of(vector), all);
    if (is_answer(p, best)) {
        if (threadIdx.x == 0) {
            ids[vector] = (i32)index_of(best);
        }
        return;
    }
    const Sampling s{p, state, histogram, x, p.x.start_of(vector), (u32)(best >> 32), 0};
    weigh(s, all);
    for (u32 i = threadIdx.x; i < BINS; i += THREADS) {
        state.bins[i] = histogram.bin(i);
    }
    __syncthreads();
    begin(s, uniform[vector]);
    while (true) {
        const Task task(fresh(state.task));
        if (task.question == ASK_NOTHING) {
            return;
        }
        if (task.listed) {
            gather(s, state.first_bin, state.last_bin, all);
        }
        __syncthreads();
        answer(s, task, uniform[vector], ids + vector);
        __syncthreads();
    }
}
