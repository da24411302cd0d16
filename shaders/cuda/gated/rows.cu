// Gated activations (arXiv:2002.05202). Compiled for X, OUT (types of inputs and output) and RUN (elements of 16 bytes of OUT)
// where all vectors begin at multiples of what a run takes, up to 16 bytes, and have whole runs; without them for any types, an
// element a run.
#include "common/math.cuh"
#include "common/tile.cuh"

#ifndef ITEMS
#define ITEMS 2
#endif

// perjoule_kernels::op::GatedKind, in its order.
enum GatedKind : u32 { SWIGLU, GEGLU, GEGLU_TANH, GPT_OSS };

struct GatedParams {
    Rows gate, up, out;
    u32 parts, kind, dtype, out_dtype;
    float alpha, limit;
};

DEVICE float gated(const GatedParams &p, float gate, float up) {
    switch (p.kind) {
    case SWIGLU: return silu(gate) * up;
    case GEGLU: return gelu(gate) * up;
    case GEGLU_TANH: return gelu_tanh(gate) * up;
    default: {
        // comparisons that let NaN through
        const float g = gate > p.limit ? p.limit : gate;
        const float u = up > p.limit ? p.limit : up < -p.limit ? -p.limit : up;
        return swish(g, p.alpha) * (u + 1.0f);
    }
    }
}

#ifdef X
extern "C" __global__ void gated_rows(const __grid_constant__ GatedParams p, const X *__restrict__ gate,
                                      const X *__restrict__ up, OUT *__restrict__ out) {
    take_turn();
    const Tile<ITEMS> tile(p.out.count(), p.out.len / RUN, p.parts);
    const X *gates = gate + p.gate.start_of(tile.vector), *ups = up + p.up.start_of(tile.vector);
    OUT *to = out + p.out.start_of(tile.vector);
    Raw<X, RUN> left[ITEMS], right[ITEMS];
#pragma unroll
    for (int i = 0; i < ITEMS; i++) {
        if (tile.has(i)) {
            left[i].load(gates + tile.run(i) * RUN);
            right[i].load(ups + tile.run(i) * RUN);
        }
    }
#pragma unroll
    for (int i = 0; i < ITEMS; i++) {
        if (tile.has(i)) {
            float value[RUN], other[RUN];
            left[i].widen(value);
            right[i].widen(other);
#pragma unroll
            for (int j = 0; j < RUN; j++) {
                value[j] = gated(p, value[j], other[j]);
            }
            store_vector(to + tile.run(i) * RUN, value);
        }
    }
}
#else
extern "C" __global__ void gated_any(const __grid_constant__ GatedParams p, const void *__restrict__ gate,
                                     const void *__restrict__ up, void *__restrict__ out) {
    take_turn();
    const Tile<ITEMS> tile(p.out.count(), p.out.len, p.parts);
    const u64 g = p.gate.start_of(tile.vector), u = p.up.start_of(tile.vector), to = p.out.start_of(tile.vector);
#pragma unroll 1
    for (int i = 0; i < ITEMS; i++) {
        if (tile.has(i)) {
            const u64 d = tile.run(i);
            const float value = gated(p, load_element(gate, g + d, p.dtype), load_element(up, u + d, p.dtype));
            store_element(out, to + d, p.out_dtype, value);
        }
    }
}
#endif
