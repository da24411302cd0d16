// Softmax of any types, strides and lengths: a block takes a vector. The first pass over memory keeps a running maximum and
// rescales the sum when it grows (arXiv:1805.02867); the second one writes.
#include "common/block.cuh"
#include "common/math.cuh"
#include "softmax/common.cuh"

#define THREADS 512
// Elements that are on their way at a time.
#define BATCH 4

extern "C" __global__ void __launch_bounds__(THREADS)
    softmax_rows(const __grid_constant__ SoftmaxParams p, const void *__restrict__ x, void *__restrict__ out) {
    take_turn();
    __shared__ float shared[2][WARP_SIZE];
    const u64 vectors = p.x.count(), len = p.x.len;
    for (u64 vector = blockIdx.x; vector < vectors; vector += gridDim.x) {
        const u64 from = p.x.start_of(vector), to = p.out.start_of(vector);
        float top = -INFINITE, total = 0.0f;
        for (u64 first = threadIdx.x; first < len; first += BATCH * THREADS) {
            float values[BATCH];
            float most = top;
#pragma unroll
            for (int i = 0; i < BATCH; i++) {
                const u64 d = first + i * THREADS;
                values[i] = d < len ? load_element(x, from + d, p.dtype) * p.scale : -INFINITE;
            }
#pragma unroll
            for (int i = 0; i < BATCH; i++) {
                most = fmaxf(most, values[i]);
            }
            // where nothing was above -inf so far there is nothing to rescale
            total = top == -INFINITE ? total : total * exp_fast(top - most);
#pragma unroll
            for (int i = 0; i < BATCH; i++) {
                // -inf adds nothing, also where there is nothing else yet
                total += values[i] == -INFINITE ? 0.0f : exp_fast(values[i] - most);
            }
            top = most;
        }
        const float most = reduce_row<Max>(top, shared[0]);
        // a largest value that is infinite makes the vector NaN
        const float share = top == -INFINITE ? total : total * exp_fast(top - most);
        const float inverse = 1.0f / reduce_row<Sum>(most == -INFINITE ? NOT_A_NUMBER : share, shared[1]);
        for (u64 first = threadIdx.x; first < len; first += BATCH * THREADS) {
            float values[BATCH];
#pragma unroll
            for (int i = 0; i < BATCH; i++) {
                const u64 d = first + i * THREADS;
                values[i] = d < len ? load_element(x, from + d, p.dtype) * p.scale : 0.0f;
            }
#pragma unroll
            for (int i = 0; i < BATCH; i++) {
                const u64 d = first + i * THREADS;
                if (d < len) {
                    store_element(out, to + d, p.out_dtype, exp_fast(values[i] - most) * inverse);
                }
            }
        }
        __syncthreads();
    }
}
