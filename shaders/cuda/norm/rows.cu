// RmsNorm and LayerNorm of any types and strides: a block takes a vector and reads it from memory for each pass.
#include "norm/common.cuh"

#define THREADS 256

// Element `d` of the input, the residual added.
DEVICE float input(const NormParams &p, const void *x, const void *residual, u64 x_at, u64 residual_at, u64 d) {
    const float value = load_element(x, x_at + d, p.x_dtype);
    return p.has_residual ? value + load_element(residual, residual_at + d, p.x_dtype) : value;
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    norm_rows(const __grid_constant__ NormParams p, const void *__restrict__ x, const void *__restrict__ residual,
              const void *__restrict__ weight, const void *__restrict__ bias, void *__restrict__ sum,
              void *__restrict__ out) {
    take_turn();
    __shared__ double shared[2][THREADS / WARP_SIZE];
    const u64 vectors = p.x.count(), len = p.x.len;
    for (u64 vector = blockIdx.x; vector < vectors; vector += gridDim.x) {
        const u64 x_at = p.x.start_of(vector), to = p.out.start_of(vector);
        const u64 residual_at = p.has_residual ? p.residual.start_of(vector) : 0;
        const u64 sum_at = p.has_residual ? p.sum.start_of(vector) : 0;
        double total = 0.0;
        for (u64 d = threadIdx.x; d < len; d += THREADS) {
            const float value = input(p, x, residual, x_at, residual_at, d);
            total += p.layer ? (double)value : (double)value * (double)value;
            if (p.has_residual) {
                store_element(sum, sum_at + d, p.x_dtype, value);
            }
        }
        total = reduce_row<Sum>(total, shared[0]);
        double mean = 0.0;
        if (p.layer) {
            mean = total / (double)len;
            total = 0.0;
            for (u64 d = threadIdx.x; d < len; d += THREADS) {
                const double centred = (double)input(p, x, residual, x_at, residual_at, d) - mean;
                total += centred * centred;
            }
            total = reduce_row<Sum>(total, shared[1]);
        }
        const float inverse = (float)(1.0 / sqrt(total / (double)len + (double)p.eps));
        for (u64 d = threadIdx.x; d < len; d += THREADS) {
            const float value = input(p, x, residual, x_at, residual_at, d);
            const float centred = p.layer ? (float)((double)value - mean) : value;
            const float scale = load_element(weight, d, p.weight_dtype) + p.weight_offset;
            const float shift = p.has_bias ? load_element(bias, d, p.weight_dtype) : 0.0f;
            const float scaled = centred * inverse * scale;
            store_element(out, to + d, p.out_dtype, p.has_bias ? scaled + shift : scaled);
        }
        __syncthreads();
    }
}
