// Matrix products of f32 by fused multiply-adds: C = epilogue(A B), batched. Exact products, sums in f32.
//
// A block of 256 threads computes 128 x 128 of C, a thread 8 x 8 of it: four by four quarters 64 apart, so that what a warp reads of
// shared memory is contiguous. Slices of 16 along k lie in shared memory as [k][row]; the next one is on its way through registers while
// one is multiplied.
//
// Preconditions: each operand has a stride of 1, its other strides and its first byte are multiples of 16 bytes, and so is its extent
// along the contiguous dimension.
//
// Defines: A_ALONG_K, B_ALONG_K (whether k is contiguous).

#include "common/product.cuh"

struct Params {
    // Elements from a line (what is contiguous) to the next, and from a matrix to the next.
    i64 a_line, a_batch, b_line, b_batch;
    i64 c_row, c_col, c_batch, residual_row, residual_col, residual_batch;
    u32 m, n, k, batch;
    u32 c_dtype, bias_dtype, residual_dtype;
    u32 a_scale, b_scale;
    u32 has_bias, has_residual;
    u32 activation;
    float scale;
    u32 pad;
};

constexpr u32 TILE = 128;
constexpr u32 DEPTH = 16;
constexpr u32 THREADS = 256;
constexpr u32 PITCH = TILE + 4;

struct alignas(16) Float4 {
    float v[4];
};

// A thread's share of a slice on its way.
template <bool ALONG_K> struct Share {
    Float4 part[2];

    __device__ __forceinline__ void load(const float *from, i64 line, u32 first, u32 count, u32 k0, u32 k) {
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            const u32 at = threadIdx.x + i * THREADS;
            const u32 step = ALONG_K ? k0 + at % 4 * 4 : k0 + at / 32, row = first + (ALONG_K ? at / 4 : at % 32 * 4);
            part[i] = Float4{};
            if (step < k && row < count) {
                part[i] = *reinterpret_cast<const Float4 *>(from + (ALONG_K ? row * line + step : step * line + row));
            }
        }
    }

    __device__ __forceinline__ void store(float (*to)[PITCH]) const {
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            const u32 at = threadIdx.x + i * THREADS;
            if (ALONG_K) {
#pragma unroll
                for (u32 j = 0; j < 4; j++) {
                    to[at % 4 * 4 + j][at / 4] = part[i].v[j];
                }
            } else {
                *reinterpret_cast<Float4 *>(&to[at / 32][at % 32 * 4]) = part[i];
            }
        }
    }
};

DEVICE void store(const Params &p, float v, u32 batch, u32 row, u32 col, const float *a_scale, const float *b_scale, const void *bias, const void *residual,
                  void *c) {
    if (p.a_scale != SCALE_NONE) {
        v *= a_scale[p.a_scale == SCALE_TENSOR ? batch : (u64)batch * p.m + row];
    }
    if (p.b_scale != SCALE_NONE) {
        v *= b_scale[p.b_scale == SCALE_TENSOR ? batch : (u64)batch * p.n + col];
    }
    v *= p.scale;
    if (p.has_bias) {
        v += load_element(bias, col, p.bias_dtype);
    }
    v = activate(v, p.activation);
    if (p.has_residual) {
        v += load_element(residual, (u64)(batch * p.residual_batch + row * p.residual_row + col * p.residual_col), p.residual_dtype);
    }
    store_element(c, (u64)(batch * p.c_batch + row * p.c_row + col * p.c_col), p.c_dtype, v);
}

extern "C" __global__ void __launch_bounds__(THREADS, 2)
fma_tiles(const __grid_constant__ Params p, const float *__restrict__ a, const float *__restrict__ b, const float *__restrict__ a_scale,
          const float *__restrict__ b_scale, const void *__restrict__ bias, const void *__restrict__ residual, void *__restrict__ c) {
    __shared__ __align__(16) float left[2][DEPTH][PITCH];
    __shared__ __align__(16) float right[2][DEPTH][PITCH];
    // bands of eight tiles of rows, so that blocks that run together share what they read
    const u32 rows = (p.m + TILE - 1) / TILE, columns = (p.n + TILE - 1) / TILE;
    const u32 band = blockIdx.x / (8 * columns), height = rows - band * 8 < 8 ? rows - band * 8 : 8, within = blockIdx.x % (8 * columns);
    const u32 row0 = (band * 8 + within % height) * TILE, col0 = within / height * TILE;
    // a warp has 4 x 8 threads, the block 4 x 2 warps
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const u32 row = (warp / 2 * 4 + lane / 8) * 4, col = (warp % 2 * 8 + lane % 8) * 4;
    const u32 slices = (p.k + DEPTH - 1) / DEPTH;

    for (u32 batch = blockIdx.y; batch < p.batch; batch += gridDim.y) {
        const float *from_a = a + batch * p.a_batch, *from_b = b + batch * p.b_batch;
        Share<A_ALONG_K> next_a;
        Share<B_ALONG_K> next_b;
        const auto load = [&](u32 slice) {
            next_a.load(from_a, p.a_line, row0, p.m, slice * DEPTH, p.k);
            next_b.load(from_b, p.b_line, col0, p.n, slice * DEPTH, p.k);
        };
        load(0);
        next_a.store(left[0]);
        next_b.store(right[0]);
        __syncthreads();
        float sum[8][8] = {};
#pragma unroll 1
        for (u32 slice = 0; slice < slices; slice++) {
            const u32 now = slice % 2;
            if (slice + 1 < slices) {
                load(slice + 1);
            }
#pragma unroll 2
            for (u32 k = 0; k < DEPTH; k++) {
                float x[8], y[8];
#pragma unroll
                for (u32 i = 0; i < 2; i++) {
                    const Float4 of_a = *reinterpret_cast<const Float4 *>(&left[now][k][row + i * 64]);
                    const Float4 of_b = *reinterpret_cast<const Float4 *>(&right[now][k][col + i * 64]);
#pragma unroll
                    for (u32 j = 0; j < 4; j++) {
                        x[i * 4 + j] = of_a.v[j];
                        y[i * 4 + j] = of_b.v[j];
                    }
                }
#pragma unroll
                for (u32 i = 0; i < 8; i++) {
#pragma unroll
                    for (u32 j = 0; j < 8; j++) {
                        sum[i][j] += x[i] * y[j];
                    }
                }
            }
            if (slice + 1 < slices) {
                next_a.store(left[1 - now]);
                next_b.store(right[1 - now]);
            }
            __syncthreads();
        }
        // eight rows of a thread, one after the other, through shared memory: neighbours store neighbours
        float(*const out)[PITCH] = left[0];
#pragma unroll
        for (u32 i = 0; i < 8; i++) {
#pragma unroll
            for (u32 j = 0; j < 8; j++) {
                out[row / 4][col + j / 4 * 64 + j % 4] = sum[i][j];
            }
            __syncthreads();
#pragma unroll 1
            for (u32 at = threadIdx.x; at < 16 * TILE; at += THREADS) {
                const u32 r = row0 + at / TILE * 4 + i / 4 * 64 + i % 4, n = col0 + at % TILE;
                if (r < p.m && n < p.n) {
                    store(p, out[at / TILE][at % TILE], batch, r, n, a_scale, b_scale, bias, residual, c);
                }
            }
            __syncthreads();
        }
    }
}
