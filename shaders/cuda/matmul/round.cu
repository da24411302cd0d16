// Matrices of f32 as dense rows of bf16, for products that may round their activations. One piece of 8 elements a thread; what lies
// behind the end of a row is filled with zeros.

#include "common/hopper.cuh"

struct Params {
    // elements from one row, and from one matrix, to the next
    u64 from_row;
    u64 from_matrix;
    u64 rows;
    u64 matrices;
    // elements of a row, and pieces that they fill
    u64 len;
    u64 pieces;
};

extern "C" __global__ void __launch_bounds__(256) round_rows(const __grid_constant__ Params p, const float* from, u8* to) {
    grid_dependency_wait();
    grid_dependency_release();
    const u64 count = p.matrices * p.rows * p.pieces;
    for (u64 index = blockIdx.x * 256ull + threadIdx.x; index < count; index += gridDim.x * 256ull) {
        const u64 line = index / p.pieces;
        const u64 piece = index - line * p.pieces;
        const u64 matrix = line / p.rows;
        const float* const source = from + matrix * p.from_matrix + (line - matrix * p.rows) * p.from_row + piece * 8;
        const u64 left = p.len - piece * 8;
        float value[8];
        if (left >= 8 && (u64)source % 16 == 0) {
            u32 words[4];
            #pragma unroll
            for (int half = 0; half < 2; half++) {
                load_16(source + 4 * half, words);
                #pragma unroll
                for (int i = 0; i < 4; i++) {
                    value[4 * half + i] = float_of(words[i]);
                }
            }
        } else {
            #pragma unroll
            for (int i = 0; i < 8; i++) {
                value[i] = i < left ? source[i] : 0.0f;
            }
        }
        u32 words[4];
        #pragma unroll
        for (int i = 0; i < 4; i++) {
            words[i] = to_bf16(value[2 * i]).bits | (u32)to_bf16(value[2 * i + 1]).bits << 16;
        }
        store_16(to + index * 16, words);
    }
}
