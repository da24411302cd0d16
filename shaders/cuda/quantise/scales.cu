// To i8 and e4m3 with f32 scales, of any tensors: scale = max|x| / limit over a group, out = round(x / scale).
//
// blockDim.x threads take a group of a vector, blockDim.y groups share a block. A scale of the whole tensor takes two launches:
// the first leaves the maxima of blocks in scratch, in the second one every block compares them. Every operation is rounded once,
// as the reference has it.
#include "quantise/common.cuh"

#define THREADS 256

extern "C" __global__ void __launch_bounds__(THREADS)
    quantise_groups(const __grid_constant__ QuantiseParams p, const void *__restrict__ x, float *__restrict__ scales,
                    void *__restrict__ out) {
    take_turn();
    __shared__ float shared[THREADS / WARP_SIZE];
    const u64 task = (u64)blockIdx.x * blockDim.y + threadIdx.y;
    const u64 vectors = p.len == 0 ? 0 : p.elements / p.len;
    const bool there = task < vectors * p.each;
    const u64 vector = there ? task / p.each : 0, part = there ? task - vector * p.each : 0;
    const u64 start = vector * p.len, from = start + part * p.group;
    const u64 end = !there ? from : p.len - part * p.group > p.group ? from + p.group : start + p.len;
    float largest = 0.0f;
    for (u64 at = from + threadIdx.x; at < end; at += blockDim.x) {
        largest = fmaxf(largest, fabsf(load_element(x, at, p.from)));
    }
    const float scale = reduce_row<Max>(largest, shared) / p.limit;
    if (there && threadIdx.x == 0) {
        scales[task] = scale;
    }
    for (u64 at = from + threadIdx.x; at < end; at += blockDim.x) {
        store_element(out, at, p.to, scaled(load_element(x, at, p.from), scale));
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
    quantise_largest(const __grid_constant__ QuantiseParams p, const void *__restrict__ x, float *__restrict__ maxima) {
    take_turn();
    __shared__ float shared[THREADS / WARP_SIZE];
    float largest = 0.0f;
    for (u64 at = (u64)blockIdx.x * THREADS + threadIdx.x; at < p.elements; at += (u64)p.blocks * THREADS) {
        largest = fmaxf(largest, fabsf(load_element(x, at, p.from)));
    }
    largest = reduce_row<Max>(largest, shared);
    if (threadIdx.x == 0) {
        maxima[blockIdx.x] = largest;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
    quantise_tensor(const __grid_constant__ QuantiseParams p, const void *__restrict__ x,
                    const float *__restrict__ maxima, float *__restrict__ scales, void *__restrict__ out) {
    take_turn();
    __shared__ float shared[THREADS / WARP_SIZE];
    float largest = 0.0f;
    for (u32 i = threadIdx.x; i < p.blocks; i += THREADS) {
        largest = fmaxf(largest, maxima[i]);
    }
    const float scale = reduce_row<Max>(largest, shared) / p.limit;
    if (blockIdx.x == 0 && threadIdx.x == 0) {
        scales[0] = scale;
    }
    for (u64 at = (u64)blockIdx.x * THREADS + threadIdx.x; at < p.elements; at += (u64)p.blocks * THREADS) {
        store_element(out, at, p.to, scaled(load_element(x, at, p.from), scale));
    }
}
