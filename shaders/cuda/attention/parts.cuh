// Tiles of packed rows: what one computes, how parts of a row are put together, and how a row ends.
//
// Rows of a unit are pairs of a query and one of the `pack` heads that share its keys and values, queries outermost. Parts of a row, from
// groups of warps or from blocks that share the keys, are sums relative to a top, in the units of exp2.
//
// Before inclusion: HEAD_DIM, TILE_ROWS, TYPE (of keys and values), OUT_TYPE.
#ifndef PERJOULE_ATTENTION_PARTS_CUH
#define PERJOULE_ATTENTION_PARTS_CUH

#include "attention/common.cuh"

static constexpr int D = HEAD_DIM, ROWS = TILE_ROWS;
static constexpr float LOG2E = 1.4426950408889634f;

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

// A tile of a unit, or a part of its keys.
struct Unit {
    Sequence s;
    i32 b, split;
    // first head, first row, and rows of the tile that exist
    i32 head, row, rows;
    // the tile among all
    i32 tile;
};

// The tile and the split that a number stands for: splits innermost or outside units, the tiles that see the most keys first. What the
// slots say of the sequence comes later.
DEVICE Unit unit_of(const Attention &p, u32 number, bool splits_innermost) {
    const u32 splits = (u32)p.splits, heads = (u32)(p.heads / p.pack), units = heads * (u32)p.batch;
    Unit u;
    u32 rest;
    if (splits_innermost) {
        u.split = (i32)(number % splits);
        rest = number / splits;
    } else {
        u.split = (i32)(number / units % splits);
        rest = number / (units * splits) * units + number % units;
    }
    u.tile = (i32)rest;
    u.head = (i32)(rest % heads) * p.pack;
    u.b = (i32)(rest % units / heads);
    u.row = (p.tiles - 1 - (i32)(rest / units)) * ROWS;
    return u;
}

DEVICE void look_up(const Attention &p, Unit &u, const i32 *kv_len, const i32 *q_offsets) {
    u.s = sequence_of(p, kv_len, q_offsets, u.b);
    u.rows = min(u.s.n * p.pack - u.row, ROWS);
}

DEVICE i32 head_of(const Attention &p, const Unit &u, i32 row) {
    return u.head + (i32)((u32)(u.row + row) % (u32)p.pack);
}

DEVICE i32 query_of(const Attention &p, const Unit &u, i32 row) {
    return (i32)((u32)(u.row + row) / (u32)p.pack);
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
    store_vector<4>(static_cast<OUT_TYPE *>(o.out) + (i64)(u.s.first + query) * p.out_outer + head * p.out_inner + d, x);
    return broken;
}

// Four elements of a row.
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

// Where scratch holds a row of a part: its elements, its top and its sum.
static constexpr int PART = D + 4;
// Most parts of a row, and how many are read at a time.
static constexpr int MOST_SPLITS = 64, SOME = 8;

DEVICE float *part_at(const Attention &p, float *parts, const Unit &u, i32 row) {
    return parts + (((i64)u.tile * p.splits + u.split) * ROWS + row) * PART;
}

// Four elements of a part to scratch; the first also brings top and sum.
DEVICE void store_four(const Attention &p, float *parts, const Unit &u, i32 row, i32 d, const Part &part) {
    float *to = part_at(p, parts, u, row);
    store_vector<4>(to + d, part.x);
    if (d == 0) {
        const float pair[2] = {part.top, part.sum};
        store_vector<2>(to + D, pair);
    }
}

// Puts the parts in scratch together: a warp for each row of each tile. Grid: tiles x ROWS / 4.
extern "C" __global__ void __launch_bounds__(128, 1)
    attention_combine(const __grid_constant__ Attention p, const void *__restrict__ q, const void *__restrict__ k, const void *__restrict__ v,
                      const i32 *__restrict__ kv_len, const i32 *__restrict__ q_offsets, const i32 *__restrict__ table,
                      const float *__restrict__ sinks, void *__restrict__ out, float *__restrict__ parts) {
    const Operands o = {q, k, v, kv_len, q_offsets, table, sinks, out};
    const i32 row = (i32)(blockIdx.x % (ROWS / 4) * 4 + threadIdx.x / 32);
    Unit u = unit_of(p, blockIdx.x / (ROWS / 4) * (u32)p.splits, true);
    look_up(p, u, kv_len, q_offsets);
    if (row >= u.rows) {
        return;
    }
    // a lane knows the tops and sums of two parts
    const float *from = part_at(p, parts, u, row);
    const i32 lane = (i32)threadIdx.x % 32;
    const i64 pitch = (i64)ROWS * PART;
    float tops[2], weights[2], sum = 0.0f;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const float *at = from + min(lane + 32 * i, p.splits - 1) * pitch + D;
        tops[i] = lane + 32 * i < p.splits ? at[0] : -INFINITE;
        weights[i] = at[1];
    }
    const float top = warp_max(fmaxf(tops[0], tops[1])), less = subtrahend(top);
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const float weight = exp2_approximate(tops[i] - less);
        sum += lane + 32 * i < p.splits ? weights[i] * weight : 0.0f;
        weights[i] = weight;
    }
    sum = warp_sum(sum);
    // tensor copies do not know what stands for a block that does not exist
    i32 start, end;
    visible(p, u.s, query_of(p, u, row), start, end);
    bool broken = lacks_blocks(p, table, u.b, start, end);
    for (i32 base = 0; base < D; base += 128) {
        const i32 d = base + 4 * lane;
        float x[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        for (i32 first = 0; first < p.splits; first += SOME) {
            Words<16> some[SOME];
#pragma unroll
            for (int i = 0; i < SOME; i++) {
                some[i] = *reinterpret_cast<const Words<16> *>(from + min(first + i, p.splits - 1) * pitch + min(d, D - 4));
            }
#pragma unroll
            for (int i = 0; i < SOME; i++) {
                const float weight = __shfl_sync(0xffffffffu, first < 32 ? weights[0] : weights[1], (first + i) % 32);
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    x[j] = first + i < p.splits ? fmaf(float_of(some[i].word[j]), weight, x[j]) : x[j];
                }
            }
        }
        broken |= d < D && finish(p, o, u, row, d, x, top, sum);
    }
    if (__any_sync(0xffffffffu, broken)) {
        exact_row<TYPE, D / 32>(p, o, u.s, query_of(p, u, row), head_of(p, u, row), 0, D);
    }
}

#endif
