// RmsNorm and LayerNorm in one pass over memory: a vector stays in the registers of the threads that share it.
//
// blockDim.x threads take a vector: up to 32 of them (a power of two), then blockDim.y vectors share a block; or whole warps, and
// a block takes one vector. A thread holds ITEMS runs of RUN elements, which lie blockDim.x runs apart, so that a warp's accesses
// are contiguous; all loads are on their way before the first is used.
//
// Compiled for X, W, OUT (types of input, weight, output), RUN (elements of 16 bytes of the widest type that is written), ITEMS,
// THREADS (of a block, at most), LAYER, RESIDUAL, BIAS, and EARLY_WEIGHTS (whether weights are read before the sums).
// Preconditions: the length is a multiple of RUN and at most ITEMS * RUN * blockDim.x; vectors begin at multiples of what a run
// takes, up to 16 bytes.
#include "norm/common.cuh"

// The thread's elements: as memory has them where nothing is added to them, which takes fewer registers.
struct Values {
#if RESIDUAL
    float value[ITEMS][RUN];
#else
    Raw<X, RUN> raw[ITEMS];
#endif

    __device__ __forceinline__ void get(int item, float (&out)[RUN]) const {
#if RESIDUAL
#pragma unroll
        for (int j = 0; j < RUN; j++) {
            out[j] = value[item][j];
        }
#else
        raw[item].widen(out);
#endif
    }
};

// What `f` makes of each element that is there, over the threads of a vector.
template <class R, class F> DEVICE float over(const Values &values, u32 runs, float *shared, F f) {
    float all = R::template neutral<float>();
#pragma unroll
    for (int i = 0; i < ITEMS; i++) {
        if (threadIdx.x + i * blockDim.x < runs) {
            float x[RUN];
            values.get(i, x);
#pragma unroll
            for (int j = 0; j < RUN; j++) {
                all = R::apply(all, f(x[j]));
            }
        }
    }
    return reduce_row<R>(all, shared);
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    norm_registers(const __grid_constant__ NormParams p, const X *__restrict__ x,
                   const X *__restrict__ residual, const W *__restrict__ weight, const W *__restrict__ bias,
                   X *__restrict__ sum, OUT *__restrict__ out) {
    take_turn();
    __shared__ float shared[5][WARP_SIZE];
    const u32 index = blockIdx.x * blockDim.y + threadIdx.y;
    const bool active = index < p.x.count();
    const u32 vector = active ? index : 0;
    const u32 len = (u32)p.x.len, runs = active ? len / RUN : 0;
    const X *from = x + p.x.start_of(vector);
    Values values;
#if RESIDUAL
    const X *beside = residual + p.residual.start_of(vector);
    X *sums = sum + p.sum.start_of(vector);
    Raw<X, RUN> raw[ITEMS], other[ITEMS];
#else
    Raw<X, RUN>(&raw)[ITEMS] = values.raw;
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
#if EARLY_WEIGHTS
    // on their way while the sums are reduced
    Raw<W, RUN> scales[ITEMS];
#pragma unroll
    for (int i = 0; i < ITEMS; i++) {
        const u32 run = threadIdx.x + i * blockDim.x;
        if (run < runs) {
            scales[i].load(weight + run * RUN);
        }
    }
#endif
#if RESIDUAL
#pragma unroll
    for (int i = 0; i < ITEMS; i++) {
        const u32 run = threadIdx.x + i * blockDim.x;
        if (run < runs) {
            float added[RUN];
            raw[i].widen(values.value[i]);
            other[i].widen(added);
#pragma unroll
            for (int j = 0; j < RUN; j++) {
                values.value[i][j] += added[j];
            }
            store_vector(sums + run * RUN, values.value[i]);
        }
    }
#endif
    const float share = 1.0f / (float)len;
    float centre = 0.0f;
#if LAYER
    centre = over<Sum>(values, runs, shared[0], [](float v) { return v; }) * share;
#endif
    const float squares =
        over<Sum>(values, runs, shared[1], [centre](float v) { return (v - centre) * (v - centre); });
    float inverse = 1.0f / sqrtf(squares * share + p.eps);
    // whole warps go the same way, and so do those of a vector, which see the same sum
    const bool far = active && out_of_range(squares);
    if (__any_sync(FULL_MASK, far)) {
        const float most = over<Max>(values, runs, shared[2], [](float v) { return fabsf(v); });
        const float factor = down_scale(most);
        float middle = 0.0f;
#if LAYER
        middle = over<Sum>(values, runs, shared[3], [factor](float v) { return v * factor; }) * share;
#endif
        const float total = over<Sum>(values, runs, shared[4], [factor, middle](float v) {
            return (v * factor - middle) * (v * factor - middle);
        });
        centre = far ? middle / factor : centre;
        inverse = far ? 1.0f / hypotf(sqrtf(total * share) / factor, sqrtf(p.eps)) : inverse;
    }
    OUT *to = out + p.out.start_of(vector);
#pragma unroll
    for (int i = 0; i < ITEMS; i++) {
        const u32 run = threadIdx.x + i * blockDim.x;
        if (run < runs) {
            float scale[RUN], result[RUN];
#if EARLY_WEIGHTS
            scales[i].widen(scale);
#else
            load_vector(weight + run * RUN, scale);
#endif
            values.get(i, result);
#if BIAS
            float shift[RUN];
            load_vector(bias + run * RUN, shift);
#endif
#pragma unroll
            for (int j = 0; j < RUN; j++) {
                result[j] = (result[j] - centre) * inverse * (scale[j] + p.weight_offset);
#if BIAS
                result[j] += shift[j];
#endif
            }
            store_vector(to + run * RUN, result);
        }
    }
}
