// Matrix products for the tensor cores of sm_80 and later: C = epilogue(A B), batched.
//
// A block of 256 threads computes 128 x 128 of C. Slices of 64 bytes along k (of 32 elements where k is not contiguous) pass through
// STAGES buffers in shared memory, filled by cp.async; each of 2 x 4 warps multiplies 64 x 32 by mma.sync. Tiles keep the layout that
// their operand has in memory, with 16-byte chunks permuted so that the eight rows which ldmatrix reads at once meet all banks: rows
// along k, or k along rows, in which case ldmatrix transposes (16-bit elements only). Sums are in f32 (in i32 of i8).
//
// Preconditions: each operand has a stride of 1, its other strides and its first byte are multiples of 16 bytes, and so is its extent
// along the contiguous dimension.
//
// Defines: TYPE (0 bf16, 1 f16, 2 tf32, 3 i8), A_ALONG_K, B_ALONG_K (whether k is contiguous).

#include "common/product.cuh"

#define T_BF16 0
#define T_F16 1
#define T_TF32 2
#define T_I8 3

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

constexpr int SIZE = TYPE == T_TF32 ? 4 : TYPE == T_I8 ? 1 : 2;
constexpr int TILE = 128;
constexpr int DEPTH = 64 / SIZE;
constexpr int STAGES = 4;
constexpr int THREADS = 256;
constexpr int TILE_BYTES = TILE * 64;
constexpr int STAGE_BYTES = 2 * TILE_BYTES;
// Bytes of k that an instruction takes: 16 elements of 16 bits, 8 of tf32, 32 of i8.
constexpr int STEP_BYTES = 32;

DEVICE u32 shared_address(const void *at) {
    return (u32)__cvta_generic_to_shared(at);
}
// `bytes` of 16, then zeros.
DEVICE void copy16(u32 to, const void *from, u32 bytes) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}
DEVICE void load_matrices(u32 (&to)[4], u32 from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(from) : "memory");
}
DEVICE void load_transposed(u32 (&to)[4], u32 from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(from) : "memory");
}

DEVICE void mma(u32 (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
#if TYPE == T_I8
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
    float s[4] = {float_of(d[0]), float_of(d[1]), float_of(d[2]), float_of(d[3])};
#if TYPE == T_BF16
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
#elif TYPE == T_F16
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
#else
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
#endif
        : "+f"(s[0]), "+f"(s[1]), "+f"(s[2]), "+f"(s[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#pragma unroll
    for (int i = 0; i < 4; i++) {
        d[i] = bits_of(s[i]);
    }
#endif
}

// f32 as ldmatrix left it, rounded to tf32 (what the instruction reads would otherwise be cut).
DEVICE void round_tf32(u32 (&x)[4]) {
    if (TYPE == T_TF32) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(x[i]) : "f"(float_of(x[i])));
        }
    }
}

// Where 16 bytes of a tile lie. Along k: line `line` (a row of A, a column of B) has four chunks; else line `line` of k has sixteen.
template <bool ALONG_K> DEVICE u32 chunk_at(u32 line, u32 chunk) {
    return ALONG_K ? line * 64 + (chunk ^ line >> 1 & 3) * 16 : line * (TILE * SIZE) + (chunk ^ line & 7) * 16;
}

// Sends a slice of an operand on its way: 512 chunks. `first` counts its rows (columns), of which there are `count`.
template <bool ALONG_K> DEVICE void fetch(u32 to, const u8 *from, i64 line_bytes, u32 first, u32 count, u32 k0, u32 k) {
    constexpr u32 CHUNKS = ALONG_K ? 4 : TILE * SIZE / 16;
#pragma unroll
    for (u32 i = 0; i < TILE_BYTES / 16 / THREADS; i++) {
        const u32 at = threadIdx.x + i * THREADS, line = at / CHUNKS, chunk = at % CHUNKS;
        // where the line is, and the element at which the chunk begins
        const u32 row = ALONG_K ? first + line : k0 + line, element = (ALONG_K ? k0 : first) + chunk * (16 / SIZE);
        const bool inside = row < (ALONG_K ? count : k) && element < (ALONG_K ? k : count);
        copy16(to + chunk_at<ALONG_K>(line, chunk), inside ? from + row * line_bytes + (i64)element * SIZE : from, inside ? 16 : 0);
    }
}

// Four matrices of 8 x 8 (16 bytes wide): rows `row..row + 16` and bytes `byte..byte + 32` along k. In the order rows 0-7 and first half,
// rows 8-15 and first half, then the second halves: a fragment of A, or with b0, b1 in 0, 2 and 1, 3 two of B.
template <bool ALONG_K> DEVICE void load_fragment(u32 (&to)[4], u32 tile, u32 row, u32 byte, u32 lane) {
    if (ALONG_K) {
        load_matrices(to, tile + chunk_at<true>(row + lane % 16, byte / 16 + lane / 16));
    } else {
        // eight k of eight rows each: the transposed matrix is wanted
        const u32 k = byte / 2 + lane / 16 * 8 + lane % 8;
        load_transposed(to, tile + chunk_at<false>(k, row / 8 + lane / 8 % 2));
    }
    round_tf32(to);
}

DEVICE void store(const Params &p, u32 sum, u32 batch, u32 row, u32 col, const float *a_scale, const float *b_scale, const void *bias, const void *residual,
                  void *c) {
    const i64 at = batch * p.c_batch + row * p.c_row + col * p.c_col;
    if (TYPE == T_I8 && p.c_dtype == DTYPE_I32) {
        static_cast<u32 *>(c)[at] = sum;
        return;
    }
    float v = TYPE == T_I8 ? (float)(i32)sum : float_of(sum);
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
    store_element(c, (u64)at, p.c_dtype, v);
}

extern "C" __global__ void __launch_bounds__(THREADS, 2)
tensor(const __grid_constant__ Params p, const u8 *__restrict__ a, const u8 *__restrict__ b, const float *__restrict__ a_scale, const float *__restrict__ b_scale,
       const void *__restrict__ bias, const void *__restrict__ residual, void *__restrict__ c) {
    extern __shared__ __align__(128) u8 shared[];
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const u32 base = shared_address(shared);
    // bands of eight tiles of rows, so that blocks that run together share what they read
    const u32 rows = (p.m + TILE - 1) / TILE, columns = (p.n + TILE - 1) / TILE;
    const u32 band = blockIdx.x / (8 * columns), height = rows - band * 8 < 8 ? rows - band * 8 : 8, within = blockIdx.x % (8 * columns);
    const u32 row0 = (band * 8 + within % height) * TILE, col0 = within / height * TILE;
    const u32 slices = (p.k + DEPTH - 1) / DEPTH;

    for (u32 batch = blockIdx.y; batch < p.batch; batch += gridDim.y) {
        const u8 *left = a + batch * p.a_batch * SIZE, *right = b + batch * p.b_batch * SIZE;
        const auto fetch_slice = [&](u32 slice) {
            if (slice < slices) {
                const u32 to = base + slice % STAGES * STAGE_BYTES;
                fetch<A_ALONG_K>(to, left, p.a_line * SIZE, row0, p.m, slice * DEPTH, p.k);
                fetch<B_ALONG_K>(to + TILE_BYTES, right, p.b_line * SIZE, col0, p.n, slice * DEPTH, p.k);
            }
            asm volatile("cp.async.commit_group;" ::: "memory");
        };
#pragma unroll 1
        for (u32 i = 0; i < STAGES - 1; i++) {
            fetch_slice(i);
        }
        u32 sum[4][4][4] = {};
        const u32 row = warp / 4 * 64, col = warp % 4 * 32;
#pragma unroll 1
        for (u32 slice = 0; slice < slices; slice++) {
            asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 2) : "memory");
            __syncthreads();
            fetch_slice(slice + STAGES - 1);
            const u32 tile = base + slice % STAGES * STAGE_BYTES;
#pragma unroll
            for (u32 byte = 0; byte < 64; byte += STEP_BYTES) {
                u32 x[4][4], y[2][4];
#pragma unroll
                for (u32 i = 0; i < 4; i++) {
                    load_fragment<A_ALONG_K>(x[i], tile, row + i * 16, byte, lane);
                }
#pragma unroll
                for (u32 j = 0; j < 2; j++) {
                    load_fragment<B_ALONG_K>(y[j], tile + TILE_BYTES, col + j * 16, byte, lane);
                }
#pragma unroll
                for (u32 i = 0; i < 4; i++) {
#pragma unroll
                    for (u32 j = 0; j < 4; j++) {
                        mma(sum[i][j], x[i], y[j / 2][j % 2], y[j / 2][j % 2 + 2]);
                    }
                }
            }
        }
        asm volatile("cp.async.wait_group 0;" ::: "memory");
        __syncthreads();
        // through shared memory, so that neighbours store neighbours: [row][column] of a warp, 32 rows at a time
        u32 *const out = reinterpret_cast<u32 *>(shared) + warp * 32 * 36;
#pragma unroll
        for (u32 part = 0; part < 2; part++) {
#pragma unroll
            for (u32 i = 0; i < 2; i++) {
#pragma unroll
                for (u32 j = 0; j < 4; j++) {
#pragma unroll
                    for (u32 e = 0; e < 4; e++) {
                        out[(i * 16 + lane / 4 + e / 2 * 8) * 36 + j * 8 + lane % 4 * 2 + e % 2] = sum[part * 2 + i][j][e];
                    }
                }
            }
            __syncwarp();
#pragma unroll 1
            for (u32 i = 0; i < 32; i++) {
                const u32 r = row0 + row + part * 32 + i, n = col0 + col + lane;
                if (r < p.m && n < p.n) {
                    store(p, out[i * 36 + lane], batch, r, n, a_scale, b_scale, bias, residual, c);
                }
            }
            __syncwarp();
        }
        __syncthreads();
    }
}
