// Attention of few queries on Hopper, at the speed of memory: FlashDecoding over packed rows.
//
// A block computes up to 16 rows (queries and the heads that share keys and values) over its part of the keys: one warp fills a ring
// of STAGES tiles by tensor copies (128-byte swizzle), and WARPS warps have 16 keys of each tile, whose products are mma.sync with sums
// of their own. At the end the warps' results are put together in shared memory. Where `splits` blocks share a tile of rows, block s has the
// tiles s, s + splits, ... of the keys, so that the first one can be asked for before the length of the sequence is known; parts go to
// scratch, and the block that is last to come puts them together, in order. It knows by a counter, which it leaves as it was: 0.
//
// Grid: splits x tiles of rows x key/value heads x sequences.
//
// Preconditions: k and v of a 16-bit type, q and out of the same or f32 (queries are rounded); vectors at multiples of 16 bytes; head_dim is HEAD_DIM. Tensor maps of boxes
// of 64 elements of BOX tokens: (element, token, head, sequence), or blocks in the place of sequences where the cache is paged: these are
// then a multiple of BOX tokens. Each tile of rows has a counter.
//
// Defines: HEAD_DIM, WARPS, STAGES, BOX, TYPE (f16 or bf16) and TYPE_NAME ("f16" or "bf16"), Q_TYPE and OUT_TYPE; SCORES = 1 where
// scores are more than scaled by a positive number.
#define TILE_ROWS 16
#include "attention/warp.cuh"
#include "common/hopper.cuh"

static constexpr int THREADS = 32 * WARPS;
// keys of a tile
static constexpr int KEYS = 16 * WARPS, SLABS = D / 64;
static constexpr u32 HALF_BYTES = KEYS * D * 2, STAGE_BYTES = 2 * HALF_BYTES;
// a warp's results in shared memory
static constexpr int PITCH = D + 4;
static_assert(WARPS * ROWS * (PITCH + 2) * 4 <= STAGES * STAGE_BYTES, "results take the place of the ring");

enum Barrier : u32 { K_FULL = 0, V_FULL = STAGES, EMPTY = 2 * STAGES, BARRIERS = 3 * STAGES };

DEVICE void consumers_sync() {
    named_sync(1, THREADS);
}

// The tiles of keys of a block: `low + split`, then every `splits`-th, `count` of them.
struct Range {
    i32 first, count;
};

DEVICE Range range_of(const Attention &p, const Unit &u) {
    Range range = {0, 0};
    if (u.rows > 0) {
        i32 start, end, unused;
        visible(p, u.s, query_of(p, u, 0), start, unused);
        visible(p, u.s, query_of(p, u, u.rows - 1), unused, end);
        range.first = start / KEYS + u.split;
        const i32 tiles = start < end ? (end + KEYS - 1) / KEYS : 0;
        range.count = tiles > range.first ? (tiles - range.first + p.splits - 1) / p.splits : 0;
    }
    return range;
}

// Asks for a tile of keys and values.
DEVICE void load_tile(const Attention &p, const Unit &u, const TensorMap *k_map, const TensorMap *v_map, const i32 *table, u32 ring,
                      u32 barriers, u32 stage, i32 tile) {
    const u32 at = ring + stage * STAGE_BYTES, k_full = barriers + 8 * (K_FULL + stage), v_full = barriers + 8 * (V_FULL + stage);
    const i32 kv_head = u.head / p.group;
    i32 tokens[KEYS / BOX], slow[KEYS / BOX];
#pragma unroll
    for (int i = 0; i < KEYS / BOX; i++) {
        tokens[i] = tile * KEYS + i * BOX;
        slow[i] = u.b;
        if (table) {
            const i32 block = table[(i64)u.b * p.table_width + min(tokens[i] / p.block, p.table_width - 1)];
            slow[i] = block < 0 || block >= p.blocks ? 0 : block;
            tokens[i] %= p.block;
        }
    }
    barrier_expect(k_full, HALF_BYTES);
#pragma unroll
    for (int i = 0; i < KEYS / BOX; i++) {
#pragma unroll
        for (int slab = 0; slab < SLABS; slab++) {
            tensor_load_4d(at + (slab * KEYS + i * BOX) * 128, k_map, k_full, 64 * slab, tokens[i], kv_head, slow[i]);
        }
    }
    barrier_expect(v_full, HALF_BYTES);
#pragma unroll
    for (int i = 0; i < KEYS / BOX; i++) {
#pragma unroll
        for (int slab = 0; slab < SLABS; slab++) {
            tensor_load_4d(at + HALF_BYTES + (slab * KEYS + i * BOX) * 128, v_map, v_full, 64 * slab, tokens[i], kv_head, slow[i]);
        }
    }
}

// A warp's 16 keys of a tile, the first of which is `key`, at shared address `keys` of their slabs.
DEVICE void step(const Attention &p, const Unit &u, const Queries &queries, Sums &r, u32 keys, u32 v_full, u32 parity, i32 key, bool masked) {
    const u32 lane = threadIdx.x % 32;
    float scores[2][4];
#pragma unroll
    for (int i = 0; i < 8; i++) {
        scores[i / 4][i % 4] = 0.0f;
    }
#pragma unroll
    for (int i = 0; i < D / 16; i++) {
        // keys 0..8 and 8..16, each with elements 0..8 and 8..16 of the step
        u32 a[4], b[4];
        const u32 row = lane % 8 + lane / 16 * 8, chunk = (u32)(i % 4) * 2 + lane / 8 % 2;
        load_matrices(b, keys + i / 4 * KEYS * 128 + row * 128 + (chunk ^ lane % 8) * 16);
        queries.get(i, a);
        multiply(scores[0], a, b[0], b[1]);
        multiply(scores[1], a, b[2], b[3]);
    }
    soften<16>(p, u, scores, r, key, 0, masked);
    u32 weights[4];
    pack_weights(scores[0], scores[1], weights);
    barrier_wait(v_full, parity);
    const u32 v = keys + HALF_BYTES;
    if (key + 16 > u.s.length) {
        // values of tokens that the sequence does not have may be anything: a weight of 0 does not hide NaN
        for (u32 i = lane; i < 16 * D / 8; i += 32) {
            if (key + (i32)(i / 8 % 16) >= u.s.length) {
                asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};" ::"r"(v + i / 128 * KEYS * 128 + i % 128 * 16), "r"(0) : "memory");
            }
        }
        __syncwarp();
    }
#pragma unroll
    for (int j = 0; j < D / 16; j++) {
        u32 b[4];
        const u32 chunk = (u32)(j % 4) * 2 + lane / 16;
        load_transposed(b, v + j / 4 * KEYS * 128 + lane % 16 * 128 + (chunk ^ lane % 8) * 16);
        multiply(r.values[2 * j], weights, b[0], b[1]);
        multiply(r.values[2 * j + 1], weights, b[2], b[3]);
    }
}

// Counts this block; whether it is the last of `splits`. Parts that others wrote before they counted are there for it.
DEVICE bool is_last(u32 *counter, u32 splits) {
    u32 before;
    asm volatile("atom.add.acq_rel.gpu.global.u32 %0, [%1], 1;" : "=r"(before) : "l"(counter) : "memory");
    return before == splits - 1;
}

extern "C" __global__ void __launch_bounds__(THREADS + 32, 1)
    attention_decode(const __grid_constant__ Attention p, const __grid_constant__ TensorMap k_map, const __grid_constant__ TensorMap v_map,
                     const void *__restrict__ q, const void *__restrict__ k, const void *__restrict__ v, const i32 *__restrict__ kv_len,
                     const i32 *__restrict__ q_offsets, const i32 *__restrict__ table, const float *__restrict__ sinks,
                     void *__restrict__ out, float *parts, u32 *counters) {
    extern __shared__ __align__(1024) u8 memory[];
    __shared__ u32 broken_rows;
    __shared__ u32 last;
    __shared__ float part_tops[ROWS * MOST_SPLITS], part_sums[ROWS * MOST_SPLITS];
    u8 *const aligned = memory + ((1024 - (shared_address(memory) & 1023)) & 1023);
    const u32 ring = shared_address(aligned), barriers = ring + STAGES * STAGE_BYTES;
    const i32 warp = (i32)threadIdx.x / 32, lane = (i32)threadIdx.x % 32;
    Unit u = unit_of(p, blockIdx.x, true);

    if (warp == WARPS) {
        // without a window the first tile is known
        const bool ahead = p.window == 0 && u.split * KEYS < p.capacity;
        if (lane == 0) {
            for (u32 i = 0; i < STAGES; i++) {
                barrier_init(barriers + 8 * (K_FULL + i), 1);
                barrier_init(barriers + 8 * (V_FULL + i), 1);
                barrier_init(barriers + 8 * (EMPTY + i), WARPS);
            }
            barrier_init_fence();
            fence_async_shared();
            if (ahead) {
                load_tile(p, u, &k_map, &v_map, table, ring, barriers, 0, u.split);
            }
            broken_rows = 0;
        }
        __syncthreads();
        look_up(p, u, kv_len, q_offsets);
        const Range range = range_of(p, u);
        if (lane == 0) {
            for (i32 i = ahead ? 1 : 0; i < range.count; i++) {
                const u32 stage = (u32)i % STAGES;
                barrier_wait(barriers + 8 * (EMPTY + stage), ((u32)i / STAGES & 1) ^ 1);
                load_tile(p, u, &k_map, &v_map, table, ring, barriers, stage, range.first + i * p.splits);
            }
            if (ahead && range.count == 0) {
                // nothing may be on its way when the block ends, or when its results take the place of the ring
                barrier_wait(barriers + 8 * K_FULL, 0);
                barrier_wait(barriers + 8 * V_FULL, 0);
            }
        }
        __syncwarp();
        named_sync(2, THREADS + 32);
        return;
    }
    look_up(p, u, kv_len, q_offsets);
    const Range range = range_of(p, u);
    const Operands o = {q, k, v, kv_len, q_offsets, table, sinks, out};
    Queries queries(barriers + (8 * BARRIERS + 15) / 16 * 16);
    load_queries(p, u, q, 0, queries);
    Sums r;
    r.clear();
    i32 start, end, common_start, common_end;
    visible(p, u.s, query_of(p, u, 0), start, common_end);
    visible(p, u.s, query_of(p, u, max(u.rows - 1, 0)), common_start, end);
    __syncthreads();

    for (i32 i = 0; i < range.count; i++) {
        const u32 stage = (u32)i % STAGES, parity = (u32)i / STAGES & 1;
        const i32 key = (range.first + i * p.splits) * KEYS + 16 * warp;
        if (key < end && key + 16 > start) {
            barrier_wait(barriers + 8 * (K_FULL + stage), parity);
            step(p, u, queries, r, ring + stage * STAGE_BYTES + (u32)warp * 16 * 128, barriers + 8 * (V_FULL + stage), parity, key,
                 key < common_start || key + 16 > common_end);
        }
        __syncwarp();
        if (lane == 0) {
            barrier_arrive(barriers + 8 * (EMPTY + stage));
        }
    }
    // the ring is empty
    named_sync(2, THREADS + 32);
    if (u.rows <= 0) {
        return;
    }

    float *const results = reinterpret_cast<float *>(aligned), *const tops_sums = results + WARPS * ROWS * PITCH;
    store_sums(p, u, r, results, tops_sums, PITCH, warp * ROWS, 0);
    consumers_sync();
    for (i32 at = (i32)threadIdx.x; at < u.rows * (D / 4); at += THREADS) {
        const i32 row = at / (D / 4), d = at % (D / 4) * 4;
        Part part = merge(
            WARPS, [&](int w) { return tops_sums + 2 * (w * ROWS + row); }, [&](int w) { return results + (w * ROWS + row) * PITCH + d; });
        if (p.splits > 1) {
            store_four(p, parts, u, row, d, part);
        } else if (finish(p, o, u, row, d, part.x, part.top, part.sum)) {
            atomicOr(&broken_rows, 1u << row);
        }
    }
    if (p.splits > 1) {
        consumers_sync();
        if (threadIdx.x == 0) {
            last = is_last(counters + u.tile, (u32)p.splits);
        }
        consumers_sync();
        if (!last) {
            return;
        }
        if (threadIdx.x == 0) {
            counters[u.tile] = 0;
        }
        Unit first = u;
        first.split = 0;
        const i64 pitch = (i64)ROWS * PART;
        for (i32 i = (i32)threadIdx.x; i < u.rows * p.splits; i += THREADS) {
            const float *from = part_at(p, parts, first, i % u.rows) + (i / u.rows) * pitch + D;
            part_tops[i % u.rows * MOST_SPLITS + i / u.rows] = from[0];
            part_sums[i % u.rows * MOST_SPLITS + i / u.rows] = from[1];
        }
        consumers_sync();
        for (i32 at = (i32)threadIdx.x; at < u.rows * (D / 4); at += THREADS) {
            const i32 row = at / (D / 4), d = at % (D / 4) * 4;
            const float *from = part_at(p, parts, first, row) + d;
            Part all = {-INFINITE, 0.0f, {0.0f, 0.0f, 0.0f, 0.0f}};
            for (i32 i = 0; i < p.splits; i++) {
                all.top = fmaxf(all.top, part_tops[row * MOST_SPLITS + i]);
            }
            const float less = subtrahend(all.top);
            for (i32 base = 0; base < p.splits; base += SOME) {
                Words<16> some[SOME];
#pragma unroll
                for (int i = 0; i < SOME; i++) {
                    some[i] = *reinterpret_cast<const Words<16> *>(from + (i64)min(base + i, p.splits - 1) * pitch);
                }
#pragma unroll
                for (int i = 0; i < SOME; i++) {
                    if (base + i < p.splits) {
                        const float weight = exp2_approximate(part_tops[row * MOST_SPLITS + base + i] - less);
                        all.sum = fmaf(part_sums[row * MOST_SPLITS + base + i], weight, all.sum);
#pragma unroll
                        for (int j = 0; j < 4; j++) {
                            all.x[j] = fmaf(float_of(some[i].word[j]), weight, all.x[j]);
                        }
                    }
                }
            }
            if (finish(p, o, u, row, d, all.x, all.top, all.sum)) {
                atomicOr(&broken_rows, 1u << row);
            }
        }
    }
    if (warp == 0 && lacks_blocks(p, table, u.b, start, end) && lane == 0) {
        broken_rows = 0xffffffffu;
    }
    // by definition, where a weight of 0 may have met a value that the row does not see, or a block does not exist
    consumers_sync();
    for (i32 row = warp; row < u.rows; row += WARPS) {
        if (broken_rows >> row & 1) {
            exact_row<TYPE, D / 32>(p, o, u.s, query_of(p, u, row), head_of(p, u, row), 0, D);
        }
    }
}
