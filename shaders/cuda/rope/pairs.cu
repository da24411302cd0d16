// Rotary position embedding in place. A thread takes pairs of up to HEADS heads of a token, for which it computes sines and cosines
// once. Compiled for X (the element type) and RUN (elements of 16 bytes, and pairs of a thread) where heads begin at multiples of
// 16 bytes and have whole runs of pairs; without X for any, a pair a thread.
#include "common/tile.cuh"
#include "rope/common.cuh"

#define HEADS 4

struct RopeParams {
    Rows x;
    Rotation rotation;
    u32 parts, dtype;
};

// Token and first head of a group.
struct Group {
    u64 token, head;
    __device__ __forceinline__ Group(const Rows &x, u64 index) {
        token = divide(index, (x.inner + HEADS - 1) / HEADS, head);
        head *= HEADS;
    }
};

#ifdef X
extern "C" __global__ void rope_pairs(const __grid_constant__ RopeParams p, const i32 *__restrict__ positions,
                                      const u64 *__restrict__ table, X *__restrict__ x) {
    take_turn();
    const Tile<1> tile(p.x.outer * ((p.x.inner + HEADS - 1) / HEADS), p.rotation.pairs / RUN, p.parts);
    if (!tile.has(0)) {
        return;
    }
    const Group group(p.x, tile.vector);
    const u32 pair = (u32)tile.run(0) * RUN;
    const i32 position = positions[group.token];
    X *first = x + p.x.start(group.token, group.head) + p.rotation.first(pair);
    const u32 second = p.rotation.interleaved ? RUN : p.rotation.pairs;
    const u32 heads = p.x.inner - group.head < HEADS ? (u32)(p.x.inner - group.head) : HEADS;
    Raw<X, RUN> left[HEADS], right[HEADS];
#pragma unroll
    for (u32 h = 0; h < HEADS; h++) {
        if (h < heads) {
            left[h].load(first + h * p.x.inner_stride);
            right[h].load(first + h * p.x.inner_stride + second);
        }
    }
    float sine[RUN], cosine[RUN];
#pragma unroll
    for (int j = 0; j < RUN; j++) {
        p.rotation.angle(table, position, pair + j, sine[j], cosine[j]);
    }
#pragma unroll
    for (u32 h = 0; h < HEADS; h++) {
        if (h < heads) {
            float a[RUN], b[RUN];
            left[h].widen(a);
            right[h].widen(b);
            rotate(p.rotation.interleaved, sine, cosine, a, b);
            store_vector(first + h * p.x.inner_stride, a);
            store_vector(first + h * p.x.inner_stride + second, b);
        }
    }
}
#else
extern "C" __global__ void rope_any(const __grid_constant__ RopeParams p, const i32 *__restrict__ positions,
                                    const u64 *__restrict__ table, void *__restrict__ x) {
    take_turn();
    const Tile<1> tile(p.x.outer * ((p.x.inner + HEADS - 1) / HEADS), p.rotation.pairs, p.parts);
    if (!tile.has(0)) {
        return;
    }
    const Group group(p.x, tile.vector);
    const u32 pair = (u32)tile.run(0);
    float sine, cosine;
    p.rotation.angle(table, positions[group.token], pair, sine, cosine);
#pragma unroll 1
    for (u64 head = group.head; head < p.x.inner && head < group.head + HEADS; head++) {
        const u64 start = p.x.start(group.token, head);
        const u64 first = start + p.rotation.first(pair), second = start + p.rotation.second(pair);
        const float a = load_element(x, first, p.dtype), b = load_element(x, second, p.dtype);
        store_element(x, first, p.dtype, a * cosine - b * sine);
        store_element(x, second, p.dtype, a * sine + b * cosine);
    }
}
#endif
