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

// Whether sums of squares are to be computed again in f64: they left the range in which f32 rounds relatively.
DEVICE bool out_of_range(float squares) {
    return !(squares >= 1e-30f && squares <= 3.0e38f);
}

// 1 / sqrt(squares / len + eps)
DEVICE float inverse_root(float squares, float len, float eps) {
    return 1.0f / sqrtf(squares / len + eps);
}
DEVICE float inverse_root(double squares, double len, float eps) {
    return (float)(1.0 / sqrt(squares / len + (double)eps));
}

#endif
