// Choice of experts: first a warp takes a token and picks its experts one by one; then a block takes an expert and lists the
// pairs of token and place that chose it, in ascending order (a counting sort, stable, without atomics).
#include "argmax/common.cuh"
#include "common/math.cuh"

#define THREADS 256

struct RouteParams {
    u64 tokens, experts, top_k;
    u32 dtype;
    // Whether the softmax is one over all experts.
    u32 over_all;
};

extern "C" __global__ void __launch_bounds__(THREADS)
    route_choose(const __grid_constant__ RouteParams p, const void *__restrict__ logits, float *__restrict__ weights,
                 i32 *__restrict__ chosen) {
    const u64 token = (u64)blockIdx.x * (THREADS / WARP_SIZE) + threadIdx.x / WARP_SIZE;
    if (token >= p.tokens) {
        return;
    }
    const u64 row = token * p.experts, pairs = token * p.top_k;
    const u32 lane = lane_id();
    // the experts in order, each the largest below the one before
    u64 before = ~0ull;
    u32 top = 0;
    float sum = 0.0f;
    for (u64 j = 0; j < p.top_k; j++) {
        u64 best = 0;
        for (u64 e = lane; e < p.experts; e += WARP_SIZE) {
            const u64 key = order_key(load_element(logits, row + e, p.dtype), e);
            best = key < before && key > best ? key : best;
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

extern "C" __global__ void __launch_bounds__(THREADS)
    route_sort(const __grid_constant__ RouteParams p, const i32 *__restrict__ chosen, i32 *__restrict__ offsets,
               i32 *__restrict__ order) {
    __shared__ u32 shared[THREADS / WARP_SIZE];
    const i32 expert = (i32)blockIdx.x;
    const u32 pairs = (u32)(p.tokens * p.top_k);
    u32 below = 0;
    for (u32 pair = threadIdx.x; pair < pairs; pair += THREADS) {
        below += chosen[pair] < expert;
    }
    u32 at = reduce_row<Sum>(below, shared);
    __syncthreads();
    if (threadIdx.x == 0) {
        offsets[expert] = (i32)at;
        if ((u64)expert + 1 == p.experts) {
            offsets[expert + 1] = (i32)pairs;
        }
    }
    for (u32 from = 0; from < pairs; from += THREADS) {
        const u32 pair = from + threadIdx.x;
        const bool mine = pair < pairs && chosen[pair] == expert;
        const u32 mask = __ballot_sync(FULL_MASK, mine);
        const u32 warp = threadIdx.x / WARP_SIZE;
        if (lane_id() == 0) {
            shared[warp] = (u32)__popc(mask);
        }
        __syncthreads();
        u32 before = 0, all = 0;
        for (u32 w = 0; w < THREADS / WARP_SIZE; w++) {
            before += w < warp ? shared[w] : 0;
            all += shared[w];
        }
        if (mine) {
            order[at + before + (u32)__popc(mask & ((1u << lane_id()) - 1))] = (i32)pair;
        }
        at += all;
        __syncthreads();
    }
}
