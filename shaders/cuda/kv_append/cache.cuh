// Writing vectors into KV caches.
#ifndef PERJOULE_CACHE_CUH
#define PERJOULE_CACHE_CUH

#include "common/slots.cuh"

// Shape of an append: perjoule_kernels::op::KvAppend.
struct AppendParams {
    Rows src_k, src_v;
    KvLayout kv;
    u64 batch, q_len;
    u32 src_dtype, kv_dtype;
};

// First element of the place in the caches of `token` in head 0; NOWHERE when it has none. Called by whole warps.
DEVICE u64 cache_place(const AppendParams &p, u64 token, const i32 *__restrict__ kv_len, const i32 *__restrict__ offsets,
                       const i32 *__restrict__ table) {
    const Owner owner = owner_of(token, p.batch, p.q_len, p.src_k.outer, offsets);
    if (!owner.found) {
        return NOWHERE;
    }
    const i64 position =
        (i64)kv_len[owner.sequence] - (i64)owner.rows.count + (i64)(token - owner.rows.first);
    if (position < 0 || (u64)position >= p.kv.capacity) {
        return NOWHERE;
    }
    return kv_vector(p.kv, owner.sequence, (u64)position, table);
}

// Half away from zero.
DEVICE float round_away(float value) {
    const float whole = truncf(value);
    return fabsf(value - whole) >= 0.5f ? whole + copysignf(1.0f, value) : whole;
}

// Stores an element; `at` counts elements. Lanes of a warp hold neighbours, from a multiple of 32 on where the type is q8_0:
// then the warp quantises a block together.
DEVICE void store_cache(void *cache, u64 at, u32 dtype, float value) {
    if (dtype != DTYPE_Q8_0) {
        store_element(cache, at, dtype, value);
        return;
    }
    const float scale = reduce_warp<Max>(fabsf(value)) / 127.0f;
    const float inverse = scale == 0.0f ? 0.0f : 1.0f / scale;
    u8 *block = static_cast<u8 *>(cache) + at / 32 * 34;
    const u16 bits = to_f16(scale).bits;
    if (at % 32 < 2) {
        block[at % 32] = (u8)(at % 32 == 0 ? bits : bits >> 8);
    }
    block[2 + at % 32] = (u8)to_i8(round_away(value * inverse));
}

#endif
