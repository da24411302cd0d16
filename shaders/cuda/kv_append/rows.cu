// Keys and values of new tokens into the caches: a block takes a token. Compiled for X, KV (types of sources and caches) and RUN
// (elements of 16 bytes of the wider) where vectors begin at multiples of what a run takes and have whole runs; without them for
// any types, and then a warp takes 32 neighbouring elements of a head at a time.
#include "kv_append/cache.cuh"

#define THREADS 256

#ifdef X
extern "C" __global__ void __launch_bounds__(THREADS)
    kv_append_runs(const __grid_constant__ AppendParams p, const X *__restrict__ k, const X *__restrict__ v,
                   const i32 *__restrict__ kv_len, const i32 *__restrict__ offsets, const i32 *__restrict__ table,
                   KV *__restrict__ k_cache, KV *__restrict__ v_cache) {
    take_turn();
    const u32 token = blockIdx.x, runs = (u32)p.kv.head_dim / RUN, all = 2 * (u32)p.kv.kv_heads * runs;
    const u64 place = cache_place(p, token, kv_len, offsets, table);
    if (place == NOWHERE) {
        return;
    }
    for (u32 task = threadIdx.x; task < all; task += blockDim.x) {
        const u32 vector = task / runs, d = (task - vector * runs) * RUN;
        const u32 head = vector / 2;
        const bool values = vector % 2;
        float value[RUN];
        load_vector((values ? v + p.src_v.start(token, head) : k + p.src_k.start(token, head)) + d, value);
        store_vector((values ? v_cache : k_cache) + place + head * p.kv.head_stride + d, value);
    }
}
#else
extern "C" __global__ void __launch_bounds__(THREADS)
    kv_append(const __grid_constant__ AppendParams p, const void *__restrict__ k, const void *__restrict__ v,
              const i32 *__restrict__ kv_len, const i32 *__restrict__ offsets, const i32 *__restrict__ table,
              void *__restrict__ k_cache, void *__restrict__ v_cache) {
    take_turn();
    const u64 token = blockIdx.x;
    const u64 place = cache_place(p, token, kv_len, offsets, table);
    if (place == NOWHERE) {
        return;
    }
    const u32 len = (u32)p.kv.head_dim, pieces = (len + WARP_SIZE - 1) / WARP_SIZE;
    const u32 all = 2 * (u32)p.kv.kv_heads * pieces;
    for (u32 task = threadIdx.x / WARP_SIZE; task < all; task += THREADS / WARP_SIZE) {
        const u32 vector = task / pieces, d = (task - vector * pieces) * WARP_SIZE + lane_id();
        const u64 head = vector / 2;
        const bool values = vector % 2;
        // whole warps, where blocks are quantised: their vectors are whole blocks
        if (d < len) {
            const u64 from = (values ? p.src_v : p.src_k).start(token, head) + d;
            const float value = load_element(values ? v : k, from, p.src_dtype);
            store_cache(values ? v_cache : k_cache, place + head * p.kv.head_stride + d, p.kv_dtype, value);
        }
    }
}
#endif
