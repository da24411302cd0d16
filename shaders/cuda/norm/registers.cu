// RmsNorm and LayerNorm in one pass over memory: a vector stays in the registers of the threads that share it.
//
// blockDim.x threads take a vector, blockDim.y vectors share a block. A thread holds ITEMS runs of RUN elements, which lie
// blockDim.x runs apart, so that a warp's accesses are contiguous; all loads are on their way before the first is used.
//
// Compiled for X, W, OUT (types of input, weight, output), RUN (elements of a run: 16 bytes of the narrower of input and
// output), ITEMS, LAYER, RESIDUAL, BIAS. Preconditions: the length is a multiple of RUN and at most ITEMS * RUN * blockDim.x;
// vectors begin at multiples of what a run takes, up to 16 bytes.
#include "norm/common.cuh"

// Sum over the threads of a vector of what `f` makes of each element that is there.
template <class T, class F> DEVICE T total_of(const float (&x)[ITEMS][RUN], u32 runs, T *shared, F f) {
    T total = T(0);
#pragma unroll
    for (int i = 0; i < ITEMS; i++) {
        if (threadIdx.x + i * blockDim.x < runs) {
#pragma unroll
            for (int j = 0; j < RUN; j++) {
                total += f(x[i][j]);
            }
        }
    }
    return reduce_row<Sum>(total, shared);
}

extern "C" __global__ void norm_registers(const __grid_constant__ NormParams p, const X *__restrict__ x,
                                          const X *__restrict__ residual, const W *__restrict__ weight,
                                          const W *__restrict__ bias, X *__restrict__ sum, OUT *__restrict__ out) {
    __shared__ double shared[2][WARP_SIZE];
    __shared__ float partial[2][WARP_SIZE];
    const u64 index = (u64)blockIdx.x * blockDim.y + threadIdx.y;
    const bool active = index < p.x.count();
    const u64 vector = active ? index : 0;
    const u32 len = (u32)p.x.len, runs = active ? len / RUN : 0;
    const X *from = x + p.x.start_of(vector);
    float values[ITEMS][RUN];
    {
        Raw<X, RUN> raw[ITEMS];
#if RESIDUAL
        Raw<X, RUN> other[ITEMS];
        const X *beside = residual + p.residual.start_of(vector);
#endif
#pragma unroll
        for (int i = 0; i < ITEMS; i++) {
            const u32 run = threadIdx.x + i * blockDim.x;
            if (run < runs) {
                raw[i].load(from + run * RUN);
#if RESIDUAL
                other[i].load(beside + run * RUN);
#endif
            }
        }
#pragma unroll
        for (int i = 0; i < ITEMS; i++) {
            raw[i].widen(values[i]);
#if RESIDUAL
            float added[RUN];
            other[i].widen(added);
#pragma unroll
            for (int j = 0; j < RUN; j++) {
                values[i][j] += added[j];
            }
#endif
        }
    }
    // on their way while the sums are reduced
    Raw<W, RUN> scales[ITEMS];
#pragma unroll
    for (int i = 0; i < ITEMS; i++) {
        const u32 run = threadIdx.x + i * blockDim.x;
        if (run < runs) {
            scales[i].load(weight + run * RUN);
        }
    }
#if RESIDUAL
    X *sums = sum + p.sum.start_of(vector);
#pragma unroll
    for (int i = 0; i < ITEMS; i++) {
        const u32 run = threadIdx.x + i * blockDim.x;
        if (run < runs) {
            store_vector(sums + run * RUN, values[i]);
        }
    }
#endif
#if LAYER
    const float mean = total_of<float>(values, runs, partial[0], [](float v) { return v; }) / (float)len;
#else
    const float mean = 0.0f;
#endif
    float centre = mean;
    const float squares =
        total_of<float>(values, runs, partial[1], [mean](float v) { return (v - mean) * (v - mean); });
    float inverse = inverse_root(squares, (float)len, p.eps);
    // all threads of a block go the same way, since they meet in it
    if (__syncthreads_or(active && out_of_range(squares))) {
        double middle = 0.0;
#if LAYER
        middle = total_of<double>(values, runs, shared[0], [](float v) { return (double)v; }) / (double)len;
#endif
        const double far = total_of<double>(values, runs, shared[1], [middle](float v) {
            return ((double)v - middle) * ((double)v - middle);
        });
        centre = (float)middle;
        inverse = inverse_root(far, (double)len, p.eps);
    }
    OUT *to = out + p.out.start_of(vector);
#pragma unroll
    for (int i = 0; i < ITEMS; i++) {
        const u32 run = threadIdx.x + i * blockDim.x;
        if (run < runs) {
            float scale[RUN], result[RUN];
            scales[i].widen(scale);
#if BIAS
            float shift[RUN];
            load_vector(bias + run * RUN, shift);
#endif
#pragma unroll
            for (int j = 0; j < RUN; j++) {
                result[j] = (values[i][j] - centre) * inverse * (scale[j] + p.weight_offset);
#if BIAS
                result[j] += shift[j];
#endif
            }
            store_vector(to + run * RUN, result);
        }
    }
}
