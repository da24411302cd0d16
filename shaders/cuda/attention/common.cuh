// What the attention kernels share: parameters, slots, masks, and one row by its definition.
#ifndef PERJOULE_ATTENTION_CUH
#define PERJOULE_ATTENTION_CUH

#include "common/element.cuh"

// Sizes of an attention op. Strides are in elements.
struct Attention {
    i64 q_outer, q_inner;
    i64 out_outer, out_inner;
    i64 kv_batch, kv_head, kv_token;
    // keys up to a query's position less the window are hidden; 0 when there is none
    i64 window;
    i32 batch;
    // most query rows of a sequence, and rows of all
    i32 q_len, tokens;
    // query heads, and those of a key/value head
    i32 heads, group;
    i32 head_dim;
    i32 capacity;
    // tokens of a block, blocks of the cache, and blocks of a sequence's row of the table
    i32 block, blocks, table_width;
    i32 causal;
    u32 q_dtype, kv_dtype, out_dtype;
    float scale;
    // 0 when scores are not capped
    float soft_cap;
    // Of kernels that compute tiles of rows: rows of a unit are pairs of a query and one of `pack` heads, queries outermost; a unit has
    // `tiles` of them, and its keys are split into `splits` parts.
    i32 pack, tiles, splits;
    // work items of a launch
    i32 items;
};

// The operands; those that an op does not have are null.
struct Operands {
    const void *q, *k, *v;
    const i32 *kv_len, *q_offsets, *table;
    const float *sinks;
    void *out;
};

// The query rows of a sequence, and its keys.
struct Sequence {
    i32 b;
    i32 first, n;
    i32 length;
};

// Query rows and keys of sequence `b`; all threads of the warp take part.
DEVICE Sequence sequence_of(const Attention &p, const i32 *kv_len, const i32 *q_offsets, i32 b) {
    Sequence s;
    s.b = b;
    const i32 length = kv_len[b];
    s.length = length < 0 ? 0 : length < p.capacity ? length : p.capacity;
    if (p.block > 0 && p.blocks == 0) {
        s.length = 0;
    }
    if (!q_offsets) {
        s.first = b * p.q_len;
        s.n = p.q_len;
        return s;
    }
    i32 highest = 0;
    for (i32 i = (i32)(threadIdx.x % 32); i <= b; i += 32) {
        highest = max(highest, q_offsets[i]);
    }
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
        highest = max(highest, __shfl_xor_sync(0xffffffffu, highest, step));
    }
    s.first = min(highest, p.tokens);
    const i32 end = min(max(highest, q_offsets[b + 1]), p.tokens);
    s.n = min(end - s.first, p.q_len);
    return s;
}

// The first key that query `i` of a sequence sees, and the one behind the last.
DEVICE void visible(const Attention &p, const Sequence &s, i32 i, i32 &start, i32 &end) {
    // rows and keys are fewer than 2^29, and windows than 2^31
    const i32 upto = max(s.length + i + 1 - s.n, 0);
    end = p.causal ? min(upto, s.length) : s.length;
    start = p.window > 0 ? min(max(upto - (i32)p.window, 0), end) : 0;
}

// First element of `token`'s vector in key/value head `head`.
DEVICE i64 vector_at(const Attention &p, const i32 *table, i32 b, i32 head, i32 token) {
    if (!table) {
        return b * p.kv_batch + head * p.kv_head + token * p.kv_token;
    }
    const i32 block = table[(i64)b * p.table_width + token / p.block];
    if (block < 0 || block >= p.blocks) {
        return head * p.kv_head;
    }
    return block * p.kv_batch + head * p.kv_head + token % p.block * p.kv_token;
}

// Whether the table names no block of the cache for some key of `start..end`; all threads of the warp take part.
DEVICE bool lacks_blocks(const Attention &p, const i32 *table, i32 b, i32 start, i32 end) {
    bool lacks = false;
    if (table && start < end) {
        for (i32 i = start / p.block + (i32)(threadIdx.x % 32); i <= (end - 1) / p.block; i += 32) {
            const i32 block = table[(i64)b * p.table_width + i];
            lacks |= block < 0 || block >= p.blocks;
        }
    }
    return __any_sync(0xffffffffu, lacks);
}

// What lane `from` has.
DEVICE u64 shuffle(u64 x, i32 from) {
    const u32 low = __shfl_sync(0xffffffffu, (u32)x, from), high = __shfl_sync(0xffffffffu, (u32)(x >> 32), from);
    return (u64)high << 32 | low;
}

DEVICE float warp_max(float x) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
        x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, step));
    }
    return x;
}

DEVICE float warp_sum(float x) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
        x += __shfl_xor_sync(0xffffffffu, x, step);
    }
    return x;
}

// The number that is subtracted from scores before they are exponentiated: 0 where there is no finite score yet.
DEVICE float subtrahend(float top) {
    return top == -INFINITE ? 0.0f : top;
}

// Running softmax of a row whose values are spread over the lanes of a warp: `DIMS` of each, 32 apart.
template <int DIMS> struct Running {
    float top, sum;
    float value[DIMS];
};

template <class T> DEVICE float element_at(const void *from, i64 i) {
    return to_float(static_cast<const T *>(from)[i]);
}
struct q8_0 {};
template <> __device__ __forceinline__ float element_at<q8_0>(const void *from, i64 i) {
    return decode_q8_0(static_cast<const u8 *>(from) + i / 32 * 34, (u32)(i % 32));
}

// A row's keys `start + 32 * part`, every `32 * parts`, up to `end`, by its definition: a lane computes the score of one of 32 keys, then
// all of them add the values. Values are those of the elements `base + lane + 32 * j` of the head.
template <class KV, int DIMS>
static __device__ __forceinline__ void attend(const Attention &p, const Operands &o, const Sequence &s, i32 row, i32 head, i32 part, i32 parts, i32 base,
                              Running<DIMS> &run) {
    const i32 lane = (i32)(threadIdx.x % 32), kv_head = head / p.group;
    i32 start, end;
    visible(p, s, row, start, end);
    const i64 q_at = (i64)(s.first + row) * p.q_outer + head * p.q_inner;
    run.top = -INFINITE;
    run.sum = 0.0f;
#pragma unroll
    for (int j = 0; j < DIMS; j++) {
        run.value[j] = 0.0f;
    }
    for (i64 first = (i64)start + 32 * part; first < end; first += 32 * parts) {
        const i32 key = (i32)first + lane, count = min(end - (i32)first, 32);
        const i64 at = vector_at(p, o.table, s.b, kv_head, min(key, end - 1));
        float score = 0.0f;
        for (i32 d = 0; d < p.head_dim; d++) {
            score = fmaf(load_element(o.q, (u64)(q_at + d), p.q_dtype), element_at<KV>(o.k, at + d), score);
        }
        score *= p.scale;
        if (p.soft_cap != 0.0f) {
            score = p.soft_cap * tanhf(score / p.soft_cap);
        }
        score = lane < count ? score : -INFINITE;
        // fmaxf ignores NaN, which then reaches the result through the weight
        const float top = fmaxf(run.top, warp_max(score)), less = subtrahend(top);
        const float keep = expf(run.top - less), weight = lane < count ? expf(score - less) : 0.0f;
        run.top = top;
        run.sum = run.sum * keep + warp_sum(weight);
#pragma unroll
        for (int j = 0; j < DIMS; j++) {
            run.value[j] *= keep;
        }
        for (i32 i = 0; i < count; i++) {
            const float w = __shfl_sync(0xffffffffu, weight, i);
            const i64 from = (i64)shuffle((u64)at, i);
#pragma unroll
            for (int j = 0; j < DIMS; j++) {
                const i32 d = base + lane + 32 * j;
                if (d < p.head_dim) {
                    run.value[j] = fmaf(w, element_at<KV>(o.v, from + d), run.value[j]);
                }
            }
        }
    }
}

// The whole of a row by its definition, by one warp: the elements from `low` up to `high` of the head. What the tensor cores make NaN of
// because a weight of 0 meets a value that the row does not see (or does, and then it is NaN again).
template <class KV, int DIMS>
static __device__ __forceinline__ void exact_row(const Attention &p, const Operands &o, const Sequence &s, i32 row, i32 head, i32 low, i32 high) {
    Running<DIMS> run;
    attend<KV, DIMS>(p, o, s, row, head, 0, 1, 0, run);
    i32 start, end;
    visible(p, s, row, start, end);
    float scale = 1.0f, sum = run.sum;
    if (o.sinks) {
        const float sink = o.sinks[head], top = fmaxf(run.top, sink), less = subtrahend(top);
        scale = expf(run.top - less);
        sum = sum * scale + expf(sink - less);
    }
    const i64 out_at = (i64)(s.first + row) * p.out_outer + head * p.out_inner;
#pragma unroll
    for (int j = 0; j < DIMS; j++) {
        const i32 d = (i32)(threadIdx.x % 32) + 32 * j;
        if (d >= low && d < high) {
            store_element(o.out, (u64)(out_at + d), p.out_dtype, start < end ? run.value[j] * scale / sum : 0.0f);
        }
    }
}

#endif
