// out = a + b. Compiled for X (the element type) and RUN (elements of 16 bytes) where all vectors begin at multiples of 16
// bytes and have whole runs; without X for any type, an element a run.
#include "common/tile.cuh"

#ifndef ITEMS
#define ITEMS 4
#endif

struct AddParams {
    Rows a, b, out;
    u32 parts, dtype;
};

#ifdef X
extern "C" __global__ void add_rows(const __grid_constant__ AddParams p, const X *__restrict__ a,
                                    const X *__restrict__ b, X *__restrict__ out) {
    take_turn();
    const Tile<ITEMS> tile(p.out.count(), p.out.len / RUN, p.parts);
    const X *x = a + p.a.start_of(tile.vector), *y = b + p.b.start_of(tile.vector);
    X *to = out + p.out.start_of(tile.vector);
    Raw<X, RUN> left[ITEMS], right[ITEMS];
#pragma unroll
    for (int i = 0; i < ITEMS; i++) {
        if (tile.has(i)) {
            left[i].load(x + tile.run(i) * RUN);
            right[i].load(y + tile.run(i) * RUN);
        }
    }
#pragma unroll
    for (int i = 0; i < ITEMS; i++) {
        if (tile.has(i)) {
            float sum[RUN], other[RUN];
            left[i].widen(sum);
            right[i].widen(other);
#pragma unroll
            for (int j = 0; j < RUN; j++) {
                sum[j] += other[j];
            }
            store_vector(to + tile.run(i) * RUN, sum);
        }
    }
}
#else
extern "C" __global__ void add_any(const __grid_constant__ AddParams p, const void *__restrict__ a,
                                   const void *__restrict__ b, void *__restrict__ out) {
    take_turn();
    const Tile<ITEMS> tile(p.out.count(), p.out.len, p.parts);
    const u64 x = p.a.start_of(tile.vector), y = p.b.start_of(tile.vector), to = p.out.start_of(tile.vector);
#pragma unroll
    for (int i = 0; i < ITEMS; i++) {
        if (tile.has(i)) {
            const u64 d = tile.run(i);
            store_element(out, to + d, p.dtype, load_element(a, x + d, p.dtype) + load_element(b, y + d, p.dtype));
        }
    }
}
#endif
