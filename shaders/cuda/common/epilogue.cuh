// What happens to sums of products before they are stored: activations, gates, scales. Definitions and the order of operations are
// those of perjoule_kernels::op::{matmul, gated}.
#ifndef PERJOULE_EPILOGUE_CUH
#define PERJOULE_EPILOGUE_CUH

#include "common/element.cuh"

enum ProductActivation : u32 { PRODUCT_NONE, PRODUCT_SILU, PRODUCT_GELU, PRODUCT_GELU_TANH };

// The declaration order of perjoule_kernels::op::GatedKind.
enum ProductGate : u32 { GATE_SWIGLU, GATE_GEGLU, GATE_GEGLU_TANH, GATE_GPT_OSS };

DEVICE float product_activation(u32 kind, float x) {
    switch (kind) {
    case PRODUCT_SILU: return x / (1.0f + expf(-x));
    case PRODUCT_GELU: return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
    case PRODUCT_GELU_TANH: return 0.5f * x * (1.0f + tanhf(0.79788456080286536f * (x + 0.044715f * x * x * x)));
    default: return x;
    }
}

// `kind(gate, up)`; alpha and limit are for GATE_GPT_OSS. Comparisons let NaN through.
DEVICE float product_gate(u32 kind, float alpha, float limit, float gate, float up) {
    switch (kind) {
    case GATE_SWIGLU: return product_activation(PRODUCT_SILU, gate) * up;
    case GATE_GEGLU: return product_activation(PRODUCT_GELU, gate) * up;
    case GATE_GEGLU_TANH: return product_activation(PRODUCT_GELU_TANH, gate) * up;
    default: {
        const float g = gate > limit ? limit : gate;
        const float u = up > limit ? limit : up < -limit ? -limit : up;
        return g / (1.0f + expf(-alpha * g)) * (u + 1.0f);
    }
    }
}

#endif
