// A token at random among the likely ones (top-k; top-p, arXiv:1904.09751), without putting them in order.
//
// Each question is the same: which candidate, in descending order, is the first at which a sum reaches a goal? The sum is one of
// candidates (top-k) or of weights (top-p, and the draw itself). It is answered digit by digit: a histogram of counts and weights
// by the leading bits of the logits tells in which bin the goal lies, the next one refines that bin, and after three digits the
// logit is known; which of several equal ones is meant follows from their number.
//
// Weights are integers (fixed point), so that sums do not depend on the order of atomics. `parts` blocks share a vector. The last
// of them to finish a launch takes the step that follows from the histogram; every launch of `sample_step` is one histogram, and
// all of them are launched whatever the data are. Scratch of a vector: see State. Compiled for X and RUN like argmax, or any type.
#include "argmax/common.cuh"
#include "common/math.cuh"

#define THREADS 512
#define DIGIT 11
#define BINS (1u << DIGIT)
// Bins of a thread in the scan, from the top down.
#define EACH (BINS / THREADS)

// What the sum is looked for.
enum Goal : u32 { GOAL_BEGIN, GOAL_TOP_K, GOAL_TOP_P, GOAL_DRAW, GOAL_INDEX, GOAL_NONE };

struct SampleParams {
    Rows x;
    // The vectors of this launch begin with this one.
    u64 first;
    u64 top_k;
    float inverse_temperature, top_p;
    u32 parts, dtype;
    // A weight of 1 is 2^scale.
    u32 scale;
    u32 has_top_k, has_top_p, unused;
};

struct Bin {
    u64 weight;
    u64 count;
};

struct State {
    // Histogram by the first digit, kept for all goals, and by the digit at hand. Before the first step the weights of the
    // latter are the keys of the parts' largest logits.
    Bin first[BINS], next[BINS];
    // What lies before the bits found so far.
    u64 before_weight, before_count;
    // The goal in candidates or in weight.
    u64 target;
    u32 goal;
    // Digits found so far, and what they are.
    u32 digit, prefix;
    // Number of the largest logit.
    u32 top;
    // Which of the equal logits is drawn, from 0.
    u32 equal;
    // Blocks that have finished the launch.
    u32 finished;
    u64 unused[2];
};

// Bits of a logit's number from the top: `digits` of them, 11, 11 and 10 bits.
DEVICE u32 shift_of(u32 digits) {
    return digits == 1 ? 21 : digits == 2 ? 10 : 0;
}

DEVICE u32 bin_of(u32 number, u32 digit) {
    return digit == 0 ? number >> 21 : digit == 1 ? number >> 10 & (BINS - 1) : number & 1023u;
}

DEVICE u64 weight_of(const SampleParams &p, u32 number, u32 top) {
    const float value = value_of(number);
    // equal values have no distance, infinite ones neither
    const float share = number == top ? 1.0f : exp_fast((value - value_of(top)) * p.inverse_temperature);
    return (u64)(share * float_of((127u + p.scale) << 23));
}

// What another block of this launch wrote.
DEVICE u64 fresh(const u64 &value) {
    return *const_cast<const volatile u64 *>(&value);
}

// Whether this block is the last of its vector; then it sees what the others wrote.
DEVICE bool is_last(const SampleParams &p, State &state) {
    __shared__ u32 last;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        last = atomicAdd(&state.finished, 1u) == p.parts - 1;
    }
    __syncthreads();
    if (last) {
        __threadfence();
    }
    return last;
}

// ---- the first launch: the largest of each part ----

extern "C" __global__ void __launch_bounds__(THREADS)
    sample_begin(const __grid_constant__ SampleParams p, const void *__restrict__ x, State *__restrict__ states) {
    take_turn();
    __shared__ u64 shared[THREADS / WARP_SIZE];
    const u32 own = blockIdx.x / p.parts, at = blockIdx.x - own * p.parts;
    const u64 vector = p.first + own;
    State &state = states[own];
    const Part part(p.x.len, at, p.parts);
    u64 most = 0;
    for_runs<4>(x, p.x.start_of(vector), p.dtype, part.first + threadIdx.x, THREADS, part.end,
                [&most](float value, u64 index) { most = Max::apply(most, order_key(value, index)); });
    most = reduce_row<Max>(most, shared);
    if (threadIdx.x == 0) {
        state.next[at].weight = most;
    }
    if (at == 0) {
        for (u32 bin = threadIdx.x; bin < BINS; bin += THREADS) {
            state.first[bin] = Bin{0, 0};
        }
        if (threadIdx.x == 0) {
            state.goal = GOAL_BEGIN;
            state.digit = 0;
            state.prefix = 0;
            state.before_weight = 0;
            state.before_count = 0;
            state.finished = 0;
        }
    }
}

// ---- the others: a digit each ----

// The bin, from the top, at which the sum reaches the target: by weight or by count. Whole block; the bin and what lies before
// it come back in shared memory.
struct Found {
    u32 bin;
    u64 before_weight, before_count;
    Bin own;
};

DEVICE void find(const Bin *bins, u64 target, bool by_count, u64 before_weight, u64 before_count, Found &found) {
    __shared__ u64 warps[THREADS / WARP_SIZE];
    Bin own[EACH];
    u64 weight = 0, count = 0;
#pragma unroll
    for (u32 i = 0; i < EACH; i++) {
        const Bin &bin = bins[BINS - 1 - (threadIdx.x * EACH + i)];
        own[i] = Bin{fresh(bin.weight), fresh(bin.count)};
        weight += own[i].weight;
        count += own[i].count;
    }
    u64 weights = before_weight + scan_block<Sum>(weight, warps) - weight;
    u64 counts = before_count + scan_block<Sum>(count, warps) - count;
#pragma unroll
    for (u32 i = 0; i < EACH; i++) {
        const u64 sum = by_count ? counts : weights, more = by_count ? own[i].count : own[i].weight;
        if (sum < target && sum + more >= target) {
            found = Found{BINS - 1 - (threadIdx.x * EACH + i), weights, counts, own[i]};
        }
        weights += own[i].weight;
        counts += own[i].count;
    }
    __syncthreads();
}

// The draw's target in a mass: the sum has to exceed the share.
DEVICE u64 draw(u64 mass, float uniform) {
    // also for what is no number in [0, 1): the last candidate, or the first
    const double share = uniform < 1.0f ? (uniform > 0.0f ? (double)uniform : 0.0) : 1.0;
    const u64 below = (u64)(share * (double)mass);
    return (below < mass ? below : mass - 1) + 1;
}

DEVICE u64 share_of(u64 mass, float top_p) {
    const u64 enough = (u64)ceil((double)top_p * (double)mass);
    return enough < 1 ? 1 : enough < mass ? enough : mass;
}

extern "C" __global__ void __launch_bounds__(THREADS)
    sample_step(const __grid_constant__ SampleParams p, const void *__restrict__ x, const float *__restrict__ uniform,
                State *__restrict__ states, i32 *__restrict__ ids) {
    take_turn();
    __shared__ u32 low[BINS], high[BINS], counts[BINS];
    __shared__ Found found;
    const u32 own = blockIdx.x / p.parts, at = blockIdx.x - own * p.parts;
    const u64 vector = p.first + own;
    State &state = states[own];
    u32 goal = state.goal, top = state.top;
    const u32 digit = state.digit, prefix = state.prefix;
    if (goal == GOAL_BEGIN) {
        __shared__ u64 keys[THREADS / WARP_SIZE];
        const u64 key = threadIdx.x < p.parts ? state.next[threadIdx.x].weight : 0;
        const u64 best = reduce_row<Max>(key, keys);
        top = (u32)(best >> 32);
        const float value = value_of(top);
        // NaN and infinities are taken at once, and so is an only candidate
        if (value - value != 0.0f || (p.has_top_k && p.top_k == 1)) {
            if (threadIdx.x == 0) {
                ids[vector] = (i32)index_of(best);
                // for the next launch; whoever sees it in this one has nothing to do either
                state.goal = GOAL_NONE;
            }
            return;
        }
        goal = p.has_top_k ? GOAL_TOP_K : p.has_top_p ? GOAL_TOP_P : GOAL_DRAW;
    }
    if (goal == GOAL_NONE) {
        return;
    }
    const u64 start = p.x.start_of(vector);
    const Part part(p.x.len, at, p.parts);
    Bin *bins = digit == 0 ? state.first : state.next;
    if (goal == GOAL_INDEX) {
        // equal logits of each part
        __shared__ u32 shared[THREADS / WARP_SIZE];
        u32 equal = 0;
        for_runs<4>(x, start, p.dtype, part.first + threadIdx.x, THREADS, part.end,
                    [&equal, prefix](float value, u64) { equal += ordered(value) == prefix; });
        equal = reduce_row<Sum>(equal, shared);
        if (threadIdx.x == 0) {
            // parts are no more than threads
            state.next[at].count = equal;
        }
    } else {
        for (u32 bin = threadIdx.x; bin < BINS; bin += THREADS) {
            low[bin] = 0;
            high[bin] = 0;
            counts[bin] = 0;
        }
        __syncthreads();
        for_runs<4>(x, start, p.dtype, part.first + threadIdx.x, THREADS, part.end,
                    [&](float value, u64) {
                        const u32 number = ordered(value);
                        if (digit == 0 || number >> shift_of(digit) == prefix) {
                            const u32 bin = bin_of(number, digit);
                            const u64 weight = weight_of(p, number, top);
                            // a sum in 64 bits of 32-bit atomics: whoever overflows carries
                            const u32 before = atomicAdd(&low[bin], (u32)weight);
                            const u32 carry = before + (u32)weight < before;
                            if ((u32)(weight >> 32) + carry != 0) {
                                atomicAdd(&high[bin], (u32)(weight >> 32) + carry);
                            }
                            atomicAdd(&counts[bin], 1u);
                        }
                    });
        __syncthreads();
        for (u32 bin = threadIdx.x; bin < BINS; bin += THREADS) {
            if (counts[bin] != 0) {
                atomicAdd(&bins[bin].weight, (u64)high[bin] << 32 | low[bin]);
                atomicAdd(&bins[bin].count, (u64)counts[bin]);
            }
        }
    }
    if (!is_last(p, state)) {
        return;
    }
    if (goal == GOAL_INDEX) {
        // the part that holds it, and within the part the thread and the element
        __shared__ u32 shared[THREADS / WARP_SIZE];
        u32 wanted = state.equal, which = 0;
        while (which + 1 < p.parts && wanted >= fresh(state.next[which].count)) {
            wanted -= (u32)fresh(state.next[which].count);
            which++;
        }
        const Part there(p.x.len, which, p.parts);
        const u64 runs = there.end - there.first, each = (runs + THREADS - 1) / THREADS;
        const u64 begin = there.first + (threadIdx.x * each < runs ? threadIdx.x * each : runs);
        const u64 end = begin + each < there.end ? begin + each : there.end;
        u32 equal = 0;
        for_runs<1>(x, start, p.dtype, begin, 1, end,
                    [&equal, prefix](float value, u64) { equal += ordered(value) == prefix; });
        u32 before = scan_block<Sum>(equal, shared) - equal;
        if (before <= wanted && wanted < before + equal) {
            for_runs<1>(x, start, p.dtype, begin, 1, end, [&](float value, u64 index) {
                if (ordered(value) == prefix) {
                    if (before == wanted) {
                        ids[vector] = (i32)index;
                    }
                    before++;
                }
            });
        }
        if (threadIdx.x == 0) {
            state.goal = GOAL_NONE;
            state.finished = 0;
        }
        return;
    }
    u64 target = state.target;
    u64 before_weight = state.before_weight, before_count = state.before_count;
    u32 now = goal;
    if (digit == 0 && now == GOAL_TOP_K) {
        target = p.top_k;
    } else if (digit == 0) {
        // all candidates
        __shared__ u64 warps[THREADS / WARP_SIZE];
        __shared__ u64 all;
        u64 weight = 0;
        for (u32 i = 0; i < EACH; i++) {
            weight += fresh(state.first[threadIdx.x * EACH + i].weight);
        }
        const u64 sum = scan_block<Sum>(weight, warps);
        if (threadIdx.x == THREADS - 1) {
            all = sum;
        }
        __syncthreads();
        target = now == GOAL_TOP_P ? share_of(all, p.top_p) : draw(all, uniform[vector]);
    }
    find(bins, target, now == GOAL_TOP_K, before_weight, before_count, found);
    Found here = found;
    u32 next_digit = digit + 1;
    u32 next_prefix = digit == 0 ? here.bin : digit == 1 ? prefix << 11 | here.bin : prefix << 10 | here.bin;
    u32 equal = 0;
    if (digit == 2) {
        // all in the bin are equal
        const u64 each = here.own.weight / here.own.count;
        const u64 sum = now == GOAL_TOP_K ? here.before_count : here.before_weight;
        const u64 number = now == GOAL_TOP_K ? target - sum : (target - sum + each - 1) / each;
        if (now == GOAL_DRAW) {
            now = GOAL_INDEX;
            equal = (u32)number - 1;
        } else {
            const u64 mass = here.before_weight + number * each;
            now = now == GOAL_TOP_K && p.has_top_p ? GOAL_TOP_P : GOAL_DRAW;
            target = now == GOAL_TOP_P ? share_of(mass, p.top_p) : draw(mass, uniform[vector]);
            __syncthreads();
            find(state.first, target, false, 0, 0, found);
            here = found;
            next_digit = 1;
            next_prefix = here.bin;
        }
    }
    for (u32 bin = threadIdx.x; bin < BINS; bin += THREADS) {
        state.next[bin] = Bin{0, 0};
    }
    if (threadIdx.x == 0) {
        state.target = target;
        state.top = top;
        state.goal = now;
        state.digit = next_digit;
        state.prefix = next_prefix;
        state.before_weight = here.before_weight;
        state.before_count = here.before_count;
        state.equal = equal;
        state.finished = 0;
    }
}
