// Fragments of weights times activations in shared memory: what matmul/skinny.cu and matmul/panels.cu have in common.
//
// Defines: WEIGHT, MATH, PIECES, TILES (of eight columns of the instructions), GROUP_SCALES. The file that includes this says before, as
// constants, how many matrices (or panels) a warp multiplies together, MATS, and how many pieces of A meet in one column, DEEP.
#ifndef PERJOULE_MULTIPLY_CUH
#define PERJOULE_MULTIPLY_CUH

#include "common/element.cuh"
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
constexpr int COLUMNS = 16;
constexpr int TOKENS = TILES * 8;

// Bytes of an element of A in shared memory.
constexpr int ELEMENT = MATH == M_TF32 ? 4 : MATH == M_S8 ? 1 : 2;

// A step is what a panel holds contiguously; a unit is what a warp loads at once.
constexpr int CHUNKS = 2;
constexpr int STEP = WEIGHT == W_Q4_K || WEIGHT == W_Q6_K ? 256 : 128;
constexpr int STEPS = WEIGHT == W_Q8_0 || STEP == 256 || MATS == 2 || TILES == 8 ? 1 : 2;
constexpr int UNIT = PACKED ? STEP * STEPS : CHUNKS * (WEIGHT == W_PLAIN16 ? 32 : 64);
constexpr int CODE_LOADS = WEIGHT == W_Q8_0 || STEP == 256 ? 4 : 2;
constexpr int STEP_BYTES = !PACKED ? 16 * CHUNKS * 64 : WEIGHT == W_Q8_0 ? 2176 : WEIGHT == W_Q4_0 ? 1152 : WEIGHT == W_MXFP4 ? 1088 : WEIGHT == W_Q4_K ? 2304 : 3360;
// Bytes of a unit of one matrix.
constexpr int UNIT_BYTES = STEP_BYTES * (PACKED ? STEPS : 1);

// ---- instructions ----

DEVICE void mma_tf32(float (&d)[4], const Fragment &a, u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a.a0), "r"(a.a1), "r"(a.a2), "r"(a.a3), "r"(b0), "r"(b1));
}
DEVICE void mma(float (&d)[4], const Fragment &a, u32 b0, u32 b1) {
    if (MATH == M_BF16) {
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a.a0), "r"(a.a1), "r"(a.a2), "r"(a.a3), "r"(b0), "r"(b1));
    } else if (MATH == M_F16) {
        asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a.a0), "r"(a.a1), "r"(a.a2), "r"(a.a3), "r"(b0), "r"(b1));
    } else if (MATH == M_TF32) {
        mma_tf32(d, a, b0, b1);
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
// 16 bytes into shared memory, zeros where `inside` is false: nothing is read then, wherever `from` is.
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

// ---- multiplying ----

typedef float Sum[4];

// Where a lane reads activations: one address for each tile of eight tokens, and what follows from it.
struct Activations {
    const u8 *at[TILES];
    u32 piece_bytes;
    // sums of 32, `[32 of k][token]`: of this lane's token, from its first block
    const float *sums;

    // The same from element `k` on: what is added later are constants then.
    __device__ __forceinline__ Activations from(u32 k) const {
        Activations there = *this;
#pragma unroll
        for (int tile = 0; tile < TILES; tile++) {
            there.at[tile] += k * ELEMENT;
        }
        there.sums += k / 32 * TOKENS;
        return there;
    }
};

// Fragments of 64 / ELEMENT elements of k: what 16 bytes of activations meet.
DEVICE void multiply(Sum (&sum)[MATS][TILES], const Fragment (&first)[MATS], const Fragment (&second)[MATS], const Activations &act, u32 offset) {
#pragma unroll
    for (int tile = 0; tile < TILES; tile++) {
#pragma unroll
        for (int piece = DEEP - 1; piece >= 0; piece--) {
            const Word4 b = word4(act.at[tile] + piece * act.piece_bytes + offset);
#pragma unroll
            for (int mat = 0; mat < MATS; mat++) {
                mma(sum[mat][tile], first[mat], b.x, b.y);
                mma(sum[mat][tile], second[mat], b.z, b.w);
            }
        }
    }
}

// Whether codes of four bits are multiplied as they come, raised by 16: products with as many ones, negative, begin the sum. For one tile
// that is less work than to lower each code.
constexpr bool RAISED = (WEIGHT == W_Q4_0 || WEIGHT == W_Q4_K) && !HALF && TILES * DEEP == 1;
constexpr int OFFSET = WEIGHT == W_Q4_0 ? 8 : 0;

// The same for blocks that have scales of their own: `sum += scale * product`. Scales of columns g and g + 8; those of the first
// fragment and of the second differ where blocks are of 16.
template <bool SIXTEEN> DEVICE void multiply_scaled(Sum (&sum)[MATS][TILES], const Fragment (&first)[MATS], const Fragment (&second)[MATS],
                                                   const float (&scale)[MATS][2], const float (&scale2)[MATS][2], const Activations &act, u32 offset) {
#pragma unroll
    for (int tile = 0; tile < TILES; tile++) {
        Sum one[MATS] = {}, two[MATS] = {};
#pragma unroll
        for (int piece = DEEP - 1; piece >= 0; piece--) {
            const Word4 b = word4(act.at[tile] + piece * act.piece_bytes + offset);
            if (RAISED) {
                constexpr u32 MINUS = lowering<HALF, OFFSET>();
                mma(one[0], Fragment{MINUS, MINUS, MINUS, MINUS}, b.x, b.y);
                mma(one[0], Fragment{MINUS, MINUS, MINUS, MINUS}, b.z, b.w);
#pragma unroll
                for (int i = 0; i < (MATS - 1) * 4; i++) {
                    one[MATS - 1][i] = one[0][i];
                }
            }
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
DEVICE float byte_float(u32 word, u32 i) {
    u32 out;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(out) : "r"(word), "r"(0x4b000000u), "r"(0x7440u + i));
    return float_of(out);
}
template <int I> DEVICE float signed_float(u32 word) {
    u32 out;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(out) : "r"(word ^ 0x80808080u), "r"(0x4b000000u), "n"(0x7440 + I));
    return float_of(out) - 8388736.0f;
}

// `d` times the six bits in byte `i` of a word, exactly: they are the last of a mantissa, whose power of two goes away with the product.
// Where `i` is known to the compiler that is one LOP3 instead of PRMT with a register of its own.
template <bool KNOWN> DEVICE float scaled_six(float d, u32 word, u32 i) {
    if (!KNOWN) {
        return __fmaf_rn(d, byte_float(word, i), -8388608.0f * d);
    }
    switch (i) {
    case 0: return __fmaf_rn(d, float_of(masked<0x3fu, 0x4b000000u>(word)), -8388608.0f * d);
    case 1: return __fmaf_rn(d, float_of(masked<0x3f00u, 0x47000000u>(word)), -32768.0f * d);
    default: return __fmaf_rn(d, float_of(masked<0x3f0000u, 0x43000000u>(i == 2 ? word : word >> 8)), -128.0f * d);
    }
}

// Six bits of the second four blocks, whose lower four lie in `low` and the upper two above the six of the first four.
DEVICE u32 later_six(u32 low, u32 first) {
    return (low & 0x0f0f0f0fu) | (first >> 2 & 0x30303030u);
}

DEVICE u32 word_of(const Word4 &v, int i) {
    return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

DEVICE u32 tf32_of(u32 pair, bool high) {
    return bits_of(half_float(high ? pair >> 16 : pair));
}

// Columns of plain weights with scales for groups of k: what the products of 128 elements are multiplied with.
struct GroupScales {
    // elements of k before the block's, and of a group
    u32 k0;
    i64 b_group, a_group;
    const float *b[MATS][2];
    const float *a[TILES][2];
};

DEVICE void multiply_plain(Sum (&sum)[MATS][TILES], const u8 *unit, const Activations &all, u32 k, const GroupScales &groups, u32 lane) {
    const Activations act = all.from(k);
    Sum part[MATS][TILES] = {};
    auto &into = *(GROUP_SCALES ? &part : &sum);
    constexpr int PER = WEIGHT == W_PLAIN16 ? 32 : 64;
    const u32 g = lane / 4, t = lane % 4;
#pragma unroll
    for (int i = 0; i < CHUNKS; i++) {
        const u32 offset = i * PER * ELEMENT;
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
                    const float factor = (bs ? bs[at / groups.b_group] : 1.0f) * (as ? as[at / groups.a_group] : 1.0f);
                    const float value = MATH == M_S8 ? (float)(i32)bits_of(part[mat][tile][j]) : part[mat][tile][j];
                    sum[mat][tile][j] += factor * value;
                }
            }
        }
    }
}

// Blocks of 32 that are scheduled together: few where many sums take the registers.
constexpr int UNROLL = TILES == 8 ? WEIGHT == W_Q6_K ? 4 : 2 : MATS * TILES == 8 || MATS * DEEP == 6 || WEIGHT == W_Q4_K && TILES > 1 ? 4 : STEP / 32;

// Minima of q4_k times sums of 32 are a product of matrices, too: 16 columns by the eight blocks of a step. Both are exact in tf32, the sums
// as two numbers, the second of which is rounded to what f32 has. Lane `4 g + t` has the minima of blocks t and t + 4.
DEVICE void subtract_minima(Sum (&sum)[MATS][TILES], const Word4 (&wide)[MATS][2], const Activations &act, u32 offset, u32 lane) {
    Fragment minima[MATS];
    float factor[MATS][2];
#pragma unroll
    for (int mat = 0; mat < MATS; mat++) {
        u32 each[2][2];
#pragma unroll
        for (int side = 0; side < 2; side++) {
            const Word4 &s = wide[mat][side];
            factor[mat][side] = half_float(s.x >> 16);
            each[side][0] = bits_of(byte_float(s.z & 0x3f3f3f3fu, lane % 4) - 8388608.0f);
            each[side][1] = bits_of(byte_float(later_six(s.w >> 4, s.z), lane % 4) - 8388608.0f);
        }
        minima[mat] = Fragment{each[0][0], each[1][0], each[0][1], each[1][1]};
    }
#pragma unroll
    for (int tile = 0; tile < TILES; tile++) {
        u32 first[2], rest[2];
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const float x = act.sums[(offset / 32 + i * 4) * TOKENS + tile * 8];
            first[i] = bits_of(x) & 0xffffe000u;
            asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rest[i]) : "f"(x - float_of(first[i])));
        }
#pragma unroll
        for (int mat = 0; mat < MATS; mat++) {
            Sum below = {};
            mma_tf32(below, minima[mat], rest[0], rest[1]);
            mma_tf32(below, minima[mat], first[0], first[1]);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                sum[mat][tile][i] -= factor[mat][i / 2] * below[i];
            }
        }
    }
}

DEVICE void multiply_packed(Sum (&sum)[MATS][TILES], const u8 *unit, const Activations &all, u32 k, u32 lane) {
    const u32 g = lane / 4;
    const Activations act = all.from(k);
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
        if constexpr (WEIGHT == W_Q4_K) {
            subtract_minima(sum, wide, act, step * STEP, lane);
        }
#pragma unroll UNROLL
        for (int i = 0; i < STEP / 32; i++) {
            Fragment first[MATS], second[MATS];
            float scale[MATS][2], scale2[MATS][2];
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
                        const u32 h = word_of(i < 4 ? upper[mat][0] : upper[mat][1], i % 4);
                        first[mat] = from_six<HALF, false>(one, h);
                        second[mat] = from_six<HALF, true>(two, h);
                    } else if (WEIGHT == W_MXFP4) {
                        first[mat] = from_mxfp4<HALF>(one);
                        second[mat] = from_mxfp4<HALF>(two);
                    } else if (RAISED) {
                        first[mat] = raised_nibbles<HALF>(one);
                        second[mat] = raised_nibbles<HALF>(two);
                    } else {
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
                        const u32 six = i < 4 ? s.y & 0x3f3f3f3fu : later_six(s.w, s.y);
                        scale[mat][side] = scaled_six<UNROLL % 4 == 0>(half_float(s.x), six, i % 4);
                    } else {
                        const float d = half_float(scales[mat][side].x);
                        const u32 s = word_of(wide[mat][side], i / 2);
                        scale[mat][side] = d * (i % 2 == 0 ? signed_float<0>(s) : signed_float<2>(s));
                        scale2[mat][side] = d * (i % 2 == 0 ? signed_float<1>(s) : signed_float<3>(s));
                    }
                }
            }
            multiply_scaled<WEIGHT == W_Q6_K>(sum, first, second, scale, scale2, act, (step * STEP + i * 32) * ELEMENT);
        }
    }
}

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

#endif
