// Products of few rows with weights: C = epilogue(A B), m up to 8 TILES at a time, at the speed at which B streams from memory.
// Also gated_matmul (GATED: two B share one A) and grouped_matmul (GROUPED: blockIdx.y counts the experts that have rows).
//
// B is the left operand of mma.sync: a warp takes 16 columns of B (rows of the weight, which is stored n x k) and streams its share of k
// through a ring of STAGES units in shared memory, which is its own: no barrier is met between the tiles of a round. A, rounded or split
// as MATH and PIECES say, stays in shared memory. Blocks of a cluster share k among them (each keeps a part of A) and so do KWARPS of the
// eight warps of a block; the others take neighbouring columns. Sums of parts meet in shared memory, after every ROUND tiles, in a fixed
// order. Weights do not depend on the kernel before: their first units are on the way before it has ended.
//
// f32 activations beside 16-bit or coded weights are split into three bf16 (exactly) or two tf32: products stay exact to f32.
//
// Preconditions: k contiguous in B and its columns at multiples of 16 bytes, or B packed in panels of 16 columns (matmul/panels.cuh).
//
// Defines: WEIGHT, MATH, PIECES, TILES, KWARPS, GATED, GROUPED, GROUP_SCALES.

#include "common/element.cuh"
#include "common/product.cuh"
#include "matmul/skinny.cuh"

// Values of WEIGHT.
#define W_PLAIN16 0 /* bf16 or f16, as MATH says; f16 beside tf32 */
#define W_E4M3 1
#define W_I8 2
#define W_Q8_0 3
#define W_Q4_0 4
#define W_Q4_K 5
#define W_Q6_K 6
#define W_MXFP4 7

// Values of MATH.
#define M_BF16 0
#define M_F16 1
#define M_TF32 2
#define M_S8 3

constexpr bool PACKED = WEIGHT >= W_Q8_0;
constexpr bool HALF = MATH == M_F16;
constexpr bool INTEGERS = MATH == M_S8 && !GROUP_SCALES;
// Where there are many rows, a warp takes two panels at once, so that what it reads of A serves both.
constexpr bool PAIR = (TILES == 4 || TILES == 8 && !PACKED) && !GATED;
constexpr int OUT = PAIR ? 2 : 1;
// Matrices or panels that a warp multiplies together, and of those the ones whose sums meet at once.
constexpr int MATS = GATED || PAIR ? 2 : 1;
constexpr int MEETING = GATED ? 2 : 1;
constexpr int WARPS = 8;
constexpr int THREADS = WARPS * 32;
constexpr int PANELS = WARPS / KWARPS;
constexpr int COLUMNS = 16;
constexpr int TOKENS = TILES * 8;
constexpr int ROUND = 4 / (TILES * MATS) > 0 ? 4 / (TILES * MATS) : 1;
static_assert(!PAIR || ROUND == 1, "a pair of panels is a round");

// Bytes of an element of A in shared memory, and elements along k that a lane reads by one access of 16 bytes, times four lanes.
constexpr int ELEMENT = MATH == M_TF32 ? 4 : MATH == M_S8 ? 1 : 2;
constexpr int STRETCH = 64 / ELEMENT;

// A step is what a panel holds contiguously; a unit is what a warp loads at once.
constexpr int CHUNKS = 2;
constexpr int STEP = WEIGHT == W_Q4_K || WEIGHT == W_Q6_K ? 256 : 128;
constexpr int STEPS = WEIGHT == W_Q8_0 || STEP == 256 || MATS == 2 ? 1 : 2;
constexpr int UNIT = PACKED ? STEP * STEPS : CHUNKS * (WEIGHT == W_PLAIN16 ? 32 : 64);
constexpr int CODE_LOADS = WEIGHT == W_Q8_0 || STEP == 256 ? 4 : 2;
constexpr int STEP_BYTES = !PACKED ? 16 * CHUNKS * 64 : WEIGHT == W_Q8_0 ? 2176 : WEIGHT == W_Q4_0 ? 1152 : WEIGHT == W_MXFP4 ? 1088 : WEIGHT == W_Q4_K ? 2304 : 3360;


// Bytes of a unit of one matrix, and of all; units that a warp has on the way, or in use.
constexpr int UNIT_BYTES = STEP_BYTES * (PACKED ? STEPS : 1);
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


// ---- instructions ----

DEVICE void mma(float (&d)[4], const Fragment &a, u32 b0, u32 b1) {
    if (MATH == M_BF16) {
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a.a0), "r"(a.a1), "r"(a.a2), "r"(a.a3), "r"(b0), "r"(b1));
    } else if (MATH == M_F16) {
        asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a.a0), "r"(a.a1), "r"(a.a2), "r"(a.a3), "r"(b0), "r"(b1));
    } else if (MATH == M_TF32) {
        asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a.a0), "r"(a.a1), "r"(a.a2), "r"(a.a3), "r"(b0), "r"(b1));
    } else {
        u32 s[4] = {bits_of(d[0]), bits_of(d[1]), bits_of(d[2]), bits_of(d[3])};
        asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
            : "+r"(s[0]), "+r"(s[1]), "+r"(s[2]), "+r"(s[3]) : "r"(a.a0), "r"(a.a1), "r"(a.a2), "r"(a.a3), "r"(b0), "r"(b1));
#pragma unroll
        for (int i = 0; i < 4; i++) {
            d[i] = float_of(s[i]);
        }
    }
}

DEVICE u32 shared_address(const void *at) {
    return (u32)__cvta_generic_to_shared(at);
}
DEVICE const Word4 &word4(const u8 *at) {
    return *reinterpret_cast<const Word4 *>(at);
}
// 16 bytes into shared memory, zeros where `inside` is false.
DEVICE void copy16(u32 to, const void *from, bool inside) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(inside ? 16 : 0) : "memory");
}
DEVICE void copies_end() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}
// All but the last `LATER` groups of copies are there.
template <int LATER> DEVICE void copies_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(LATER) : "memory");
}
struct alignas(16) Float4 {
    float v[4];
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
// What the warps of a block have of four elements.
DEVICE Float4 total_of(u32 at) {
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

// ---- activations ----

// Where element `k` of a row of A lies in shared memory, counted in elements: the order in which a lane's 16 bytes of B hold them. Four
// neighbours, from a multiple of four on, stay neighbours.
DEVICE u32 activation_at(u32 k) {
    if (MATH == M_TF32) {
        // of 32, a lane has 8: the first four of all lanes, then the others
        return (k & ~31u) | (k & 4u) << 2 | (k & 24u) >> 1 | (k & 3u);
    }
    if (MATH == M_S8) {
        return k;
    }
    if (WEIGHT == W_E4M3 || WEIGHT == W_I8) {
        // of 64, a lane has 16: the first eight of all lanes, then the others
        return (k & ~63u) | (k & 8u) << 2 | (k & 48u) >> 1 | (k & 7u);
    }
    if (WEIGHT == W_Q6_K) {
        // of 32, a lane has four of each half
        return (k & ~31u) | (k & 16u) >> 2 | (k & 12u) << 1 | (k & 3u);
    }
    return k;
}

DEVICE void put_activations(u8 *to, u32 piece_bytes, const float (&x)[4]) {
    if (MATH == M_S8) {
        *reinterpret_cast<u32 *>(to) = pack(x, Tag<i8>{});
    } else if (MATH == M_TF32) {
        float rest[4] = {x[0], x[1], x[2], x[3]};
#pragma unroll
        for (int piece = 0; piece < PIECES; piece++) {
            Word4 word;
            u32 *w = &word.x;
#pragma unroll
            for (int i = 0; i < 4; i++) {
                // cut, so that nothing becomes infinite; the last piece is rounded
                w[i] = bits_of(rest[i]) & 0xffffe000u;
                if (piece == PIECES - 1 && PIECES > 1) {
                    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(w[i]) : "f"(rest[i]));
                }
                const bool finite = (bits_of(rest[i]) & 0x7f800000u) != 0x7f800000u;
                w[i] = is_nan(rest[i]) ? 0x7fc00000u : w[i];
                rest[i] = finite ? rest[i] - float_of(w[i]) : 0.0f;
            }
            *reinterpret_cast<Word4 *>(to + piece * piece_bytes) = word;
        }
    } else if (PIECES == 1) {
        const float low[2] = {x[0], x[1]}, high[2] = {x[2], x[3]};
        *reinterpret_cast<Word2 *>(to) = HALF ? Word2{pack(low, Tag<f16>{}), pack(high, Tag<f16>{})} : Word2{pack(low, Tag<bf16>{}), pack(high, Tag<bf16>{})};
    } else {
        // the first 8 bits, the next, and the last: no rounding
        u32 first[4], second[4], third[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const bool finite = (bits_of(x[i]) & 0x7f800000u) != 0x7f800000u;
            first[i] = finite ? bits_of(x[i]) : is_nan(x[i]) ? 0x7fc00000u : bits_of(x[i]);
            const float rest = finite ? x[i] - float_of(first[i] & 0xffff0000u) : 0.0f;
            second[i] = bits_of(rest);
            third[i] = bits_of(rest - float_of(second[i] & 0xffff0000u));
        }
        const auto halves = [](const u32 (&v)[4]) { return Word2{v[0] >> 16 | (v[1] & 0xffff0000u), v[2] >> 16 | (v[3] & 0xffff0000u)}; };
        *reinterpret_cast<Word2 *>(to) = halves(first);
        *reinterpret_cast<Word2 *>(to + piece_bytes) = halves(second);
        *reinterpret_cast<Word2 *>(to + 2 * piece_bytes) = halves(third);
    }
}

// Rows of A that are whole vectors of 16 bytes, several of them on the way.
template <class T> DEVICE void stage_vectors(const Params &p, const T *a, u8 *to, const i32 *rows, u32 count, u32 k0, u32 range) {
    constexpr int AHEAD = 8, EACH = 16 / (int)sizeof(T);
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

// Sums of 32 neighbours of A, `[32 of k][token]`, which minima of q4_k multiply.
DEVICE void sum_activations(const Params &p, const u8 *from, float *sums, u32 count, u32 range) {
    for (u32 at = threadIdx.x; at < range / 32 * TOKENS; at += THREADS) {
        const u32 token = at % TOKENS, k = at / TOKENS * 32;
        float sum = 0.0f;
        for (int piece = PIECES - 1; token < count && piece >= 0; piece--) {
            const u8 *row = from + (piece * p.tokens + token) * p.pitch + k * 2;
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
                copy16(to + mat * UNIT_BYTES + row * 128 + (lane % 8 ^ (row & 1) << 2) * 16, inside ? start + offset : start, inside);
            }
        } else {
            const u8 *start = source.base + panel * source.stride + (i64)at * UNIT_BYTES;
            const u32 left = (p.k + STEP - 1) / STEP - at * STEPS;
            const u32 bytes = left < STEPS ? left * STEP_BYTES : UNIT_BYTES;
#pragma unroll
            for (u32 i = 0; i < (UNIT_BYTES + 511) / 512; i++) {
                const u32 byte = i * 512 + lane * 16;
                if (byte < UNIT_BYTES) {
                    copy16(to + mat * UNIT_BYTES + byte, byte < bytes ? start + byte : start, byte < bytes);
                }
            }
        }
    }
}

// ---- multiplying ----

typedef float Sum[4];

// Where a lane reads activations: one address for each tile of eight tokens, and what follows from it.
struct Activations {
    const u8 *at[TILES];
    u32 piece_bytes;
    // sums of 32, of this lane's two tokens
    const float *sums;
};

// Fragments of 64 / ELEMENT elements of k: what 16 bytes of activations meet.
DEVICE void multiply(Sum (&sum)[MATS][TILES], const Fragment (&first)[MATS], const Fragment (&second)[MATS], const Activations &act, u32 offset) {
#pragma unroll
    for (int tile = 0; tile < TILES; tile++) {
#pragma unroll
        for (int piece = PIECES - 1; piece >= 0; piece--) {
            const Word4 b = word4(act.at[tile] + piece * act.piece_bytes + offset);
#pragma unroll
            for (int mat = 0; mat < MATS; mat++) {
                mma(sum[mat][tile], first[mat], b.x, b.y);
                mma(sum[mat][tile], second[mat], b.z, b.w);
            }
        }
    }
}

// The same for blocks that have scales of their own: `sum += scale * product`. Scales of columns g and g + 8; those of the first
// fragment and of the second differ where blocks are of 16.
template <bool SIXTEEN> DEVICE void multiply_scaled(Sum (&sum)[MATS][TILES], const Fragment (&first)[MATS], const Fragment (&second)[MATS],
                                                   const float (&scale)[MATS][2], const float (&scale2)[MATS][2], const Activations &act, u32 offset) {
#pragma unroll
    for (int tile = 0; tile < TILES; tile++) {
        Sum one[MATS] = {}, two[MATS] = {};
#pragma unroll
        for (int piece = PIECES - 1; piece >= 0; piece--) {
            const Word4 b = word4(act.at[tile] + piece * act.piece_bytes + offset);
#pragma unroll
            for (int mat = 0; mat < MATS; mat++) {
                mma(one[mat], first[mat], b.x, b.y);
                mma(SIXTEEN ? two[mat] : one[mat], second[mat], b.z, b.w);
            }
        }
#pragma unroll
        for (int mat = 0; mat < MATS; mat++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                sum[mat][tile][i] += scale[mat][i / 2] * one[mat][i];
                if (SIXTEEN) {
                    sum[mat][tile][i] += scale2[mat][i / 2] * two[mat][i];
                }
            }
        }
    }
}

DEVICE float half_float(u32 bits) {
    return to_float(f16{(u16)bits});
}

// Byte `i` of a word as a number, plus 2^23.
template <int I> DEVICE float byte_float(u32 word) {
    u32 out;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(out) : "r"(word), "r"(0x4b000000u), "n"(0x7440 + I));
    return float_of(out);
}
template <int I> DEVICE float signed_float(u32 word) {
    u32 out;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(out) : "r"(word ^ 0x80808080u), "r"(0x4b000000u), "n"(0x7440 + I));
    return float_of(out) - 8388736.0f;
}

DEVICE u32 word_of(const Word4 &v, int i) {
    return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

DEVICE u32 tf32_of(u32 pair, bool high) {
    return bits_of(half_float(high ? pair >> 16 : pair));
}

// Columns of plain weights with scales for groups of k: what the products of 128 elements are multiplied with.
struct GroupScales {
    u32 k0;
    const float *b[MATS][2];
    const float *a[TILES][2];
};

DEVICE void multiply_plain(const Params &p, Sum (&sum)[MATS][TILES], const u8 *unit, const Activations &act, u32 k, const GroupScales &groups, u32 lane) {
    Sum part[MATS][TILES] = {};
    auto &into = *(GROUP_SCALES ? &part : &sum);
    constexpr int PER = WEIGHT == W_PLAIN16 ? 32 : 64;
    const u32 g = lane / 4, t = lane % 4;
#pragma unroll
    for (int i = 0; i < CHUNKS; i++) {
        const u32 offset = (k + i * PER) * ELEMENT;
        Word4 low[MATS], high[MATS];
#pragma unroll
        for (int mat = 0; mat < MATS; mat++) {
            const u8 *row = unit + mat * UNIT_BYTES + g * 128 + (i * 4 + t ^ (g & 1) << 2) * 16;
            low[mat] = word4(row);
            high[mat] = word4(row + 8 * 128);
        }
        if (WEIGHT == W_PLAIN16 && MATH != M_TF32 || MATH == M_S8) {
            Fragment first[MATS], second[MATS];
#pragma unroll
            for (int mat = 0; mat < MATS; mat++) {
                first[mat] = Fragment{low[mat].x, high[mat].x, low[mat].y, high[mat].y};
                second[mat] = Fragment{low[mat].z, high[mat].z, low[mat].w, high[mat].w};
            }
            multiply(into, first, second, act, offset);
            continue;
        }
#pragma unroll
        for (int half = 0; half < 2; half++) {
            Fragment first[MATS], second[MATS];
#pragma unroll
            for (int mat = 0; mat < MATS; mat++) {
                const u32 l0 = word_of(low[mat], half * 2), h0 = word_of(high[mat], half * 2);
                const u32 l1 = word_of(low[mat], half * 2 + 1), h1 = word_of(high[mat], half * 2 + 1);
                if (MATH == M_TF32) {
                    first[mat] = Fragment{tf32_of(l0, false), tf32_of(h0, false), tf32_of(l0, true), tf32_of(h0, true)};
                    second[mat] = Fragment{tf32_of(l1, false), tf32_of(h1, false), tf32_of(l1, true), tf32_of(h1, true)};
                } else {
                    const auto pair = [](u32 word) { return Word2{from_e4m3<HALF>(word), from_e4m3<HALF>(word >> 16)}; };
                    const Word2 a0 = pair(l0), a1 = pair(h0), b0 = pair(l1), b1 = pair(h1);
                    first[mat] = Fragment{a0.x, a1.x, a0.y, a1.y};
                    second[mat] = Fragment{b0.x, b1.x, b0.y, b1.y};
                }
            }
            multiply(into, first, second, act, offset + half * 64);
        }
    }
    if (GROUP_SCALES) {
        // units lie within groups
        const i64 at = (i64)groups.k0 + k;
#pragma unroll
        for (int mat = 0; mat < MATS; mat++) {
#pragma unroll
            for (int tile = 0; tile < TILES; tile++) {
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    const float *bs = groups.b[mat][j / 2], *as = groups.a[tile][j % 2];
                    const float factor = (bs ? bs[at / p.b_group] : 1.0f) * (as ? as[at / p.a_group] : 1.0f);
                    const float value = MATH == M_S8 ? (float)(i32)bits_of(part[mat][tile][j]) : part[mat][tile][j];
                    sum[mat][tile][j] += factor * value;
                }
            }
        }
    }
}

DEVICE void multiply_packed(Sum (&sum)[MATS][TILES], const u8 *unit, const Activations &act, u32 k, u32 lane) {
    const u32 g = lane / 4;
    // what a step has for all of it: scales, and the upper bits of q6_k
    Word4 wide[MATS][2], upper[MATS][2];
    Word2 scales[MATS][2];
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
#pragma unroll
        for (int mat = 0; mat < MATS; mat++) {
            const u8 *from = unit + mat * UNIT_BYTES + step * STEP_BYTES;
#pragma unroll
            for (int side = 0; side < 2; side++) {
                const u32 column = g + side * 8;
                if (WEIGHT == W_Q8_0 || WEIGHT == W_Q4_0) {
                    scales[mat][side] = *reinterpret_cast<const Word2 *>(from + CODE_LOADS * 512 + column * 8);
                } else if (WEIGHT == W_MXFP4) {
                    const u32 e = scales[mat][side].x = *reinterpret_cast<const u32 *>(from + 1024 + column * 4);
                    // a byte of 255 makes all of its column NaN
                    const float nan = ((e & 0x7f7f7f7fu) + 0x01010101u & e & 0x80808080u) != 0 ? NOT_A_NUMBER : 0.0f;
#pragma unroll
                    for (int tile = 0; tile < TILES * 2; tile++) {
                        sum[mat][tile / 2][side * 2 + tile % 2] += nan;
                    }
                } else if (WEIGHT == W_Q4_K) {
                    wide[mat][side] = word4(from + 2048 + column * 16);
                } else {
                    upper[mat][side] = word4(from + 2048 + side * 512 + lane * 16);
                    wide[mat][side] = word4(from + 3072 + column * 16);
                    scales[mat][side].x = *reinterpret_cast<const u16 *>(from + 3328 + column * 2);
                }
            }
        }
#pragma unroll
        for (int i = 0; i < STEP / 32; i++) {
            Fragment first[MATS], second[MATS];
            float scale[MATS][2], scale2[MATS][2], minimum[MATS][2];
#pragma unroll
            for (int mat = 0; mat < MATS; mat++) {
                if (WEIGHT == W_Q8_0) {
                    const Word4 w = word4(unit + mat * UNIT_BYTES + step * STEP_BYTES + i % CODE_LOADS * 512 + lane * 16);
                    const auto two = [](u32 low, u32 high) {
                        low ^= 0x80808080u;
                        high ^= 0x80808080u;
                        return Fragment{from_i8<HALF, 0>(low), from_i8<HALF, 0>(high), from_i8<HALF, 2>(low), from_i8<HALF, 2>(high)};
                    };
                    first[mat] = two(w.x, w.y);
                    second[mat] = two(w.z, w.w);
                } else {
                    const Word4 w = word4(unit + mat * UNIT_BYTES + step * STEP_BYTES + i / 2 * 512 + lane * 16);
                    const u32 one = word_of(w, i % 2 * 2), two = word_of(w, i % 2 * 2 + 1);
                    if (WEIGHT == W_Q6_K) {
                        const u32 h = word_of(upper[mat][i / 4], i % 4);
                        first[mat] = from_six<HALF, false>(one, h);
                        second[mat] = from_six<HALF, true>(two, h);
                    } else if (WEIGHT == W_MXFP4) {
                        first[mat] = from_mxfp4<HALF>(one);
                        second[mat] = from_mxfp4<HALF>(two);
                    } else {
                        constexpr int OFFSET = WEIGHT == W_Q4_0 ? 8 : 0;
                        first[mat] = from_nibbles<HALF, OFFSET>(one);
                        second[mat] = from_nibbles<HALF, OFFSET>(two);
                    }
                }
#pragma unroll
                for (int side = 0; side < 2; side++) {
                    if (WEIGHT == W_Q8_0 || WEIGHT == W_Q4_0) {
                        const Word2 &s = scales[mat][side];
                        scale[mat][side] = half_float((i < 2 ? s.x : s.y) >> i % 2 * 16);
                    } else if (WEIGHT == W_MXFP4) {
                        // a scale of 0 stands for 2^-127; one of 255, infinite here, was seen to below
                        const u32 e = scales[mat][side].x << (3 - i % 4) * 8 >> 1 & 0x7f800000u;
                        scale[mat][side] = float_of(e > 0x00400000u ? e : 0x00400000u);
                    } else if (WEIGHT == W_Q4_K) {
                        const Word4 &s = wide[mat][side];
                        const float d = half_float(s.x), dmin = half_float(s.x >> 16);
                        const u32 six = i < 4 ? s.y & 0x3f3f3f3fu : (s.w & 0x0f0f0f0fu) | (s.y >> 2 & 0x30303030u);
                        const u32 low = i < 4 ? s.z & 0x3f3f3f3fu : (s.w >> 4 & 0x0f0f0f0fu) | (s.z >> 2 & 0x30303030u);
                        // `scale * (2^23 + code) - scale * 2^23` is exact
                        const float q = i % 4 == 0 ? byte_float<0>(six) : i % 4 == 1 ? byte_float<1>(six) : i % 4 == 2 ? byte_float<2>(six) : byte_float<3>(six);
                        const float o = i % 4 == 0 ? byte_float<0>(low) : i % 4 == 1 ? byte_float<1>(low) : i % 4 == 2 ? byte_float<2>(low) : byte_float<3>(low);
                        scale[mat][side] = __fmaf_rn(d, q, -8388608.0f * d);
                        minimum[mat][side] = __fmaf_rn(dmin, o, -8388608.0f * dmin);
                    } else {
                        const float d = half_float(scales[mat][side].x);
                        const u32 s = word_of(wide[mat][side], i / 2);
                        scale[mat][side] = d * (i % 2 == 0 ? signed_float<0>(s) : signed_float<2>(s));
                        scale2[mat][side] = d * (i % 2 == 0 ? signed_float<1>(s) : signed_float<3>(s));
                    }
                }
            }
            const u32 at = k + step * STEP + i * 32;
            multiply_scaled<WEIGHT == W_Q6_K>(sum, first, second, scale, scale2, act, at * ELEMENT);
            if (WEIGHT == W_Q4_K) {
#pragma unroll
                for (int tile = 0; tile < TILES; tile++) {
                    const Word2 pair = *reinterpret_cast<const Word2 *>(act.sums + at / 32 * TOKENS + tile * 8);
                    const float x[2] = {float_of(pair.x), float_of(pair.y)};
#pragma unroll
                    for (int mat = 0; mat < MATS; mat++) {
#pragma unroll
                        for (int j = 0; j < 4; j++) {
                            sum[mat][tile][j] -= minimum[mat][j / 2] * x[j % 2];
                        }
                    }
                }
            }
        }
    }
}

// ---- the kernel ----

// The expert that is number `index` among those that have positions, as perjoule_kernels::op::slots::Segments has them; a warp looks at 32
// at once.
DEVICE bool find_expert(const i32 *offsets, u32 experts, i32 rows, u32 index, u32 lane, u32 &expert, i32 &from, i32 &to) {
    i32 before = 0;
    for (u32 base = 0; base < experts; base += 32) {
        const u32 e = base + lane;
        // offsets that go down count as if they stayed
        i32 first = e < experts ? offsets[e] : 0;
        first = first > before ? first : before;
#pragma unroll
        for (u32 distance = 1; distance < 32; distance *= 2) {
            const i32 other = __shfl_up_sync(~0u, first, distance);
            first = lane >= distance && other > first ? other : first;
        }
        before = __shfl_sync(~0u, first, 31);
        i32 last = e < experts ? offsets[e + 1] : 0;
        last = last > first ? last : first;
        first = first < rows ? first : rows;
        last = last < rows ? last : rows;
        const u32 busy = __ballot_sync(~0u, e < experts && first < last);
        if (index < (u32)__popc(busy)) {
            u32 left = busy;
            for (; index > 0; index--) {
                left &= left - 1;
            }
            const int which = __ffs((int)left) - 1;
            expert = base + which;
            from = __shfl_sync(~0u, first, which);
            to = __shfl_sync(~0u, last, which);
            return true;
        }
        index -= __popc(busy);
    }
    return false;
}

// One element of C from its sum (its sums, of a gated pair).
DEVICE void store(const Params &p, float sum, float other, u32 expert, i32 row, u32 n, const float *a_scale, const float *b_scale, const void *bias,
                  const void *up_bias, const void *residual, void *c) {
    const i64 at = row * p.c_row + n * p.c_col;
    if (GATED) {
        if (INTEGERS) {
            sum = (float)(i32)bits_of(sum);
            other = (float)(i32)bits_of(other);
        }
        if (p.has_bias) {
            sum += load_element(bias, n, p.bias_dtype);
        }
        if (p.has_up_bias) {
            other += load_element(up_bias, n, p.bias_dtype);
        }
        store_element(c, (u64)at, p.c_dtype, gate_by(p.gate, p.alpha, p.limit, sum, other));
        return;
    }
    if (INTEGERS) {
        if (p.c_dtype == DTYPE_I32) {
            static_cast<u32 *>(c)[at] = bits_of(sum);
            return;
        }
        sum = (float)(i32)bits_of(sum);
    }
    if (p.a_scale == SCALE_TENSOR || p.a_scale == SCALE_VECTOR) {
        sum *= a_scale[p.a_scale == SCALE_TENSOR ? 0 : row];
    }
    if (p.b_scale == SCALE_TENSOR || p.b_scale == SCALE_VECTOR) {
        sum *= b_scale[p.b_scale == SCALE_TENSOR ? 0 : n];
    }
    sum *= p.scale;
    if (p.has_bias) {
        sum += load_element(bias, (u64)expert * p.n + n, p.bias_dtype);
    }
    sum = activate(sum, p.activation);
    if (p.has_residual) {
        sum += load_element(residual, (u64)(row * p.residual_row + n * p.residual_col), p.residual_dtype);
    }
    store_element(c, (u64)at, p.c_dtype, sum);
}

// Two kernels of a stream share a multiprocessor where their shared memory fits.
constexpr int MIN_BLOCKS = TILES <= 2 && !(GATED && PACKED) ? 2 : 1;

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

    // a block takes TOKENS rows at a time: by blockIdx.y, or of an expert all
    const i32 first_row = GROUPED ? from : (i32)blockIdx.y * TOKENS;
    for (i32 row0 = first_row; row0 < to; row0 += GROUPED ? TOKENS : to) {
        const u32 count = to - row0 < TOKENS ? (u32)(to - row0) : TOKENS;
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
        if (threadIdx.x < TOKENS) {
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
            const u32 token = i * 8 + lane / 4;
            act.at[i] = activations + (token < count ? token : count - 1) * p.pitch + lane % 4 * 16;
        }
        act.piece_bytes = p.tokens * p.pitch;
        act.sums = activation_sums + lane % 4 * 2;

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
            const u32 base = shared_address(sums);
            // of a quad: its panel with slot, its row, and where it lies
            const auto place = [&](u32 i, u32 &panel, u32 &token, u32 &quad) {
                quad = i % QUADS;
                token = i / QUADS % count;
                panel = i / QUADS / count;
                return base + (panel * KWARPS * MEETING * SUMS + token * PITCH + quad * 4) * 4;
            };
            u32 panel, token, quad;
            __syncthreads();
            if (KWARPS > 1 && parts > 1) {
                // first the warps of each block, so that less crosses the cluster
                for (u32 i = threadIdx.x; i < total; i += THREADS) {
                    const u32 at = place(i, panel, token, quad);
#pragma unroll
                    for (int mat = 0; mat < MEETING; mat++) {
                        put_floats(at + mat * SUMS * 4, total_of(at + mat * SUMS * 4));
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
                        value[mat] = total_of(at + mat * SUMS * 4);
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
                        store(p, value[0].v[0], value[MEETING - 1].v[0], expert, row, n + j, a_scale, b_scale, bias, up_bias, residual, c);
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
                                const u32 token = i * 8 + lane % 4 * 2 + side;
                                scales.a[i][side] = p.a_scale == SCALE_GROUP ? a_scale + a_rows[token < count ? token : count - 1] * ((p.k + p.a_group - 1) / p.a_group) : nullptr;
                            }
                        }
                    }
                    multiply_plain(p, sum, unit, act, at * UNIT - k0, scales, lane);
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
