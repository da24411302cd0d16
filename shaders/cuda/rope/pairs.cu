// Rotary position embedding in place: a thread takes pairs of one head. Compiled for X (the element type) and RUN (elements of
// 16 bytes, and pairs of a thread) where heads begin at multiples of 16 bytes and have whole runs of pairs; without X for any.
#include "common/tile.cuh"
#include "rope/common.cuh"

struct RopeParams {
    Rows x;
    Rotation rotation;
    u32 parts, dtype;
};

#ifdef X
extern "C" __global__ void rope_pairs(const __grid_constant__ RopeParams p, const i32 *__restrict__ positions,
                                      const u64 *__restrict__ table, X *__restrict__ x) {
    const Tile<1> tile(p.x.count(), p.rotation.pairs / RUN, p.parts);
    if (!tile.has(0)) {
        return;
    }
    u64 head;
    const u64 token = divide(tile.vector, p.x.inner, head);
    const u32 pair = (u32)tile.run(0) * RUN;
    X *first = x + p.x.start(token, head) + p.rotation.first(pair);
    X *second = p.rotation.interleaved ? first + RUN : first + p.rotation.pairs;
    float a[RUN], b[RUN];
    load_vector(first, a);
    load_vector(second, b);
    rotate(p.rotation, table, positions[token], pair, a, b);
    store_vector(first, a);
    store_vector(second, b);
}
#else
extern "C" __global__ void rope_any(const __grid_constant__ RopeParams p, const i32 *__restrict__ positions,
                                    const u64 *__restrict__ table, void *__restrict__ x) {
    const Tile<1> tile(p.x.count(), p.rotation.pairs, p.parts);
    if (!tile.has(0)) {
        return;
    }
    u64 head;
    const u64 token = divide(tile.vector, p.x.inner, head);
    const u32 pair = (u32)tile.run(0);
    const u64 start = p.x.start(token, head);
    const u64 first = start + p.rotation.first(pair), second = start + p.rotation.second(pair);
    float a[1] = {load_element(x, first, p.dtype)}, b[1] = {load_element(x, second, p.dtype)};
    float sine, cosine;
    p.rotation.angle(table, positions[token], pair, sine, cosine);
    store_element(x, first, p.dtype, a[0] * cosine - b[0] * sine);
    store_element(x, second, p.dtype, a[0] * sine + b[0] * cosine);
}
#endif
