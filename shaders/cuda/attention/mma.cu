// Attention on the tensor cores of every GPU since Ampere: FlashAttention-2 (arXiv:2307.08691) over packed rows, and FlashDecoding.
//
// A block has 16 * WM rows (queries and the heads that share keys and values): WM warps along them, 16 each, and WN groups of WM warps
// along the keys. A group has a ring of STAGES tiles of KEYS keys and values of its own, filled by cp.async, and running sums of its own; the
// tiles of a block are dealt out to its groups in turn. The groups' results are put together through shared memory, in order. Where there are
// too few tiles of rows for the device, `splits` blocks share the keys of each: parts go to scratch, and `attention_combine` follows.
//
// Tiles of KEYS vectors lie row by row in shared memory, 16-byte chunk c of row r in the place of chunk c ^ r % 8: reads of 8 rows by
// ldmatrix then meet all banks.
//
// Grid: splits x tiles of rows x key/value heads x sequences.
//
// Preconditions: k and v of a 16-bit type, q and out of the same or f32 (queries are rounded); vectors at multiples of 16 bytes; head_dim is HEAD_DIM.
//
// Defines: HEAD_DIM, WM, WN, KEYS (16 or 32), STAGES, TYPE (f16 or bf16) and TYPE_NAME ("f16" or "bf16"), Q_TYPE and OUT_TYPE; SCORES = 1 where
// scores are more than scaled by a positive number.
#define TILE_ROWS (16 * WM)
#include "attention/warp.cuh"

static constexpr int THREADS = 32 * WM * WN;
static constexpr int CHUNKS = D / 8; // of 16 bytes in a vector
static constexpr u32 HALF_BYTES = KEYS * D * 2, STAGE_BYTES = 2 * HALF_BYTES;
// a group's results in shared memory
static constexpr int PITCH = D + 4;
static_assert(KEYS <= 32, "a lane knows the place of one key");

// 16 bytes to shared memory, or zeros.
DEVICE void copy_16(u32 to, const void *from, bool present) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(present ? 16 : 0) : "memory");
}

DEVICE void copies_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}

template <int PENDING> DEVICE void copies_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

// All warps of a group.
DEVICE void group_sync(u32 group) {
    if (WM == 1) {
        __syncwarp();
    } else {
        asm volatile("bar.sync %0, %1;" ::"r"(1 + group), "n"(32 * WM) : "memory");
    }
}

// The keys of a block, and a group's share of their tiles: `first`, `first + WN`, ..., `count` of them.
struct Range {
    i32 start, end;
    // those that all rows see
    i32 common_start, common_end;
    i32 first, count;
};

DEVICE Range range_of(const Attention &p, const Unit &u, u32 group) {
    Range r;
    visible(p, u.s, query_of(p, u, 0), r.start, r.common_end);
    visible(p, u.s, query_of(p, u, u.rows - 1), r.common_start, r.end);
    r.start = min(r.start, r.end);
    const i32 tiles = (r.end - r.start + KEYS - 1) / KEYS;
    r.first = (i32)((i64)tiles * u.split / p.splits) + (i32)group;
    const i32 last = (i32)((i64)tiles * (u.split + 1) / p.splits);
    r.count = last > r.first ? (last - r.first + WN - 1) / WN : 0;
    return r;
}

// One tile, the first key of which is `key`, at shared address `keys`; `row` is the warp's first.
DEVICE void step(const Attention &p, const Unit &u, const Queries &queries, Sums &r, u32 keys, i32 key, i32 row, bool masked) {
    const u32 lane = threadIdx.x % 32;
    float scores[KEYS / 8][4];
#pragma unroll
    for (int j = 0; j < KEYS / 8; j++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            scores[j][i] = 0.0f;
        }
    }
#pragma unroll
    for (int i = 0; i < D / 32; i++) {
        u32 a[2][4];
        queries.get(2 * i, a[0]);
        queries.get(2 * i + 1, a[1]);
#pragma unroll
        for (int j = 0; j < KEYS / 8; j++) {
            // 8 keys, two steps of 16 elements
            u32 b[4];
            load_matrices(b, keys + (8 * j + lane % 8) * D * 2 + ((4 * i + lane / 8) ^ lane % 8) * 16);
            multiply(scores[j], a[0], b[0], b[1]);
            multiply(scores[j], a[1], b[2], b[3]);
        }
    }
    soften<KEYS>(p, u, scores, r, key, row, masked);
#pragma unroll
    for (int i = 0; i < KEYS / 16; i++) {
        u32 weights[4];
        pack_weights(scores[2 * i], scores[2 * i + 1], weights);
#pragma unroll
        for (int j = 0; j < D / 16; j++) {
            u32 b[4];
            load_transposed(b, keys + HALF_BYTES + (16 * i + lane % 16) * D * 2 + ((2 * j + lane / 16) ^ lane % 8) * 16);
            multiply(r.values[2 * j], weights, b[0], b[1]);
            multiply(r.values[2 * j + 1], weights, b[2], b[3]);
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    attention_mma(const __grid_constant__ Attention p, const void *__restrict__ q, const void *__restrict__ k, const void *__restrict__ v,
                  const i32 *__restrict__ kv_len, const i32 *__restrict__ q_offsets, const i32 *__restrict__ table,
                  const float *__restrict__ sinks, void *__restrict__ out, float *__restrict__ parts) {
    extern __shared__ __align__(128) u8 memory[];
    __shared__ u32 broken_rows[(ROWS + 31) / 32];
    const Operands o = {q, k, v, kv_len, q_offsets, table, sinks, out};
    const i32 lane = (i32)threadIdx.x % 32;
    const u32 warp = threadIdx.x / 32, group = warp / WM, along = warp % WM;
    Unit u = unit_of(p, blockIdx.x, true);
    look_up(p, u, kv_len, q_offsets);
    if (u.rows <= 0) {
        return;
    }
    const i32 kv_head = u.head / p.group;
    if (threadIdx.x < sizeof(broken_rows) / 4) {
        broken_rows[threadIdx.x] = 0;
    }
    const Range range = range_of(p, u, group);

    // a lane knows the place of one key of the tile that is asked for next
    const u32 rings = (u32)__cvta_generic_to_shared(memory), ring = rings + group * STAGES * STAGE_BYTES;
    const auto place = [&](i32 tile) {
        const i32 key = range.start + (range.first + tile * WN) * KEYS + lane % KEYS;
        return tile < range.count && key < range.end ? vector_at(p, table, u.b, kv_head, key) : (i64)-1;
    };
    i64 next = place(0);
    const auto ask = [&](i32 tile) {
        if (tile < range.count) {
            const u32 to = ring + (u32)(tile % STAGES) * STAGE_BYTES;
#pragma unroll
            for (int i = 0; i < KEYS * CHUNKS / (32 * WM); i++) {
                const u32 at = (u32)i * 32 * WM + along * 32 + (u32)lane, row = at / CHUNKS, chunk = at % CHUNKS;
                const i64 from = (i64)shuffle((u64)next, (int)row);
                const u64 offset = ((u64)(from >= 0 ? from : 0) + chunk * 8) * 2;
                const u32 place_in = to + row * D * 2 + (chunk ^ row % 8) * 16;
                copy_16(place_in, static_cast<const u8 *>(k) + offset, from >= 0);
                copy_16(place_in + HALF_BYTES, static_cast<const u8 *>(v) + offset, from >= 0);
            }
            next = place(tile + 1);
        }
        copies_commit();
    };
#pragma unroll
    for (int tile = 0; tile < STAGES - 1; tile++) {
        ask(tile);
    }

    const i32 first_row = (i32)along * 16;
    Queries queries(rings + WN * STAGES * STAGE_BYTES + along * Queries::BYTES);
    load_queries(p, u, q, first_row, queries);
    Sums r;
    r.clear();

    for (i32 tile = 0; tile < range.count; tile++) {
        copies_wait<STAGES - 2>();
        group_sync(group);
        ask(tile + STAGES - 1);
        const i32 key = range.start + (range.first + tile * WN) * KEYS;
        const bool masked = key < range.common_start || key + KEYS > range.common_end;
        step(p, u, queries, r, ring + (u32)(tile % STAGES) * STAGE_BYTES, key, first_row, masked);
    }
    copies_wait<0>();
    __syncthreads();

    float *const results = reinterpret_cast<float *>(memory), *const tops_sums = results + WN * ROWS * PITCH;
    store_sums(p, u, r, results, tops_sums, PITCH, (i32)group * ROWS + first_row, first_row);
    __syncthreads();
    for (i32 at = (i32)threadIdx.x; at < u.rows * (D / 4); at += THREADS) {
        const i32 row = at / (D / 4), d = at % (D / 4) * 4;
        Part part = merge(
            WN, [&](int g) { return tops_sums + 2 * (g * ROWS + row); }, [&](int g) { return results + (g * ROWS + row) * PITCH + d; });
        if (p.splits > 1) {
            store_four(p, parts, u, row, d, part);
        } else if (finish(p, o, u, row, d, part.x, part.top, part.sum)) {
            atomicOr(&broken_rows[row / 32], 1u << row % 32);
        }
    }
    if (p.splits > 1) {
        return;
    }
    // by definition, where a weight of 0 may have met a value that the row does not see
    __syncthreads();
    for (i32 row = (i32)warp; row < u.rows; row += WM * WN) {
        if (broken_rows[row / 32] >> row % 32 & 1) {
            exact_row<TYPE, D / 32>(p, o, u.s, query_of(p, u, row), head_of(p, u, row), 0, D);
        }
    }
}
