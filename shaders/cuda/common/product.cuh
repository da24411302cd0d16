// What matrix products share: gates of pairs, granularity of scales.
#ifndef PERJOULE_PRODUCT_CUH
#define PERJOULE_PRODUCT_CUH

#include "common/math.cuh"

// perjoule_kernels::op::GatedKind, in its order.
enum Gate : u32 { GATE_SWIGLU, GATE_GEGLU, GATE_GEGLU_TANH, GATE_GPT_OSS };

// Alpha and limit are those of GATE_GPT_OSS. Comparisons let NaN through.
DEVICE float gate_by(u32 kind, float alpha, float limit, float gate, float up) {
    switch (kind) {
    case GATE_SWIGLU: return silu(gate) * up;
    case GATE_GEGLU: return gelu(gate) * up;
    case GATE_GEGLU_TANH: return gelu_tanh(gate) * up;
    default: {
        const float g = gate > limit ? limit : gate;
        const float u = up > limit ? limit : up < -limit ? -limit : up;
        return swish(g, alpha) * (u + 1.0f);
    }
    }
}

// Over what one scale holds.
enum Granularity : u32 { SCALE_NONE, SCALE_TENSOR, SCALE_VECTOR, SCALE_GROUP };

#endif
