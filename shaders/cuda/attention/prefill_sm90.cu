// Attention of many queries on Hopper: FlashAttention-3's design (arXiv:2407.08608).
//
// A block of one producer and CONSUMERS consumer warpgroups goes through work items of 64 * CONSUMERS queries of one head. The producer
// streams keys and values by tensor copies (128-byte swizzle) through rings of STAGES tiles of BLOCK_N keys, from the last visible key to
// the first, and queries through a ring of Q_STAGES tiles, so that those of the next item are there when its turn comes; each consumer has 64 queries, whose scores and results are accumulators of wgmma. Scores of a tile are multiplied while the
// weights of the tile before it are multiplied by values, and named barriers let one warpgroup's products run under the other's softmax.
// Weights stay in registers, as the A operand of the second product: accumulators of 16 keys are just that fragment.
//
// Grid: as many blocks as fit at once; items are dealt out from the longest to the shortest, back and forth.
//
// Preconditions: k and v of a 16-bit type, q and out of the same or f32 (queries are rounded); vectors at multiples of 16 bytes; head_dim is HEAD_DIM; tensor maps of
// boxes of 64 elements: `q_map` (element, row, head) with 64 rows, `k_map` and `v_map` (element, token, head, sequence) with BLOCK_N
// tokens. Paged caches: blocks are a multiple of BLOCK_N tokens, and the maps' last index is the block.
//
// Defines: HEAD_DIM, BLOCK_N, CONSUMERS, STAGES, Q_STAGES, TYPE (f16 or bf16) and TYPE_NAME ("f16" or "bf16"), Q_TYPE and OUT_TYPE; SCORES = 1 where
// scores are more than scaled by a positive number.
#define TILE_ROWS (64 * CONSUMERS)
#include "attention/parts.cuh"
#include "attention/products.cuh"

static constexpr int N = BLOCK_N, SLABS = D / 64;
static constexpr u32 Q_BYTES = 64 * D * 2, TILE_BYTES = N * D * 2;

// Where things are in shared memory, from its beginning.
static constexpr u32 K_AT = Q_STAGES * CONSUMERS * Q_BYTES, V_AT = K_AT + STAGES * TILE_BYTES, BARRIERS_AT = V_AT + STAGES * TILE_BYTES;

// Barriers behind the tiles: those of queries for each tile of 64.
static_assert(Q_STAGES * CONSUMERS <= 4 && STAGES <= 4, "there are four barriers of each kind");
enum Barrier : u32 { Q_FULL = 0, Q_EMPTY = 4, K_FULL = 8, K_EMPTY = 12, V_FULL = 16, V_EMPTY = 20, BARRIERS = 24 };

// Keeps reads of accumulators behind a wait.
template <int COUNT> DEVICE void settle(float (&d)[COUNT]) {
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
        asm volatile("" : "+f"(d[i])::"memory");
    }
}

// Keeps what a sum of weights depends on above the waits that follow, behind which the assembler would schedule it: the instruction is
// never executed, but has its place.
DEVICE void stay_above(float sum) {
    asm volatile("{\n.reg .pred p;\nsetp.lt.f32 p, %0, 0f00000000;\n@p nanosleep.u32 0;\n}" ::"f"(sum) : "memory");
}

// A work item: a tile of rows, or a part of its keys, and the tiles of keys that any row sees.
struct Item {
    Unit u;
    i32 low, high;
};

DEVICE Item item_of(const Attention &p, const i32 *kv_len, const i32 *q_offsets, i32 number) {
    Item item;
    item.u = unit_of(p, (u32)number, false);
    look_up(p, item.u, kv_len, q_offsets);
    item.low = item.high = 0;
    if (item.u.rows > 0) {
        i32 start, end, unused;
        visible(p, item.u.s, query_of(p, item.u, 0), start, unused);
        visible(p, item.u.s, query_of(p, item.u, item.u.rows - 1), unused, end);
        const i32 low = start / N, count = start < end ? (end + N - 1) / N - low : 0;
        item.low = low + (i32)((i64)count * item.u.split / p.splits);
        item.high = low + (i32)((i64)count * (item.u.split + 1) / p.splits);
    }
    return item;
}

// The number of the item that a block does in round `round`.
DEVICE i32 number_of(i32 round) {
    const i32 grid = (i32)gridDim.x, block = (i32)blockIdx.x;
    return round * grid + (round % 2 == 0 ? block : grid - 1 - block);
}

// The tile of 64 queries that a consumer takes of the item behind `items` others.
DEVICE u32 q_slot(u32 items, u32 group) {
    return items % Q_STAGES * CONSUMERS + group;
}

// A tile of keys or values to its stage of the ring, once that is empty.
DEVICE void load_tile(const Attention &p, const TensorMap *map, u32 at, u32 full, u32 empty, u32 count, i32 token, i32 kv_head, i32 b,
                      const i32 *table) {
    const u32 stage = count % STAGES;
    full += 8 * stage;
    barrier_wait(empty + 8 * stage, (count / STAGES & 1) ^ 1);
    barrier_expect(full, TILE_BYTES);
    i32 slow = b;
    if (table) {
        slow = table[(i64)b * p.table_width + token / p.block];
        slow = slow < 0 || slow >= p.blocks ? 0 : slow;
        token %= p.block;
    }
    at += stage * TILE_BYTES;
#pragma unroll
    for (int slab = 0; slab < SLABS; slab++) {
        tensor_load_4d(at + slab * N * 128, map, full, 64 * slab, token, kv_head, slow);
    }
}

DEVICE void produce(const Attention &p, const TensorMap *q_map, const TensorMap *k_map, const TensorMap *v_map, const i32 *kv_len,
                    const i32 *q_offsets, const i32 *table, u32 base) {
    const u32 k_at = base + K_AT, v_at = base + V_AT, barriers = base + BARRIERS_AT;
    // tiles of keys and items before
    u32 count = 0, items = 0;
    for (i32 round = 0; round * (i32)gridDim.x < p.items; round++) {
        const i32 number = number_of(round);
        if (number >= p.items) {
            continue;
        }
        const Item item = item_of(p, kv_len, q_offsets, number);
        if (item.low >= item.high) {
            continue;
        }
        if (threadIdx.x == 0) {
            const i32 kv_head = item.u.head / p.group;
            i32 token = item.high * N - N;
            // first, as a stage of keys is free before one of queries
            load_tile(p, k_map, k_at, barriers + 8 * K_FULL, barriers + 8 * K_EMPTY, count, token, kv_head, item.u.b, table);
#pragma unroll 1
            for (u32 group = 0; group < CONSUMERS; group++) {
                const u32 slot = q_slot(items, group), full = barriers + 8 * (Q_FULL + slot);
                barrier_wait(barriers + 8 * (Q_EMPTY + slot), (items / Q_STAGES & 1) ^ 1);
                barrier_expect(full, Q_BYTES);
#pragma unroll
                for (int slab = 0; slab < SLABS; slab++) {
                    tensor_load_4d(base + slot * Q_BYTES + slab * 64 * 128, q_map, full, 64 * slab, 0,
                                   item.u.s.first + query_of(p, item.u, (i32)(64 * group)), item.u.head / p.pack);
                }
            }
#pragma unroll 1
            for (; token >= item.low * N; token -= N) {
                if (token > item.low * N) {
                    load_tile(p, k_map, k_at, barriers + 8 * K_FULL, barriers + 8 * K_EMPTY, count + 1, token - N, kv_head, item.u.b,
                              table);
                }
                load_tile(p, v_map, v_at, barriers + 8 * V_FULL, barriers + 8 * V_EMPTY, count, token, kv_head, item.u.b, table);
                count++;
            }
            items++;
        }
        __syncwarp();
    }
}

DEVICE void wait_full(u32 base, u32 full, u32 count) {
    barrier_wait(base + BARRIERS_AT + 8 * (full + count % STAGES), count / STAGES & 1);
}

DEVICE void release(u32 base, u32 empty, u32 count) {
    if (threadIdx.x % 32 == 0) {
        barrier_arrive(base + BARRIERS_AT + 8 * (empty + count % STAGES));
    }
}

DEVICE void multiply_keys(u32 base, u32 slot, u32 count, float (&scores)[N / 2]) {
    wgmma_fence();
    const u32 q = descriptor_low<16>(base + slot * Q_BYTES);
    const u32 k = descriptor_low<16>(base + K_AT + count % STAGES * TILE_BYTES);
#pragma unroll
    for (int step = 0; step < D / 16; step++) {
        const u32 slab = step / 4, within = step % 4 * 32;
        Product<N>::scores(scores, descriptor<1024>(q + ((slab * 64 * 128 + within) >> 4)),
                           descriptor<1024>(k + ((slab * N * 128 + within) >> 4)), step > 0);
    }
    wgmma_commit();
}

DEVICE void multiply_values(u32 base, u32 count, float (&values)[D / 2], const u32 (&weights)[N / 4]) {
    wgmma_fence();
    const u32 v = descriptor_low<N * 128>(base + V_AT + count % STAGES * TILE_BYTES);
#pragma unroll
    for (int step = 0; step < N / 16; step++) {
        const u32 *w = weights + 4 * step;
        Product<D>::values(values, w[0], w[1], w[2], w[3], descriptor<1024>(v + (step * 2048 >> 4)), 1);
    }
    wgmma_commit();
}

// Two rows of a thread: 8 apart.
struct Softmax {
    float top[2], sum[2], keep[2];
};

// Scores in place become weights; `keep` is what sums so far are multiplied by. Two chains of maxima and sums for each row, since their
// latency counts.
DEVICE void soften(float (&s)[N / 2], Softmax &r, float factor) {
    float tops[2][2], sums[2][2], less[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        tops[half][0] = r.top[half];
        tops[half][1] = s[2 * half];
        sums[half][0] = sums[half][1] = 0.0f;
    }
#pragma unroll
    for (int i = 0; i < N / 2; i++) {
        float &top = tops[i / 2 % 2][i % 2];
        top = fmaxf(top, s[i]);
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float top = fmaxf(tops[half][0], tops[half][1]);
        top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
        top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
        // a maximum that is a little too small does as well, and then nothing needs to be scaled
        top = (top - r.top[half]) * factor <= 8.0f ? r.top[half] : top;
        less[half] = subtrahend(top) * factor;
        r.keep[half] = top == r.top[half] ? 1.0f : exp2_approximate(fmaf(r.top[half], factor, -less[half]));
        r.top[half] = top;
    }
#pragma unroll
    for (int i = 0; i < N / 2; i++) {
        s[i] = exp2_approximate(fmaf(s[i], factor, -less[i / 2 % 2]));
        sums[i / 2 % 2][i % 2] += s[i];
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
        r.sum[half] = fmaf(r.sum[half], r.keep[half], sums[half][0] + sums[half][1]);
    }
}

// What scores are besides a positive multiple.
DEVICE void transform(const Attention &p, float (&s)[N / 2]) {
#if SCORES
    const float inner = p.soft_cap != 0.0f ? p.scale / p.soft_cap : p.scale;
#pragma unroll
    for (int i = 0; i < N / 2; i++) {
        s[i] *= inner;
    }
    if (p.soft_cap != 0.0f) {
#pragma unroll
        for (int i = 0; i < N / 2; i++) {
            s[i] = p.soft_cap * tanh_approximate(s[i]);
        }
    }
#endif
}

// Hides keys of the tile at `first` that the two rows do not see. What is known of the item is looked up again: tiles with hidden keys are
// few, and registers are, too.
DEVICE void hide(const Attention &p, const i32 *kv_len, const i32 *q_offsets, i32 number, float (&s)[N / 2], i32 first, i32 row) {
    const Item item = item_of(p, kv_len, q_offsets, number);
    const i32 column = first + 2 * (i32)(threadIdx.x % 4);
#pragma unroll
    for (int half = 0; half < 2; half++) {
        i32 low, high;
        visible(p, item.u.s, query_of(p, item.u, row + 8 * half), low, high);
        low -= column;
        high -= column;
#pragma unroll
        for (int j = 0; j < N / 8; j++) {
#pragma unroll
            for (int i = 0; i < 2; i++) {
                float &x = s[4 * j + 2 * half + i];
                x = 8 * j + i >= low && 8 * j + i < high ? x : -INFINITE;
            }
        }
    }
}

DEVICE void pack_weights(const float (&s)[N / 2], u32 (&weights)[N / 4]) {
#pragma unroll
    for (int i = 0; i < N / 4; i++) {
        const float pair[2] = {s[2 * i], s[2 * i + 1]};
        weights[i] = pack(pair, Tag<TYPE>{});
    }
}

// Zeroes the values of tokens that the sequence does not have, which may be anything: a weight of 0 does not hide NaN.
DEVICE void clear_tail(u32 base, u32 group, u32 count, i32 valid) {
    const u32 thread = threadIdx.x % 128, tile = base + V_AT + count % STAGES * TILE_BYTES;
    for (u32 i = (u32)valid * 8 + thread; i < N * 8; i += 128) {
#pragma unroll
        for (int slab = 0; slab < SLABS; slab++) {
            asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};" ::"r"(tile + slab * N * 128 + i * 16), "r"(0) : "memory");
        }
    }
    fence_async_shared();
    named_sync(4 + group, 128);
}

DEVICE u32 exchange(u32 x, int lanes) {
    return __shfl_xor_sync(0xffffffffu, x, lanes);
}

// Two elements of each of four groups of 8 columns, as they are.
DEVICE void store_floats(float *to, const float *from, float scale) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const float pair[2] = {from[4 * i] * scale, from[4 * i + 1] * scale};
        store_vector<2>(to + 8 * i, pair);
    }
}

// Stores the rows of a warpgroup, times `scale`. Four lanes turn four words of 8 columns each into one of 16 bytes each. Gives the rows of
// the warp, a bit each, that have a NaN.
DEVICE u32 store_rows(const Attention &p, void *out, const Unit &u, const float (&values)[D / 2], const float (&scale)[2], i32 row) {
    const u32 lane = threadIdx.x % 4;
    const bool odd = lane & 1, upper = lane & 2;
    u32 broken = 0;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        bool any = false;
        const i32 at = row + 8 * half;
        OUT_TYPE *to = static_cast<OUT_TYPE *>(out) + (i64)(u.s.first + query_of(p, u, at)) * p.out_outer + head_of(p, u, at) * p.out_inner;
#pragma unroll
        for (int j = 0; j < D / 32; j++) {
            u32 x[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float *from = values + 4 * (4 * j + i) + 2 * half;
                const float pair[2] = {from[0] * scale[half], from[1] * scale[half]};
                any |= is_nan(pair[0]) || is_nan(pair[1]);
                x[i] = pack(pair, Tag<TYPE>{});
            }
            if (sizeof(OUT_TYPE) == 4) {
                if (at < u.rows) {
                    store_floats(reinterpret_cast<float *>(to) + 32 * j + 2 * lane, values + 16 * j + 2 * half, scale[half]);
                }
                continue;
            }
            const u32 low = exchange(odd ? x[0] : x[1], 1), high = exchange(odd ? x[2] : x[3], 1);
            const u32 a0 = odd ? low : x[0], a1 = odd ? x[1] : low, b0 = odd ? high : x[2], b1 = odd ? x[3] : high;
            const u32 c0 = exchange(upper ? a0 : b0, 2), c1 = exchange(upper ? a1 : b1, 2);
            Words<16> word;
            word.word[0] = upper ? c0 : a0;
            word.word[1] = upper ? c1 : a1;
            word.word[2] = upper ? b0 : c0;
            word.word[3] = upper ? b1 : c1;
            if (at < u.rows) {
                *reinterpret_cast<Words<16> *>(to + 32 * j + 8 * lane) = word;
            }
        }
        const u32 lanes = __ballot_sync(0xffffffffu, any && at < u.rows);
        if (lanes) {
            for (u32 i = 0; i < 8; i++) {
                broken |= (lanes >> 4 * i & 15u) != 0 ? 1u << (8 * half + i) : 0u;
            }
        }
    }
    return broken;
}

// Stores the rows of a warpgroup as a part; `sum` is that of the row.
DEVICE void store_part(const Attention &p, float *parts, const Unit &u, const float (&values)[D / 2], const float (&top)[2],
                       const float (&sum)[2], i32 row) {
    const i32 lane = (i32)(threadIdx.x % 4);
#pragma unroll
    for (int half = 0; half < 2; half++) {
        if (row + 8 * half < u.rows) {
            float *to = part_at(p, parts, u, row + 8 * half);
#pragma unroll
            for (int j = 0; j < D / 8; j++) {
                const float pair[2] = {values[4 * j + 2 * half], values[4 * j + 2 * half + 1]};
                store_vector<2>(to + 8 * j + 2 * lane, pair);
            }
            if (lane == 0) {
                const float pair[2] = {top[half], sum[half]};
                store_vector<2>(to + D, pair);
            }
        }
    }
}

// The row of a thread within a tile: its first one.
DEVICE i32 row_of(u32 group) {
    return (i32)(64 * group + threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4);
}

// Keys of an item that all rows of a warpgroup see.
DEVICE void common_keys(const Attention &p, const Unit &u, u32 group, i32 &from, i32 &to) {
    i32 unused;
    visible(p, u.s, query_of(p, u, (i32)(64 * group)), unused, to);
    visible(p, u.s, query_of(p, u, (i32)(64 * group + 63)), from, unused);
}

// What remains of an item behind its products.
DEVICE void finish_rows(const Attention &p, const Operands &o, float *parts, const Item &item, const float (&values)[D / 2], Softmax &r,
                        float factor, u32 group) {
    const i32 row = row_of(group);
#pragma unroll
    for (int half = 0; half < 2; half++) {
        r.sum[half] += __shfl_xor_sync(0xffffffffu, r.sum[half], 1);
        r.sum[half] += __shfl_xor_sync(0xffffffffu, r.sum[half], 2);
        r.top[half] = r.top[half] == -INFINITE ? -INFINITE : r.top[half] * factor;
    }
    if (p.splits > 1) {
        store_part(p, parts, item.u, values, r.top, r.sum, row);
        return;
    }
    float scale[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        i32 start, end;
        visible(p, item.u.s, query_of(p, item.u, row + 8 * half), start, end);
        if (o.sinks) {
            const float sink = o.sinks[head_of(p, item.u, row + 8 * half)] * LOG2E;
            r.sum[half] += exp2_approximate(sink - (r.top[half] == -INFINITE ? sink : r.top[half]));
        }
        scale[half] = start < end ? 1.0f / r.sum[half] : 0.0f;
    }
    u32 broken = store_rows(p, o.out, item.u, values, scale, row);
    const i32 first = row - (i32)(threadIdx.x % 32 / 4);
    if (lacks_blocks(p, o.table, item.u.b, item.low * N, min(item.high * N, item.u.s.length))) {
        broken = 0xffffu >> max(0, 16 - max(0, item.u.rows - first));
    }
    // by definition, where a weight of 0 may have met a value that the row does not see, or a block does not exist
    while (broken != 0) {
        const i32 at = first + __ffs((int)broken) - 1;
        broken &= broken - 1;
        exact_row<TYPE, D / 32>(p, o, item.u.s, query_of(p, item.u, at), head_of(p, item.u, at), 0, D);
    }
}

DEVICE void consume(const Attention &p, const Operands &o, float *parts, u32 base, u32 group) {
    const float factor = SCORES ? LOG2E : p.scale * LOG2E;
    // tiles of keys and items so far
    u32 count = 0, items = 0;
    for (i32 round = 0; round * (i32)gridDim.x < p.items; round++) {
        const i32 number = number_of(round);
        if (number >= p.items) {
            continue;
        }
        i32 tile, low, from, to;
        {
            const Item item = item_of(p, o.kv_len, o.q_offsets, number);
            if (item.u.rows <= 0) {
                continue;
            }
            tile = item.high - 1;
            low = item.low;
            common_keys(p, item.u, group, from, to);
        }
        float values[D / 2];
#pragma unroll
        for (int i = 0; i < D / 2; i++) {
            values[i] = 0.0f;
        }
        Softmax r = {{-INFINITE, -INFINITE}, {0.0f, 0.0f}, {0.0f, 0.0f}};
        if (low <= tile) {
            float scores[N / 2];
            u32 weights[N / 4];
            const u32 slot = q_slot(items, group);
            barrier_wait(base + BARRIERS_AT + 8 * (Q_FULL + slot), items / Q_STAGES & 1);
            items++;
            wait_full(base, K_FULL, count);
            multiply_keys(base, slot, count, scores);
            wgmma_wait<0>();
            settle(scores);
            release(base, K_EMPTY, count);
            transform(p, scores);
            if (tile * N < from || tile * N + N > to) {
                hide(p, o.kv_len, o.q_offsets, number, scores, tile * N, row_of(group));
                const i32 valid = item_of(p, o.kv_len, o.q_offsets, number).u.s.length - tile * N;
                if (valid < N) {
                    wait_full(base, V_FULL, count);
                    clear_tail(base, group, count, valid);
                }
            }
            soften(scores, r, factor);
            pack_weights(scores, weights);
            while (tile > low) {
                tile--;
                wait_full(base, K_FULL, count + 1);
                named_sync(1 + group, 256);
                multiply_keys(base, slot, count + 1, scores);
                wait_full(base, V_FULL, count);
                multiply_values(base, count, values, weights);
                named_arrive(1 + (group + 1) % CONSUMERS, 256);
                wgmma_wait<1>();
                settle(scores);
                release(base, K_EMPTY, count + 1);
                transform(p, scores);
                if (tile * N < from || tile * N + N > to) {
                    hide(p, o.kv_len, o.q_offsets, number, scores, tile * N, row_of(group));
                }
                soften(scores, r, factor);
                // while values are multiplied
                stay_above(r.sum[0] + r.sum[1]);
                wgmma_wait<0>();
                settle(values);
                release(base, V_EMPTY, count);
                count++;
                pack_weights(scores, weights);
                if (__any_sync(0xffffffffu, r.keep[0] != 1.0f || r.keep[1] != 1.0f)) {
#pragma unroll
                    for (int i = 0; i < D / 2; i++) {
                        values[i] *= r.keep[i / 2 % 2];
                    }
                }
            }
            if (threadIdx.x % 32 == 0) {
                barrier_arrive(base + BARRIERS_AT + 8 * (Q_EMPTY + slot));
            }
            wait_full(base, V_FULL, count);
            multiply_values(base, count, values, weights);
            wgmma_wait<0>();
            settle(values);
            release(base, V_EMPTY, count);
            count++;
        }
        finish_rows(p, o, parts, item_of(p, o.kv_len, o.q_offsets, number), values, r, factor, group);
    }
}

extern "C" __global__ void __launch_bounds__(128 * (CONSUMERS + 1), 1)
    attention_prefill(const __grid_constant__ Attention p, const __grid_constant__ TensorMap q_map, const __grid_constant__ TensorMap k_map,
                      const __grid_constant__ TensorMap v_map, const void *__restrict__ q, const void *__restrict__ k,
                      const void *__restrict__ v, const i32 *__restrict__ kv_len, const i32 *__restrict__ q_offsets,
                      const i32 *__restrict__ table, const float *__restrict__ sinks, void *__restrict__ out, float *__restrict__ parts) {
    extern __shared__ __align__(1024) u8 memory[];
    const u32 base = (shared_address(memory) + 1023) & ~1023u, barriers = base + BARRIERS_AT;
    if (threadIdx.x == 0) {
        for (u32 i = 0; i < 4; i++) {
            barrier_init(barriers + 8 * (Q_FULL + i), 1);
            barrier_init(barriers + 8 * (Q_EMPTY + i), 4);
            barrier_init(barriers + 8 * (K_FULL + i), 1);
            barrier_init(barriers + 8 * (K_EMPTY + i), 4 * CONSUMERS);
            barrier_init(barriers + 8 * (V_FULL + i), 1);
            barrier_init(barriers + 8 * (V_EMPTY + i), 4 * CONSUMERS);
        }
        barrier_init_fence();
    }
    __syncthreads();
    const u32 warpgroup = threadIdx.x / 128;
    if (warpgroup == 0) {
        registers_give<CONSUMERS == 2 ? 32 : 32>();
        if (threadIdx.x < 32) {
            produce(p, &q_map, &k_map, &v_map, kv_len, q_offsets, table, base);
        }
    } else {
        registers_take<CONSUMERS == 2 ? 232 : 160>();
        const u32 group = warpgroup - 1;
        if (group == CONSUMERS - 1) {
            named_arrive(1, 256);
        }
        const Operands o = {q, k, v, kv_len, q_offsets, table, sinks, out};
        consume(p, o, parts, base, group);
    }
}

// Rounds queries of f32 into dense rows, from which tensor copies take them. Grid: a thread for each 4 elements.
extern "C" __global__ void __launch_bounds__(256)
    attention_round(const __grid_constant__ Attention p, const float *__restrict__ q, TYPE *__restrict__ rounded) {
    const i64 at = ((i64)blockIdx.x * 256 + threadIdx.x) * 4, vector = at / D;
    if (vector < (i64)p.tokens * p.heads) {
        float x[4];
        load_vector<4>(q + vector / p.heads * p.q_outer + vector % p.heads * p.q_inner + at % D, x);
        store_vector<4>(rounded + at, x);
    }
}
