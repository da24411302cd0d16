// Lengths and positions of a step: one block, which writes the positions of all rows by the lengths before it raises them.
#include "common/slots.cuh"

#define THREADS 1024

struct AdvanceParams {
    u64 batch, q_len, tokens;
};

DEVICE i32 saturating(i32 value, u64 more) {
    const i64 sum = (i64)value + (i64)(more < 0x7fffffffull ? more : 0x7fffffffull);
    return sum > 0x7fffffff ? 0x7fffffff : (i32)sum;
}

extern "C" __global__ void __launch_bounds__(THREADS)
    advance(const __grid_constant__ AdvanceParams p, const i32 *__restrict__ offsets, i32 *__restrict__ kv_len,
            i32 *__restrict__ positions) {
    take_turn();
    if (offsets == nullptr) {
        for (u64 row = threadIdx.x; row < p.tokens; row += THREADS) {
            u64 i;
            const u64 b = divide(row, p.q_len, i);
            positions[row] = saturating(kv_len[b], i);
        }
        __syncthreads();
        for (u64 b = threadIdx.x; b < p.batch; b += THREADS) {
            kv_len[b] = saturating(kv_len[b], p.q_len);
        }
        return;
    }
    // rows of no sequence
    for (u64 row = threadIdx.x; row < p.tokens; row += THREADS) {
        positions[row] = 0;
    }
    // where the rows of each sequence begin: the highest offset so far
    __shared__ i32 highest[THREADS + 1];
    __shared__ i32 warps[THREADS / WARP_SIZE];
    i32 before = 0;
    for (u64 from = 0; from < p.batch; from += THREADS) {
        const u64 b = from + threadIdx.x;
        const i32 own = b <= p.batch ? offsets[b] : 0;
        const i32 most = Max::apply(before, scan_block<Max>(own, warps));
        highest[threadIdx.x] = most;
        if (threadIdx.x == THREADS - 1) {
            const i32 next = b + 1 <= p.batch ? offsets[b + 1] : 0;
            highest[THREADS] = Max::apply(most, next);
        }
        __syncthreads();
        const u64 here = p.batch - from < THREADS ? p.batch - from : THREADS;
        for (u64 i = threadIdx.x / WARP_SIZE; i < here; i += THREADS / WARP_SIZE) {
            const u64 first = (u64)highest[i] < p.tokens ? (u64)highest[i] : p.tokens;
            const u64 end = (u64)highest[i + 1] < p.tokens ? (u64)highest[i + 1] : p.tokens;
            const u64 count = end - first < p.q_len ? end - first : p.q_len;
            const i32 length = kv_len[from + i];
            for (u64 row = lane_id(); row < count; row += WARP_SIZE) {
                positions[first + row] = saturating(length, row);
            }
            __syncwarp();
            if (lane_id() == 0) {
                kv_len[from + i] = saturating(length, count);
            }
        }
        before = highest[THREADS];
        __syncthreads();
    }
}
