// To i8 and e4m3 with f32 scales, in one pass over memory where a group has a scale: it stays in the registers of the threads that
// share it. A scale of the whole tensor takes two launches, and two passes.
//
// blockDim.x threads take a group: up to 32 of them (a power of two), then blockDim.y groups share a block; or whole warps, and a
// block takes one group. A thread holds ITEMS runs of RUN elements, which lie blockDim.x runs apart. Every operation is rounded once,
// as the reference has it.
//
// Compiled for X, OUT (types of input and codes), RUN (elements of 16 bytes of X), ITEMS and THREADS (of a block, at most).
// Preconditions: groups are as long as each other, a multiple of RUN, and at most ITEMS * RUN * blockDim.x; operands begin at
// multiples of 16 bytes.
#include "quantise/common.cuh"

// The largest magnitude of a run.
DEVICE float largest_of(const float (&x)[RUN]) {
    float most = 0.0f;
#pragma unroll
    for (int j = 0; j < RUN; j++) {
        most = fmaxf(most, fabsf(x[j]));
    }
    return most;
}

DEVICE void store_run(OUT *to, const Raw<X, RUN> &raw, float scale) {
    float value[RUN];
    raw.widen(value);
#pragma unroll
    for (int j = 0; j < RUN; j++) {
        value[j] = scaled(value[j], scale);
    }
    store_vector(to, value);
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    quantise_runs(const __grid_constant__ QuantiseParams p, const X *__restrict__ x, float *__restrict__ scales,
                  OUT *__restrict__ out) {
    take_turn();
    __shared__ float shared[WARP_SIZE];
    const u64 group = (u64)blockIdx.x * blockDim.y + threadIdx.y, groups = p.elements / p.group;
    const u32 runs = group < groups ? (u32)p.group / RUN : 0;
    const u64 start = group * p.group;
    Raw<X, RUN> raw[ITEMS];
#pragma unroll
    for (int i = 0; i < ITEMS; i++) {
        const u32 run = threadIdx.x + i * blockDim.x;
        if (run < runs) {
            raw[i].load(x + start + run * RUN);
        }
    }
    float largest = 0.0f;
#pragma unroll
    for (int i = 0; i < ITEMS; i++) {
        if (threadIdx.x + i * blockDim.x < runs) {
            float value[RUN];
            raw[i].widen(value);
            largest = fmaxf(largest, largest_of(value));
        }
    }
    const float scale = reduce_row<Max>(largest, shared) / p.limit;
    if (runs != 0 && threadIdx.x == 0) {
        scales[group] = scale;
    }
#pragma unroll
    for (int i = 0; i < ITEMS; i++) {
        const u32 run = threadIdx.x + i * blockDim.x;
        if (run < runs) {
            store_run(out + start + run * RUN, raw[i], scale);
        }
    }
}

// ---- one scale: maxima of blocks, then all of them compared by each block ----

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    quantise_largest_runs(const __grid_constant__ QuantiseParams p, const X *__restrict__ x, float *__restrict__ maxima) {
    take_turn();
    __shared__ float shared[WARP_SIZE];
    const u64 runs = p.elements / RUN, step = (u64)p.blocks * blockDim.x;
    float largest = 0.0f;
    for (u64 run = (u64)blockIdx.x * blockDim.x + threadIdx.x; run < runs; run += ITEMS * step) {
        Raw<X, RUN> raw[ITEMS];
#pragma unroll
        for (int i = 0; i < ITEMS; i++) {
            if (run + i * step < runs) {
                raw[i].load(x + (run + i * step) * RUN);
            }
        }
#pragma unroll
        for (int i = 0; i < ITEMS; i++) {
            if (run + i * step < runs) {
                float value[RUN];
                raw[i].widen(value);
                largest = fmaxf(largest, largest_of(value));
            }
        }
    }
    largest = reduce_row<Max>(largest, shared);
    if (threadIdx.x == 0) {
        maxima[blockIdx.x] = largest;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    quantise_tensor_runs(const __grid_constant__ QuantiseParams p, const X *__restrict__ x,
                         const float *__restrict__ maxima, float *__restrict__ scales, OUT *__restrict__ out) {
    take_turn();
    __shared__ float shared[WARP_SIZE];
    float largest = 0.0f;
    for (u32 i = threadIdx.x; i < p.blocks; i += blockDim.x) {
        largest = fmaxf(largest, maxima[i]);
    }
    const float scale = reduce_row<Max>(largest, shared) / p.limit;
    if (blockIdx.x == 0 && threadIdx.x == 0) {
        scales[0] = scale;
    }
    const u64 runs = p.elements / RUN, step = (u64)p.blocks * blockDim.x;
    for (u64 run = (u64)blockIdx.x * blockDim.x + threadIdx.x; run < runs; run += ITEMS * step) {
        Raw<X, RUN> raw[ITEMS];
#pragma unroll
        for (int i = 0; i < ITEMS; i++) {
            if (run + i * step < runs) {
                raw[i].load(x + (run + i * step) * RUN);
            }
        }
#pragma unroll
        for (int i = 0; i < ITEMS; i++) {
            if (run + i * step < runs) {
                store_run(out + (run + i * step) * RUN, raw[i], scale);
            }
        }
    }
}
