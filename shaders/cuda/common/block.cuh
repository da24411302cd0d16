// Sums, maxima and scans over the threads of a warp or block. Orders are fixed, so that results are repeatable.
//
// Rows of threads: blockDim.x threads (a power of two, or a multiple of 32) with the same threadIdx.y work on one vector.
#ifndef PERJOULE_BLOCK_CUH
#define PERJOULE_BLOCK_CUH

#include "common/element.cuh"

#define WARP_SIZE 32
#define FULL_MASK 0xffffffffu

DEVICE u32 lane_id() {
    return (threadIdx.x + threadIdx.y * blockDim.x) % WARP_SIZE;
}

// The value that the lane whose number differs in the bits of `mask` holds; any type of 4 or 8 bytes.
DEVICE float shuffle_xor(float value, int mask) {
    return __shfl_xor_sync(FULL_MASK, value, mask);
}
DEVICE u32 shuffle_xor(u32 value, int mask) {
    return __shfl_xor_sync(FULL_MASK, value, mask);
}
DEVICE i32 shuffle_xor(i32 value, int mask) {
    return (i32)__shfl_xor_sync(FULL_MASK, (u32)value, mask);
}
DEVICE u64 shuffle_xor(u64 value, int mask) {
    const u32 low = __shfl_xor_sync(FULL_MASK, (u32)value, mask);
    const u32 high = __shfl_xor_sync(FULL_MASK, (u32)(value >> 32), mask);
    return (u64)high << 32 | low;
}
DEVICE double shuffle_xor(double value, int mask) {
#if PERJOULE_ARCH
    return __longlong_as_double((i64)shuffle_xor((u64)__double_as_longlong(value), mask));
#else
    u64 bits;
    __builtin_memcpy(&bits, &value, 8);
    bits = shuffle_xor(bits, mask);
    __builtin_memcpy(&value, &bits, 8);
    return value;
#endif
}

// The same from the lane `distance` below; lanes without one get their own value.
DEVICE u32 shuffle_up(u32 value, int distance) {
    return __shfl_up_sync(FULL_MASK, value, distance);
}
DEVICE i32 shuffle_up(i32 value, int distance) {
    return (i32)__shfl_up_sync(FULL_MASK, (u32)value, distance);
}
DEVICE u64 shuffle_up(u64 value, int distance) {
    const u32 low = __shfl_up_sync(FULL_MASK, (u32)value, distance);
    const u32 high = __shfl_up_sync(FULL_MASK, (u32)(value >> 32), distance);
    return (u64)high << 32 | low;
}

struct Sum {
    template <class T> static __device__ __forceinline__ T neutral() {
        return T(0);
    }
    template <class T> static __device__ __forceinline__ T apply(T a, T b) {
        return a + b;
    }
};

// Of integers, and of floats that ignore NaN (fmaxf does).
struct Max {
    template <class T> static __device__ __forceinline__ T neutral();
    static __device__ __forceinline__ float apply(float a, float b) {
        return fmaxf(a, b);
    }
    static __device__ __forceinline__ u32 apply(u32 a, u32 b) {
        return a > b ? a : b;
    }
    static __device__ __forceinline__ i32 apply(i32 a, i32 b) {
        return a > b ? a : b;
    }
    static __device__ __forceinline__ u64 apply(u64 a, u64 b) {
        return a > b ? a : b;
    }
};
template <> __device__ __forceinline__ float Max::neutral<float>() {
    return -INFINITE;
}
template <> __device__ __forceinline__ u32 Max::neutral<u32>() {
    return 0;
}
template <> __device__ __forceinline__ i32 Max::neutral<i32>() {
    return -0x7fffffff - 1;
}
template <> __device__ __forceinline__ u64 Max::neutral<u64>() {
    return 0;
}

// Over `width` neighbouring lanes, a power of two: each gets the result.
template <class F, class T> DEVICE T reduce_warp(T value, u32 width = WARP_SIZE) {
#pragma unroll
    for (int mask = WARP_SIZE / 2; mask > 0; mask /= 2) {
        if ((u32)mask < width) {
            value = F::apply(value, shuffle_xor(value, mask));
        }
    }
    return value;
}

// Over the threads of a row: each gets the result. `shared` has a place for every warp of the block; it may be used again
// behind the next __syncthreads().
template <class F, class T> DEVICE T reduce_row(T value, T *shared) {
    if (blockDim.x <= WARP_SIZE) {
        return reduce_warp<F>(value, blockDim.x);
    }
    value = reduce_warp<F>(value);
    const u32 warps = blockDim.x / WARP_SIZE, first = threadIdx.y * warps, lane = threadIdx.x % WARP_SIZE;
    if (lane == 0) {
        shared[first + threadIdx.x / WARP_SIZE] = value;
    }
    __syncthreads();
    // warps are at most 32; beyond a power of two the places count as neutral
    value = lane < warps ? shared[first + lane] : F::template neutral<T>();
    return reduce_warp<F>(value);
}

// Inclusive scan over the threads of a block of one row, in their order. `shared` has a place for every warp.
template <class F, class T> DEVICE T scan_block(T value, T *shared) {
    const u32 lane = threadIdx.x % WARP_SIZE, warp = threadIdx.x / WARP_SIZE;
#pragma unroll
    for (int distance = 1; distance < WARP_SIZE; distance *= 2) {
        const T other = shuffle_up(value, distance);
        if (lane >= (u32)distance) {
            value = F::apply(other, value);
        }
    }
    if (lane == WARP_SIZE - 1) {
        shared[warp] = value;
    }
    __syncthreads();
    for (u32 before = 0; before < warp; before++) {
        value = F::apply(shared[before], value);
    }
    __syncthreads();
    return value;
}

#endif
