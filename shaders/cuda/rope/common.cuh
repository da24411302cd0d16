// What kernels that rotate have in common (arXiv:2104.09864).
#ifndef PERJOULE_ROPE_CUH
#define PERJOULE_ROPE_CUH

#include "common/layout.cuh"
#include "common/math.cuh"

// A rotation. Beside it kernels get a table: by how many 2^-64 turns a token moves each pair.
struct Rotation {
    // Pairs that are rotated: half of rotary_dim.
    u32 pairs;
    // Whether the elements of a pair are neighbours, not a half of rotary_dim apart.
    u32 interleaved;
    // Factor of cosine and sine.
    float factor;
    u32 unused;

    __device__ __forceinline__ void angle(const u64 *__restrict__ table, i32 position, u32 pair, float &sine,
                                          float &cosine) const {
        // whole turns overflow
        sincos_turns((u64)(i64)position * table[pair], sine, cosine);
        sine *= factor;
        cosine *= factor;
    }
    // The elements of a pair.
    __device__ __forceinline__ u32 first(u32 pair) const {
        return interleaved ? 2 * pair : pair;
    }
    __device__ __forceinline__ u32 second(u32 pair) const {
        return interleaved ? 2 * pair + 1 : pair + pairs;
    }
};

// Rotates N pairs, as memory has them: halves of pairs in `a` and `b`, or whole pairs one after the other.
template <int N>
DEVICE void rotate(bool interleaved, const float (&sine)[N], const float (&cosine)[N], float (&a)[N], float (&b)[N]) {
    if (interleaved) {
#pragma unroll
        for (int j = 0; j < N; j++) {
            float &x = 2 * j < N ? a[2 * j % N] : b[2 * j % N];
            float &y = 2 * j < N ? a[2 * j % N + 1] : b[2 * j % N + 1];
            const float turned = x * cosine[j] - y * sine[j];
            y = x * sine[j] + y * cosine[j];
            x = turned;
        }
        return;
    }
#pragma unroll
    for (int j = 0; j < N; j++) {
        const float turned = a[j] * cosine[j] - b[j] * sine[j];
        b[j] = a[j] * sine[j] + b[j] * cosine[j];
        a[j] = turned;
    }
}

#endif
