// What the matrix products for Hopper share: configuration, ring of stages, epilogue.
//
// Defines: ELEMENT, OUT (Dtype ids; f32 inputs are multiplied as tf32); TILE_M, TILE_N; STAGES; CLUSTER (1 or 2), SHARE_A
// (the cluster's tiles lie side by side along n and share A, else along m and share B); PINGPONG; A_MN, B_MN
// (operand contiguous along m or n, 16-bit types); SPLIT (blocks of a cluster that share the k of a tile; without CLUSTER, PINGPONG
// and GATE). Epilogue, where there is one: A_SCALE, B_SCALE (1 one of each matrix, 2 one of each row or column), BIAS, RESIDUAL
// (Dtype ids), BIAS_ALONG_M, ACTIVATION, GATE (see math.cuh and product.cuh; GATE counts from 1).
#ifndef PERJOULE_MATMUL_HOPPER_CUH
#define PERJOULE_MATMUL_HOPPER_CUH

#include "common/element.cuh"
#include "common/product.cuh"

#ifndef SHARE_A
#define SHARE_A 0
#endif
#ifndef PINGPONG
#define PINGPONG 0
#endif
#ifndef A_MN
#define A_MN 0
#endif
#ifndef B_MN
#define B_MN 0
#endif
#ifndef CLUSTER
#define CLUSTER 2
#endif
#ifndef SPLIT
#define SPLIT 1
#endif
#ifndef STORE_BUFFERS
#define STORE_BUFFERS 2
#endif
#ifndef A_SCALE
#define A_SCALE 0
#endif
#ifndef B_SCALE
#define B_SCALE 0
#endif
#ifndef BIAS
#define BIAS -1
#endif
#ifndef RESIDUAL
#define RESIDUAL -1
#endif
#ifndef BIAS_ALONG_M
#define BIAS_ALONG_M 0
#endif
#ifndef ACTIVATION
#define ACTIVATION 0
#endif
#ifndef GATE
#define GATE 0
#endif
#ifndef PRODUCER_REGISTERS
#define PRODUCER_REGISTERS 40
#endif
#ifndef CONSUMER_REGISTERS
#define CONSUMER_REGISTERS 232
#endif

#define TEXT_OF(x) #x
#define TEXT(x) TEXT_OF(x)

// ELEMENT as a number, for the preprocessor: 0 f32, 1 f16, 2 bf16, 3 e4m3, 4 i8
#if ELEMENT == 0
#define WGMMA_STEP "k8.f32.tf32.tf32"
#define WGMMA_TAIL ", 1, 1"
#define ELEMENT_BYTES 4
#elif ELEMENT == 1
#define WGMMA_STEP "k16.f32.f16.f16"
#define WGMMA_TAIL ", 1, 1, " TEXT(A_MN) ", " TEXT(B_MN)
#define ELEMENT_BYTES 2
#elif ELEMENT == 2
#define WGMMA_STEP "k16.f32.bf16.bf16"
#define WGMMA_TAIL ", 1, 1, " TEXT(A_MN) ", " TEXT(B_MN)
#define ELEMENT_BYTES 2
#elif ELEMENT == 3
#define WGMMA_STEP "k32.f32.e4m3.e4m3"
#define WGMMA_TAIL ", 1, 1"
#define ELEMENT_BYTES 1
#else
#define WGMMA_STEP "k32.s32.s8.s8"
#define WGMMA_TAIL ""
#define ELEMENT_BYTES 1
#endif
#if ELEMENT == 4
typedef i32 Accumulator;
DEVICE u32 bits(Accumulator value) {
    return (u32)value;
}
DEVICE Accumulator accumulator_of(u32 bits) {
    return (i32)bits;
}
#define ACCUMULATOR(x) "+r"(x)
#else
typedef float Accumulator;
DEVICE u32 bits(Accumulator value) {
    return bits_of(value);
}
DEVICE Accumulator accumulator_of(u32 bits) {
    return float_of(bits);
}
#define ACCUMULATOR(x) "+f"(x)
#endif

#include "common/wgmma.cuh"

constexpr int TILE_K = 128 / ELEMENT_BYTES;
constexpr int CONSUMERS = 2;
constexpr int THREADS = 128 * (1 + CONSUMERS);
// rows of a consumer's tile, in wgmma's 64
constexpr int BLOCKS_M = (PINGPONG ? TILE_M : TILE_M / CONSUMERS) / 64;
constexpr int A_BYTES = TILE_M * 128;
constexpr int B_BYTES = TILE_N * 128;
constexpr int STAGE_BYTES = A_BYTES + B_BYTES;
constexpr int OUT_BYTES = OUT == DTYPE_F32 || OUT == DTYPE_I32 ? 4 : 2;
// columns of a store's box: a line of 128 bytes
constexpr int STORE_N = 128 / OUT_BYTES;
constexpr int STORE_BYTES = 64 * 128;
constexpr int STORE_OFFSET = STAGES * STAGE_BYTES;
constexpr int BARRIER_OFFSET = STORE_OFFSET + CONSUMERS * STORE_BUFFERS * STORE_BYTES;
constexpr int SHARED_BYTES = BARRIER_OFFSET + 16 * STAGES;
static_assert(SHARED_BYTES <= 232448, "shared memory of a block");
static_assert(BLOCKS_M * TILE_N / 2 <= 128, "accumulators of a thread");
// Named barriers by which the consumers of a ping-pong take turns: the first waits at TURN. A wait for a phase by its parity may be at
// most one phase early, so that neither may begin before the other has seen all its slices.
constexpr u32 TURN = 4;
// bytes from 64 elements along m or n to the next 64 where that is the contiguous direction
constexpr int MN_CHUNK = 64 * 128;

// columns of C that a tile covers, and that this block stores
constexpr int OUT_N = GATE ? TILE_N / 2 : TILE_N;
constexpr int RESULT_N = OUT_N / SPLIT;
static_assert(SPLIT == 1 || (CLUSTER == 1 && !PINGPONG && !GATE), "shares of k");
static_assert(RESULT_N % STORE_N == 0, "whole boxes");
static_assert(SPLIT == 1 || TILE_M * TILE_N * 4 <= STORE_OFFSET, "sums in the place of the stages");

struct Params {
    // strides of the residual, in elements; its columns are contiguous
    u64 residual_row;
    u64 residual_batch;
    float scale;
    // of GATE's kind
    float alpha;
    float limit;
    i32 m;
    i32 n;
    i32 batch;
    i32 k_slices;
    // clusters' tiles
    i32 tiles_m;
    i32 tiles_n;
    // tiles along m (negative: along n) that are walked together, for reuse in L2
    i32 group;
    // 0 where a matrix is shared by the batch
    i32 a_batch;
    i32 b_batch;
    // tiles that are computed whole; of the rest the k is shared out to `shares` clusters each
    i32 whole;
    i32 shares;
    // slices of k by which a tile begins behind the one before it
    i32 rotate;
    // bytes that copies bring to a stage: of few rows of A no more than there are
    u32 stage_bytes;
};

// What the epilogue reads; null where it does not.
struct Epilogue {
    const float* a_scale;
    const float* b_scale;
    const void* bias;
    const void* up_bias;
    const void* residual;
};

struct Tile {
    i32 m;
    i32 n;
    i32 batch;
};

// A ring's position: stage and the parity of its phase.
struct Ring {
    u32 stage;
    u32 parity;

    __device__ __forceinline__ void advance() {
        if (++stage == STAGES) {
            stage = 0;
            parity ^= 1;
        }
    }

    __device__ __forceinline__ void skip(u32 slices) {
        const u32 at = stage + slices;
        parity ^= (at / STAGES) & 1;
        stage = at % STAGES;
    }
};

// Begins to multiply the slice in `stage`: d += A B, or d = A B from `begin`. The descriptors are those of the first stage.
DEVICE void multiply_slice(Accumulator (&d)[BLOCKS_M][TILE_N / 2], u32 left_low, u32 right_low, u32 stage, bool begin) {
    const u32 slice = stage * (STAGE_BYTES / 16);
    wgmma_fence();
    #pragma unroll
    for (int step = 0; step < 4; step++) {
        // a quarter of the depth: 32 bytes of a line, or a quarter of the lines
        const u64 right = descriptor<1024>(right_low + slice + step * (B_MN ? TILE_K / 4 * 128 : 32) / 16);
        #pragma unroll
        for (int block = 0; block < BLOCKS_M; block++) {
            // 64 rows are 8 KiB in either order
            const u32 at = step * (A_MN ? TILE_K / 4 * 128 : 32) + block * 64 * 128;
            Wgmma<TILE_N>::multiply(d[block], descriptor<1024>(left_low + slice + at / 16), right, !begin || step > 0);
        }
    }
    wgmma_commit();
}

// After the wait for the last product: what reads the sums stays behind it.
DEVICE void settle(Accumulator (&d)[BLOCKS_M][TILE_N / 2]) {
    #pragma unroll
    for (int block = 0; block < BLOCKS_M; block++) {
        #pragma unroll
        for (int i = 0; i < TILE_N / 2; i++) {
            asm volatile("" : ACCUMULATOR(d[block][i])::"memory");
        }
    }
}

DEVICE u32 pack(float low, float high) {
    u32 both;
    if (OUT == DTYPE_BF16) {
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    } else {
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    }
    return both;
}

// Results are stored in boxes of 64 rows and a line of 128 bytes: of each a thread has 16 words, packed pairs or single elements.
constexpr int BOX_WORDS = 16;
constexpr int BOXES_N = RESULT_N / STORE_N;
constexpr int BOXES = BLOCKS_M * BOXES_N;
// a thread's sums behind a block's boxes
constexpr int SUMS = (GATE ? 2 : 1) * RESULT_N / 2;

DEVICE const void* element_at(const void* from, u64 index, u32 dtype) {
    return (const u8*)from + index * block_bytes(dtype);
}

// The element `offset` behind `from`, where that is less than `left`.
DEVICE float load_within(const void* from, i32 offset, i32 left, u32 dtype) {
    return offset < left ? load_element(from, offset, dtype) : 0.0f;
}

// From a block's sums to a box of what is stored. `at` is the first row and column of the box, `first` the column's place in the block.
DEVICE void finish(const Params& p, const Epilogue& e, const Accumulator (&d)[SUMS], int first, u32 (&words)[BOX_WORDS], Tile at, u32 thread) {
    const i32 column = at.n + 2 * (thread % 4);
    const i32 left = p.n - column;
    const void* const column_scales = element_at(e.b_scale, (u64)at.batch * p.n + column, DTYPE_F32);
    const void* const biases = element_at(e.bias, column, (u32)BIAS);
    const void* const up_biases = element_at(e.up_bias, column, (u32)BIAS);
    const void* residuals[2];
    i32 residuals_left[2];
    float row_scale[2];
    float row_bias[2];
    #pragma unroll
    for (int h = 0; h < 2; h++) {
        const i32 row = at.m + (i32)(thread / 32 * 16 + thread % 32 / 4) + 8 * h;
        const bool inside = row < p.m;
        row_scale[h] = p.scale;
        if (A_SCALE) {
            row_scale[h] *= inside ? e.a_scale[A_SCALE == 1 ? (u64)at.batch : (u64)at.batch * p.m + row] : 0.0f;
        }
        if (B_SCALE == 1) {
            row_scale[h] *= e.b_scale[at.batch];
        }
        row_bias[h] = BIAS >= 0 && BIAS_ALONG_M && inside ? load_element(e.bias, row, (u32)BIAS) : 0.0f;
        residuals[h] = element_at(e.residual, at.batch * p.residual_batch + row * p.residual_row + column, (u32)RESIDUAL);
        residuals_left[h] = inside ? left : 0;
    }
    #pragma unroll
    for (int j = 0; j < STORE_N / 8; j++) {
        // loads stay behind it: fetched all at once, what the columns need would not find registers
        if (j % 2 == 0 && (B_SCALE == 2 || BIAS >= 0 || RESIDUAL >= 0)) {
            __syncwarp();
        }
        float value[2][2];
        #pragma unroll
        for (int i = 0; i < 2; i++) {
            const i32 offset = 8 * j + i;
            const float column_scale = B_SCALE == 2 ? load_within(column_scales, offset, left, DTYPE_F32) : 1.0f;
            const float bias = BIAS >= 0 && !BIAS_ALONG_M ? load_within(biases, offset, left, (u32)BIAS) : 0.0f;
            const float up_bias = BIAS >= 0 && GATE ? load_within(up_biases, offset, left, (u32)BIAS) : 0.0f;
            #pragma unroll
            for (int h = 0; h < 2; h++) {
                float x = (float)d[first / 2 + 4 * j + 2 * h + i] * row_scale[h];
                if (B_SCALE == 2) {
                    x *= column_scale;
                }
                if (BIAS >= 0) {
                    x += BIAS_ALONG_M ? row_bias[h] : bias;
                }
                if (GATE) {
                    float up = (float)d[first / 2 + 4 * j + (GATE ? OUT_N / 2 : 0) + 2 * h + i] * row_scale[h];
                    if (BIAS >= 0) {
                        up += up_bias;
                    }
                    x = gate_by((u32)GATE - 1, p.alpha, p.limit, x, up);
                }
                x = activate(x, ACTIVATION);
                if (RESIDUAL >= 0) {
                    x += load_within(residuals[h], offset, residuals_left[h], (u32)RESIDUAL);
                }
                value[h][i] = x;
            }
        }
        #pragma unroll
        for (int h = 0; h < 2; h++) {
            if (OUT_BYTES == 2) {
                words[2 * j + h] = pack(value[h][0], value[h][1]);
            } else {
                #pragma unroll
                for (int i = 0; i < 2; i++) {
                    words[4 * j + 2 * h + i] = OUT == DTYPE_I32 ? (u32)(i32)d[first / 2 + 4 * j + 2 * h + i] : bits_of(value[h][i]);
                }
            }
        }
    }
}

// Row of the tile's part and column of the tile where a consumer's index-th box begins.
DEVICE int box_row(int index) {
    return index / BOXES_N * 64;
}
DEVICE int box_column(int index) {
    return index % BOXES_N * STORE_N;
}

// Puts a box into staging memory, line by line under the 128-byte swizzle. A warp's part is 16 lines.
DEVICE void stage_box(const u32 (&words)[BOX_WORDS], u32 buffer, u32 warp, u32 lane) {
    if (OUT_BYTES == 2) {
        const u32 row = warp * 16 + lane % 16;
        #pragma unroll
        for (int i = 0; i < 4; i++) {
            const u32 unit = 2 * i + lane / 16;
            matrix_store(buffer + row * 128 + (unit ^ row % 8) * 16, words[4 * i], words[4 * i + 1], words[4 * i + 2], words[4 * i + 3]);
        }
    } else {
        #pragma unroll
        for (int i = 0; i < 8; i++) {
            const u32 row = warp * 16 + lane / 4 + i % 2 * 8;
            const u32 unit = i / 2 * 2 + lane % 4 / 2;
            shared_store(buffer + row * 128 + (unit ^ row % 8) * 16 + lane % 2 * 8, words[2 * i], words[2 * i + 1]);
        }
    }
}

// Stores the index-th box of a consumer's results, each warp its lines. `stage` is the consumer's staging memory.
DEVICE void store(const TensorMap* map, const u32 (&words)[BOX_WORDS], int index, u32 stage, Tile at, u32 thread) {
    const u32 warp = thread / 32;
    const u32 lane = thread % 32;
    const u32 buffer = stage + index % STORE_BUFFERS * STORE_BYTES;
    if (lane == 0) {
        store_wait_read<STORE_BUFFERS - 1>();
    }
    __syncwarp();
    stage_box(words, buffer, warp, lane);
    fence_async_shared();
    __syncwarp();
    if (lane == 0) {
        const u32 first = warp * 16;
        tensor_store(map, buffer + first * 128, at.n + box_column(index), at.m + box_row(index) + first, at.batch);
        store_commit();
    }
}

#endif
