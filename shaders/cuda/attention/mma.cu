// Attention on the tensor cores of every GPU since Ampere: FlashAttention-2 (arXiv:2307.08691) over packed rows, and FlashDecoding.
//
// The rows of a unit are pairs of a query and one of the query heads that share a key/value head, queries outermost, so that each key
// and value is loaded once for all heads of a group. A block has 16 * MT * WM rows (WM warps along them, MT fragments of 16 a warp) and
// WN groups of warps along the keys: each group has a ring of STAGES tiles of KEYS keys and values of its own, filled by cp.async, and
// running sums of its own; tiles of a split are dealt out to the groups in turn. The groups' results are put together through shared
// memory, in order.
//
// Where there are too few units for the device, `splits` blocks share the keys of a unit: as one cluster, whose blocks push their parts
// into the shared memory of the block that owns the row (CLUSTER = 1), or by scratch and the second kernel, `attention_combine`.
//
// Grid: splits x tiles of rows x key/value heads x sequences; the tiles that see the most keys come first.
//
// Preconditions: q, k and v of one 16-bit type, out of the same; vectors at multiples of 16 bytes; head_dim is HEAD_DIM.
//
// Defines: HEAD_DIM, MT, WM, WN, KEYS, STAGES, CLUSTER, RESIDENT (blocks of a multiprocessor), TYPE (f16 or bf16) and
// TYPE_NAME ("f16" or "bf16"); SCORES = 1 where scores are more than scaled by a positive number; EARLY = 1 where the kernel may start before
// the one before it ends, and AHEAD, the tiles of a group that are then asked for.
#define TILE_ROWS (16 * MT * WM)
#include "attention/fragments.cuh"
#include "attention/parts.cuh"

static constexpr int WARPS = WM * WN, THREADS = 32 * WARPS;
static constexpr int CHUNKS = D / 8; // of 16 bytes in a vector
static_assert(KEYS <= 32, "a lane knows the place of one key");
static constexpr u32 HALF_BYTES = KEYS * D * 2, STAGE_BYTES = 2 * HALF_BYTES;
static constexpr u32 RING_BYTES = WN * STAGES * STAGE_BYTES;
// a group's results, and their tops and sums
static constexpr int PITCH = D + 4;
static constexpr u32 MERGE_BYTES = WN * ROWS * (PITCH + 2) * 4;
static constexpr u32 WORK_BYTES = RING_BYTES > MERGE_BYTES ? RING_BYTES : MERGE_BYTES;

DEVICE u32 address_of(const void *pointer) {
    return (u32)__cvta_generic_to_shared(pointer);
}

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

DEVICE void group_sync(u32 group) {
    if (WM == 1) {
        __syncwarp();
    } else {
        asm volatile("bar.sync %0, %1;" ::"r"(1 + group), "n"(32 * WM) : "memory");
    }
}

DEVICE void cluster_arrive() {
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}

DEVICE void cluster_wait() {
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

DEVICE void store_remote(u32 at, u32 rank, const float (&x)[4]) {
    asm volatile("{\n.reg .b32 remote;\nmapa.shared::cluster.u32 remote, %0, %1;\n"
                 "st.shared::cluster.v4.f32 [remote], {%2, %3, %4, %5};\n}" ::"r"(at),
                 "r"(rank), "f"(x[0]), "f"(x[1]), "f"(x[2]), "f"(x[3])
                 : "memory");
}

DEVICE void store_remote(u32 at, u32 rank, float x, float y) {
    asm volatile("{\n.reg .b32 remote;\nmapa.shared::cluster.u32 remote, %0, %1;\nst.shared::cluster.v2.f32 [remote], {%2, %3};\n}" ::"r"(at),
                 "r"(rank), "f"(x), "f"(y)
                 : "memory");
}

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
    attention_mma(const __grid_constant__ Attention p, const void *__restrict__ q, const void *__restrict__ k, const void *__restrict__ v,
                  const i32 *__restrict__ kv_len, const i32 *__restrict__ q_offsets, const i32 *__restrict__ table,
                  const float *__restrict__ sinks, void *__restrict__ out, float *__restrict__ parts) {
    extern __shared__ __align__(128) u8 memory[];
    __shared__ u32 broken_rows[(ROWS + 31) / 32];
    const Operands o = {q, k, v, kv_len, q_offsets, table, sinks, out};
    const i32 warp = (i32)threadIdx.x / 32, lane = (i32)threadIdx.x % 32;
    const u32 group = (u32)warp / WM, along = (u32)warp % WM;
    Unit u = unit_of(p, blockIdx.x, true);
    const i32 kv_head = u.head / p.group;
#if EARLY
    grid_dependency_release();
    bring(p, u, static_cast<const TYPE *>(k), static_cast<const TYPE *>(v), kv_len, table, KEYS, AHEAD * WN * KEYS, (i32)threadIdx.x, THREADS);
    grid_dependency_wait();
#endif
    look_up(p, u, kv_len, q_offsets);
    if (u.rows <= 0) {
        return;
    }
#if CLUSTER
    cluster_arrive();
#endif
    if (threadIdx.x < sizeof(broken_rows) / 4) {
        broken_rows[threadIdx.x] = 0;
    }
    // keys that some row sees, and those that all rows see
    i32 start, end, common_start, common_end;
    visible(p, u.s, query_of(p, u, 0), start, common_end);
    visible(p, u.s, query_of(p, u, u.rows - 1), common_start, end);
    start = min(start, end);
    // this group's tiles: `first`, `first + WN`, ...
    const i32 blocks = (end - start + KEYS - 1) / KEYS;
    const i32 first = (i32)((i64)blocks * u.split / p.splits) + (i32)group;
    const i32 last = (i32)((i64)blocks * (u.split + 1) / p.splits);
    const i32 count = last > first ? (last - first + WN - 1) / WN : 0;

    // a lane knows the place of one key of the tile that is asked for next
    const u32 ring = address_of(memory) + group * STAGES * STAGE_BYTES;
    const auto place = [&](i32 tile) {
        const i32 key = start + (first + tile * WN) * KEYS + lane % KEYS;
        return tile < count && key < end ? vector_at(p, table, u.b, kv_head, key) : (i64)-1;
    };
    i64 next = place(0);
    const auto ask = [&](i32 tile) {
        if (tile < count) {
            const u32 to = ring + (u32)(tile % STAGES) * STAGE_BYTES;
#pragma unroll
            for (int i = 0; i < KEYS * CHUNKS / (32 * WM); i++) {
                const u32 at = (u32)i * 32 * WM + along * 32 + (u32)lane, row = at / CHUNKS, chunk = at % CHUNKS;
                const i64 from = __shfl_sync(0xffffffffu, next, (int)row);
                const bool present = from >= 0;
                const u64 offset = ((u64)(present ? from : 0) + chunk * 8) * 2;
                const u32 place_in = to + row * D * 2 + (chunk ^ (row % 8)) * 16;
                copy_16(place_in, static_cast<const u8 *>(k) + offset, present);
                copy_16(place_in + HALF_BYTES, static_cast<const u8 *>(v) + offset, present);
            }
            next = place(tile + 1);
        }
        copies_commit();
    };
#pragma unroll
    for (int tile = 0; tile < STAGES - 1; tile++) {
        ask(tile);
    }

    // queries as fragments: rows lane / 4 and that plus 8
    u32 queries[MT][D / 16][4];
    i32 starts[MT][2], ends[MT][2];
#pragma unroll
    for (int m = 0; m < MT; m++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const i32 row = (i32)along * 16 * MT + 16 * m + 8 * half + lane / 4;
            const bool present = row < u.rows;
            const i32 query = query_of(p, u, min(row, u.rows - 1)), head = head_of(p, u, min(row, u.rows - 1));
            visible(p, u.s, query, starts[m][half], ends[m][half]);
            const u8 *from = static_cast<const u8 *>(q) + ((i64)(u.s.first + query) * p.q_outer + head * p.q_inner + lane % 4 * 2) * 2;
#pragma unroll
            for (int step = 0; step < D / 16; step++) {
                queries[m][step][half] = present ? *reinterpret_cast<const u32 *>(from + 32 * step) : 0;
                queries[m][step][2 + half] = present ? *reinterpret_cast<const u32 *>(from + 32 * step + 16) : 0;
            }
        }
    }
    float values[MT][D / 8][4], tops[MT][2], sums[MT][2];
#pragma unroll
    for (int m = 0; m < MT; m++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            tops[m][half] = -INFINITE;
            sums[m][half] = 0.0f;
        }
#pragma unroll
        for (int j = 0; j < D / 8; j++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                values[m][j][i] = 0.0f;
            }
        }
    }
    const float factor = SCORES ? LOG2E : p.scale * LOG2E;

    for (i32 tile = 0; tile < count; tile++) {
        copies_wait<STAGES - 2>();
        group_sync(group);
        ask(tile + STAGES - 1);
        const u32 keys = ring + (u32)(tile % STAGES) * STAGE_BYTES;
        float scores[MT][KEYS / 8][4];
#pragma unroll
        for (int m = 0; m < MT; m++) {
#pragma unroll
            for (int j = 0; j < KEYS / 8; j++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    scores[m][j][i] = 0.0f;
                }
            }
        }
#pragma unroll
        for (int step = 0; step < D / 32; step++) {
#pragma unroll
            for (int j = 0; j < KEYS / 8; j++) {
                u32 b[4];
                load_matrices(b, keys + (u32)(8 * j + lane % 8) * D * 2 + (u32)((4 * step + lane / 8) ^ (lane % 8)) * 16);
#pragma unroll
                for (int m = 0; m < MT; m++) {
                    multiply(scores[m][j], queries[m][2 * step], b[0], b[1]);
                    multiply(scores[m][j], queries[m][2 * step + 1], b[2], b[3]);
                }
            }
        }
        const i32 key = start + (first + tile * WN) * KEYS;
        const bool masked = key < common_start || key + KEYS > common_end;
        u32 weights[MT][KEYS / 16][4];
#pragma unroll
        for (int m = 0; m < MT; m++) {
#if SCORES
            const float inner = p.soft_cap != 0.0f ? p.scale / p.soft_cap : p.scale;
#pragma unroll
            for (int j = 0; j < KEYS / 8; j++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const float x = scores[m][j][i] * inner;
                    scores[m][j][i] = p.soft_cap != 0.0f ? p.soft_cap * tanh_approximate(x) : x;
                }
            }
#endif
            if (masked) {
#pragma unroll
                for (int j = 0; j < KEYS / 8; j++) {
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        const i32 column = key + 8 * j + lane % 4 * 2 + i % 2;
                        const bool seen = column >= starts[m][i / 2] && column < ends[m][i / 2];
                        scores[m][j][i] = seen ? scores[m][j][i] : -INFINITE;
                    }
                }
            }
            float keep[2];
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float top = tops[m][half];
#pragma unroll
                for (int j = 0; j < KEYS / 8; j++) {
                    top = fmaxf(fmaxf(top, scores[m][j][2 * half]), scores[m][j][2 * half + 1]);
                }
                top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
                top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
                const float less = subtrahend(top) * factor;
                keep[half] = exp2_approximate(fmaf(tops[m][half], factor, -less));
                tops[m][half] = top;
                float sum = 0.0f;
#pragma unroll
                for (int j = 0; j < KEYS / 8; j++) {
#pragma unroll
                    for (int i = 0; i < 2; i++) {
                        float &x = scores[m][j][2 * half + i];
                        x = exp2_approximate(fmaf(x, factor, -less));
                        sum += x;
                    }
                }
                sums[m][half] = fmaf(sums[m][half], keep[half], sum);
            }
#pragma unroll
            for (int j = 0; j < D / 8; j++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    values[m][j][i] *= keep[i / 2];
                }
            }
#pragma unroll
            for (int step = 0; step < KEYS / 16; step++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const float pair[2] = {scores[m][2 * step + i / 2][i % 2 * 2], scores[m][2 * step + i / 2][i % 2 * 2 + 1]};
                    weights[m][step][i] = pack(pair, Tag<TYPE>{});
                }
            }
        }
#pragma unroll
        for (int step = 0; step < KEYS / 16; step++) {
#pragma unroll
            for (int j = 0; j < D / 16; j++) {
                u32 b[4];
                load_transposed(b, keys + HALF_BYTES + (u32)(16 * step + lane % 16) * D * 2 + (u32)((2 * j + lane / 16) ^ (lane % 8)) * 16);
#pragma unroll
                for (int m = 0; m < MT; m++) {
                    multiply(values[m][2 * j], weights[m][step], b[0], b[1]);
                    multiply(values[m][2 * j + 1], weights[m][step], b[2], b[3]);
                }
            }
        }
    }
    copies_wait<0>();
    __syncthreads();

    // the groups' results to shared memory; tops in the units of exp2
    float *const results = reinterpret_cast<float *>(memory);
    float *const tops_sums = results + WN * ROWS * PITCH;
#pragma unroll
    for (int m = 0; m < MT; m++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const i32 row = (i32)along * 16 * MT + 16 * m + 8 * half + lane / 4, place_in = (i32)group * ROWS + row;
            float sum = sums[m][half];
            sum += __shfl_xor_sync(0xffffffffu, sum, 1);
            sum += __shfl_xor_sync(0xffffffffu, sum, 2);
            if (lane % 4 == 0) {
                tops_sums[2 * place_in] = tops[m][half] == -INFINITE ? -INFINITE : tops[m][half] * factor;
                tops_sums[2 * place_in + 1] = sum;
            }
#pragma unroll
            for (int j = 0; j < D / 8; j++) {
                Words<8> pair;
                pair.word[0] = bits_of(values[m][j][2 * half]);
                pair.word[1] = bits_of(values[m][j][2 * half + 1]);
                *reinterpret_cast<Words<8> *>(results + place_in * PITCH + 8 * j + lane % 4 * 2) = pair;
            }
        }
    }
    __syncthreads();
#if CLUSTER
    // row r belongs to block r % splits of the cluster: [split][row / splits][D], and tops and sums
    const u32 received = address_of(memory) + WORK_BYTES;
    const u32 received_tops = received + ROWS * D * 4;
    const i32 owned = ROWS / p.splits;
    cluster_wait();
    for (i32 at = (i32)threadIdx.x; at < u.rows * (D / 4); at += THREADS) {
        const i32 row = at / (D / 4), d = at % (D / 4) * 4;
        const Part part = merge(
            WN, [&](int w) { return tops_sums + 2 * (w * ROWS + row); }, [&](int w) { return results + (w * ROWS + row) * PITCH + d; });
        const u32 place_in = (u32)(u.split * owned + row / p.splits), owner = (u32)(row % p.splits);
        store_remote(received + (place_in * D + (u32)d) * 4, owner, part.x);
        if (d == 0) {
            store_remote(received_tops + place_in * 8, owner, part.top, part.sum);
        }
    }
    cluster_arrive();
    cluster_wait();
    const float *const mine = reinterpret_cast<const float *>(memory + WORK_BYTES), *const mine_tops = mine + ROWS * D;
    for (i32 at = (i32)threadIdx.x; at < owned * (D / 4); at += THREADS) {
        const i32 slot = at / (D / 4), d = at % (D / 4) * 4, row = slot * p.splits + u.split;
        if (row < u.rows) {
            Part part = merge(
                p.splits, [&](int w) { return mine_tops + 2 * (w * owned + slot); },
                [&](int w) { return mine + (w * owned + slot) * D + d; });
            if (finish(p, o, u, row, d, part.x, part.top, part.sum)) {
                atomicOr(&broken_rows[row / 32], 1u << row % 32);
            }
        }
    }
#else
    for (i32 at = (i32)threadIdx.x; at < u.rows * (D / 4); at += THREADS) {
        const i32 row = at / (D / 4), d = at % (D / 4) * 4;
        Part part = merge(
            WN, [&](int w) { return tops_sums + 2 * (w * ROWS + row); }, [&](int w) { return results + (w * ROWS + row) * PITCH + d; });
        if (p.splits > 1) {
            float *to = part_at(p, parts, u, row);
            store_vector<4>(to + d, part.x);
            if (d == 0) {
                to[D] = part.top;
                to[D + 1] = part.sum;
            }
        } else if (finish(p, o, u, row, d, part.x, part.top, part.sum)) {
            atomicOr(&broken_rows[row / 32], 1u << row % 32);
        }
    }
    if (p.splits > 1) {
        return;
    }
#endif
    // rows with NaN, where a weight of 0 may have met a value that the row does not see
    __syncthreads();
    for (i32 row = warp; row < u.rows; row += WARPS) {
        if (broken_rows[row / 32] >> row % 32 & 1) {
            exact_row<TYPE, D / 32>(p, o, u.s, query_of(p, u, row), head_of(p, u, row), 0, D);
        }
    }
}
