// Slots as untrusted numbers: perjoule_kernels::op::slots. Whatever they hold, what follows stays within the operands.
#ifndef PERJOULE_SLOTS_CUH
#define PERJOULE_SLOTS_CUH

#include "common/block.cuh"
#include "common/layout.cuh"

// Keys of a sequence: at most `capacity`, and none for lengths below 0.
DEVICE u64 kv_length(i32 kv_len, u64 capacity) {
    return kv_len < 0 ? 0 : (u64)kv_len < capacity ? (u64)kv_len : capacity;
}

#define NOWHERE (~0ull)

// First element of the vector of `token`, below the capacity, in head 0 of `sequence`; NOWHERE where the block table (that
// of all sequences) names no block of the cache.
DEVICE u64 kv_vector(const KvLayout &kv, u64 sequence, u64 token, const i32 *__restrict__ table) {
    if (kv.block == 0) {
        return sequence * kv.batch_stride + token * kv.token_stride;
    }
    u64 within;
    const u64 at = divide(token, kv.block, within);
    const i32 block = table[sequence * kv.blocks_per_sequence() + at];
    if (block < 0 || (u64)block >= kv.blocks) {
        return NOWHERE;
    }
    return (u64)block * kv.batch_stride + within * kv.token_stride;
}

// Query rows of one sequence: `first` and `count`. Offsets that go down count as if they stayed.
struct QueryRows {
    u64 first, count;
};

// Those of sequence `b`, when ragged by `offsets`; else offsets is null. Called by whole warps, since they look at all
// offsets up to that of `b` together.
DEVICE QueryRows query_rows(u64 b, u64 q_len, u64 tokens, const i32 *__restrict__ offsets) {
    if (offsets == nullptr) {
        return QueryRows{b * q_len, q_len};
    }
    i32 highest = 0;
    for (u64 i = lane_id(); i <= b; i += WARP_SIZE) {
        highest = Max::apply(highest, offsets[i]);
    }
    highest = reduce_warp<Max>(highest);
    const i32 next = Max::apply(highest, offsets[b + 1]);
    const u64 first = (u64)highest < tokens ? (u64)highest : tokens;
    const u64 end = (u64)next < tokens ? (u64)next : tokens;
    const u64 count = end - first;
    return QueryRows{first, count < q_len ? count : q_len};
}

// The sequence that a query row belongs to.
struct Owner {
    // Whether there is one: rows behind the last are padding.
    bool found;
    u64 sequence;
    QueryRows rows;
};

// That of row `token`. Called by whole warps. The sequence is the one before the first offset beyond the row, since offsets
// that go down count as if they stayed.
DEVICE Owner owner_of(u64 token, u64 batch, u64 q_len, u64 tokens, const i32 *__restrict__ offsets) {
    if (offsets == nullptr) {
        u64 rest;
        const u64 b = divide(token, q_len, rest);
        return Owner{b < batch, b, QueryRows{b * q_len, q_len}};
    }
    i32 highest = 0;
    for (u64 from = 0; from <= batch; from += WARP_SIZE) {
        const u64 at = from + lane_id();
        const i32 offset = at <= batch ? offsets[at] : -1;
        const bool beyond = offset >= 0 && (u64)offset > token;
        const u32 mask = __ballot_sync(FULL_MASK, beyond);
        const u32 first = mask == 0 ? WARP_SIZE : (u32)__ffs((int)mask) - 1;
        highest = Max::apply(highest, reduce_warp<Max>(lane_id() < first ? offset : 0));
        if (mask != 0) {
            const u64 next = from + first;
            if (next == 0) {
                break;
            }
            const u64 start = (u64)highest;
            u64 end = (u64)offsets[next];
            end = end < tokens ? end : tokens;
            const u64 count = end - start < q_len ? end - start : q_len;
            return Owner{token < start + count, next - 1, QueryRows{start, count}};
        }
    }
    return Owner{false, 0, QueryRows{0, 0}};
}

#endif
