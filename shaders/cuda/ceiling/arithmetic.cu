// What the arithmetic units can do at most: multiply-adds in registers, and the tensor cores out of shared memory.
//
// Every block computes the same number of rounds; results are written only if a condition holds that never does, so that nothing is
// optimised away. Defines: KIND, 0 for f32 multiply-adds, else the tensor cores on ELEMENT (a Dtype id; f32 as tf32), by wgmma on
// Hopper and by mma.sync elsewhere.

#include "common/element.cuh"

#if KIND == 0

#define CHAINS 16

extern "C" __global__ void __launch_bounds__(512) multiply_add(u64 rounds, float x, float y, float* out) {
    float sums[CHAINS];
    #pragma unroll
    for (int i = 0; i < CHAINS; i++) {
        sums[i] = (float)(threadIdx.x + i);
    }
    for (u64 round = 0; round < rounds; round++) {
        #pragma unroll
        for (int i = 0; i < CHAINS; i++) {
            sums[i] = sums[i] * x + y;
        }
    }
    float sum = 0;
    #pragma unroll
    for (int i = 0; i < CHAINS; i++) {
        sum += sums[i];
    }
    if (sum == -1.5f) {
        out[threadIdx.x] = sum;
    }
}

#else

#if ELEMENT == 0
#define STEP "k8.f32.tf32.tf32"
#define TAIL ", 1, 1"
#elif ELEMENT == 1
#define STEP "k16.f32.f16.f16"
#define TAIL ", 1, 1, 0, 0"
#elif ELEMENT == 2
#define STEP "k16.f32.bf16.bf16"
#define TAIL ", 1, 1, 0, 0"
#elif ELEMENT == 3
#define STEP "k32.f32.e4m3.e4m3"
#define TAIL ", 1, 1"
#else
#define STEP "k32.s32.s8.s8"
#define TAIL ""
#endif
#if ELEMENT == 4
typedef i32 Accumulator;
#define ACCUMULATOR(x) "+r"(x)
#else
typedef float Accumulator;
#define ACCUMULATOR(x) "+f"(x)
#endif

// A word of operands that switches about as many transistors as real ones do: power limits the clock. Floats lie in -2..2.
DEVICE u32 word(u32 seed) {
    u32 x = seed * 747796405u + 2891336453u;
    x = (x >> ((x >> 28) + 4) ^ x) * 277803737u;
    x ^= x >> 22;
#if ELEMENT == 0
    return (x & 0x807fffff) | 0x3f800000;
#elif ELEMENT == 1
    return (x & 0x83ff83ff) | 0x3c003c00;
#elif ELEMENT == 2
    return (x & 0x807f807f) | 0x3f803f80;
#elif ELEMENT == 3
    return (x & 0x87878787) | 0x38383838;
#else
    return x;
#endif
}

#ifdef HOPPER

#define WGMMA_STEP STEP
#define WGMMA_TAIL TAIL
#include "common/wgmma.cuh"

#define WIDTH 256

// Two warpgroups, 64 x 256 each, four steps along k from one slice of operands, as a product's main loop does it.
extern "C" __global__ void __launch_bounds__(256, 1) tensor(u64 rounds, Accumulator* out) {
    extern __shared__ __align__(1024) unsigned char shared[];
    u32* words = (u32*)shared;
    for (u32 i = threadIdx.x; i < (128 + WIDTH) * 128 / 4; i += blockDim.x) {
        words[i] = word(i + 7919 * blockIdx.x);
    }
    fence_async_shared();
    __syncthreads();
    const u32 base = (shared_address(shared) + 1023) & ~1023u;
    const u32 group = threadIdx.x / 128;
    Accumulator d[WIDTH / 2];
    #pragma unroll
    for (int i = 0; i < WIDTH / 2; i++) {
        d[i] = 0;
    }
    const u32 left = descriptor_low<0>(base + group * 64 * 128);
    const u32 right = descriptor_low<0>(base + 128 * 128);
    for (u64 round = 0; round < rounds; round++) {
        wgmma_fence();
        #pragma unroll
        for (int step = 0; step < 4; step++) {
            Wgmma<WIDTH>::multiply(d, descriptor<1024>(left + 2 * step), descriptor<1024>(right + 2 * step), 1);
        }
        wgmma_commit();
        wgmma_wait<0>();
    }
    Accumulator sum = 0;
    #pragma unroll
    for (int i = 0; i < WIDTH / 2; i++) {
        sum += d[i];
    }
    if (sum == (Accumulator)-12345) {
        out[threadIdx.x] = sum;
    }
}

#else

#define TILES 16

#if ELEMENT == 0
#define SHAPE "m16n8k8.row.col.f32.tf32.tf32.f32"
#elif ELEMENT == 1
#define SHAPE "m16n8k16.row.col.f32.f16.f16.f32"
#elif ELEMENT == 2
#define SHAPE "m16n8k16.row.col.f32.bf16.bf16.f32"
#elif ELEMENT == 3
#define SHAPE "m16n8k32.row.col.f32.e4m3.e4m3.f32"
#else
#define SHAPE "m16n8k32.row.col.s32.s8.s8.s32"
#endif

// Every warp multiplies the same fragments into TILES accumulators of 16 x 8.
extern "C" __global__ void __launch_bounds__(256) tensor(u64 rounds, Accumulator* out) {
    Accumulator d[TILES][4] = {};
    u32 a[4], b[2];
    #pragma unroll
    for (int i = 0; i < 4; i++) {
        a[i] = word(threadIdx.x * 8 + i);
        b[i % 2] = word(threadIdx.x * 8 + 4 + i);
    }
    for (u64 round = 0; round < rounds; round++) {
        #pragma unroll
        for (int i = 0; i < TILES; i++) {
            asm volatile("mma.sync.aligned." SHAPE " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                         : ACCUMULATOR(d[i][0]), ACCUMULATOR(d[i][1]), ACCUMULATOR(d[i][2]), ACCUMULATOR(d[i][3])
                         : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
        }
    }
    Accumulator sum = 0;
    #pragma unroll
    for (int i = 0; i < TILES; i++) {
        sum += d[i][0] + d[i][1] + d[i][2] + d[i][3];
    }
    if (sum == (Accumulator)-12345) {
        out[threadIdx.x] = sum;
    }
}

#endif
#endif
