// Choice of experts: first a warp takes a token and picks its experts one by one; then a block takes an expert and lists the
// pairs of token and place that chose it, in ascending order (a counting sort, stable, without atomics).
#include "argmax/common.cuh"
#include "common/math.cuh"

#define THREADS 256
// Most threads of the blocks that sort.
#define SORTING 1024
// Keys of a lane.
#define MOST_HELD 8

struct RouteParams {
    u64 tokens, experts, top_k;
    u32 dtype;
    // Whether the softmax is one over all experts.
    u32 over_all;
};

extern "C" __global__ void __launch_bounds__(THREADS)
    route_choose(const __grid_constant__ RouteParams p, const void *__restrict__ logits, float *__restrict__ weights,
                 i32 *__restrict__ chosen) {
    take_turn();
    const u64 token = (u64)blockIdx.x * (THREADS / WARP_SIZE) + threadIdx.x / WARP_SIZE;
    if (token >= p.tokens) {
        return;
    }
    const u64 row = token * p.experts, pairs = token * p.top_k;
    const u32 lane = lane_id();
    // the experts in order, each the largest below the one before; of up to MOST_HELD a lane the keys stay in registers
    const bool few = p.experts <= MOST_HELD * WARP_SIZE;
    u64 held[MOST_HELD];
#pragma unroll
    for (u32 i = 0; i < MOST_HELD; i++) {
        const u64 e = lane + i * WARP_SIZE;
        held[i] = few && e < p.experts ? order_key(load_element(logits, row + e, p.dtype), e) : 0;
    }
    u64 before = ~0ull;
    u32 top = 0;
    float sum = 0.0f;
    for (u64 j = 0; j < p.top_k; j++) {
        u64 best = 0;
        if (few) {
#pragma unroll
            for (u32 i = 0; i < MOST_HELD; i++) {
                best = held[i] < before && held[i] > best ? held[i] : best;
            }
        } else {
            for (u64 e = lane; e < p.experts; e += WARP_SIZE) {
                const u64 key = order_key(load_element(logits, row + e, p.dtype), e);
                best = key < before && key > best ? key : best;
            }
        }
        best = reduce_warp<Max>(best);
        before = best;
        const u32 number = (u32)(best >> 32);
        top = j == 0 ? number : top;
        // where the largest is NaN all weights are, as they are where it is infinite
        const float share = exp_fast(value_of(number) - value_of(top));
        sum += share;
        if (lane == 0) {
            weights[pairs + j] = share;
            chosen[pairs + j] = (i32)index_of(best);
        }
    }
    if (p.over_all) {
        sum = 0.0f;
        for (u64 e = lane; e < p.experts; e += WARP_SIZE) {
            sum += exp_fast(load_element(logits, row + e, p.dtype) - value_of(top));
        }
        sum = reduce_warp<Sum>(sum);
    }
    // lane 0 wrote the shares itself
    if (lane == 0) {
        for (u64 j = 0; j < p.top_k; j++) {
            weights[pairs + j] = weights[pairs + j] / sum;
        }
    }
}

// Neighbouring pairs of a thread.
#define EACH 8

extern "C" __global__ void __launch_bounds__(SORTING)
    route_sort(const __grid_constant__ RouteParams p, const i32 *__restrict__ chosen, i32 *__restrict__ offsets,
               i32 *__restrict__ order) {
    take_turn();
    __shared__ u32 shared[WARP_SIZE];
    const i32 expert = (i32)blockIdx.x;
    const u32 pairs = (u32)(p.tokens * p.top_k);
    u32 below = 0;
    for (u32 pair = threadIdx.x; pair < pairs; pair += EACH * blockDim.x) {
#pragma unroll
        for (u32 i = 0; i < EACH; i++) {
            const u32 at = pair + i * blockDim.x;
            below += at < pairs && chosen[at] < expert;
        }
    }
    u32 at = reduce_row<Sum>(below, shared);
    __syncthreads();
    if (threadIdx.x == 0) {
        offsets[expert] = (i32)at;
        if ((u64)expert + 1 == p.experts) {
            offsets[expert + 1] = (i32)pairs;
        }
    }
    for (u32 from = 0; from < pairs; from += EACH * blockDim.x) {
        const u32 first = from + EACH * threadIdx.x;
        u32 mine = 0;
#pragma unroll
        for (u32 i = 0; i < EACH; i++) {
            mine |= (u32)(first + i < pairs && chosen[first + i] == expert) << i;
        }
        const u32 count = (u32)__popc(mine);
        const u32 through = scan_block<Sum>(count, shared);
        u32 to = at + through - count;
        for (; mine != 0; mine &= mine - 1) {
            order[to++] = (i32)(first + (u32)__ffs((int)mine) - 1);
        }
        // what the whole block found
        if (threadIdx.x == blockDim.x - 1) {
            shared[0] = through;
        }
        __syncthreads();
        at += shared[0];
        __syncthreads();
    }
}
