// Where elements lie: perjoule_kernels::layout, field by field. Strides in elements.
#ifndef PERJOULE_LAYOUT_CUH
#define PERJOULE_LAYOUT_CUH

#include "common/element.cuh"

// Quotient and remainder, in 32 bits where they do.
DEVICE u64 divide(u64 value, u64 by, u64 &rest) {
    if ((value | by) >> 32) {
        rest = value % by;
        return value / by;
    }
    const u32 quotient = (u32)value / (u32)by;
    rest = (u32)value - quotient * (u32)by;
    return quotient;
}

// `outer x inner` vectors of `len` contiguous elements.
struct Rows {
    u64 outer, inner, len, outer_stride, inner_stride;

    __device__ __forceinline__ u64 count() const {
        return outer * inner;
    }
    __device__ __forceinline__ u64 start(u64 o, u64 i) const {
        return o * outer_stride + i * inner_stride;
    }
    // First element of vector `index`, counting inner first; in 32 bits where there are no more vectors.
    __device__ __forceinline__ u64 start_of(u32 index) const {
        const u32 o = inner == 1 ? index : index / (u32)inner;
        return start(o, index - o * (u32)inner);
    }
    __device__ __forceinline__ u64 start_of(u64 index) const {
        if (inner == 1) {
            return index * outer_stride;
        }
        u64 i;
        const u64 o = divide(index, inner, i);
        return start(o, i);
    }
};

// A KV cache; `block` is 0 where it is contiguous.
struct KvLayout {
    u64 kv_heads, capacity, head_dim, batch_stride, head_stride, token_stride, block, blocks;

    __device__ __forceinline__ u64 blocks_per_sequence() const {
        return block == 0 ? 0 : (capacity + block - 1) / block;
    }
};

#endif
