// What the kernels share that quantise with scales beside the codes.
#ifndef PERJOULE_QUANTISE_CUH
#define PERJOULE_QUANTISE_CUH

#include "common/block.cuh"

struct QuantiseParams {
    // Elements of the tensor, of a vector, and of a group; groups of a vector.
    u64 elements, len, group, each;
    float limit;
    u32 from, to, blocks;
};

// What is rounded for `value` under `scale`.
DEVICE float scaled(float value, float scale) {
    return scale == 0.0f && !is_nan(value) ? 0.0f : value / scale;
}

#endif
