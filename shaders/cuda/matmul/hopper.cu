// Matrix product for Hopper (sm_90a): C = epilogue(A B), A m x k, B k x n, C m x n row-major, batched.
//
// A persistent grid of clusters walks over output tiles. In each block one warpgroup is the producer: a single thread keeps a ring of
// STAGES slices, 128 bytes deep along k, filled by tensor copies. Two warpgroups consume: they multiply from shared memory by wgmma,
// each its half of the tile's rows (or, in ping-pong, whole tiles in turn), and store through shared memory by tensor copies. In a
// cluster of two the blocks' tiles are neighbours that share an operand: each copies one half of it to both. Stages are handed
// over by transaction barriers: `full` counts bytes, `empty` counts the consumers of every block that the producer writes to.
// Results of a tile are stored while the next one is multiplied (DEFER).
//
// Edges need no care: copies fill with zeros outside A and B and leave out what lies outside C. Base addresses and the strides of rows
// and batches are multiples of 16 bytes.
//
// Gated products (GATE) multiply by two B at once: the left half of a tile's columns are gates, the right half what they gate, so that
// a thread holds both of each pair, and half as many columns are stored.
//
// Few tiles (SPLIT): the blocks of a cluster take a share of k of one tile each, exchange their sums through each other's shared memory, and
// store a share of its columns each. Sums are added in the order of the shares, whichever is ready first.
//
// Defines: ELEMENT, OUT (Dtype ids; f32 inputs are multiplied as tf32); TILE_M, TILE_N; STAGES; CLUSTER (1 or 2), SHARE_A
// (the cluster's tiles lie side by side along n and share A, else along m and share B); PINGPONG; DEFER (16-bit OUT); A_MN, B_MN
// (operand contiguous along m or n, 16-bit types); SPLIT (blocks of a cluster, without CLUSTER, PINGPONG, DEFER and GATE; the grid then has a
// cluster for each tile). Epilogue, where there is one: A_SCALE, B_SCALE (1 one of each matrix, 2 one of
// each row or column), BIAS, RESIDUAL (Dtype ids), BIAS_ALONG_M, ACTIVATION, GATE (see math.cuh and product.cuh; GATE counts from 1).
//
// After CUTLASS's warp-specialised persistent kernels (https://github.com/NVIDIA/cutlass) and Bikshandi & Shah, arXiv:2312.11918.

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
#ifndef DEFER
#define DEFER 1
#endif
#ifndef STORE_ROWS
#define STORE_ROWS 16
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
// accumulators of a thread, and where the last results wait their packed half
static_assert(BLOCKS_M * TILE_N / 2 + (DEFER ? BLOCKS_M * TILE_N / 4 : 0) <= 192, "registers");
// Named barriers by which the consumers of a ping-pong take turns: the first waits at TURN. A wait for a phase by its parity may be at
// most one phase early, so that neither may begin before the other has seen all its slices.
constexpr u32 TURN = 4;
// bytes from 64 elements along m or n to the next 64 where that is the contiguous direction
constexpr int MN_CHUNK = 64 * 128;

// columns of C that a tile covers, and that this block stores
constexpr int OUT_N = GATE ? TILE_N / 2 : TILE_N;
constexpr int RESULT_N = OUT_N / SPLIT;
static_assert(SPLIT == 1 || (CLUSTER == 1 && !PINGPONG && !DEFER && !GATE), "shares of k");
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

// First row and column of this block's part of the index-th tile.
DEVICE Tile tile_at(const Params& p, i32 index, u32 rank) {
    const i32 each = p.tiles_m * p.tiles_n;
    const i32 batch = index / each;
    const i32 rest = index - batch * each;
    const bool along_m = p.group > 0;
    const i32 group = along_m ? p.group : -p.group;
    const i32 fast = along_m ? p.tiles_m : p.tiles_n;
    const i32 slow = along_m ? p.tiles_n : p.tiles_m;
    const i32 band = rest / (group * slow);
    const i32 inside = rest - band * (group * slow);
    const i32 width = min(group, fast - band * group);
    const i32 across = inside / width;
    const i32 along = band * group + (inside - across * width);
    const i32 tm = along_m ? along : across;
    const i32 tn = along_m ? across : along;
    if (SHARE_A) {
        return Tile{tm * TILE_M, (tn * CLUSTER + (i32)rank) * OUT_N, batch};
    }
    return Tile{(tm * CLUSTER + (i32)rank) * TILE_M, tn * OUT_N, batch};
}

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

// Copies LINES rows (K-major) or elements along m or n (MN-major) of an operand, from `at` and k on: to this block or to all of its
// cluster.
template <int LINES, bool MN, bool MULTICAST>
DEVICE void load(const TensorMap* map, u32 target, u32 barrier, i32 at, i32 k, i32 batch) {
    static_assert(!MN || LINES % 64 == 0, "whole chunks");
    constexpr u16 everyone = (1 << CLUSTER) - 1;
    #pragma unroll
    for (int i = 0; i < LINES; i += MN ? 64 : LINES) {
        // 64 lines are 8 KiB in either order
        const u32 to = target + i * 128;
        const i32 x = MN ? at + i : k;
        const i32 y = MN ? k : at;
        if (MULTICAST) {
            tensor_load_multicast(to, map, barrier, x, y, batch, everyone);
        } else {
            tensor_load(to, map, barrier, x, y, batch);
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

// Stores the index-th box of a consumer's results. `stage` is the consumer's staging memory.
DEVICE void store(const TensorMap* map, const u32 (&words)[BOX_WORDS], int index, u32 stage, Tile at, u32 thread, u32 barrier) {
    const u32 warp = thread / 32;
    const u32 lane = thread % 32;
    const bool elected = STORE_ROWS == 16 ? lane == 0 : thread == 0;
    const u32 buffer = stage + index % STORE_BUFFERS * STORE_BYTES;
    if (elected) {
        store_wait_read<STORE_BUFFERS - 1>();
    }
    if (STORE_ROWS == 16) {
        __syncwarp();
    } else {
        named_sync(barrier, 128);
    }
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
    fence_async_shared();
    if (STORE_ROWS == 16) {
        __syncwarp();
    } else {
        named_sync(barrier, 128);
    }
    if (elected) {
        const u32 first = STORE_ROWS == 16 ? warp * 16 : 0;
        tensor_store(map, buffer + first * 128, at.n + box_column(index), at.m + box_row(index) + first, at.batch);
        store_commit();
    }
}

// Exchanges the sums of a cluster's shares of k: `d` are this block's, for all columns of the tile; `sums` the whole ones of the columns
// that it stores. `buffer` lies where the stages were.
DEVICE void exchange(const Accumulator (&d)[BLOCKS_M][TILE_N / 2], Accumulator (&sums)[SPLIT > 1 ? BLOCKS_M : 1][SUMS], u32 buffer, u32 rank, u32 consumer,
                     u32 thread) {
    // four registers, the rows and columns of eight columns, of each thread
    constexpr int GROUPS = RESULT_N / 8;
    const auto place = [&](u32 share, int block, int group) {
        return buffer + (((share * CONSUMERS + consumer) * BLOCKS_M + block) * GROUPS + group) * 2048 + thread * 16;
    };
    // no block reads a stage any more
    cluster_sync();
    #pragma unroll
    for (int to = 0; to < SPLIT; to++) {
        #pragma unroll
        for (int block = 0; block < BLOCKS_M; block++) {
            #pragma unroll
            for (int group = 0; group < GROUPS; group++) {
                const Accumulator* from = &d[block][to * RESULT_N / 2 + 4 * group];
                shared_store_at(place(rank, block, group), to, bits(from[0]), bits(from[1]), bits(from[2]), bits(from[3]));
            }
        }
    }
    cluster_sync_memory();
    #pragma unroll
    for (int block = 0; block < BLOCKS_M; block++) {
        #pragma unroll
        for (int group = 0; group < GROUPS; group++) {
            #pragma unroll
            for (int share = 0; share < SPLIT; share++) {
                u32 part[4];
                shared_load(place(share, block, group), part);
                #pragma unroll
                for (int i = 0; i < 4; i++) {
                    Accumulator& sum = sums[block][4 * group + i];
                    sum = share == 0 ? accumulator_of(part[i]) : sum + accumulator_of(part[i]);
                }
            }
        }
    }
}

// Where the whole sums are.
template <int N, int COUNT, int BLOCKS>
DEVICE auto& whole(Accumulator (&d)[BLOCKS_M][N], Accumulator (&shares)[BLOCKS][COUNT]) {
    if constexpr (SPLIT > 1) {
        return shares;
    } else {
        return d;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    matmul(const __grid_constant__ Params p, const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b,
           const __grid_constant__ TensorMap b_up, const __grid_constant__ TensorMap c, const float* a_scale,
           const float* b_scale, const void* bias, const void* up_bias,
           const void* residual) {
    extern __shared__ __align__(1024) u8 shared[];
    const u32 base = shared_address(shared);
    const u32 full = base + BARRIER_OFFSET;
    const u32 empty = full + 8 * STAGES;
    const u32 warpgroup = __shfl_sync(0xffffffffu, threadIdx.x / 128, 0);
    const u32 rank = CLUSTER * SPLIT > 1 ? cluster_rank() : 0;
    const i32 first = blockIdx.x / (CLUSTER * SPLIT);
    const i32 step = gridDim.x / (CLUSTER * SPLIT);
    // this block's share of k
    const i32 slice_begin = SPLIT > 1 ? p.k_slices * (i32)rank / SPLIT : 0;
    const i32 slices = (SPLIT > 1 ? p.k_slices * (i32)(rank + 1) / SPLIT : p.k_slices) - slice_begin;
    const i32 tiles = p.tiles_m * p.tiles_n * p.batch;

    if (threadIdx.x == 0) {
        tensor_prefetch(&a);
        tensor_prefetch(&b);
        tensor_prefetch(&c);
        for (u32 i = 0; i < STAGES; i++) {
            barrier_init(full + 8 * i, 1);
            barrier_init(empty + 8 * i, (PINGPONG ? 1 : CONSUMERS) * CLUSTER);
        }
        barrier_init_fence();
    }
    if (CLUSTER > 1) {
        cluster_sync();
    } else {
        __syncthreads();
    }
    grid_dependency_wait();

    if (warpgroup == 0) {
        registers_give<PRODUCER_REGISTERS>();
        if (threadIdx.x == 0) {
            // a fresh barrier counts as having completed the phase before its first
            Ring ring = {0, 1};
            for (i32 index = first; index < tiles; index += step) {
                const Tile at = tile_at(p, index, CLUSTER > 1 ? rank : 0);
                for (i32 slice = slice_begin; slice < slice_begin + slices; slice++) {
                    barrier_wait(empty + 8 * ring.stage, ring.parity);
                    const u32 done = full + 8 * ring.stage;
                    const u32 target = base + ring.stage * STAGE_BYTES;
                    barrier_expect(done, STAGE_BYTES);
                    const i32 k = slice * TILE_K;
                    const i32 batch_a = at.batch * p.a_batch;
                    const i32 batch_b = at.batch * p.b_batch;
                    constexpr int half_a = TILE_M / 2;
                    constexpr int half_b = TILE_N / 2;
                    if constexpr (SHARE_A && CLUSTER == 2) {
                        load<half_a, A_MN, true>(&a, target + rank * half_a * 128, done, at.m + rank * half_a, k, batch_a);
                    } else {
                        load<TILE_M, A_MN, false>(&a, target, done, at.m, k, batch_a);
                    }
                    const u32 target_b = target + A_BYTES;
                    if constexpr (!SHARE_A && CLUSTER == 2) {
                        const i32 skip = GATE ? 0 : rank * half_b;
                        load<half_b, B_MN, true>(GATE && rank == 1 ? &b_up : &b, target_b + rank * half_b * 128, done, at.n + skip, k,
                                                 batch_b);
                    } else if constexpr (GATE) {
                        load<half_b, B_MN, false>(&b, target_b, done, at.n, k, batch_b);
                        load<half_b, B_MN, false>(&b_up, target_b + half_b * 128, done, at.n, k, batch_b);
                    } else {
                        load<TILE_N, B_MN, false>(&b, target_b, done, at.n, k, batch_b);
                    }
                    ring.advance();
                }
            }
            grid_dependency_release();
        }
        if (SPLIT > 1) {
            // the two of the exchange
            cluster_sync();
            cluster_sync_memory();
        }
    } else {
        registers_take<CONSUMER_REGISTERS>();
        const u32 consumer = warpgroup - 1;
        const u32 thread = threadIdx.x % 128;
        const u32 stage_out = base + STORE_OFFSET + consumer * STORE_BUFFERS * STORE_BYTES;
        const u32 row = PINGPONG ? 0 : consumer * BLOCKS_M * 64;
        Ring ring = {0, 0};
        if (PINGPONG && consumer == 1) {
            ring.skip(slices);
            named_arrive(TURN, 256);
        }

        const Epilogue extras = {a_scale, b_scale, bias, up_bias, residual};
        const u32 left_low = descriptor_low<A_MN ? MN_CHUNK : 0>(base + row * 128);
        const u32 right_low = descriptor_low<B_MN ? MN_CHUNK : 0>(base + A_BYTES);
        Accumulator d[BLOCKS_M][TILE_N / 2];
        Accumulator shares[SPLIT > 1 ? BLOCKS_M : 1][SUMS];
        u32 results[DEFER ? BOXES : 1][BOX_WORDS];
        Tile pending = {0, 0, -1};

        const auto multiply = [&](bool begin) {
            barrier_wait(full + 8 * ring.stage, ring.parity);
            const u32 slice = ring.stage * (STAGE_BYTES / 16);
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
        };
        const auto release = [&](u32 stage) {
            if (CLUSTER > 1) {
                if (thread < CLUSTER) {
                    barrier_arrive_at(empty + 8 * stage, thread);
                }
            } else if (thread == 0) {
                barrier_arrive(empty + 8 * stage);
            }
        };

        const i32 mine = PINGPONG ? first + (i32)consumer * step : first;
        const i32 stride = PINGPONG ? CONSUMERS * step : step;
        for (i32 index = mine; index < tiles; index += stride) {
            Tile at = tile_at(p, index, CLUSTER > 1 ? rank : 0);
            at.m += row;
            if (PINGPONG) {
                named_sync(TURN + consumer, 256);
            }
            u32 previous = 0;
            i32 slice = 0;
            if (DEFER && pending.batch >= 0) {
                // a box of the last tile behind each slice of this one
                #pragma unroll
                for (int box = 0; box < BOXES; box++) {
                    if (slice < slices) {
                        multiply(slice == 0);
                    }
                    store(&c, results[box], box, stage_out, pending, thread, 1 + consumer);
                    if (slice < slices) {
                        if (slice > 0) {
                            wgmma_wait<1>();
                            release(previous);
                        }
                        previous = ring.stage;
                        ring.advance();
                        slice++;
                    }
                }
            }
            for (; slice < slices; slice++) {
                multiply(slice == 0);
                if (slice > 0) {
                    wgmma_wait<1>();
                    release(previous);
                }
                previous = ring.stage;
                ring.advance();
            }
            if (PINGPONG) {
                if (index + step < tiles) {
                    named_arrive(TURN + 1 - consumer, 256);
                }
                ring.skip(slices);
            }
            wgmma_wait<0>();
            release(previous);

            #pragma unroll
            for (int block = 0; block < BLOCKS_M; block++) {
                #pragma unroll
                for (int i = 0; i < TILE_N / 2; i++) {
                    asm volatile("" : ACCUMULATOR(d[block][i])::"memory");
                }
            }
            if (SPLIT > 1) {
                exchange(d, shares, base, rank, consumer, thread);
                at.n += rank * RESULT_N;
            }
            #pragma unroll
            for (int box = 0; box < BOXES; box++) {
                const Tile from = {at.m + box_row(box), at.n + box_column(box), at.batch};
                u32 (&words)[BOX_WORDS] = results[DEFER ? box : 0];
                finish(p, extras, whole(d, shares)[box / BOXES_N], box_column(box), words, from, thread);
                if (!DEFER) {
                    store(&c, words, box, stage_out, at, thread, 1 + consumer);
                }
            }
            pending = at;
        }
        if (DEFER && pending.batch >= 0) {
            #pragma unroll
            for (int box = 0; box < BOXES; box++) {
                store(&c, results[box], box, stage_out, pending, thread, 1 + consumer);
            }
        }
        store_wait_read<0>();
    }
    // a block that leaves takes its shared memory along, into which its neighbour may still copy or arrive
    if (CLUSTER > 1) {
        cluster_sync();
    }
}
