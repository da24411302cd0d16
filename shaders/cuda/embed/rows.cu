// Rows of a table by index, scaled; NaN where the table has no such row. Compiled for X, OUT (types of table and output) and
// RUN (elements of 16 bytes of OUT) where rows begin at multiples of what a run takes, up to 16 bytes, and have whole
// runs; without them for any types, block formats included.
#include "common/tile.cuh"

#ifndef ITEMS
#define ITEMS 2
#endif

struct EmbedParams {
    Rows out;
    u64 vocab;
    float scale;
    u32 parts, table_dtype, out_dtype;
};

#ifdef X
extern "C" __global__ void embed_rows(const __grid_constant__ EmbedParams p, const i32 *__restrict__ ids,
                                      const X *__restrict__ table, OUT *__restrict__ out) {
    take_turn();
    const Tile<ITEMS> tile(p.out.outer, p.out.len / RUN, p.parts);
    const i32 id = tile.runs == 0 ? -1 : ids[tile.vector];
    const bool known = id >= 0 && (u64)id < p.vocab;
    const X *from = table + (known ? (u64)id * p.out.len : 0);
    OUT *to = out + p.out.start(tile.vector, 0);
    Raw<X, RUN> raw[ITEMS];
#pragma unroll
    for (int i = 0; i < ITEMS; i++) {
        if (known && tile.has(i)) {
            raw[i].load(from + tile.run(i) * RUN);
        }
    }
#pragma unroll
    for (int i = 0; i < ITEMS; i++) {
        if (tile.has(i)) {
            float value[RUN];
            raw[i].widen(value);
#pragma unroll
            for (int j = 0; j < RUN; j++) {
                value[j] = known ? value[j] * p.scale : NOT_A_NUMBER;
            }
            store_vector(to + tile.run(i) * RUN, value);
        }
    }
}
#else
extern "C" __global__ void embed_any(const __grid_constant__ EmbedParams p, const i32 *__restrict__ ids,
                                     const void *__restrict__ table, void *__restrict__ out) {
    take_turn();
    const Tile<ITEMS> tile(p.out.outer, p.out.len, p.parts);
    const i32 id = tile.runs == 0 ? -1 : ids[tile.vector];
    const bool known = id >= 0 && (u64)id < p.vocab;
    const u64 from = known ? (u64)id * p.out.len : 0, to = p.out.start(tile.vector, 0);
#pragma unroll
    for (int i = 0; i < ITEMS; i++) {
        if (tile.has(i)) {
            const u64 d = tile.run(i);
            const float value =
                known ? decode_element(table, from + d, p.table_dtype) * p.scale : NOT_A_NUMBER;
            store_element(out, to + d, p.out_dtype, value);
        }
    }
}
#endif
