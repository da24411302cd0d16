// Matrix products of the experts of a mixture, for Hopper (sm_90a): C[order[r]] = activation(A[order[r] / divisor] B[e] + bias[e]) for
// the sorted positions r of each expert e.
//
// As matmul/hopper.cu in ping-pong, but tiles are those of the experts, counted from the offsets by each block for itself, and the rows of
// A lie anywhere: the whole producer warpgroup gathers them with cp.async into the lines that a tensor copy would have filled, eight threads
// a line, while B comes by tensor copies, an expert's matrix a slice of the batch. Consumers scatter the rows of C in 16-byte pieces.
//
// Slots may hold anything: offsets count as perjoule_kernels::op::slots says, and positions whose row lies outside A or C are skipped.
// Rows of A and C begin at multiples of 16 bytes; n is a multiple of 16 bytes of C.
//
// Defines: see matmul/hopper.cuh; CLUSTER 1, SPLIT 1, PINGPONG 1, TILE_M 128, A_MN 0.

#include "matmul/hopper.cuh"

static_assert(CLUSTER == 1 && SPLIT == 1 && PINGPONG && TILE_M == 128 && !A_MN && !GATE, "what grouped products are");

constexpr int TABLE_OFFSET = BARRIER_OFFSET + 16 * STAGES;
// rows of A that a thread of the producer copies a 16-byte piece of
constexpr int PIECES = TILE_M / 16;

struct Groups {
    // elements from one row to the next
    u64 a_row;
    u64 c_row;
    i32 experts;
    // sorted positions
    i32 rows;
    i32 a_rows;
    i32 c_rows;
    i32 a_divisor;
    i32 k;
};

// An expert's first position, and the tiles along m of all before it.
struct Segment {
    i32 position;
    i32 tiles;
};

// Fills the table of `experts` + 1 segments, by one warp.
DEVICE void count(Segment* table, const i32* offsets, i32 experts, i32 rows, u32 lane) {
    i32 highest = 0;
    i32 tiles = 0;
    for (i32 from = 0; from <= experts; from += 32) {
        const i32 e = from + (i32)lane;
        // offsets that go down count as if they stayed
        i32 begin = e <= experts ? max(offsets[e], 0) : 0;
        #pragma unroll
        for (u32 d = 1; d < 32; d *= 2) {
            const i32 other = __shfl_up_sync(0xffffffffu, begin, d);
            begin = lane >= d ? max(begin, other) : begin;
        }
        begin = max(begin, highest);
        highest = __shfl_sync(0xffffffffu, begin, 31);
        i32 end = __shfl_down_sync(0xffffffffu, begin, 1);
        if (lane == 31) {
            end = e < experts ? max(offsets[e + 1], begin) : begin;
        }
        begin = min(begin, rows);
        end = e < experts ? min(end, rows) : begin;
        const i32 own = (end - begin + TILE_M - 1) / TILE_M;
        i32 sum = own;
        #pragma unroll
        for (u32 d = 1; d < 32; d *= 2) {
            const i32 other = __shfl_up_sync(0xffffffffu, sum, d);
            sum += lane >= d ? other : 0;
        }
        if (e <= experts) {
            table[e] = Segment{begin, tiles + sum - own};
        }
        tiles += __shfl_sync(0xffffffffu, sum, 31);
    }
}

// Walks over the tiles in ascending order.
struct Walk {
    const Segment* table;
    i32 tiles_n;
    i32 expert;

    // First position, end of the positions and first column of the index-th tile; `batch` is the expert.
    __device__ __forceinline__ Tile at(i32 index, i32& end) {
        while (table[expert + 1].tiles * tiles_n <= index) {
            expert++;
        }
        const Segment segment = table[expert];
        const Segment next = table[expert + 1];
        const i32 rest = index - segment.tiles * tiles_n;
        const i32 along_m = next.tiles - segment.tiles;
        const i32 tn = rest / along_m;
        end = next.position;
        return Tile{segment.position + (rest - tn * along_m) * TILE_M, tn * TILE_N, expert};
    }
};

// The value of order at a position before `end`, where its rows of A and C exist; else -1.
DEVICE i32 row_of(const Groups& g, const i32* order, i32 position, i32 end) {
    if (position >= end) {
        return -1;
    }
    const i32 row = order[position];
    return row >= 0 && row < g.c_rows && row / g.a_divisor < g.a_rows ? row : -1;
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    grouped_matmul(const __grid_constant__ Params p, const __grid_constant__ Groups g, const __grid_constant__ TensorMap b, const u8* a,
                   const i32* offsets, const i32* order, const u8* bias, u8* c) {
    extern __shared__ __align__(1024) u8 shared[];
    const u32 base = shared_address(shared);
    const u32 full = base + BARRIER_OFFSET;
    const u32 empty = full + 8 * STAGES;
    Segment* const table = (Segment*)(shared + TABLE_OFFSET);
    const u32 warpgroup = __shfl_sync(0xffffffffu, threadIdx.x / 128, 0);
    const u32 thread = threadIdx.x % 128;

    if (threadIdx.x == 0) {
        tensor_prefetch(&b);
        for (u32 i = 0; i < STAGES; i++) {
            // the copies of all producers' threads, and the announced bytes
            barrier_init(full + 8 * i, 128 + 1);
            barrier_init(empty + 8 * i, 1);
        }
        barrier_init_fence();
    }
    grid_dependency_wait();
    if (threadIdx.x / 32 == 1) {
        count(table, offsets, g.experts, g.rows, threadIdx.x % 32);
    }
    __syncthreads();
    const i32 tiles = table[g.experts].tiles * p.tiles_n;
    const i32 step = gridDim.x;
    Walk walk = {table, p.tiles_n, 0};
    i32 end;

    if (warpgroup == 0) {
        registers_give<PRODUCER_REGISTERS>();
        const u32 unit = thread % 8;
        Ring ring = {0, 1};
        for (i32 index = blockIdx.x; index < tiles; index += step) {
            const Tile at = walk.at(index, end);
            const u8* from[PIECES];
            #pragma unroll
            for (int i = 0; i < PIECES; i++) {
                const i32 row = row_of(g, order, at.m + (i32)thread / 8 + 16 * i, end);
                from[i] = row < 0 ? nullptr : a + (u64)(row / g.a_divisor) * g.a_row * ELEMENT_BYTES + unit * 16;
            }
            for (i32 slice = 0; slice < p.k_slices; slice++) {
                barrier_wait(empty + 8 * ring.stage, ring.parity);
                const u32 done = full + 8 * ring.stage;
                const u32 target = base + ring.stage * STAGE_BYTES;
                if (thread == 0) {
                    barrier_expect(done, B_BYTES);
                    constexpr int lines = B_MN ? 64 : TILE_N;
                    #pragma unroll
                    for (int i = 0; i < TILE_N; i += lines) {
                        const i32 x = B_MN ? at.n + i : slice * TILE_K;
                        const i32 y = B_MN ? slice * TILE_K : at.n;
                        tensor_load(target + A_BYTES + i * 128, &b, done, x, y, at.batch);
                    }
                }
                const i32 left = min(16, max(0, g.k * ELEMENT_BYTES - slice * 128 - (i32)unit * 16));
                #pragma unroll
                for (int i = 0; i < PIECES; i++) {
                    const u32 line = thread / 8 + 16 * i;
                    const u8* source = from[i] == nullptr || left == 0 ? a : from[i] + slice * 128;
                    copy_16(target + line * 128 + (unit ^ line % 8) * 16, source, from[i] == nullptr ? 0 : left);
                }
                copy_arrive(done);
                ring.advance();
            }
        }
        grid_dependency_release();
    } else {
        registers_take<CONSUMER_REGISTERS>();
        const u32 consumer = warpgroup - 1;
        const u32 warp = thread / 32;
        const u32 lane = thread % 32;
        const u32 buffer = base + STORE_OFFSET + consumer * STORE_BUFFERS * STORE_BYTES;
        const u32 left_low = descriptor_low<0>(base);
        const u32 right_low = descriptor_low<B_MN ? MN_CHUNK : 0>(base + A_BYTES);
        Ring ring = {0, 0};
        if (consumer == 1) {
            ring.skip(p.k_slices);
            named_arrive(TURN, 256);
        }
        Accumulator d[BLOCKS_M][TILE_N / 2];
        for (i32 index = blockIdx.x + (i32)consumer * step; index < tiles; index += CONSUMERS * step) {
            const Tile at = walk.at(index, end);
            named_sync(TURN + consumer, 256);
            u32 previous = 0;
            for (i32 slice = 0; slice < p.k_slices; slice++) {
                barrier_wait(full + 8 * ring.stage, ring.parity);
                // what threads copied is for the tensor cores to see
                fence_async_shared();
                multiply_slice(d, left_low, right_low, ring.stage, slice == 0);
                if (slice > 0) {
                    wgmma_wait<1>();
                    if (thread == 0) {
                        barrier_arrive(empty + 8 * previous);
                    }
                }
                previous = ring.stage;
                ring.advance();
            }
            if (index + step < tiles) {
                named_arrive(TURN + 1 - consumer, 256);
            }
            ring.skip(p.k_slices);
            wgmma_wait<0>();
            if (thread == 0) {
                barrier_arrive(empty + 8 * previous);
            }
            settle(d);
            const Epilogue extras = {nullptr, nullptr, BIAS < 0 ? nullptr : element_at(bias, (u64)at.batch * p.n, (u32)BIAS), nullptr, nullptr};
            #pragma unroll
            for (int block = 0; block < BLOCKS_M; block++) {
                u8* targets[4];
                #pragma unroll
                for (int i = 0; i < 4; i++) {
                    const i32 row = row_of(g, order, at.m + block * 64 + (i32)(warp * 16 + lane / 8 + 4 * i), end);
                    targets[i] = row < 0 ? nullptr : c + ((u64)row * g.c_row + at.n) * OUT_BYTES + lane % 8 * 16;
                }
                #pragma unroll
                for (int box = 0; box < BOXES_N; box++) {
                    u32 words[BOX_WORDS];
                    finish(p, extras, d[block], box * STORE_N, words, Tile{0, at.n + box * STORE_N, 0}, thread);
                    __syncwarp();
                    stage_box(words, buffer, warp, lane);
                    __syncwarp();
                    #pragma unroll
                    for (int i = 0; i < 4; i++) {
                        const u32 line = warp * 16 + lane / 8 + 4 * i;
                        const i32 column = at.n + box * STORE_N + (i32)(lane % 8) * (16 / OUT_BYTES);
                        u32 piece[4];
                        shared_load(buffer + line * 128 + (lane % 8 ^ line % 8) * 16, piece);
                        if (targets[i] != nullptr && column < p.n) {
                            store_16(targets[i] + box * 128, piece);
                        }
                    }
                }
            }
        }
    }
}
