// The experts' results of each token, weighted and added up, with the residual. Compiled for X, OUT and RUN (elements of 16
// bytes of OUT) where all vectors begin at multiples of what a run takes, up to 16 bytes, and have whole runs; without
// them for any types.
#include "common/tile.cuh"

// Rows of experts that are on their way at a time.
#define BATCH 4

struct CombineParams {
    Rows x, out;
    u32 parts, top_k, dtype, out_dtype, has_residual, unused;
};

// Token and inner index of a vector of the output.
struct Place {
    u64 token, inner;
    __device__ __forceinline__ Place(const Rows &out, u64 vector) {
        token = divide(vector, out.inner, inner);
    }
};

#ifdef X
extern "C" __global__ void combine_rows(const __grid_constant__ CombineParams p, const X *__restrict__ x,
                                        const float *__restrict__ weights, const OUT *__restrict__ residual,
                                        OUT *__restrict__ out) {
    take_turn();
    const Tile<1> tile(p.out.count(), p.out.len / RUN, p.parts);
    if (!tile.has(0)) {
        return;
    }
    const Place place(p.out, tile.vector);
    const u64 at = tile.run(0) * RUN, to = p.out.start(place.token, place.inner) + at;
    float sum[RUN] = {};
    if (p.has_residual) {
        load_vector(residual + to, sum);
    }
    const u64 row = place.token * p.top_k;
    const X *from = x + p.x.start(row, place.inner) + at;
    for (u32 first = 0; first < p.top_k; first += BATCH) {
        Raw<X, RUN> raw[BATCH];
        float weight[BATCH];
#pragma unroll
        for (int j = 0; j < BATCH; j++) {
            if (first + j < p.top_k) {
                raw[j].load(from + (first + j) * p.x.outer_stride);
                weight[j] = weights[row + first + j];
            }
        }
#pragma unroll
        for (int j = 0; j < BATCH; j++) {
            if (first + j < p.top_k) {
                float value[RUN];
                raw[j].widen(value);
#pragma unroll
                for (int i = 0; i < RUN; i++) {
                    sum[i] = fmaf(weight[j], value[i], sum[i]);
                }
            }
        }
    }
    store_vector(out + to, sum);
}
#else
extern "C" __global__ void combine_any(const __grid_constant__ CombineParams p, const void *__restrict__ x,
                                       const float *__restrict__ weights, const void *__restrict__ residual,
                                       void *__restrict__ out) {
    take_turn();
    const Tile<1> tile(p.out.count(), p.out.len, p.parts);
    if (!tile.has(0)) {
        return;
    }
    const Place place(p.out, tile.vector);
    const u64 to = p.out.start(place.token, place.inner) + tile.run(0);
    float sum = p.has_residual ? load_element(residual, to, p.out_dtype) : 0.0f;
    for (u32 j = 0; j < p.top_k; j++) {
        const u64 row = place.token * p.top_k + j;
        sum = fmaf(weights[row], load_element(x, p.x.start(row, place.inner) + tile.run(0), p.dtype), sum);
    }
    store_element(out, to, p.out_dtype, sum);
}
#endif
