// What the kernels of QkNormRopeAppend share.
#ifndef PERJOULE_QK_CUH
#define PERJOULE_QK_CUH

#include "kv_append/cache.cuh"
#include "norm/common.cuh"
#include "rope/common.cuh"

// A head's norm and rotation. The weight of a norm that the op does not have is null.
struct HeadParams {
    Rows x;
    Rotation rotation;
    float eps, weight_offset;
    u32 x_dtype, weight_dtype;
};

struct QkParams {
    HeadParams q, k;
    Rows out;
    AppendParams append;
    u32 out_dtype, unused;
};

#endif
