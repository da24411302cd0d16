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
// Defines: HEAD_DIM, MT, WM, WN, KEYS, STAGES, CLUSTER, RESIDENT (blocks of a multiprocessor), TYPE (f16 or bf16) and TYPE_NAME ("f16" or "bf16"); SCORES = 1 where scores are
// more than scaled by a positive number.
#include "attention/common.cuh"
#include "common/hopper.cuh"

static constexpr int D = HEAD_DIM, ROWS = 16 * MT * WM, WARPS = WM * WN, THREADS = 32 * WARPS;
static constexpr int CHUNKS = D / 8; // of 16 bytes in a vector
static_assert(KEYS <= 32, "a lane knows the place of one key");
static constexpr u32 HALF_BYTES = KEYS * D * 2, STAGE_BYTES = 2 * HALF_BYTES;
static constexpr u32 RING_BYTES = WN * STAGES * STAGE_BYTES;
// a group's results, and their tops and sums
static constexpr int PITCH = D + 4;
static constexpr u32 MERGE_BYTES = WN * ROWS * (PITCH + 2) * 4;
static constexpr u32 WORK_BYTES = RING_BYTES > MERGE_BYTES ? RING_BYTES : MERGE_BYTES;
static constexpr float LOG2E = 1.4426950408889634f;

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

DEVICE void load_matrices(u32 (&x)[4], u32 at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(at)
                 : "memory");
}

DEVICE void load_transposed(u32 (&x)[4], u32 at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(at)
                 : "memory");
}

DEVICE void multiply(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." TYPE_NAME "." TYPE_NAME ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

DEVICE float exp2_approximate(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

DEVICE float tanh_approximate(float x) {
    float y;
    asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
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

// A slot as it is now, which may be about to change: good for hints only.
DEVICE i32 glance(const i32 *from) {
    i32 value;
    asm volatile("ld.relaxed.gpu.global.b32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
    return value;
}

DEVICE void prefetch(const u8 *from) {
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "n"(D * 2) : "memory");
}

// What a block computes.
struct Unit {
    Sequence s;
    i32 kv_head, split;
    // first packed row, and rows of the unit
    i32 row, rows;
};

DEVICE i32 head_of(const Attention &p, const Unit &u, i32 row) {
    return u.kv_head * p.group + (u.row + row) % p.group;
}

DEVICE i32 query_of(const Attention &p, const Unit &u, i32 row) {
    return (u.row + row) / p.group;
}

// The rest of a row: the sink, the division and the store, four elements a thread. Whether an element is NaN.
DEVICE bool finish(const Attention &p, const Operands &o, const Unit &u, i32 row, i32 d, float (&x)[4], float top, float sum) {
    const i32 head = head_of(p, u, row), query = query_of(p, u, row);
    i32 start, end;
    visible(p, u.s, query, start, end);
    if (o.sinks) {
        const float sink = o.sinks[head] * LOG2E;
        sum += exp2_approximate(sink - (top == -INFINITE ? sink : top));
    }
    const float scale = 1.0f / sum;
    bool broken = false;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        x[i] = start < end ? x[i] * scale : 0.0f;
        broken |= is_nan(x[i]);
    }
    store_vector<4>(static_cast<TYPE *>(o.out) + (i64)(u.s.first + query) * p.out_outer + head * p.out_inner + d, x);
    return broken;
}

// A group's part of a row's result.
struct Part {
    float top, sum;
    float x[4];
};

// Parts in their order: `at(i)` gives the top and the sum of part `i`, `value(i)` four elements.
template <class At, class Value> DEVICE Part merge(int parts, At at, Value value) {
    Part all = {-INFINITE, 0.0f, {0.0f, 0.0f, 0.0f, 0.0f}};
    for (int i = 0; i < parts; i++) {
        all.top = fmaxf(all.top, at(i)[0]);
    }
    const float less = subtrahend(all.top);
    for (int i = 0; i < parts; i++) {
        const float weight = exp2_approximate(at(i)[0] - less);
        all.sum = fmaf(at(i)[1], weight, all.sum);
        const Words<16> some = *reinterpret_cast<const Words<16> *>(value(i));
#pragma unroll
        for (int j = 0; j < 4; j++) {
            all.x[j] = fmaf(float_of(some.word[j]), weight, all.x[j]);
        }
    }
    return all;
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
    Unit u;
    u.split = (i32)(blockIdx.x % (u32)p.splits);
    const u32 index = blockIdx.x / (u32)p.splits;
    const u32 kv_heads = (u32)(p.heads / p.group), tiles = (u32)p.items;
    // tiles outermost: the last ones see the most keys
    const u32 pair = index % (kv_heads * (u32)p.batch);
    u.kv_head = (i32)(pair % kv_heads);
    u.row = (i32)(tiles - 1 - index / (kv_heads * (u32)p.batch)) * ROWS;
#if EARLY
    // while the kernel before this one ends, what will be read is brought into the second-level cache
    grid_dependency_release();
    {
        const i32 b = (i32)(pair / kv_heads), length = min(max(glance(kv_len + b), 0), p.capacity);
        const i32 from = p.window > 0 ? (i32)max((i64)length - p.q_len - p.window, (i64)0) : 0;
        const i32 blocks = (length - from + KEYS - 1) / KEYS;
        const i32 first = (i32)((i64)blocks * u.split / p.splits), last = (i32)((i64)blocks * (u.split + 1) / p.splits);
        for (i32 key = from + first * KEYS + (i32)threadIdx.x; key < min(from + min(last, first + AHEAD * WN) * KEYS, length); key += THREADS) {
            i64 at = b * p.kv_batch + key * p.kv_token;
            if (table) {
                const i32 block = glance(table + (i64)b * p.table_width + key / p.block);
                at = block < 0 || block >= p.blocks ? 0 : block * p.kv_batch + key % p.block * p.kv_token;
            }
            at += u.kv_head * p.kv_head;
            prefetch(static_cast<const u8 *>(k) + 2 * at);
            prefetch(static_cast<const u8 *>(v) + 2 * at);
        }
    }
    grid_dependency_wait();
#endif
    u.s = sequence_of(p, kv_len, q_offsets, (i32)(pair / kv_heads));
    u.rows = min(u.s.n * p.group - u.row, ROWS);
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
        return tile < count && key < end ? vector_at(p, table, u.s.b, u.kv_head, key) : (i64)-1;
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
            // [unit][split][row][D + 2]
            float *to = parts + ((i64)blockIdx.x * ROWS + row) * (D + 4);
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

// Puts the parts of `attention_mma` together: a warp for each row of each unit. Grid: units x ROWS / 4 of 128 threads.
extern "C" __global__ void __launch_bounds__(128)
    attention_combine(const __grid_constant__ Attention p, const void *__restrict__ q, const void *__restrict__ k, const void *__restrict__ v,
                      const i32 *__restrict__ kv_len, const i32 *__restrict__ q_offsets, const i32 *__restrict__ table,
                      const float *__restrict__ sinks, void *__restrict__ out, const float *__restrict__ parts) {
    const Operands o = {q, k, v, kv_len, q_offsets, table, sinks, out};
#if EARLY
    grid_dependency_release();
    grid_dependency_wait();
#endif
    const u32 index = blockIdx.x / (ROWS / 4), row = blockIdx.x % (ROWS / 4) * 4 + threadIdx.x / 32;
    const u32 kv_heads = (u32)(p.heads / p.group), pair = index % (kv_heads * (u32)p.batch);
    Unit u;
    u.kv_head = (i32)(pair % kv_heads);
    u.s = sequence_of(p, kv_len, q_offsets, (i32)(pair / kv_heads));
    u.row = (i32)((u32)p.items - 1 - index / (kv_heads * (u32)p.batch)) * ROWS;
    u.rows = min(u.s.n * p.group - u.row, ROWS);
    if ((i32)row >= u.rows) {
        return;
    }
    const float *from = parts + ((i64)index * p.splits * ROWS + row) * (D + 4);
    const i64 pitch = (i64)ROWS * (D + 4);
    bool broken = false;
    for (i32 d = (i32)threadIdx.x % 32 * 4; d < D; d += 128) {
        Part part = merge(
            p.splits, [&](int i) { return from + i * pitch + D; }, [&](int i) { return from + i * pitch + d; });
        broken |= finish(p, o, u, (i32)row, d, part.x, part.top, part.sum);
    }
    if (__any_sync(0xffffffffu, broken)) {
        exact_row<TYPE, D / 32>(p, o, u.s, query_of(p, u, (i32)row), head_of(p, u, (i32)row), 0, D);
    }
}
