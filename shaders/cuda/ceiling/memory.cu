// How fast memory can be read and copied: 16 bytes a thread and access, eight in flight, in a stride over the grid.

#include "common/element.cuh"

#define FLIGHT 8

struct alignas(16) Quad {
    u32 x, y, z, w;
};

DEVICE Quad read_once(const Quad* from) {
    Quad v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(from));
    return v;
}

// `count` is a multiple of FLIGHT times the threads of the grid.
extern "C" __global__ void __launch_bounds__(512) read(u64 count, const Quad* __restrict__ from, Quad* out) {
    const u64 threads = (u64)gridDim.x * blockDim.x;
    Quad sum = {0, 0, 0, 0};
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += FLIGHT * threads) {
        Quad v[FLIGHT];
        #pragma unroll
        for (int j = 0; j < FLIGHT; j++) {
            v[j] = read_once(from + i + j * threads);
        }
        #pragma unroll
        for (int j = 0; j < FLIGHT; j++) {
            sum.x ^= v[j].x;
            sum.y ^= v[j].y;
            sum.z ^= v[j].z;
            sum.w ^= v[j].w;
        }
    }
    if ((sum.x & sum.y & sum.z & sum.w) == 0x9e3779b9) {
        out[threadIdx.x] = sum;
    }
}

extern "C" __global__ void __launch_bounds__(512) copy(u64 count, const Quad* __restrict__ from, Quad* __restrict__ to) {
    const u64 threads = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += FLIGHT * threads) {
        Quad v[FLIGHT];
        #pragma unroll
        for (int j = 0; j < FLIGHT; j++) {
            v[j] = read_once(from + i + j * threads);
        }
        #pragma unroll
        for (int j = 0; j < FLIGHT; j++) {
            to[i + j * threads] = v[j];
        }
    }
}
