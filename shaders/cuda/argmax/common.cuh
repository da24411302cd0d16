// Logits in order: the largest first, of equal ones the one with the lowest index; NaN counts as larger than every number.
#ifndef PERJOULE_ORDER_CUH
#define PERJOULE_ORDER_CUH

#include "common/block.cuh"
#include "common/layout.cuh"

// Infinity's number is one less.
#define NUMBER_OF_NAN 0xff800001u

// A number that grows with the value; equal for both zeros, and for all NaN.
DEVICE u32 ordered(float value) {
    const u32 bits = bits_of(value + 0.0f);
    return is_nan(value) ? NUMBER_OF_NAN : bits >> 31 ? ~bits : bits | 0x80000000u;
}

// The value that a number stands for.
DEVICE float value_of(u32 number) {
    return number == NUMBER_OF_NAN ? NOT_A_NUMBER : float_of(number >> 31 ? number & 0x7fffffffu : ~number);
}

// Larger for what comes before; neither 0 nor all ones.
DEVICE u64 order_key(float value, u64 index) {
    return (u64)ordered(value) << 32 | (u32)~(u32)index;
}
DEVICE u32 index_of(u64 key) {
    return ~(u32)key;
}

#ifdef X
typedef X Logit;
#define LOAD_RUN 1
#else
typedef u8 Logit;
#define RUN 1
#define LOAD_RUN 0
#endif

// Calls `f(value, index)` for the elements of a part of a vector: runs `first`, `first + step`, .. below `end`.
template <int BATCH, class F>
DEVICE void for_runs(const void *x, u64 start, u32 dtype, u64 first, u64 step, u64 end, F f) {
    for (u64 run = first; run < end; run += BATCH * step) {
#if LOAD_RUN
        Raw<Logit, RUN> raw[BATCH];
#pragma unroll
        for (int i = 0; i < BATCH; i++) {
            if (run + i * step < end) {
                raw[i].load(static_cast<const Logit *>(x) + start + (run + i * step) * RUN);
            }
        }
#else
        float raw[BATCH];
#pragma unroll
        for (int i = 0; i < BATCH; i++) {
            if (run + i * step < end) {
                raw[i] = load_element(x, start + run + i * step, dtype);
            }
        }
#endif
#pragma unroll
        for (int i = 0; i < BATCH; i++) {
            if (run + i * step < end) {
#if LOAD_RUN
                float values[RUN];
                raw[i].widen(values);
#pragma unroll
                for (int j = 0; j < RUN; j++) {
                    f(values[j], (run + i * step) * RUN + j);
                }
#else
                f(raw[i], run + i * step);
#endif
            }
        }
    }
}

// The part of a vector that block `part` of `parts` looks at, in runs.
struct Part {
    u64 first, end;
    __device__ __forceinline__ Part(u64 len, u32 part, u32 parts) {
        const u64 runs = len / RUN, each = (runs + parts - 1) / parts;
        first = part * each < runs ? part * each : runs;
        end = first + each < runs ? first + each : runs;
    }
};

#endif
