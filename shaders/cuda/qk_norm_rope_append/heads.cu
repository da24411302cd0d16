// Norm and rotation of the heads of queries and keys, and the append to the caches, of any types and sizes: a
// warp takes a head, blocks along y share those of a token. A warp reads the head for its norm, if it has one, and again for the rotated elements, 32 neighbours at a
// time.
#include "qk_norm_rope_append/common.cuh"

#define THREADS 256

struct Head {
    const HeadParams &p;
    const void *x, *weight;
    u64 from;
    float inverse;

    // One over the root of the mean of the squares; the lanes of a warp share the work.
    __device__ __forceinline__ float inverse_root() const {
        const u32 len = (u32)p.x.len;
        float squares = 0.0f;
        for (u32 d = lane_id(); d < len; d += WARP_SIZE) {
            const float value = load_element(x, from + d, p.x_dtype);
            squares += value * value;
        }
        squares = reduce_warp<Sum>(squares);
        if (!out_of_range(squares)) {
            return 1.0f / sqrtf(squares / (float)len + p.eps);
        }
        float most = 0.0f, total = 0.0f;
        for (u32 d = lane_id(); d < len; d += WARP_SIZE) {
            most = fmaxf(most, fabsf(load_element(x, from + d, p.x_dtype)));
        }
        const float factor = down_scale(reduce_warp<Max>(most));
        for (u32 d = lane_id(); d < len; d += WARP_SIZE) {
            const float value = load_element(x, from + d, p.x_dtype) * factor;
            total += value * value;
        }
        total = reduce_warp<Sum>(total);
        return 1.0f / hypotf(sqrtf(total / (float)len) / factor, sqrtf(p.eps));
    }

    __device__ __forceinline__ float normalised(u32 d) const {
        const float value = load_element(x, from + d, p.x_dtype);
        return weight ? value * inverse * (load_element(weight, d, p.weight_dtype) + p.weight_offset) : value;
    }

    // Element `d` of the rotated head.
    __device__ __forceinline__ float rotated(const u64 *__restrict__ table, i32 position, u32 d) const {
        const Rotation &r = p.rotation;
        if (d >= 2 * r.pairs) {
            return normalised(d);
        }
        const bool second = r.interleaved ? d % 2 : d >= r.pairs;
        const u32 pair = r.interleaved ? d / 2 : second ? d - r.pairs : d;
        float sine, cosine;
        r.angle(table, position, pair, sine, cosine);
        const float a = normalised(r.first(pair)), b = normalised(r.second(pair));
        return second ? a * sine + b * cosine : a * cosine - b * sine;
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    qk_heads(const __grid_constant__ QkParams p, const void *__restrict__ q, const void *__restrict__ k,
             const void *__restrict__ v, const void *__restrict__ q_weight, const void *__restrict__ k_weight,
             const i32 *__restrict__ positions, const i32 *__restrict__ kv_len, const i32 *__restrict__ offsets,
             const i32 *__restrict__ block_table, const u64 *__restrict__ q_table, const u64 *__restrict__ k_table,
             void *__restrict__ k_cache, void *__restrict__ v_cache, void *__restrict__ out) {
    take_turn();
    const u64 token = blockIdx.x;
    const u64 place = cache_place(p.append, token, kv_len, offsets, block_table);
    const i32 position = positions[token];
    const u32 lane = lane_id();
    const u32 queries = (u32)p.q.x.inner, keys = (u32)p.k.x.inner;
    const u32 warps = THREADS / WARP_SIZE;
    for (u32 head = blockIdx.y * warps + threadIdx.x / WARP_SIZE; head < queries + 2 * keys; head += gridDim.y * warps) {
        const bool query = head < queries;
        if (!query && place == NOWHERE) {
            return;
        }
        if (head >= queries + keys) {
            const u64 own = head - queries - keys;
            const u64 from = p.append.src_v.start(token, own), to = place + own * p.append.kv.head_stride;
            for (u32 d = lane; d < p.append.src_v.len; d += WARP_SIZE) {
                store_cache(v_cache, to + d, p.append.kv_dtype, load_element(v, from + d, p.append.src_dtype));
            }
            continue;
        }
        const u64 own = query ? head : head - queries;
        const HeadParams &params = query ? p.q : p.k;
        Head h{params, query ? q : k, query ? q_weight : k_weight, params.x.start(token, own), 1.0f};
        if (h.weight) {
            h.inverse = h.inverse_root();
        }
        const u32 len = (u32)params.x.len;
        const u64 to = query ? p.out.start(token, own) : place + own * p.append.kv.head_stride;
        for (u32 d = lane; d < len; d += WARP_SIZE) {
            const float value = h.rotated(query ? q_table : k_table, position, d);
            if (query) {
                store_element(out, to + d, p.out_dtype, value);
            } else {
                store_cache(k_cache, to + d, p.append.kv_dtype, value);
            }
        }
    }
}
