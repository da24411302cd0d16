// Matrix product for Hopper (sm_90a): C = epilogue(A B), A m x k, B k x n, C m x n row-major, batched.
//
// A persistent grid of clusters walks over output tiles. In each block one warpgroup is the producer: a single thread keeps a ring of
// STAGES slices, 128 bytes deep along k, filled by tensor copies. Two warpgroups consume: they multiply from shared memory by wgmma,
// each its half of the tile's rows (or, in ping-pong, whole tiles in turn), and store through shared memory by tensor copies. In a
// cluster of two the blocks' tiles are neighbours that share an operand: each copies one half of it to both. Stages are handed
// over by transaction barriers: `full` counts bytes, `empty` counts the consumers of every block that the producer writes to.
// In ping-pong one consumer stores while the other multiplies.
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
// The last tiles of a grid that does not come out even are shared out among its clusters along k (Params::shares): each stores its sums as
// they are, and `matmul_rest`, the kernel behind it, adds those of a tile in the order of its shares.
//
// Defines: see hopper.cuh. With SPLIT the grid has a cluster for each tile.
//
// After CUTLASS's warp-specialised persistent kernels (https://github.com/NVIDIA/cutlass) and Bikshandi & Shah, arXiv:2312.11918.

#include "matmul/hopper.cuh"

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

// What a cluster computes at a time: a tile, or a share of its k.
struct Unit {
    i32 tile;
    // slices of k
    i32 begin;
    i32 slices;
    // number among the shares of all tiles; -1 of a whole tile
    i32 share;
};

DEVICE i32 unit_count(const Params& p) {
    return p.whole + (p.tiles_m * p.tiles_n * p.batch - p.whole) * p.shares;
}

// The index-th unit; `rank` is the block's place in a cluster that shares the k of its tile.
DEVICE Unit unit_at(const Params& p, i32 index, u32 rank) {
    if (SPLIT > 1) {
        const i32 begin = p.k_slices * (i32)rank / SPLIT;
        return Unit{index, begin, p.k_slices * (i32)(rank + 1) / SPLIT - begin, -1};
    }
    if (index < p.whole) {
        return Unit{index, 0, p.k_slices, -1};
    }
    const i32 share = index - p.whole;
    const i32 tile = share / p.shares;
    const i32 part = share - tile * p.shares;
    const i32 begin = p.k_slices * part / p.shares;
    return Unit{p.whole + tile, begin, p.k_slices * (part + 1) / p.shares - begin, share};
}

// Where a share's sums are kept: four registers of each thread, those of eight columns, for each 64 rows.
DEVICE u64 partial_at(u64 share, u32 rank, u32 block, u32 group, u32 thread) {
    return (((share * CLUSTER + rank) * (TILE_M / 64) + block) * (TILE_N / 8) + group) * 512 + thread * 4;
}

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

// Exchanges the sums of a cluster's shares of k: `d` are this block's, for all columns of the tile; `sums` the whole ones of the columns
// that it stores. Without `any` slices, where there are fewer than shares, it has none. `buffer` lies where the stages were.
DEVICE void exchange(const Accumulator (&d)[BLOCKS_M][TILE_N / 2], bool any, Accumulator (&sums)[SPLIT > 1 ? BLOCKS_M : 1][SUMS], u32 buffer, u32 rank, u32 consumer,
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
                const u32 keep = any ? 0xffffffffu : 0;
                shared_store_at(place(rank, block, group), to, bits(from[0]) & keep, bits(from[1]) & keep, bits(from[2]) & keep,
                                bits(from[3]) & keep);
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
           const void* residual, u32* partials) {
    extern __shared__ __align__(1024) u8 shared[];
    const u32 base = shared_address(shared);
    const u32 full = base + BARRIER_OFFSET;
    const u32 empty = full + 8 * STAGES;
    const u32 warpgroup = __shfl_sync(0xffffffffu, threadIdx.x / 128, 0);
    const u32 rank = CLUSTER * SPLIT > 1 ? cluster_rank() : 0;
    const i32 first = blockIdx.x / (CLUSTER * SPLIT);
    const i32 step = gridDim.x / (CLUSTER * SPLIT);
    const i32 units = unit_count(p);

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
            for (i32 index = first; index < units; index += step) {
                const Unit unit = unit_at(p, index, rank);
                const Tile at = tile_at(p, unit.tile, CLUSTER > 1 ? rank : 0);
                // where each tile reads rows of its own, they do not all read the same columns at a time, which lie in a few channels of memory
                i32 turn = unit.slices > 0 ? (i32)((u32)unit.tile * (u32)p.rotate % (u32)unit.slices) : 0;
                for (i32 i = 0; i < unit.slices; i++) {
                    const i32 slice = unit.begin + turn;
                    turn = turn + 1 < unit.slices ? turn + 1 : 0;
                    barrier_wait(empty + 8 * ring.stage, ring.parity);
                    const u32 done = full + 8 * ring.stage;
                    const u32 target = base + ring.stage * STAGE_BYTES;
                    barrier_expect(done, p.stage_bytes);
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
            ring.skip(unit_at(p, first, rank).slices);
            named_arrive(TURN, 256);
        }

        const Epilogue extras = {a_scale, b_scale, bias, up_bias, residual};
        const u32 left_low = descriptor_low<A_MN ? MN_CHUNK : 0>(base + row * 128);
        const u32 right_low = descriptor_low<B_MN ? MN_CHUNK : 0>(base + A_BYTES);
        Accumulator d[BLOCKS_M][TILE_N / 2];
        Accumulator shares[SPLIT > 1 ? BLOCKS_M : 1][SUMS];

        const auto multiply = [&](bool begin) {
            barrier_wait(full + 8 * ring.stage, ring.parity);
            multiply_slice(d, left_low, right_low, ring.stage, begin);
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
        for (i32 index = mine; index < units; index += stride) {
            const Unit unit = unit_at(p, index, rank);
            const i32 slices = unit.slices;
            Tile at = tile_at(p, unit.tile, CLUSTER > 1 ? rank : 0);
            at.m += row;
            if (PINGPONG) {
                named_sync(TURN + consumer, 256);
            }
            u32 previous = 0;
            for (i32 slice = 0; slice < slices; slice++) {
                multiply(slice == 0);
                if (slice > 0) {
                    wgmma_wait<1>();
                    release(previous);
                }
                previous = ring.stage;
                ring.advance();
            }
            if (PINGPONG) {
                if (index + step < units) {
                    named_arrive(TURN + 1 - consumer, 256);
                    ring.skip(unit_at(p, index + step, rank).slices);
                }
            }
            wgmma_wait<0>();
            if (SPLIT == 1 || slices > 0) {
                release(previous);
            }
            settle(d);
            if (unit.share >= 0) {
                #pragma unroll
                for (int block = 0; block < BLOCKS_M; block++) {
                    #pragma unroll
                    for (int group = 0; group < TILE_N / 8; group++) {
                        const Accumulator* from = &d[block][4 * group];
                        const u32 words[4] = {bits(from[0]), bits(from[1]), bits(from[2]), bits(from[3])};
                        store_16(partials + partial_at(unit.share, rank, row / 64 + block, group, thread), words);
                    }
                }
                continue;
            }
            if (SPLIT > 1) {
                exchange(d, slices > 0, shares, base, rank, consumer, thread);
                at.n += rank * RESULT_N;
            }
            #pragma unroll
            for (int box = 0; box < BOXES; box++) {
                const Tile from = {at.m + box_row(box), at.n + box_column(box), at.batch};
                u32 words[BOX_WORDS];
                finish(p, extras, whole(d, shares)[box / BOXES_N], box_column(box), words, from, thread);
                store(&c, words, box, stage_out, at, thread);
            }
        }
        store_wait_read<0>();
    }
    // a block that leaves takes its shared memory along, into which its neighbour may still copy or arrive
    if (CLUSTER > 1) {
        cluster_sync();
    }
}

#if SPLIT == 1
// Adds the shares of the tiles that were shared out. A block of 128 threads for each 64 rows and box of columns of each: blockIdx.x counts
// boxes, then rows, then blocks of the cluster, then tiles. Its shared memory is a box.
extern "C" __global__ void __launch_bounds__(128)
    matmul_rest(const __grid_constant__ Params p, const __grid_constant__ TensorMap c, const float* a_scale, const float* b_scale,
                const void* bias, const void* up_bias, const void* residual, const u32* partials) {
    extern __shared__ __align__(1024) u8 shared[];
    const u32 thread = threadIdx.x;
    const u32 box = blockIdx.x % BOXES_N;
    const u32 block = blockIdx.x / BOXES_N % (TILE_M / 64);
    const u32 rank = blockIdx.x / (BOXES_N * (TILE_M / 64)) % CLUSTER;
    const i32 tile = blockIdx.x / (BOXES_N * (TILE_M / 64) * CLUSTER);
    grid_dependency_wait();

    // the sums of the box's columns, and those that they gate, in the places that `finish` expects of a first box
    Accumulator sums[SUMS];
    constexpr int GROUPS = STORE_N / 8;
    #pragma unroll
    for (int i = 0; i < SUMS; i++) {
        sums[i] = 0;
    }
    for (i32 part = 0; part < p.shares; part++) {
        #pragma unroll
        for (int side = 0; side < (GATE ? 2 : 1); side++) {
            #pragma unroll
            for (int group = 0; group < GROUPS; group++) {
                const u32 column = box * GROUPS + side * (OUT_N / 8) + group;
                u32 words[4];
                load_16(partials + partial_at((u64)tile * p.shares + part, rank, block, column, thread), words);
                #pragma unroll
                for (int i = 0; i < 4; i++) {
                    sums[side * (OUT_N / 2) + 4 * group + i] += accumulator_of(words[i]);
                }
            }
        }
    }
    const Epilogue extras = {a_scale, b_scale, bias, up_bias, residual};
    Tile at = tile_at(p, p.whole + tile, CLUSTER > 1 ? rank : 0);
    at.m += block * 64;
    at.n += box * STORE_N;
    u32 words[BOX_WORDS];
    finish(p, extras, sums, 0, words, at, thread);
    const u32 buffer = shared_address(shared);
    stage_box(words, buffer, thread / 32, thread % 32);
    fence_async_shared();
    __syncwarp();
    if (thread % 32 == 0) {
        // a store's box is that of a warp
        const u32 first = thread / 32 * 16;
        tensor_store(&c, buffer + first * 128, at.n, at.m + first, at.batch);
        store_commit();
        store_wait_read<0>();
    }
}
#endif
