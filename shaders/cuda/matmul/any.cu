// Products of everything that the ops allow: matmul, gated_matmul and grouped_matmul with element types, strides, batches, scales
// and epilogues that are known at run time.
//
// A block of 256 threads computes a tile of 64 x 64 of C. Tiles of A and B, 16 deep, are converted to f32 (to i32 where both are i8
// and no scale varies along k) on the way into shared memory; a thread multiplies 4 x 4 outputs with fused multiply-adds. Threads
// read along whichever dimension is contiguous in memory. Sums of i8 are exact and wrap as i32 does.

#include "common/element.cuh"
#include "common/product.cuh"


// Strides in elements.
struct Matrix {
    i64 row, col, batch;
};

struct Params {
    Matrix a, b, up, c, residual;
    i64 batch, m, n, k;
    // Elements of k under one scale of SCALE_GROUP.
    i64 a_group, b_group;
    // grouped_matmul: experts, capacity of positions, rows of A, values of `order` that read one row of A.
    i64 experts, rows, a_rows, a_divisor;
    u32 a_dtype, b_dtype, c_dtype, bias_dtype, residual_dtype;
    u32 a_scale, b_scale;
    u32 activation;
    u32 gate;
    float scale, alpha, limit;
    // Whether sums are those of integers.
    u32 integers;
    u32 has_bias, has_up_bias, has_residual;
    u32 up_bias_dtype, unused;
};

constexpr int TILE = 64;
constexpr int DEPTH = 16;
constexpr int THREADS = 256;

// `[k][vector]`, with a pad that keeps rows at multiples of 16 bytes.
typedef float Tile[DEPTH][TILE + 4];

// Sums on their way from the threads that have them to those that store them.
typedef float Sums[TILE][TILE + 4];

DEVICE i64 groups_of(i64 k, i64 group) {
    return (k + group - 1) / group;
}

// The scale of a vector (a row of A, a column of B) where it does not vary along k.
DEVICE float uniform_scale(const float *scales, u32 kind, i64 batch, i64 vectors, i64 vector) {
    return kind == SCALE_TENSOR ? scales[batch] : kind == SCALE_VECTOR ? scales[batch * vectors + vector] : 1.0f;
}

// One matrix operand, whose vectors along k are the rows of A or the columns of B.
struct Side {
    const void *data;
    const float *scales;
    i64 first, vector_stride, k_stride, k, scale_row, group;
    u32 dtype;
    bool scaled;
};

DEVICE float read(const Side &side, i64 vector, i64 k) {
    const float x = decode_element(side.data, (u64)(side.first + vector * side.vector_stride + k * side.k_stride), side.dtype);
    return side.scaled ? x * side.scales[(side.scale_row + vector) * groups_of(side.k, side.group) + k / side.group] : x;
}

// A tile of a side, `[k][vector]`, zero beyond the edges. `rows` maps vectors of the tile to those of the operand (-1: none).
DEVICE void load_tile(Tile &tile, const Side &side, i64 first, i64 count, i64 k0, const i64 *rows, u32 integers) {
    const int thread = (int)threadIdx.x;
    const bool along_k = side.k_stride == 1;
#pragma unroll 4
    for (int i = 0; i < TILE * DEPTH / THREADS; i++) {
        const int at = thread + i * THREADS;
        const int step = along_k ? at % DEPTH : at / TILE, vector = along_k ? at / DEPTH : at % TILE;
        float x = 0.0f;
        if (k0 + step < side.k && first + vector < count) {
            const i64 row = rows ? rows[vector] : first + vector;
            if (row >= 0) {
                x = read(side, row, k0 + step);
            }
        }
        tile[step][vector] = integers ? float_of((u32)(i32)x) : x;
    }
}

DEVICE void multiply(const Tile &left, const Tile &right, float (&sum)[4][4], int row, int col, u32 integers) {
    if (integers) {
#pragma unroll
        for (int step = 0; step < DEPTH; step++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const u32 a = bits_of(left[step][row + i]);
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    sum[i][j] = float_of(bits_of(sum[i][j]) + a * bits_of(right[step][col + j]));
                }
            }
        }
        return;
    }
#pragma unroll
    for (int step = 0; step < DEPTH; step++) {
        float a[4], b[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            a[i] = left[step][row + i];
            b[i] = right[step][col + i];
        }
#pragma unroll
        for (int i = 0; i < 4; i++) {
#pragma unroll
            for (int j = 0; j < 4; j++) {
                sum[i][j] += a[i] * b[j];
            }
        }
    }
}

DEVICE void put(Sums &to, const float (&sum)[4][4], int row, int col) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
#pragma unroll
        for (int j = 0; j < 4; j++) {
            to[row + i][col + j] = sum[i][j];
        }
    }
    __syncthreads();
}

DEVICE float as_number(float sum, u32 integers) {
    return integers ? (float)(i32)bits_of(sum) : sum;
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) matmul_any(const __grid_constant__ Params p, const void *__restrict__ a,
                                                                const void *__restrict__ b, const float *__restrict__ a_scale,
                                                                const float *__restrict__ b_scale, const void *__restrict__ bias,
                                                                const void *__restrict__ residual, void *__restrict__ c) {
    __shared__ Tile left_tile, right_tile;
    __shared__ Sums sums;
    const i64 columns = (p.n + TILE - 1) / TILE;
    const i64 row0 = (i64)blockIdx.x / columns * TILE, col0 = (i64)blockIdx.x % columns * TILE;
    const int row = (int)threadIdx.x / 16 * 4, col = (int)threadIdx.x % 16 * 4;
    for (i64 batch = blockIdx.y; batch < p.batch; batch += gridDim.y) {
        const Side left = {a, a_scale, batch * p.a.batch, p.a.row, p.a.col, p.k, batch * p.m, p.a_group, p.a_dtype, p.a_scale == SCALE_GROUP};
        const Side right = {b, b_scale, batch * p.b.batch, p.b.col, p.b.row, p.k, batch * p.n, p.b_group, p.b_dtype, p.b_scale == SCALE_GROUP};
        float sum[4][4] = {};
        for (i64 k0 = 0; k0 < p.k; k0 += DEPTH) {
            load_tile(left_tile, left, row0, p.m, k0, nullptr, p.integers);
            load_tile(right_tile, right, col0, p.n, k0, nullptr, p.integers);
            __syncthreads();
            multiply(left_tile, right_tile, sum, row, col, p.integers);
            __syncthreads();
        }
        put(sums, sum, row, col);
        for (int i = (int)threadIdx.x; i < TILE * TILE; i += THREADS) {
            const i64 r = row0 + i / TILE, n = col0 + i % TILE;
            if (r < p.m && n < p.n) {
                const float total = sums[i / TILE][i % TILE];
                const i64 at = batch * p.c.batch + r * p.c.row + n * p.c.col;
                if (p.c_dtype == DTYPE_I32) {
                    static_cast<u32 *>(c)[at] = bits_of(total);
                    continue;
                }
                float value = as_number(total, p.integers) * uniform_scale(a_scale, p.a_scale, batch, p.m, r) *
                              uniform_scale(b_scale, p.b_scale, batch, p.n, n) * p.scale;
                if (p.has_bias) {
                    value += load_element(bias, (u64)n, p.bias_dtype);
                }
                value = activate(value, p.activation);
                if (p.has_residual) {
                    value += load_element(residual, (u64)(batch * p.residual.batch + r * p.residual.row + n * p.residual.col), p.residual_dtype);
                }
                store_element(c, (u64)at, p.c_dtype, value);
            }
        }
        __syncthreads();
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) gated_any(const __grid_constant__ Params p, const void *__restrict__ a,
                                                               const void *__restrict__ gate, const void *__restrict__ up,
                                                               const void *__restrict__ gate_bias, const void *__restrict__ up_bias,
                                                               void *__restrict__ c) {
    __shared__ Tile left_tile, right_tile;
    __shared__ Sums sums;
    __shared__ Tile up_tile;
    __shared__ Sums up_sums;
    const i64 columns = (p.n + TILE - 1) / TILE;
    const i64 row0 = (i64)blockIdx.x / columns * TILE, col0 = (i64)blockIdx.x % columns * TILE;
    const int row = (int)threadIdx.x / 16 * 4, col = (int)threadIdx.x % 16 * 4;
    const Side left = {a, nullptr, 0, p.a.row, p.a.col, p.k, 0, 1, p.a_dtype, false};
    const Side gates = {gate, nullptr, 0, p.b.col, p.b.row, p.k, 0, 1, p.b_dtype, false};
    const Side ups = {up, nullptr, 0, p.up.col, p.up.row, p.k, 0, 1, p.b_dtype, false};
    float sum[4][4] = {}, other[4][4] = {};
    for (i64 k0 = 0; k0 < p.k; k0 += DEPTH) {
        load_tile(left_tile, left, row0, p.m, k0, nullptr, p.integers);
        load_tile(right_tile, gates, col0, p.n, k0, nullptr, p.integers);
        load_tile(up_tile, ups, col0, p.n, k0, nullptr, p.integers);
        __syncthreads();
        multiply(left_tile, right_tile, sum, row, col, p.integers);
        multiply(left_tile, up_tile, other, row, col, p.integers);
        __syncthreads();
    }
    put(sums, sum, row, col);
    put(up_sums, other, row, col);
    for (int i = (int)threadIdx.x; i < TILE * TILE; i += THREADS) {
        const i64 r = row0 + i / TILE, n = col0 + i % TILE;
        if (r < p.m && n < p.n) {
            float g = as_number(sums[i / TILE][i % TILE], p.integers), u = as_number(up_sums[i / TILE][i % TILE], p.integers);
            if (p.has_bias) {
                g += load_element(gate_bias, (u64)n, p.bias_dtype);
            }
            if (p.has_up_bias) {
                u += load_element(up_bias, (u64)n, p.up_bias_dtype);
            }
            store_element(c, (u64)(r * p.c.row + n), p.c_dtype, gate_by(p.gate, p.alpha, p.limit, g, u));
        }
    }
}

// Positions of an expert, as perjoule_kernels::op::slots::Segments has them: offsets that go down count as if they stayed.
DEVICE void segment(const i32 *offsets, i64 expert, i64 rows, i64 &from, i64 &to) {
    i64 highest = 0;
    for (i64 i = 0; i <= expert; i++) {
        highest = offsets[i] > highest ? offsets[i] : highest;
    }
    from = highest < rows ? highest : rows;
    to = offsets[expert + 1] > highest ? offsets[expert + 1] : highest;
    to = to < rows ? to : rows;
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) grouped_any(const __grid_constant__ Params p, const void *__restrict__ a,
                                                                 const void *__restrict__ b, const i32 *__restrict__ offsets,
                                                                 const i32 *__restrict__ order, const void *__restrict__ bias,
                                                                 void *__restrict__ c) {
    __shared__ Tile left_tile, right_tile;
    __shared__ Sums sums;
    __shared__ i64 a_rows[TILE];
    __shared__ i64 c_rows[TILE];
    const int row = (int)threadIdx.x / 16 * 4, col = (int)threadIdx.x % 16 * 4;
    const i64 col0 = (i64)blockIdx.x * TILE;
    for (i64 expert = blockIdx.y; expert < p.experts; expert += gridDim.y) {
        i64 from, to;
        segment(offsets, expert, p.rows, from, to);
        const Side left = {a, nullptr, 0, p.a.row, p.a.col, p.k, 0, 1, p.a_dtype, false};
        const Side right = {b, nullptr, expert * p.b.batch, p.b.col, p.b.row, p.k, 0, 1, p.b_dtype, false};
        for (i64 first = from + (i64)blockIdx.z * TILE; first < to; first += (i64)gridDim.z * TILE) {
            if (threadIdx.x < TILE) {
                const i64 at = first + (i64)threadIdx.x;
                i64 c_row = at < to ? order[at] : -1;
                i64 a_row = c_row >= 0 ? c_row / p.a_divisor : -1;
                const bool inside = c_row >= 0 && c_row < p.m && a_row < p.a_rows;
                a_rows[threadIdx.x] = inside ? a_row : -1;
                c_rows[threadIdx.x] = inside ? c_row : -1;
            }
            __syncthreads();
            float sum[4][4] = {};
            for (i64 k0 = 0; k0 < p.k; k0 += DEPTH) {
                load_tile(left_tile, left, 0, TILE, k0, a_rows, p.integers);
                load_tile(right_tile, right, col0, p.n, k0, nullptr, p.integers);
                __syncthreads();
                multiply(left_tile, right_tile, sum, row, col, p.integers);
                __syncthreads();
            }
            put(sums, sum, row, col);
            for (int i = (int)threadIdx.x; i < TILE * TILE; i += THREADS) {
                const i64 r = c_rows[i / TILE], n = col0 + i % TILE;
                if (r >= 0 && n < p.n) {
                    const float total = sums[i / TILE][i % TILE];
                    const i64 at = r * p.c.row + n * p.c.col;
                    if (p.c_dtype == DTYPE_I32) {
                        static_cast<u32 *>(c)[at] = bits_of(total);
                        continue;
                    }
                    float value = as_number(total, p.integers);
                    if (p.has_bias) {
                        value += load_element(bias, (u64)(expert * p.n + n), p.bias_dtype);
                    }
                    store_element(c, (u64)at, p.c_dtype, activate(value, p.activation));
                }
            }
            __syncthreads();
        }
    }
}
