// What kernels by mma.sync share: a warp's 16 rows as fragments, their running sums and softmax.
//
// Before inclusion: what parts.cuh wants, TYPE_NAME and SCORES.
#ifndef PERJOULE_ATTENTION_WARP_CUH
#define PERJOULE_ATTENTION_WARP_CUH

#include "attention/fragments.cuh"
#include "attention/parts.cuh"

// Two elements as a word of the type that is multiplied.
DEVICE u32 load_pair(const TYPE *from) {
    return *reinterpret_cast<const u32 *>(from);
}
DEVICE u32 load_pair(const float *from) {
    float pair[2];
    load_vector<2>(from, pair);
    return pack(pair, Tag<TYPE>{});
}

// The queries of 16 rows from `first` on, as fragments of A: lane / 4 and that plus 8.
using Queries = Fragments<D / 16, (D > 128)>;

DEVICE void load_queries(const Attention &p, const Unit &u, const void *q, i32 first, Queries &queries) {
    const i32 lane = (i32)threadIdx.x % 32;
    const Q_TYPE *from[2];
    bool present[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const i32 row = first + 8 * half + lane / 4, known = max(min(row, u.rows - 1), 0);
        const i64 at = (i64)(u.s.first + query_of(p, u, known)) * p.q_outer + head_of(p, u, known) * p.q_inner + lane % 4 * 2;
        from[half] = static_cast<const Q_TYPE *>(q) + at;
        present[half] = row < u.rows;
    }
#pragma unroll
    for (int i = 0; i < D / 16; i++) {
        u32 x[4];
#pragma unroll
        for (int j = 0; j < 4; j++) {
            x[j] = present[j % 2] ? load_pair(from[j % 2] + 16 * i + j / 2 * 8) : 0;
        }
        queries.put(i, x);
    }
}

// The rows of a warp (as those of its queries) and their running sums.
struct Sums {
    float values[D / 8][4];
    float tops[2], sums[2];

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            tops[half] = -INFINITE;
            sums[half] = 0.0f;
        }
#pragma unroll
        for (int j = 0; j < D / 8; j++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                values[j][i] = 0.0f;
            }
        }
    }
};

// Scores of COUNT keys, the first of which is `key`, become weights; sums follow. `row` is the warp's first.
template <int COUNT>
DEVICE void soften(const Attention &p, const Unit &u, float (&scores)[COUNT / 8][4], Sums &r, i32 key, i32 row, bool masked) {
    const i32 lane = (i32)threadIdx.x % 32;
#if SCORES
    const float inner = p.soft_cap != 0.0f ? p.scale / p.soft_cap : p.scale;
#pragma unroll
    for (int j = 0; j < COUNT / 8; j++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float x = scores[j][i] * inner;
            scores[j][i] = p.soft_cap != 0.0f ? p.soft_cap * tanh_approximate(x) : x;
        }
    }
#endif
    if (masked) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            i32 start, end;
            visible(p, u.s, query_of(p, u, min(row + 8 * half + lane / 4, u.rows - 1)), start, end);
#pragma unroll
            for (int i = 0; i < COUNT / 4; i++) {
                const i32 column = key + i / 2 * 8 + lane % 4 * 2 + i % 2;
                float &x = scores[i / 2][2 * half + i % 2];
                x = column >= start && column < end ? x : -INFINITE;
            }
        }
    }
    const float factor = SCORES ? LOG2E : p.scale * LOG2E;
    float keep[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float top = r.tops[half];
#pragma unroll
        for (int j = 0; j < COUNT / 8; j++) {
            top = fmaxf(fmaxf(top, scores[j][2 * half]), scores[j][2 * half + 1]);
        }
        top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
        top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
        const float less = subtrahend(top) * factor;
        keep[half] = top == r.tops[half] ? 1.0f : exp2_approximate(fmaf(r.tops[half], factor, -less));
        r.tops[half] = top;
        float sum = 0.0f;
#pragma unroll
        for (int j = 0; j < COUNT / 8; j++) {
#pragma unroll
            for (int i = 0; i < 2; i++) {
                float &x = scores[j][2 * half + i];
                x = exp2_approximate(fmaf(x, factor, -less));
                sum += x;
            }
        }
        r.sums[half] = fmaf(r.sums[half], keep[half], sum);
    }
    if (__any_sync(0xffffffffu, keep[0] != 1.0f || keep[1] != 1.0f)) {
#pragma unroll
        for (int j = 0; j < D / 8; j++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                r.values[j][i] *= keep[i / 2];
            }
        }
    }
}

// Weights of 16 keys are, in their order, a fragment of A.
DEVICE void pack_weights(const float (&first)[4], const float (&second)[4], u32 (&weights)[4]) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const float(&from)[4] = i < 2 ? first : second;
        const float pair[2] = {from[i % 2 * 2], from[i % 2 * 2 + 1]};
        weights[i] = pack(pair, Tag<TYPE>{});
    }
}

// A warp's sums to shared memory: row `at` of results of `pitch` floats, and the tops, in the units of exp2, with sums.
DEVICE void store_sums(const Attention &p, const Unit &u, const Sums &r, float *results, float *tops_sums, i32 pitch, i32 at, i32 row) {
    const i32 lane = (i32)threadIdx.x % 32;
    const float factor = SCORES ? LOG2E : p.scale * LOG2E;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const i32 within = 8 * half + lane / 4;
        float sum = r.sums[half];
        sum += __shfl_xor_sync(0xffffffffu, sum, 1);
        sum += __shfl_xor_sync(0xffffffffu, sum, 2);
        if (row + within < u.rows) {
            if (lane % 4 == 0) {
                tops_sums[2 * (at + within)] = r.tops[half] == -INFINITE ? -INFINITE : r.tops[half] * factor;
                tops_sums[2 * (at + within) + 1] = sum;
            }
#pragma unroll
            for (int j = 0; j < D / 8; j++) {
                const float pair[2] = {r.values[j][2 * half], r.values[j][2 * half + 1]};
                store_vector<2>(results + (at + within) * pitch + 8 * j + lane % 4 * 2, pair);
            }
        }
    }
}

#endif
