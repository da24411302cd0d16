// Products of many rows with weights of a block format, packed as pack/panels.cu says: matmul, gated_matmul (GATED) and grouped_matmul
// (GROUPED).
//
// `panels_prepare` writes A as rows of 16-bit floats in the order in which fragments want k, into scratch; of q4_k also the sums of 32
// neighbours, which minima multiply. In `panels` a block of 256 threads computes 128 rows of A times 128 columns (64 of a gated pair): one
// step of k at a time passes through STAGES buffers in shared memory. Each of 4 x 2 warps decodes two panels of 16 columns into fragments
// of mma.sync and multiplies them with 64 rows; a block's sums are scaled in f32, so that codes stay exact.
//
// Defines: WEIGHT, MATH (bf16 or f16), GATED, GROUPED; PIECES and GROUP_SCALES are 1 and 0, TILES is 8.

#include "common/product.cuh"

constexpr int MATS = 2;
constexpr int DEEP = 1;

#include "matmul/multiply.cuh"

constexpr int THREADS = 256;
constexpr int TILE = 128;
// Panels of a tile; of a gated pair they take turns.
constexpr int PANELS = 8;
constexpr u32 OUT = GATED ? TILE / 2 : TILE;
constexpr int STAGES = STEP == 256 ? 2 : 3;
// Bytes of a row of A in shared memory: eight lanes that read two rows meet all banks.
constexpr int PITCH = STEP * 2 + 64;
constexpr int WEIGHT_BYTES = PANELS * UNIT_BYTES;
constexpr int A_BYTES = TILE * PITCH;
constexpr int SUM_BYTES = WEIGHT == W_Q4_K ? STEP / 32 * TILE * 4 : 0;
constexpr int STAGE_BYTES = WEIGHT_BYTES + A_BYTES + SUM_BYTES;

struct Params {
    i64 a_row, a_col;
    // Bytes of a packed panel, and of a matrix.
    i64 b_stride, b_batch;
    i64 c_row, c_col, residual_row, residual_col;
    // Rows of C and A; rows of A that are prepared: those of C, or the positions of a grouped product.
    u32 m, n, k, rows;
    u32 a_dtype, c_dtype, bias_dtype, residual_dtype;
    u32 a_scale, b_scale;
    u32 has_bias, has_up_bias, has_residual;
    u32 activation, gate;
    float scale, alpha, limit;
    // grouped_matmul
    u32 experts, a_rows, a_divisor;
    u32 pad;
};

// Elements of a row in scratch.
DEVICE u32 padded(const Params &p) {
    return (p.k + STEP - 1) / STEP * STEP;
}

// A thread takes 32 neighbours of a row.
extern "C" __global__ void __launch_bounds__(THREADS)
panels_prepare(const __grid_constant__ Params p, const void *__restrict__ a, const i32 *__restrict__ order, u8 *__restrict__ to, float *__restrict__ sums) {
    const u32 blocks = padded(p) / 32;
    const u64 at = (u64)blockIdx.x * THREADS + threadIdx.x;
    const u32 row = (u32)(at / blocks), k0 = (u32)(at % blocks) * 32;
    if (row >= p.rows) {
        return;
    }
    i64 from = row;
    if (GROUPED) {
        const i32 position = order[row];
        from = position >= 0 && position < (i32)p.m ? position / (i32)p.a_divisor : -1;
        from = from < p.a_rows ? from : -1;
    }
    float sum = 0.0f;
    for (u32 k = k0; k < k0 + 32; k += 4) {
        float x[4];
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            const bool inside = from >= 0 && k + i < p.k;
            x[i] = inside ? load_element(a, (u64)(from * p.a_row + (k + i) * p.a_col), p.a_dtype) : 0.0f;
            x[i] = HALF ? to_float(to_f16(x[i])) : to_float(to_bf16(x[i]));
            sum += x[i];
        }
        put_activations(to + ((u64)row * padded(p) + activation_at(k)) * 2, 0, x);
    }
    if (WEIGHT == W_Q4_K) {
        sums[at] = sum;
    }
}

DEVICE void copy4(u32 to, const void *from, bool inside) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(from), "r"(inside ? 4 : 0) : "memory");
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
panels(const __grid_constant__ Params p, const u8 *__restrict__ a, const float *__restrict__ a_sums, const u8 *__restrict__ b, const u8 *__restrict__ up,
       const float *__restrict__ a_scale, const void *__restrict__ bias, const void *__restrict__ up_bias, const void *__restrict__ residual,
       const i32 *__restrict__ offsets, const i32 *__restrict__ order, void *__restrict__ c) {
    extern __shared__ __align__(128) u8 shared[];
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, pair = warp % 4, half = warp / 4;
    const u32 base = shared_address(shared);
    const u32 steps = padded(p) / STEP, all_panels = (p.n + COLUMNS - 1) / COLUMNS;

    u32 expert = 0;
    i32 from = 0, to = (i32)p.m;
    if (GROUPED && !find_expert(offsets, p.experts, (i32)p.rows, blockIdx.y, lane, expert, from, to)) {
        return;
    }
    // blocks that follow each other share columns
    const u32 row_tiles = GROUPED ? gridDim.z : (p.m + TILE - 1) / TILE;
    const u32 column_tile = GROUPED ? blockIdx.x : blockIdx.x / row_tiles;
    const u8 *const matrix = b + expert * p.b_batch;

    for (i32 row0 = from + (i32)(GROUPED ? blockIdx.z : blockIdx.x % row_tiles) * TILE; row0 < to; row0 += (i32)row_tiles * TILE) {
        const u32 count = to - row0 < TILE ? (u32)(to - row0) : TILE;
        const auto fetch = [&](u32 step) {
            if (step < steps) {
                const u32 stage = base + step % STAGES * STAGE_BYTES;
                // weights: whole steps of panels
#pragma unroll 2
                for (u32 i = threadIdx.x; i < WEIGHT_BYTES / 16; i += THREADS) {
                    const u32 which = i / (UNIT_BYTES / 16), byte = i % (UNIT_BYTES / 16) * 16;
                    const u32 panel = GATED ? column_tile * (PANELS / 2) + which / 2 : column_tile * PANELS + which;
                    const u8 *of = GATED && which % 2 == 1 ? up : matrix;
                    copy16(stage + i * 16, of + (panel < all_panels ? panel : all_panels - 1) * p.b_stride + (i64)step * STEP_BYTES + byte, true);
                }
                constexpr u32 CHUNKS_OF_ROW = STEP * 2 / 16;
#pragma unroll 2
                for (u32 i = threadIdx.x; i < TILE * CHUNKS_OF_ROW; i += THREADS) {
                    const u32 row = i / CHUNKS_OF_ROW, byte = i % CHUNKS_OF_ROW * 16;
                    const bool inside = row < count;
                    copy16(stage + WEIGHT_BYTES + row * PITCH + byte, a + ((u64)(row0 + (inside ? row : 0)) * padded(p) + step * STEP) * 2 + byte, inside);
                }
                if (WEIGHT == W_Q4_K) {
                    // [half][32 of k][64 rows]; unrolled, its addresses take registers that sums need
#pragma unroll 1
                    for (u32 i = threadIdx.x; i < TILE * (STEP / 32); i += THREADS) {
                        const u32 row = i / (STEP / 32), block = i % (STEP / 32);
                        const bool inside = row < count;
                        copy4(stage + WEIGHT_BYTES + A_BYTES + ((row / 64 * (STEP / 32) + block) * 64 + row % 64) * 4,
                              a_sums + (u64)(row0 + (inside ? row : 0)) * (padded(p) / 32) + step * (STEP / 32) + block, inside);
                    }
                }
            }
            copies_end();
        };
#pragma unroll 1
        for (u32 i = 0; i < STAGES - 1; i++) {
            fetch(i);
        }
        Sum sum[MATS][TILES] = {};
#pragma unroll 1
        for (u32 step = 0; step < steps; step++) {
            copies_wait<STAGES - 2>();
            __syncthreads();
            fetch(step + STAGES - 1);
            const u8 *stage = shared + step % STAGES * STAGE_BYTES;
            Activations act;
#pragma unroll
            for (u32 i = 0; i < TILES; i++) {
                act.at[i] = stage + WEIGHT_BYTES + (half * 64 + i * 8 + lane / 4) * PITCH + lane % 4 * 16;
            }
            act.piece_bytes = 0;
            act.sums = reinterpret_cast<const float *>(stage + WEIGHT_BYTES + A_BYTES) + half * (STEP / 32 * TOKENS) + lane % 4 * TOKENS + lane / 4;
            multiply_packed(sum, stage + pair * 2 * UNIT_BYTES, act, 0, lane);
        }
        copies_wait<0>();
        __syncthreads();
        // asked again, so that what follows from it takes no registers before
        u32 thread;
        asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
        const u32 end_lane = thread % 32, end_pair = thread / 32 % 4, end_half = thread / 128;
        // [row][column], gates before ups
        float *const out = reinterpret_cast<float *>(shared);
        constexpr u32 LINE = TILE + 4;
#pragma unroll
        for (u32 mat = 0; mat < MATS; mat++) {
#pragma unroll
            for (u32 i = 0; i < TILES * 4; i++) {
                const u32 row = end_half * 64 + i / 4 * 8 + end_lane % 4 * 2 + i % 2, column = end_lane / 4 + i % 4 / 2 * 8;
                out[row * LINE + (GATED ? mat * OUT + end_pair * COLUMNS : (end_pair * 2 + mat) * COLUMNS) + column] = sum[mat][i / 4][i % 4];
            }
        }
        __syncthreads();
#pragma unroll 1
        for (u32 i = threadIdx.x; i < count * OUT; i += THREADS) {
            const u32 row = i / OUT, column = i % OUT, n = column_tile * OUT + column;
            i32 c_row = row0 + (i32)row;
            if (GROUPED) {
                c_row = order[c_row];
                const bool inside = c_row >= 0 && c_row < (i32)p.m && c_row / (i32)p.a_divisor < (i32)p.a_rows;
                c_row = inside ? c_row : -1;
            }
            if (n < p.n && c_row >= 0) {
                const float *at = out + row * LINE + column;
                store_product<GATED, false>(p, at[0], GATED ? at[OUT] : 0.0f, expert, c_row, n, a_scale, nullptr, bias, up_bias, residual, c);
            }
        }
        __syncthreads();
    }
}
