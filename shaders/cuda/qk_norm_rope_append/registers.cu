// Norm and rotation of the heads of queries and keys, and the append to the caches, in one pass over memory: a block takes a
// token; blockDim.x lanes share a head, each with RUN pairs.
//
// Compiled for X, W, OUT, KV (types of q, k and v, of the weights, of the queries for attention, of the caches) and RUN (elements
// of 16 bytes of X). Preconditions: heads of queries and keys have 2 * RUN * blockDim.x elements, a power of two, all of which
// are rotated; vectors begin at multiples of what a run takes, up to 16 bytes.
#include "qk_norm_rope_append/common.cuh"

extern "C" __global__ void
qk_registers(const __grid_constant__ QkParams p, const X *__restrict__ q, const X *__restrict__ k,
             const X *__restrict__ v, const W *__restrict__ q_weight, const W *__restrict__ k_weight,
             const i32 *__restrict__ positions, const i32 *__restrict__ kv_len, const i32 *__restrict__ offsets,
             const i32 *__restrict__ block_table, const u64 *__restrict__ q_table, const u64 *__restrict__ k_table,
             KV *__restrict__ k_cache, KV *__restrict__ v_cache, OUT *__restrict__ out) {
    const u64 token = blockIdx.x;
    const u64 place = cache_place(p.append, token, kv_len, offsets, block_table);
    const i32 position = positions[token];
    const u32 queries = (u32)p.q.x.inner, keys = (u32)p.k.x.inner, all = queries + 2 * keys;
    const u32 pair = threadIdx.x * RUN;
    // whole warps stay together for the sums
    for (u32 first = 0; first < all; first += blockDim.y) {
        const u32 head = first + threadIdx.y;
        const bool there = head < all && (head < queries || place != NOWHERE);
        const bool query = head < queries, value = head >= queries + keys;
        const u64 own = query ? head : value ? head - queries - keys : head - queries;
        const HeadParams &params = query ? p.q : p.k;
        const Rotation &r = params.rotation;
        const u32 at = r.first(pair), beside = r.interleaved ? at + RUN : at + r.pairs;
        float a[RUN] = {}, b[RUN] = {};
        if (there) {
            const X *from = query ? q + p.q.x.start(token, own)
                            : value ? v + p.append.src_v.start(token, own)
                                    : k + p.k.x.start(token, own);
            load_vector(from + at, a);
            load_vector(from + beside, b);
        }
        float squares = 0.0f;
#pragma unroll
        for (int j = 0; j < RUN; j++) {
            squares += a[j] * a[j] + b[j] * b[j];
        }
        squares = reduce_warp<Sum>(squares, blockDim.x);
        float inverse = inverse_root(squares, (float)(2 * r.pairs), params.eps);
        if (__any_sync(FULL_MASK, there && out_of_range(squares))) {
            double far = 0.0;
#pragma unroll
            for (int j = 0; j < RUN; j++) {
                far += (double)a[j] * (double)a[j] + (double)b[j] * (double)b[j];
            }
            inverse = inverse_root(reduce_warp<Sum>(far, blockDim.x), (double)(2 * r.pairs), params.eps);
        }
        if (!there) {
            continue;
        }
        if (!value) {
            const W *weight = query ? q_weight : k_weight;
            float scale[RUN];
            load_vector(weight + at, scale);
#pragma unroll
            for (int j = 0; j < RUN; j++) {
                a[j] = a[j] * inverse * (scale[j] + params.weight_offset);
            }
            load_vector(weight + beside, scale);
#pragma unroll
            for (int j = 0; j < RUN; j++) {
                b[j] = b[j] * inverse * (scale[j] + params.weight_offset);
            }
            rotate(r, query ? q_table : k_table, position, pair, a, b);
        }
        if (query) {
            OUT *to = out + p.out.start(token, own);
            store_vector(to + at, a);
            store_vector(to + beside, b);
        } else {
            KV *to = (value ? v_cache : k_cache) + place + own * p.append.kv.head_stride;
            store_vector(to + at, a);
            store_vector(to + beside, b);
        }
    }
}
