// Softmax in one pass over memory: a vector stays in the registers of the threads that share it.
//
// blockDim.x threads take a vector, blockDim.y vectors share a block; a thread holds ITEMS runs of RUN elements, which lie
// blockDim.x runs apart. Compiled for X, OUT (types of input and output), RUN (elements of 16 bytes of OUT), ITEMS and
// THREADS (of a block, at most).
// Preconditions: the length is a multiple of RUN and at most ITEMS * RUN * blockDim.x; vectors begin at multiples of what a run
// takes, up to 16 bytes.
#include "common/block.cuh"
#include "common/math.cuh"
#include "softmax/common.cuh"

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    softmax_registers(const __grid_constant__ SoftmaxParams p, const X *__restrict__ x, OUT *__restrict__ out) {
    take_turn();
    __shared__ float shared[2][WARP_SIZE];
    const u32 index = blockIdx.x * blockDim.y + threadIdx.y;
    const bool active = index < p.x.count();
    const u32 vector = active ? index : 0;
    const u32 runs = active ? (u32)p.x.len / RUN : 0;
    const X *from = x + p.x.start_of(vector);
    Raw<X, RUN> raw[ITEMS];
    float values[ITEMS][RUN];
#pragma unroll
    for (int i = 0; i < ITEMS; i++) {
        const u32 run = threadIdx.x + i * blockDim.x;
        if (run < runs) {
            raw[i].load(from + run * RUN);
        }
    }
    float top = -INFINITE;
#pragma unroll
    for (int i = 0; i < ITEMS; i++) {
        if (threadIdx.x + i * blockDim.x < runs) {
            raw[i].widen(values[i]);
#pragma unroll
            for (int j = 0; j < RUN; j++) {
                values[i][j] *= p.scale;
                top = fmaxf(top, values[i][j]);
            }
        }
    }
    top = reduce_row<Max>(top, shared[0]);
    float total = 0.0f;
#pragma unroll
    for (int i = 0; i < ITEMS; i++) {
        if (threadIdx.x + i * blockDim.x < runs) {
#pragma unroll
            for (int j = 0; j < RUN; j++) {
                values[i][j] = exp_fast(values[i][j] - top);
                total += values[i][j];
            }
        }
    }
    const float inverse = 1.0f / reduce_row<Sum>(total, shared[1]);
    OUT *to = out + p.out.start_of(vector);
#pragma unroll
    for (int i = 0; i < ITEMS; i++) {
        const u32 run = threadIdx.x + i * blockDim.x;
        if (run < runs) {
#pragma unroll
            for (int j = 0; j < RUN; j++) {
                values[i][j] *= inverse;
            }
            store_vector(to + run * RUN, values[i]);
        }
    }
}
