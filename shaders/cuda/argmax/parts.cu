// Index of the largest element: `parts` blocks look at parts of a vector, a second launch compares what they found. Compiled
// for X (element type) and RUN (elements of 16 bytes) where vectors begin at multiples of 16 bytes and have whole runs; without
// them for any type.
#include "argmax/common.cuh"

#define THREADS 256

struct ArgmaxParams {
    Rows x;
    u32 parts, dtype;
};

// Keys of parts go to `best` (parts of a vector together); with one part the index goes to `ids` at once.
extern "C" __global__ void __launch_bounds__(THREADS)
    argmax_parts(const __grid_constant__ ArgmaxParams p, const void *__restrict__ x, u64 *__restrict__ best,
                 i32 *__restrict__ ids) {
    take_turn();
    __shared__ u64 shared[THREADS / WARP_SIZE];
    const u32 vector = blockIdx.x / p.parts, at = blockIdx.x - vector * p.parts;
    const Part part(p.x.len, at, p.parts);
    u64 most = 0;
    for_runs<4>(x, p.x.start_of(vector), p.dtype, part.first + threadIdx.x, THREADS, part.end,
                [&most](float value, u64 index) { most = Max::apply(most, order_key(value, index)); });
    most = reduce_row<Max>(most, shared);
    if (threadIdx.x == 0) {
        if (p.parts == 1) {
            ids[vector] = (i32)index_of(most);
        } else {
            best[blockIdx.x] = most;
        }
    }
}

// A warp compares the parts of a vector.
extern "C" __global__ void __launch_bounds__(THREADS)
    argmax_whole(const __grid_constant__ ArgmaxParams p, const u64 *__restrict__ best, i32 *__restrict__ ids) {
    take_turn();
    const u64 vector = (u64)blockIdx.x * (THREADS / WARP_SIZE) + threadIdx.x / WARP_SIZE;
    if (vector >= p.x.count()) {
        return;
    }
    u64 most = 0;
    for (u32 i = lane_id(); i < p.parts; i += WARP_SIZE) {
        most = Max::apply(most, best[vector * p.parts + i]);
    }
    most = reduce_warp<Max>(most);
    if (lane_id() == 0) {
        ids[vector] = (i32)index_of(most);
    }
}
