// Weights for matmul/skinny.cu: how codes become fragments of mma.sync. 16 columns of B are the rows of the instruction's A operand, the few
// rows of the activations its B operand.
//
// Lane `4 g + t` has columns g and g + 8, and of 32 (or 64) elements along k those that 16 contiguous bytes hold. Which of them an
// instruction multiplies at once is free, as long as the activations follow: `activation_at` says where they lie.
#ifndef PERJOULE_SKINNY_CUH
#define PERJOULE_SKINNY_CUH

#include "common/element.cuh"

struct alignas(16) Word4 {
    u32 x, y, z, w;
};
struct alignas(8) Word2 {
    u32 x, y;
};

// (x & mask) | magic
template <u32 MASK, u32 MAGIC> DEVICE u32 masked(u32 x) {
    u32 out;
    asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(out) : "r"(x), "n"(MASK), "n"(MAGIC));
    return out;
}
// (x & mask) | y
template <u32 MASK> DEVICE u32 joined(u32 x, u32 y) {
    u32 out;
    asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(out) : "r"(x), "n"(MASK), "r"(y));
    return out;
}

// Pairs of 16-bit floats: bf16 or, with HALF, f16.
template <bool HALF> DEVICE u32 fma2(u32 a, u32 b, u32 c) {
    u32 out;
    if (HALF) {
        asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(out) : "r"(a), "r"(b), "r"(c));
    } else {
        asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(out) : "r"(a), "r"(b), "r"(c));
    }
    return out;
}

// Codes of up to 7 bits in the low bits of both halves, less `OFFSET`: an integer behind the point of 128 (1024) is its own mantissa.
template <bool HALF, int OFFSET> DEVICE u32 centred(u32 codes) {
    constexpr u32 ONE = HALF ? 0x3c003c00u : 0x3f803f80u;
    // -(1024 + OFFSET) in f16; -(128 + OFFSET) in bf16
    constexpr u32 MINUS = HALF ? 0xe400u + OFFSET : 0xc300u + OFFSET;
    return fma2<HALF>(codes, ONE, MINUS * 0x10001u);
}

// Two neighbouring bytes of four, each an i8, as a pair.
template <bool HALF, int FIRST> DEVICE u32 from_i8(u32 flipped) {
    // `flipped` has 128 added to each byte
    if (HALF) {
        u32 out;
        asm("prmt.b32 %0, %1, %2, %3;" : "=r"(out) : "r"(flipped), "r"(0x64646464u), "n"(FIRST == 0 ? 0x4140 : 0x4342));
        return fma2<true>(out, 0x3c003c00u, 0xe480e480u);
    }
    u32 low, high, out;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(low) : "r"(flipped), "r"(0x4b000000u), "n"(FIRST == 0 ? 0x7440 : 0x7442));
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(high) : "r"(flipped), "r"(0x4b000000u), "n"(FIRST == 0 ? 0x7441 : 0x7443));
    // integers of 8 bits: the upper halves have all of them
    asm("prmt.b32 %0, %1, %2, 0x7632;" : "=r"(out) : "r"(bits_of(float_of(low) - 8388736.0f)), "r"(bits_of(float_of(high) - 8388736.0f)));
    return out;
}

// Two e4m3 as a pair.
template <bool HALF> DEVICE u32 from_e4m3(u32 codes) {
    u32 pair;
#if PERJOULE_ARCH >= 890
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(pair) : "h"((u16)codes));
#else
    const float both[2] = {to_float(e4m3{(u8)codes}), to_float(e4m3{(u8)(codes >> 8)})};
    pair = pack(both, Tag<f16>{});
#endif
    if (HALF) {
        return pair;
    }
    const float both2[2] = {to_float(f16{(u16)pair}), to_float(f16{(u16)(pair >> 16)})};
    return pack(both2, Tag<bf16>{});
}

// A fragment of A: `[row g | g + 8][k]` in the order of mma.sync.m16n8k16.
struct Fragment {
    u32 a0, a1, a2, a3;
};

// ---- weights packed in panels of 16 columns ----

// Four bits: a word has the eight codes of a fragment, those of a0 in the bits 3-6 and 19-22, of a1 in 7-10 and 23-26, and so on; those of a3
// lie in 15-18 and, around the end, in 31 and 0-2. There a code is in the upper bits of a mantissa of bf16: `16 + code` (f16: 128 + code).
template <bool HALF> DEVICE Fragment raised_nibbles(u32 w) {
    constexpr u32 CODES = 0x00780078u, MAGIC = HALF ? 0x58005800u : 0x41804180u;
    return Fragment{masked<CODES, MAGIC>(w), masked<CODES, MAGIC>(w >> 4), masked<CODES, MAGIC>(w >> 8), masked<CODES, MAGIC>(w >> 12 | w << 20)};
}
// What takes that away again, and `OFFSET`: a pair of -(16 + OFFSET) or -(128 + OFFSET).
template <bool HALF, int OFFSET> DEVICE constexpr u32 lowering() {
    return ((HALF ? 0xd800u : 0xc180u) + OFFSET * 8) * 0x10001u;
}
template <bool HALF, int OFFSET> DEVICE Fragment from_nibbles(u32 w) {
    constexpr u32 ONE = HALF ? 0x3c003c00u : 0x3f803f80u, MINUS = lowering<HALF, OFFSET>();
    const Fragment f = raised_nibbles<HALF>(w);
    return Fragment{fma2<HALF>(f.a0, ONE, MINUS), fma2<HALF>(f.a1, ONE, MINUS), fma2<HALF>(f.a2, ONE, MINUS), fma2<HALF>(f.a3, ONE, MINUS)};
}

// E2M1: sign and magnitude of a code in place of a bf16's (f16's), which is then 2^126 (2^14) times too small. A word has the codes of
// a0, a1 and a2 where they are wanted, shifted by 0, 3 and 6 bits, and those of a3 in the bits that are left.
template <bool HALF> DEVICE u32 from_e2m1(u32 x) {
    if (HALF) {
        return fma2<true>(joined<0x80008000u>(x, x << 3 & 0x0e000e00u), 0x74007400u, 0x80008000u);
    }
    return fma2<false>(x, 0x7e807e80u, 0x80008000u);
}
template <bool HALF> DEVICE Fragment from_mxfp4(u32 w) {
    constexpr u32 CODES = 0x81c081c0u;
    const u32 last = joined<0x00c000c0u>(w >> 4, joined<0x01000100u>(w >> 5, w << 1 & 0x80008000u));
    return Fragment{from_e2m1<HALF>(w & CODES), from_e2m1<HALF>(w << 3 & CODES), from_e2m1<HALF>(w << 6 & CODES), from_e2m1<HALF>(last)};
}

// Six bits: the lower four of a0 in the bits 0-3 and 16-19, of a1 in 4-7 and 20-23, and so on; the upper two of a0..a3 in the bits 0..7 and 16..23 of `h`, or with ODD in 8..15 and 24..31.
template <bool HALF, bool ODD> DEVICE Fragment from_six(u32 w, u32 h) {
    constexpr u32 MAGIC = HALF ? 0x64006400u : 0x43004300u;
    const u32 h0 = ODD ? h >> 4 : h << 4, h1 = ODD ? h >> 6 : h << 2, h2 = ODD ? h >> 8 : h, h3 = ODD ? h >> 10 : h >> 2;
    return Fragment{centred<HALF, 32>(joined<0x00300030u>(h0, masked<0x000f000fu, MAGIC>(w))),
                    centred<HALF, 32>(joined<0x00300030u>(h1, masked<0x000f000fu, MAGIC>(w >> 4))),
                    centred<HALF, 32>(joined<0x00300030u>(h2, masked<0x000f000fu, MAGIC>(w >> 8))),
                    centred<HALF, 32>(joined<0x00300030u>(h3, masked<0x000f000fu, MAGIC>(w >> 12)))};
}

#endif
