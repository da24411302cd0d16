// What the kernels of RmsNorm and LayerNorm share (arXiv:1910.07467, arXiv:1607.06450).
#ifndef PERJOULE_NORM_CUH
#define PERJOULE_NORM_CUH

#include "common/block.cuh"
#include "common/layout.cuh"

struct NormParams {
    Rows x, residual, sum, out;
    float eps, weight_offset;
    u32 x_dtype, weight_dtype, out_dtype;
    // Flags.
    u32 layer, has_residual, has_bias;
};

// Whether a sum of squares left the range in which f32 rounds relatively: then elements are scaled first.
DEVICE bool out_of_range(float squares) {
    return !(squares >= 1e-30f && squares <= 3.0e38f);
}

// A power of two that brings numbers up to `most` near 1, so that their squares stay in range.
DEVICE float down_scale(float most) {
    const u32 exponent = bits_of(most) >> 23 & 255u;
    return float_of((254u - (exponent < 1 ? 1 : exponent > 253 ? 253 : exponent)) << 23);
}

#endif
