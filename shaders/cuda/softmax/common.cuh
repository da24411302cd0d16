// What the kernels of Softmax share.
#ifndef PERJOULE_SOFTMAX_CUH
#define PERJOULE_SOFTMAX_CUH

#include "common/layout.cuh"

struct SoftmaxParams {
    Rows x, out;
    float scale;
    u32 dtype, out_dtype, unused;
};

#endif
