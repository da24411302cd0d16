// Fragments of mma.sync: 16 x 16 by 16 x 8 products of 16-bit elements, and how they come from shared memory.
//
// Before inclusion: TYPE_NAME, the type's name in instructions.
#ifndef PERJOULE_ATTENTION_FRAGMENTS_CUH
#define PERJOULE_ATTENTION_FRAGMENTS_CUH

#include "common/element.cuh"

// Four 8 x 8 matrices; lane 8 i + r gives the address of row r of matrix i.
DEVICE void load_matrices(u32 (&x)[4], u32 at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(at)
                 : "memory");
}

// The same, transposed.
DEVICE void load_transposed(u32 (&x)[4], u32 at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(at)
                 : "memory");
}

// d += a b.
DEVICE void multiply(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." TYPE_NAME "." TYPE_NAME ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// STEPS fragments of A: in registers, or, where these are few, in shared memory as they are, 16 bytes a lane.
template <int STEPS, bool SHARED> struct Fragments {
    u32 x[STEPS][4];

    static constexpr u32 BYTES = 0;

    __device__ __forceinline__ explicit Fragments(u32) {
    }
    __device__ __forceinline__ void put(int i, const u32 (&from)[4]) {
#pragma unroll
        for (int j = 0; j < 4; j++) {
            x[i][j] = from[j];
        }
    }
    __device__ __forceinline__ void get(int i, u32 (&to)[4]) const {
#pragma unroll
        for (int j = 0; j < 4; j++) {
            to[j] = x[i][j];
        }
    }
};

template <int STEPS> struct Fragments<STEPS, true> {
    u32 at;

    static constexpr u32 BYTES = STEPS * 512;

    __device__ __forceinline__ explicit Fragments(u32 base) : at(base + threadIdx.x % 32 * 16) {
    }
    __device__ __forceinline__ void put(int i, const u32 (&from)[4]) {
        asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(at + i * 512), "r"(from[0]), "r"(from[1]), "r"(from[2]), "r"(from[3])
                     : "memory");
    }
    __device__ __forceinline__ void get(int i, u32 (&to)[4]) const {
        asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];" : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(at + i * 512));
    }
};

#endif
