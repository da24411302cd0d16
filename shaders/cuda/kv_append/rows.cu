// Keys and values of new tokens into the caches: a block takes a token, a warp 32 neighbouring elements of a head at a time.
#include "kv_append/cache.cuh"

#define THREADS 256

extern "C" __global__ void __launch_bounds__(THREADS)
    kv_append(const __grid_constant__ AppendParams p, const void *__restrict__ k, const void *__restrict__ v,
              const i32 *__restrict__ kv_len, const i32 *__restrict__ offsets, const i32 *__restrict__ table,
              void *__restrict__ k_cache, void *__restrict__ v_cache) {
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
