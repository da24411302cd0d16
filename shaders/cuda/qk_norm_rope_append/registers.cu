// Norm and rotation of the heads of queries and keys, and the append to the caches, in one pass over memory: a block takes a
// token, or some of its heads where blocks along y share them; blockDim.x lanes share a head, each with RUN pairs. A block computes sines and
// cosines of its token once, in shared memory.
//
// Compiled for X, W, OUT, KV (types of q, k and v, of the weights of what norms there are, of the queries for attention, of the
// caches) and RUN (elements of 16 bytes of X). Preconditions: heads of queries and keys have 2 * RUN * blockDim.x elements, a power of two, all of which
// are rotated; vectors begin at multiples of what a run takes, up to 16 bytes; blocks are whole warps.
#include "qk_norm_rope_append/common.cuh"

#define MOST_PAIRS (RUN * WARP_SIZE)

// The halves of a head that a lane holds, as memory has them.
struct Halves {
    Raw<X, RUN> a, b;
};

extern "C" __global__ void
qk_registers(const __grid_constant__ QkParams p, const X *__restrict__ q, const X *__restrict__ k,
             const X *__restrict__ v, const W *__restrict__ q_weight, const W *__restrict__ k_weight,
             const i32 *__restrict__ positions, const i32 *__restrict__ kv_len, const i32 *__restrict__ offsets,
             const i32 *__restrict__ block_table, const u64 *__restrict__ q_table, const u64 *__restrict__ k_table,
             KV *__restrict__ k_cache, KV *__restrict__ v_cache, OUT *__restrict__ out) {
    take_turn();
    // of queries and of keys
    __shared__ alignas(16) float sines[2][MOST_PAIRS], cosines[2][MOST_PAIRS];
    const u32 token = blockIdx.x, pair = threadIdx.x * RUN;
    const u32 queries = (u32)p.q.x.inner, keys = (u32)p.k.x.inner, all = queries + 2 * keys;
    const u32 pairs = p.q.rotation.pairs, stride = gridDim.y * blockDim.y;
    auto load = [&](u32 head, Halves &halves) {
        if (head >= all) {
            return;
        }
        const bool query = head < queries, value = head >= queries + keys;
        const Rotation &r = query ? p.q.rotation : p.k.rotation;
        const X *from = query ? q + p.q.x.start(token, head)
                        : value ? v + p.append.src_v.start(token, head - queries - keys)
                                : k + p.k.x.start(token, head - queries);
        const u32 at = r.first(pair);
        halves.a.load(from + at);
        halves.b.load(from + (r.interleaved ? at + RUN : at + pairs));
    };
    Halves next;
    load(blockIdx.y * blockDim.y + threadIdx.y, next);
    const i32 position = positions[token];
    for (u32 i = threadIdx.y * blockDim.x + threadIdx.x; i < 2 * pairs; i += blockDim.x * blockDim.y) {
        const bool key = i >= pairs;
        const u32 own = key ? i - pairs : i;
        (key ? p.k : p.q).rotation.angle(key ? k_table : q_table, position, own, sines[key][own], cosines[key][own]);
    }
    const u64 place = cache_place(p.append, token, kv_len, offsets, block_table);
    __syncthreads();
    // whole warps stay together for the sums
    for (u32 first = blockIdx.y * blockDim.y; first < all; first += stride) {
        const u32 head = first + threadIdx.y;
        const Halves here = next;
        load(head + stride, next);
        const bool there = head < all && (head < queries || place != NOWHERE);
        const bool query = head < queries, value = head >= queries + keys;
        const u32 own = query ? head : value ? head - queries - keys : head - queries;
        const HeadParams &params = query ? p.q : p.k;
        const Rotation &r = params.rotation;
        const u32 at = r.first(pair), beside = r.interleaved ? at + RUN : at + pairs;
        float a[RUN], b[RUN];
        here.a.widen(a);
        here.b.widen(b);
        const W *weight = value ? nullptr : query ? q_weight : k_weight;
        float inverse = 1.0f;
        // alike for all threads
        if (q_weight || k_weight) {
            float squares = 0.0f;
#pragma unroll
            for (int j = 0; j < RUN; j++) {
                squares += a[j] * a[j] + b[j] * b[j];
            }
            squares = reduce_warp<Sum>(there ? squares : 0.0f, blockDim.x);
            const float share = 1.0f / (float)(2 * pairs);
            inverse = 1.0f / sqrtf(squares * share + params.eps);
            const bool far = there && weight && out_of_range(squares);
            if (__any_sync(FULL_MASK, far)) {
                float most = 0.0f, total = 0.0f;
#pragma unroll
                for (int j = 0; j < RUN; j++) {
                    most = fmaxf(most, fmaxf(fabsf(a[j]), fabsf(b[j])));
                }
                const float factor = down_scale(reduce_warp<Max>(most, blockDim.x));
#pragma unroll
                for (int j = 0; j < RUN; j++) {
                    total += a[j] * factor * (a[j] * factor) + b[j] * factor * (b[j] * factor);
                }
                total = reduce_warp<Sum>(total, blockDim.x);
                inverse = far ? 1.0f / hypotf(sqrtf(total * share) / factor, sqrtf(params.eps)) : inverse;
            }
        }
        if (!there) {
            continue;
        }
        if (!value) {
            float sine[RUN], cosine[RUN];
            if (weight) {
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
            }
            load_vector(sines[!query] + pair, sine);
            load_vector(cosines[!query] + pair, cosine);
            rotate(r.interleaved, sine, cosine, a, b);
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
