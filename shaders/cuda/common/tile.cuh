// How element-wise kernels share vectors out: each thread takes N runs of elements of one vector.
//
// blockDim.x threads lie along a vector, blockDim.y vectors side by side. A vector is cut into `parts` pieces of
// blockDim.x * N runs, and blocks count pieces first. Runs of a thread lie blockDim.x apart: accesses of a warp are
// contiguous, and a thread has N of them on their way.
#ifndef PERJOULE_TILE_CUH
#define PERJOULE_TILE_CUH

#include "common/layout.cuh"

template <int N> struct Tile {
    // The thread's vector, its first run, and the runs of a vector: none where there is no such vector.
    u64 vector, first, runs;

    __device__ __forceinline__ Tile(u64 vectors, u64 runs_of_vector, u32 parts) {
        const u32 group = blockIdx.x / parts, part = blockIdx.x - group * parts;
        const u64 at = (u64)group * blockDim.y + threadIdx.y;
        vector = at < vectors ? at : 0;
        runs = at < vectors ? runs_of_vector : 0;
        first = (u64)part * (blockDim.x * N) + threadIdx.x;
    }
    __device__ __forceinline__ u64 run(int item) const {
        return first + (u32)(item * blockDim.x);
    }
    __device__ __forceinline__ bool has(int item) const {
        return run(item) < runs;
    }
};

#endif
