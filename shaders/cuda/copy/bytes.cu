// A copy of bytes, 16 at a time where both sides allow it: collectives of a group of one.
#include "common/element.cuh"

#define THREADS 256

struct CopyParams {
    u64 bytes;
};

extern "C" __global__ void __launch_bounds__(THREADS)
    copy_bytes(const __grid_constant__ CopyParams p, const u8 *__restrict__ from, u8 *__restrict__ to) {
    take_turn();
    const u64 first = (u64)blockIdx.x * THREADS + threadIdx.x, step = (u64)gridDim.x * THREADS;
    u64 done = 0;
    if (((u64)from | (u64)to) % 16 == 0) {
        for (u64 i = first; i < p.bytes / 16; i += step) {
            reinterpret_cast<Words<16> *>(to)[i] = reinterpret_cast<const Words<16> *>(from)[i];
        }
        done = p.bytes / 16 * 16;
    }
    for (u64 i = done + first; i < p.bytes; i += step) {
        to[i] = from[i];
    }
}
