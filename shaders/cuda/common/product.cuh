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

// One element of C from its sum, or from both of a gated pair; integers lie in floats' place. `P` has the fields by these names. There is
// one matrix, or one for each expert, of which `expert` is this element's.
template <bool GATED_PAIR, bool OF_INTEGERS, class P>
DEVICE void store_product(const P &p, float sum, float other, u32 expert, i32 row, u32 n, const float *a_scale, const float *b_scale, const void *bias,
                          const void *up_bias, const void *residual, void *c) {
    const u64 at = (u64)(row * p.c_row + n * p.c_col);
    if (OF_INTEGERS) {
        if (!GATED_PAIR && p.c_dtype == DTYPE_I32) {
            static_cast<u32 *>(c)[at] = bits_of(sum);
            return;
        }
        sum = (float)(i32)bits_of(sum);
        other = (float)(i32)bits_of(other);
    }
    if (GATED_PAIR) {
        if (p.has_bias) {
            sum += load_element(bias, n, p.bias_dtype);
        }
        if (p.has_up_bias) {
            other += load_element(up_bias, n, p.bias_dtype);
        }
        store_element(c, at, p.c_dtype, gate_by(p.gate, p.alpha, p.limit, sum, other));
        return;
    }
    if (p.a_scale == SCALE_TENSOR || p.a_scale == SCALE_VECTOR) {
        sum *= a_scale[p.a_scale == SCALE_TENSOR ? 0 : row];
    }
    if (p.b_scale == SCALE_TENSOR || p.b_scale == SCALE_VECTOR) {
        sum *= b_scale[p.b_scale == SCALE_TENSOR ? 0 : n];
    }
    sum *= p.scale;
    if (p.has_bias) {
        sum += load_element(bias, (u64)expert * p.n + n, p.bias_dtype);
    }
    sum = activate(sum, p.activation);
    if (p.has_residual) {
        sum += load_element(residual, (u64)(row * p.residual_row + n * p.residual_col), p.residual_dtype);
    }
    store_element(c, at, p.c_dtype, sum);
}

#endif
