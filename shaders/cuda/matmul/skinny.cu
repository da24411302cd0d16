// Products of few rows with weights: C = epilogue(A B), m up to 8 TILES at a time, at the speed at which B streams from memory.
// Also gated_matmul (GATED: two B share one A) and grouped_matmul (GROUPED: blockIdx.y counts the experts that have rows).
//
// B is the left operand of mma.sync: a warp takes 16 columns of B (rows of the weight, which is stored n x k) and streams its share of k
// through a ring of STAGES units in shared memory, which is its own: no barrier is met between the tiles of a round. A, rounded or split
// as MATH and PIECES say, stays in shared memory. Blocks of a cluster share k among them (each keeps a part of A) and so do KWARPS of the
// eight warps of a block; the others take neighbouring columns. Sums of parts meet in shared memory, after every ROUND tiles, in a fixed
// order. Weights do not depend on the kernel before: their first units are on the way before it has ended.
//
// f32 activations beside 16-bit or coded weights are split into three bf16 (exactly) or two tf32: products stay exact to f32. A piece that is
// 0 makes NaN of an infinite weight, so a sum that came out as NaN is computed again from whole numbers.
//
// Preconditions: k contiguous in B and its columns at multiples of 16 bytes, or B packed in panels of 16 columns (pack/panels.cu).
//
// Where rows are so few that their pieces fit into the columns of the instructions side by side, they lie there (SPREAD), and are added at
// the end: splitting then costs nothing.
//
// Defines: WEIGHT, MATH, PIECES, SPREAD, TILES, KWARPS, GATED, GROUPED, GROUP_SCALES.

#include "common/product.cuh"

// Where there are many rows, a warp takes two panels at once, so that what it reads of A serves both. (Codes leave no registers for that.)
constexpr bool PAIR = (TILES == 4 || TILES == 8 && WEIGHT < 3) && !GATED;
// Matrices or panels that a warp multiplies together.
constexpr int MATS = GATED || PAIR ? 2 : 1;
// Pieces of A that meet in one column.
constexpr int DEEP = SPREAD ? 1 : PIECES;

#include "matmul/multiply.cuh"

constexpr int OUT = PAIR ? 2 : 1;
// Of the matrices those whose sums meet at once.
constexpr int MEETING = GATED ? 2 : 1;
constexpr int WARPS = 8;
constexpr int THREADS = WARPS * 32;
constexpr int PANELS = WARPS / KWARPS;
// Rows of A that a block takes at a time.
constexpr int ROWS = SPREAD ? TOKENS / PIECES : TOKENS;
constexpr int ROUND = 4 / (TILES * MATS) > 0 ? 4 / (TILES * MATS) : 1;
static_assert(!PAIR || ROUND == 1, "a pair of panels is a round");

// Bytes of a unit of all matrices; units that a warp has on the way, or in use.
constexpr int STAGE_BYTES = MATS * UNIT_BYTES;
constexpr int RING = (TILES <= 4 ? 56 : 96) << 10;
constexpr int STAGES = RING / (WARPS * STAGE_BYTES) < 2 ? 2 : RING / (WARPS * STAGE_BYTES) > 8 ? 8 : RING / (WARPS * STAGE_BYTES);

// Floats of one tile of sums: `[token][column]`, padded so that a warp's stores meet no bank twice.
constexpr int PITCH = 20;
constexpr int SUMS = TOKENS * PITCH;

struct Params {
    i64 a_row, a_col;
    // Bytes from a column of B to the next, or of a packed panel; of a matrix.
    i64 b_stride, up_stride, b_batch;
    i64 c_row, c_col, residual_row, residual_col;
    i64 a_group, b_group;
    u32 m, n, k;
    // Rows of A that a block keeps, and bytes of one in shared memory.
    u32 tokens, pitch;
    u32 a_dtype, c_dtype, bias_dtype, residual_dtype;
    u32 a_scale, b_scale;
    u32 has_bias, has_up_bias, has_residual;
    u32 activation, gate;
    float scale, alpha, limit;
    // Whether rows of A are contiguous, whole vectors of 16 bytes.
    u32 a_vectors;
    // Whether B may be read before the preceding kernel of the stream has ended.
    u32 b_constant;
    // grouped_matmul
    u32 experts, rows, a_rows, a_divisor;
};

// Four floats of a block of the cluster.
DEVICE Float4 floats_of(u32 at, u32 rank) {
    Float4 f;
#if PERJOULE_ARCH >= 900
    u32 there;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(at), "r"(rank));
    asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(f.v[0]), "=f"(f.v[1]), "=f"(f.v[2]), "=f"(f.v[3]) : "r"(there));
#else
    asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(f.v[0]), "=f"(f.v[1]), "=f"(f.v[2]), "=f"(f.v[3]) : "r"(at));
#endif
    return f;
}
DEVICE void put_floats(u32 at, const Float4 &f) {
    asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(at), "f"(f.v[0]), "f"(f.v[1]), "f"(f.v[2]), "f"(f.v[3]) : "memory");
}
// Sums of floats, or of integers in their place.
DEVICE Float4 added(const Float4 &x, const Float4 &y) {
    Float4 out;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        out.v[i] = INTEGERS ? float_of(bits_of(x.v[i]) + bits_of(y.v[i])) : x.v[i] + y.v[i];
    }
    return out;
}
// What the warps of a block have of four elements of a column.
DEVICE Float4 column_of(u32 at) {
    Float4 each[KWARPS];
#pragma unroll
    for (int w = 0; w < KWARPS; w++) {
        asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
            : "=f"(each[w].v[0]), "=f"(each[w].v[1]), "=f"(each[w].v[2]), "=f"(each[w].v[3]) : "r"(at + w * MEETING * SUMS * 4));
    }
    Float4 out = each[0];
#pragma unroll
    for (int w = 1; w < KWARPS; w++) {
        out = added(out, each[w]);
    }
    return out;
}
// What they have of four elements; the pieces of A lie `apart` bytes apart.
DEVICE Float4 total_of(u32 at, u32 apart) {
    Float4 out = column_of(at + (PIECES - DEEP) * apart);
#pragma unroll
    for (int piece = PIECES - DEEP - 1; piece >= 0; piece--) {
        out = added(out, column_of(at + piece * apart));
    }
    return out;
}
DEVICE u32 cluster_rank() {
    u32 v = 0;
#if PERJOULE_ARCH >= 900
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(v));
#endif
    return v;
}
DEVICE u32 cluster_size() {
    u32 v = 1;
#if PERJOULE_ARCH >= 900
    asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(v));
#endif
    return v;
}
DEVICE void cluster_sync() {
#if PERJOULE_ARCH >= 900
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}
// Programmatic dependent launch: what a kernel writes may be read after the wait; the next one may start after the other.
DEVICE void dependency_wait() {
#if PERJOULE_ARCH >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
DEVICE void dependents_start() {
#if PERJOULE_ARCH >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Rows of A that are whole vectors of 16 bytes, several of them on the way.
template <class T> DEVICE void stage_vectors(const Params &p, const T *a, u8 *to, const i32 *rows, u32 count, u32 k0, u32 range) {
    // pieces in tf32 take twice the registers
    constexpr int AHEAD = MATH == M_TF32 ? 4 : 8, EACH = 16 / (int)sizeof(T);
    const u32 vectors = range / EACH, total = vectors * count, piece_bytes = p.tokens * p.pitch;
    for (u32 base = threadIdx.x; base < total; base += THREADS * AHEAD) {
        Raw<T, EACH> raw[AHEAD];
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            const u32 at = base + i * THREADS, token = at / vectors, k = k0 + at % vectors * EACH;
            raw[i] = Raw<T, EACH>{};
            if (at < total && k < p.k && rows[token] >= 0) {
                raw[i].load(a + rows[token] * p.a_row + k);
            }
        }
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            const u32 at = base + i * THREADS, token = at / vectors, k = at % vectors * EACH;
            if (at < total) {
                float x[EACH];
                raw[i].widen(x);
#pragma unroll
                for (int j = 0; j < EACH; j += 4) {
                    const float four[4] = {x[j], x[j + 1], x[j + 2], x[j + 3]};
                    put_activations(to + token * p.pitch + activation_at(k + j) * ELEMENT, piece_bytes, four);
                }
            }
        }
    }
}

// `count` rows of A, elements `k0 .. k0 + range`, zeros beyond k. A row of -1 is zero.
DEVICE void stage(const Params &p, const void *a, u8 *to, const i32 *rows, u32 count, u32 k0, u32 range) {
    if (p.a_vectors) {
        switch (p.a_dtype) {
        case DTYPE_F32: return stage_vectors(p, static_cast<const float *>(a), to, rows, count, k0, range);
        case DTYPE_F16: return stage_vectors(p, static_cast<const f16 *>(a), to, rows, count, k0, range);
        case DTYPE_BF16: return stage_vectors(p, static_cast<const bf16 *>(a), to, rows, count, k0, range);
        case DTYPE_F8E4M3: return stage_vectors(p, static_cast<const e4m3 *>(a), to, rows, count, k0, range);
        default: return stage_vectors(p, static_cast<const i8 *>(a), to, rows, count, k0, range);
        }
    }
    const u32 quads = range / 4;
    for (u32 at = threadIdx.x; at < quads * count; at += THREADS) {
        const u32 token = at / quads, k = at % quads * 4;
        float x[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const bool inside = k0 + k + i < p.k && rows[token] >= 0;
            x[i] = inside ? load_element(a, (u64)(rows[token] * p.a_row + (k0 + k + i) * p.a_col), p.a_dtype) : 0.0f;
        }
        put_activations(to + token * p.pitch + activation_at(k) * ELEMENT, p.tokens * p.pitch, x);
    }
}

// The row of shared memory that a column multiplies: spread pieces lie behind each other as they do there.
DEVICE u32 row_of(const Params &p, u32 column, u32 count) {
    return SPREAD ? column / count * p.tokens + column % count : column;
}

// Sums of 32 neighbours of A, `[32 of k][column]`, which minima of q4_k multiply.
DEVICE void sum_activations(const Params &p, const u8 *from, float *sums, u32 count, u32 range) {
    for (u32 at = threadIdx.x; at < range / 32 * TOKENS; at += THREADS) {
        const u32 column = at % TOKENS, k = at / TOKENS * 32;
        float sum = 0.0f;
        for (int piece = DEEP - 1; column < count * (PIECES / DEEP) && piece >= 0; piece--) {
            const u8 *row = from + (piece * p.tokens + row_of(p, column, count)) * p.pitch + k * 2;
            for (int i = 0; i < 16; i++) {
                float pair[2];
                if (HALF) {
                    unpack(reinterpret_cast<const u32 *>(row)[(i + at) % 16], pair, Tag<f16>{});
                } else {
                    unpack(reinterpret_cast<const u32 *>(row)[(i + at) % 16], pair, Tag<bf16>{});
                }
                sum += pair[0] + pair[1];
            }
        }
        sums[at] = sum;
    }
}

// ---- units of weights ----

// A matrix of B: its first byte, and bytes from a column (a panel) to the next.
struct Source {
    const u8 *base;
    i64 stride;
};

// Sends unit `at` of a panel on its way to `to`. Plain: 16 rows of 128 bytes, whose halves are exchanged in odd rows, so that eight lanes
// that read two rows meet all banks.
DEVICE void fetch_unit(const Params &p, u32 to, const Source (&from)[MEETING], u32 first, u32 panels, u32 at, u32 lane) {
#pragma unroll
    for (int mat = 0; mat < MATS; mat++) {
        const Source source = from[GATED ? mat : 0];
        u32 panel = first + (PAIR ? mat : 0);
        panel = panel < panels ? panel : panels - 1;
        if constexpr (!PACKED) {
            constexpr int BYTES = WEIGHT == W_PLAIN16 ? 2 : 1;
            const i64 offset = (i64)at * UNIT * BYTES + lane % 8 * 16;
            const bool inside = offset < (i64)p.k * BYTES;
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const u32 row = i * 4 + lane / 8, column = panel * COLUMNS + row;
                const u8 *start = source.base + (i64)(column < p.n ? column : p.n - 1) * source.stride;
                copy16(to + mat * UNIT_BYTES + row * 128 + (lane % 8 ^ (row & 1) << 2) * 16, start + offset, inside);
            }
        } else {
            // what differs between the copies are constants, which lie in their instructions
            const u8 *start = source.base + panel * source.stride + (i64)at * UNIT_BYTES + lane * 16;
            const u32 left = (p.k + STEP - 1) / STEP - at * STEPS;
            const i32 bytes = (i32)(left < STEPS ? left * STEP_BYTES : UNIT_BYTES) - (i32)lane * 16;
#pragma unroll
            for (int i = 0; i < (UNIT_BYTES + 511) / 512; i++) {
                if ((i + 1) * 512 <= UNIT_BYTES || (int)lane * 16 < UNIT_BYTES - i * 512) {
                    copy16(to + lane * 16 + mat * UNIT_BYTES + i * 512, start + i * 512, bytes > i * 512);
                }
            }
        }
    }
}

// ---- the kernel ----

// One sum from whole elements of A and of a column of B.
DEVICE float whole_sum(const Params &p, const void *a, i64 a_row, const u8 *column, const float *a_scales, const float *b_scales) {
    float sum = 0.0f;
#pragma unroll 1
    for (u32 k = 0; k < p.k; k++) {
        const u16 bits = reinterpret_cast<const u16 *>(column)[k];
        float term = load_element(a, (u64)(a_row * p.a_row + k * p.a_col), p.a_dtype) * (MATH == M_BF16 ? to_float(bf16{bits}) : to_float(f16{bits}));
        if (GROUP_SCALES) {
            term *= (a_scales ? a_scales[k / p.a_group] : 1.0f) * (b_scales ? b_scales[k / p.b_group] : 1.0f);
        }
        sum += term;
    }
    return sum;
}

// Two kernels of a stream share a multiprocessor where their shared memory fits.
constexpr int MIN_BLOCKS = TILES <= 2 && !GROUP_SCALES && !(PACKED && (GATED || DEEP == 3)) ? 2 : 1;

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS)
skinny(const __grid_constant__ Params p, const void *__restrict__ a, const u8 *__restrict__ b, const u8 *__restrict__ up, const float *__restrict__ a_scale,
       const float *__restrict__ b_scale, const void *__restrict__ bias, const void *__restrict__ up_bias, const void *__restrict__ residual,
       const i32 *__restrict__ offsets, const i32 *__restrict__ order, void *__restrict__ c) {
    extern __shared__ __align__(128) u8 shared[];
    __shared__ i32 a_rows[TOKENS];
    __shared__ i32 c_rows[TOKENS];
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const u32 kwarp = warp % KWARPS, panel_of_warp = warp / KWARPS;
    const u32 rank = cluster_rank(), parts = cluster_size();
    const u32 group = blockIdx.x / parts, groups = gridDim.x / parts;
    const u32 units = (p.k + UNIT - 1) / UNIT, unit0 = units * rank / parts, unit1 = units * (rank + 1) / parts;
    const u32 k0 = unit0 * UNIT, range = (unit1 - unit0) * UNIT;
    const u32 panels = (p.n + COLUMNS - 1) / COLUMNS, tiles = (panels + PANELS * OUT - 1) / (PANELS * OUT);

    float *const sums = reinterpret_cast<float *>(shared);                          // [ROUND][PANELS][KWARPS][MEETING][TOKENS][PITCH]
    float *const activation_sums = sums + ROUND * WARPS * MEETING * SUMS;              // q4_k: [range / 32][TOKENS]
    u8 *const ring = reinterpret_cast<u8 *>(activation_sums) + (WEIGHT == W_Q4_K ? (units + parts - 1) / parts * (UNIT / 32) * TOKENS * 4 : 0);
    u8 *const activations = ring + WARPS * STAGES * STAGE_BYTES;
    u8 *const mine = ring + warp * STAGES * STAGE_BYTES;

    if (!p.b_constant || GROUPED) {
        dependency_wait();
    }
    u32 expert = 0;
    i32 from = 0, to = (i32)p.m;
    if (GROUPED && !find_expert(offsets, p.experts, (i32)p.rows, blockIdx.y, lane, expert, from, to)) {
        return; // all blocks of a cluster have the same blockIdx.y
    }
    Source source[MEETING];
    source[0] = Source{b + expert * p.b_batch, p.b_stride};
    if (GATED) {
        source[MEETING - 1] = Source{up, p.up_stride};
    }

    // a block takes ROWS rows at a time: by blockIdx.y, or of an expert all
    const i32 first_row = GROUPED ? from : (i32)blockIdx.y * ROWS;
    for (i32 row0 = first_row; row0 < to; row0 += GROUPED ? ROWS : to) {
        const u32 count = to - row0 < ROWS ? (u32)(to - row0) : ROWS;
        const u32 first_unit = unit0 + kwarp;
        // what is fetched next
        u32 fetch_tile = first_unit < unit1 ? group : tiles, fetch_at = first_unit, fetch_stage = 0;
        const auto fetch = [&] {
            if (fetch_tile < tiles) {
                fetch_unit(p, shared_address(mine) + fetch_stage * STAGE_BYTES, source, (fetch_tile * PANELS + panel_of_warp) * OUT, panels, fetch_at, lane);
                fetch_stage = fetch_stage + 1 == STAGES ? 0 : fetch_stage + 1;
                fetch_at += KWARPS;
                if (fetch_at >= unit1) {
                    fetch_at = first_unit;
                    fetch_tile += groups;
                    if (fetch_tile >= tiles) {
                        // all is on the way: what the next kernel fetches fills the time in which this one ends
                        dependents_start();
                    }
                }
            }
            copies_end();
        };
#pragma unroll 1
        for (int i = 0; i < STAGES - 1; i++) {
            fetch();
        }
        if (p.b_constant && !GROUPED) {
            dependency_wait();
        }
        if (threadIdx.x < ROWS) {
            i32 a_row = -1, c_row = -1;
            if (threadIdx.x < count) {
                const i32 position = row0 + (i32)threadIdx.x;
                c_row = GROUPED ? order[position] : position;
                a_row = GROUPED && c_row >= 0 ? c_row / (i32)p.a_divisor : c_row;
                if (GROUPED && (c_row < 0 || c_row >= (i32)p.m || a_row >= (i32)p.a_rows)) {
                    a_row = c_row = -1;
                }
            }
            a_rows[threadIdx.x] = a_row;
            c_rows[threadIdx.x] = c_row;
        }
        __syncthreads();
        stage(p, a, activations, a_rows, count, k0, range);
        __syncthreads();
        if (WEIGHT == W_Q4_K) {
            sum_activations(p, activations, activation_sums, count, range);
            __syncthreads();
        }

        Activations act;
#pragma unroll
        for (int i = 0; i < TILES; i++) {
            const u32 column = i * 8 + lane / 4;
            act.at[i] = activations + (column < count * (PIECES / DEEP) ? row_of(p, column, count) : 0) * p.pitch + lane % 4 * 16;
        }
        act.piece_bytes = p.tokens * p.pitch;
        act.sums = activation_sums + lane % 4 * TOKENS + lane / 4;

        Sum sum[MATS][TILES];
        const auto clear = [&] {
#pragma unroll
            for (int i = 0; i < MATS * TILES * 4; i++) {
                sum[i / 4 / TILES][i / 4 % TILES][i % 4] = 0.0f;
            }
        };
        u32 slot = 0, round_tile = group;
        // what warps have of a tile goes to shared memory; after the last of a round all of it becomes elements of C
        const auto meet = [&](u32 done, int out) {
#pragma unroll
            for (int mat = 0; mat < MEETING; mat++) {
                float *part = sums + (((slot * PANELS + panel_of_warp) * KWARPS + kwarp) * MEETING + mat) * SUMS;
#pragma unroll
                for (int i = 0; i < TILES * 4; i++) {
                    const u32 token = i / 4 * 8 + lane % 4 * 2 + i % 2, column = lane / 4 + i % 4 / 2 * 8;
                    part[token * PITCH + column] = PAIR && out == 1 ? sum[MATS - 1][i / 4][i % 4] : sum[mat][i / 4][i % 4];
                }
            }
            slot++;
            if (slot < ROUND && done + groups < tiles) {
                return;
            }
            constexpr u32 QUADS = COLUMNS / 4;
            const u32 total = slot * PANELS * count * QUADS;
            const u32 base = shared_address(sums), apart = count * PITCH * 4;
            // of a quad: its panel with slot, its row, and where it lies
            const auto place = [&](u32 i, u32 &panel, u32 &token, u32 &quad) {
                quad = i % QUADS;
                token = i / QUADS % count;
                panel = i / QUADS / count;
                return base + (panel * KWARPS * MEETING * SUMS + token * PITCH + quad * 4) * 4;
            };
            u32 panel, token, quad;
            __syncthreads();
            if ((KWARPS > 1 || SPREAD) && parts > 1) {
                // first the warps of each block, so that less crosses the cluster
                for (u32 i = threadIdx.x; i < total; i += THREADS) {
                    const u32 at = place(i, panel, token, quad);
#pragma unroll
                    for (int mat = 0; mat < MEETING; mat++) {
                        put_floats(at + mat * SUMS * 4, total_of(at + mat * SUMS * 4, apart));
                    }
                }
            }
            if (parts > 1) {
                cluster_sync();
            }
            for (u32 i = rank * THREADS + threadIdx.x; i < total; i += parts * THREADS) {
                const u32 at = place(i, panel, token, quad);
                const u32 n = (((round_tile + panel / PANELS * groups) * PANELS + panel % PANELS) * OUT + out) * COLUMNS + quad * 4;
                const i32 row = c_rows[token];
                Float4 value[MEETING];
#pragma unroll
                for (int mat = 0; mat < MEETING; mat++) {
                    if (parts == 1) {
                        value[mat] = total_of(at + mat * SUMS * 4, apart);
                        continue;
                    }
                    value[mat] = Float4{};
#pragma unroll 8
                    for (u32 part = 0; part < parts; part++) {
                        value[mat] = added(value[mat], floats_of(at + mat * SUMS * 4, part));
                    }
                }
#pragma unroll 1
                for (u32 j = 0; j < 4; j++) {
                    if (n + j < p.n && row >= 0) {
                        if (PIECES > 1 && WEIGHT == W_PLAIN16) {
#pragma unroll
                            for (int mat = 0; mat < MEETING; mat++) {
                                if (is_nan(value[mat].v[0])) {
                                    const bool of_a = GROUP_SCALES && p.a_scale == SCALE_GROUP, of_b = GROUP_SCALES && p.b_scale == SCALE_GROUP;
                                    value[mat].v[0] = whole_sum(p, a, a_rows[token], source[mat].base + (n + j) * source[mat].stride,
                                                                of_a ? a_scale + a_rows[token] * ((p.k + p.a_group - 1) / p.a_group) : nullptr,
                                                                of_b ? b_scale + (n + j) * ((p.k + p.b_group - 1) / p.b_group) : nullptr);
                                }
                            }
                        }
                        store_product<GATED, INTEGERS>(p, value[0].v[0], value[MEETING - 1].v[0], expert, row, n + j, a_scale, b_scale, bias, up_bias, residual, c);
                    }
#pragma unroll
                    for (int mat = 0; mat < MEETING; mat++) {
                        value[mat] = Float4{{value[mat].v[1], value[mat].v[2], value[mat].v[3], 0.0f}};
                    }
                }
            }
            if (parts > 1) {
                cluster_sync();
            } else {
                __syncthreads();
            }
            slot = 0;
            round_tile = done + groups;
        };
        const auto finish = [&](u32 done) {
#pragma unroll 1
            for (int out = 0; out < OUT; out++) {
                const u32 before = round_tile;
                meet(done, out);
                if (out + 1 < OUT) {
                    round_tile = before;
                }
            }
            clear();
        };
        clear();
        u32 stage = 0;
        for (u32 tile = group; tile < tiles; tile += groups) {
#pragma unroll 1
            for (u32 at = first_unit; at < unit1; at += KWARPS) {
                copies_wait<STAGES - 2>();
                __syncwarp();
                fetch();
                const u8 *unit = mine + stage * STAGE_BYTES;
                stage = stage + 1 == STAGES ? 0 : stage + 1;
                if constexpr (PACKED) {
                    multiply_packed(sum, unit, act, at * UNIT - k0, lane);
                } else {
                    GroupScales scales = {};
                    if (GROUP_SCALES) {
                        scales.k0 = k0;
                        scales.b_group = p.b_group;
                        scales.a_group = p.a_group;
#pragma unroll
                        for (int side = 0; side < 2; side++) {
#pragma unroll
                            for (int mat = 0; mat < MATS; mat++) {
                                const u32 column = ((tile * PANELS + panel_of_warp) * OUT + mat) * COLUMNS + lane / 4 + side * 8;
                                const i64 row = (column < p.n ? column : p.n - 1) * ((p.k + p.b_group - 1) / p.b_group);
                                scales.b[mat][side] = p.b_scale == SCALE_GROUP ? b_scale + row : nullptr;
                            }
#pragma unroll
                            for (int i = 0; i < TILES; i++) {
                                const u32 token = (i * 8 + lane % 4 * 2 + side) % count;
                                scales.a[i][side] = p.a_scale == SCALE_GROUP ? a_scale + a_rows[token] * ((p.k + p.a_group - 1) / p.a_group) : nullptr;
                            }
                        }
                    }
                    multiply_plain(sum, unit, act, at * UNIT - k0, scales, lane);
                }
            }
            finish(tile);
        }
        copies_wait<0>();
        if (GROUPED) {
            __syncthreads();
        }
    }
}
