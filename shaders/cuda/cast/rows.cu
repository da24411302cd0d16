// Conversion of element types. Compiled for X, OUT and RUN (elements of 16 bytes of OUT) where all vectors begin at
// multiples of what a run takes, up to 16 bytes, and have whole runs, and f32 holds every X; without them for any types.
#include "common/tile.cuh"

#ifndef ITEMS
#define ITEMS 4
#endif

struct CastParams {
    Rows x, out;
    u32 parts, from, to, unused;
};

#ifdef X
extern "C" __global__ void cast_rows(const __grid_constant__ CastParams p, const X *__restrict__ x,
                                     OUT *__restrict__ out) {
    take_turn();
    const Tile<ITEMS> tile(p.out.count(), p.out.len / RUN, p.parts);
    const X *from = x + p.x.start_of(tile.vector);
    OUT *to = out + p.out.start_of(tile.vector);
    Raw<X, RUN> raw[ITEMS];
#pragma unroll
    for (int i = 0; i < ITEMS; i++) {
        if (tile.has(i)) {
            raw[i].load(from + tile.run(i) * RUN);
        }
    }
#pragma unroll
    for (int i = 0; i < ITEMS; i++) {
        if (tile.has(i)) {
            float value[RUN];
            raw[i].widen(value);
            store_vector(to + tile.run(i) * RUN, value);
        }
    }
}
#else
// An integer as the f32 that rounds to the same value of a narrower float, or of an integer type, as the integer itself does
// (round to odd: Boldo and Melquiond, "When double rounding is odd").
DEVICE float odd(u64 magnitude, bool negative) {
    u32 shift = 0;
    while (magnitude >> shift >= 1u << 24) {
        shift++;
    }
    u64 kept = magnitude >> shift;
    kept |= (kept << shift) != magnitude;
    const float value = (float)(u32)kept * float_of((127u + shift) << 23);
    return negative ? -value : value;
}

DEVICE void cast_integer(const CastParams &p, i64 value, void *out, u64 at) {
    switch (p.to) {
    case DTYPE_F32: static_cast<float *>(out)[at] = (float)value; break;
    case DTYPE_I8: static_cast<i8 *>(out)[at] = (i8)(value < -128 ? -128 : value > 127 ? 127 : value); break;
    case DTYPE_I32: static_cast<i32 *>(out)[at] = (i32)(value > 0x7fffffff ? 0x7fffffff : value); break;
    case DTYPE_U32: static_cast<u32 *>(out)[at] = (u32)(value < 0 ? 0 : value); break;
    default: store_element(out, at, p.to, odd((u64)(value < 0 ? -value : value), value < 0)); break;
    }
}

extern "C" __global__ void cast_any(const __grid_constant__ CastParams p, const void *__restrict__ x,
                                    void *__restrict__ out) {
    take_turn();
    const Tile<ITEMS> tile(p.out.count(), p.out.len, p.parts);
    const u64 from = p.x.start_of(tile.vector), to = p.out.start_of(tile.vector);
#pragma unroll
    for (int i = 0; i < ITEMS; i++) {
        if (tile.has(i)) {
            const u64 d = tile.run(i);
            // f32 does not hold every 32-bit integer
            if (p.from == DTYPE_I32) {
                cast_integer(p, static_cast<const i32 *>(x)[from + d], out, to + d);
            } else if (p.from == DTYPE_U32) {
                cast_integer(p, static_cast<const u32 *>(x)[from + d], out, to + d);
            } else {
                store_element(out, to + d, p.to, decode_element(x, from + d, p.from));
            }
        }
    }
}
#endif
