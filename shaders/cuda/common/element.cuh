// Elements as memory holds them, and as arithmetic wants them: f32.
//
// Types of elements are C++ types here (float, f16, bf16, e4m3, i8, i32, u32) where a kernel is compiled for them, and
// ids (Dtype, the declaration order of perjoule_kernels::DType) where it decides at run time. Block formats have ids only.
// Roundings are those of perjoule_kernels::block: to nearest, ties to even; e4m3 and integers saturate.
//
// Compiled by NVRTC without any header, and as ordinary C++ where PERJOULE_EMULATED is defined: instructions of PTX stand
// in small functions that have a C++ body as well.
#ifndef PERJOULE_ELEMENT_CUH
#define PERJOULE_ELEMENT_CUH

#define DEVICE static __device__ __forceinline__

#if defined(__CUDA_ARCH__) && !defined(PERJOULE_EMULATED)
#define PERJOULE_ARCH __CUDA_ARCH__
#else
#define PERJOULE_ARCH 0
#endif

typedef signed char i8;
typedef unsigned char u8;
typedef unsigned short u16;
typedef int i32;
typedef unsigned int u32;
typedef long long i64;
typedef unsigned long long u64;

struct f16 {
    u16 bits;
};
struct bf16 {
    u16 bits;
};
struct e4m3 {
    u8 bits;
};

enum Dtype : u32 {
    DTYPE_F32,
    DTYPE_F16,
    DTYPE_BF16,
    DTYPE_F8E4M3,
    DTYPE_I8,
    DTYPE_I32,
    DTYPE_U32,
    DTYPE_Q8_0,
    DTYPE_Q4_0,
    DTYPE_Q4_K,
    DTYPE_Q6_K,
    DTYPE_MXFP4,
};

// ---- the order of kernels ----

// Begins every kernel that may be started early: lets the next one of the stream get ready, and waits until the one before has
// ended (programmatic dependent launch; nothing before Hopper, and nothing for kernels that are started in order).
DEVICE void take_turn() {
#if PERJOULE_ARCH >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// ---- bits ----

DEVICE float float_of(u32 bits) {
#if PERJOULE_ARCH
    return __uint_as_float(bits);
#else
    float value;
    __builtin_memcpy(&value, &bits, 4);
    return value;
#endif
}

DEVICE u32 bits_of(float value) {
#if PERJOULE_ARCH
    return __float_as_uint(value);
#else
    u32 bits;
    __builtin_memcpy(&bits, &value, 4);
    return bits;
#endif
}

#define INFINITE float_of(0x7f800000u)
#define NOT_A_NUMBER float_of(0x7fc00000u)

DEVICE bool is_nan(float value) {
    return value != value;
}

// Nearest integer, ties to even.
DEVICE float round_even(float value) {
#if PERJOULE_ARCH
    float out;
    asm("cvt.rni.f32.f32 %0, %1;" : "=f"(out) : "f"(value));
    return out;
#else
    return __builtin_rintf(value);
#endif
}

// ---- 16-bit floats ----

DEVICE float to_float(float value) {
    return value;
}

DEVICE float to_float(bf16 value) {
    return float_of((u32)value.bits << 16);
}

DEVICE float to_float(f16 value) {
#if PERJOULE_ARCH
    float out;
    asm("cvt.f32.f16 %0, %1;" : "=f"(out) : "h"(value.bits));
    return out;
#else
    const u32 sign = (u32)(value.bits & 0x8000u) << 16;
    const u32 rest = value.bits & 0x7fffu;
    if (rest >= 0x7c00u) {
        return float_of(sign | 0x7f800000u | (rest & 0x3ffu) << 13);
    }
    // the exponent's bias by a multiplication, which is exact and makes subnormals normal
    const float scaled = float_of(rest << 13) * float_of((127u + 112u) << 23);
    return float_of(sign | bits_of(scaled));
#endif
}

DEVICE bf16 to_bf16(float value) {
#if PERJOULE_ARCH >= 800
    u16 bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bf16{bits};
#else
    const u32 bits = bits_of(value);
    if (is_nan(value)) {
        return bf16{(u16)(bits >> 16 | 0x40u)};
    }
    return bf16{(u16)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
#endif
}

DEVICE f16 to_f16(float value) {
#if PERJOULE_ARCH
    // by way of a 32-bit register: ptxas 13.0 stores the lower byte of a 16-bit one that this conversion wrote as if its value
    // were to be converted to u8 (F2I.U8.F16)
    u32 pair;
#if PERJOULE_ARCH >= 800
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(0.0f), "f"(value));
#else
    u16 bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    asm("mov.b32 %0, {%1, %1};" : "=r"(pair) : "h"(bits));
#endif
    return f16{(u16)pair};
#else
    const u32 sign = bits_of(value) >> 16 & 0x8000u;
    const u32 rest = bits_of(value) & 0x7fffffffu;
    if (rest > 0x7f800000u) {
        return f16{(u16)(sign | 0x7e00u)};
    }
    if (rest >= 0x477ff000u) {
        return f16{(u16)(sign | 0x7c00u)}; // from 65520 on
    }
    if (rest < 0x38800000u) {
        // subnormal: the unit in the last place of 0.5 is 2^-24
        const float shifted = float_of(rest) + 0.5f;
        return f16{(u16)(sign | (bits_of(shifted) - 0x3f000000u))};
    }
    const u32 rounded = rest + 0xfffu + (rest >> 13 & 1u) - (112u << 23);
    return f16{(u16)(sign | rounded >> 13)};
#endif
}

// ---- e4m3: saturating, without infinities ----

DEVICE float to_float(e4m3 value) {
#if PERJOULE_ARCH >= 890
    u32 pair;
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(pair) : "h"((u16)value.bits));
    return to_float(f16{(u16)pair});
#else
    const u32 rest = value.bits & 0x7fu;
    const float magnitude = float_of(rest << 20) * float_of((127u + 120u) << 23);
    const u32 bits = rest == 0x7fu ? 0x7fc00000u : bits_of(magnitude);
    return float_of(bits | (u32)(value.bits & 0x80u) << 24);
#endif
}

// Two codes, the first in the low byte.
DEVICE u16 to_e4m3x2(float first, float second);

DEVICE e4m3 to_e4m3(float value) {
#if PERJOULE_ARCH >= 890
    return e4m3{(u8)to_e4m3x2(value, 0.0f)};
#else
    const u32 bits = bits_of(value);
    const u32 sign = bits >> 24 & 0x80u, rest = bits & 0x7fffffffu;
    u32 code;
    if (rest > 0x7f800000u) {
        code = 0x7fu;
    } else if (rest >= 0x43e00000u) {
        code = 0x7eu; // from 448 on
    } else if (rest < 0x3c800000u) {
        // subnormal, below 2^-6: the unit in the last place of 2^14 is 2^-9
        code = bits_of(float_of(rest) + 16384.0f) - 0x46800000u;
    } else {
        code = ((rest + 0x7ffffu + (rest >> 20 & 1u)) >> 20) - (120u << 3);
    }
    return e4m3{(u8)(sign | code)};
#endif
}

DEVICE u16 to_e4m3x2(float first, float second) {
#if PERJOULE_ARCH >= 890
    u16 pair;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(second), "f"(first));
    return pair;
#else
    return (u16)(to_e4m3(first).bits | (u32)to_e4m3(second).bits << 8);
#endif
}

// ---- integers: saturating, NaN becomes 0 ----

DEVICE float to_float(i8 value) {
    return (float)value;
}
DEVICE float to_float(i32 value) {
    return (float)value;
}
DEVICE float to_float(u32 value) {
    return (float)value;
}

DEVICE i32 to_i32(float value) {
#if PERJOULE_ARCH
    return __float2int_rn(is_nan(value) ? 0.0f : value);
#else
    const float rounded = round_even(value);
    if (is_nan(value)) {
        return 0;
    }
    return rounded >= 2147483648.0f ? 0x7fffffff : rounded < -2147483648.0f ? -0x7fffffff - 1 : (i32)rounded;
#endif
}

DEVICE u32 to_u32(float value) {
#if PERJOULE_ARCH
    return __float2uint_rn(is_nan(value) ? 0.0f : value);
#else
    const float rounded = round_even(value);
    if (is_nan(value) || rounded < 0.0f) {
        return 0;
    }
    return rounded >= 4294967296.0f ? 0xffffffffu : (u32)rounded;
#endif
}

DEVICE i8 to_i8(float value) {
    const i32 wide = to_i32(value);
    return (i8)(wide < -128 ? -128 : wide > 127 ? 127 : wide);
}

// `from_float<T>(value)`: the nearest T.
template <class T> struct Tag {};
DEVICE float from(float value, Tag<float>) {
    return value;
}
DEVICE f16 from(float value, Tag<f16>) {
    return to_f16(value);
}
DEVICE bf16 from(float value, Tag<bf16>) {
    return to_bf16(value);
}
DEVICE e4m3 from(float value, Tag<e4m3>) {
    return to_e4m3(value);
}
DEVICE i8 from(float value, Tag<i8>) {
    return to_i8(value);
}
DEVICE i32 from(float value, Tag<i32>) {
    return to_i32(value);
}
DEVICE u32 from(float value, Tag<u32>) {
    return to_u32(value);
}
template <class T> DEVICE T from_float(float value) {
    return from(value, Tag<T>{});
}

// ---- 32-bit words of elements, the first in the lowest bits ----

DEVICE void unpack(u32 word, float (&out)[1], Tag<float>) {
    out[0] = float_of(word);
}
DEVICE void unpack(u32 word, float (&out)[2], Tag<bf16>) {
    out[0] = float_of(word << 16);
    out[1] = float_of(word & 0xffff0000u);
}
DEVICE void unpack(u32 word, float (&out)[2], Tag<f16>) {
    out[0] = to_float(f16{(u16)word});
    out[1] = to_float(f16{(u16)(word >> 16)});
}
DEVICE void unpack(u32 word, float (&out)[4], Tag<e4m3>) {
#if PERJOULE_ARCH >= 890
    u32 low, high;
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(low) : "h"((u16)word));
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(high) : "h"((u16)(word >> 16)));
    out[0] = to_float(f16{(u16)low});
    out[1] = to_float(f16{(u16)(low >> 16)});
    out[2] = to_float(f16{(u16)high});
    out[3] = to_float(f16{(u16)(high >> 16)});
#else
#pragma unroll
    for (int i = 0; i < 4; i++) {
        out[i] = to_float(e4m3{(u8)(word >> 8 * i)});
    }
#endif
}
DEVICE void unpack(u32 word, float (&out)[4], Tag<i8>) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        out[i] = (float)(i8)(word >> 8 * i);
    }
}
DEVICE void unpack(u32 word, float (&out)[1], Tag<i32>) {
    out[0] = (float)(i32)word;
}
DEVICE void unpack(u32 word, float (&out)[1], Tag<u32>) {
    out[0] = (float)word;
}

DEVICE u32 pack(const float (&in)[1], Tag<float>) {
    return bits_of(in[0]);
}
DEVICE u32 pack(const float (&in)[2], Tag<bf16>) {
#if PERJOULE_ARCH >= 800
    u32 word;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(in[1]), "f"(in[0]));
    return word;
#else
    return to_bf16(in[0]).bits | (u32)to_bf16(in[1]).bits << 16;
#endif
}
DEVICE u32 pack(const float (&in)[2], Tag<f16>) {
#if PERJOULE_ARCH >= 800
    u32 word;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(in[1]), "f"(in[0]));
    return word;
#else
    return to_f16(in[0]).bits | (u32)to_f16(in[1]).bits << 16;
#endif
}
DEVICE u32 pack(const float (&in)[4], Tag<e4m3>) {
    return to_e4m3x2(in[0], in[1]) | (u32)to_e4m3x2(in[2], in[3]) << 16;
}
DEVICE u32 pack(const float (&in)[4], Tag<i8>) {
    u32 word = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        word |= (u32)(u8)to_i8(in[i]) << 8 * i;
    }
    return word;
}
DEVICE u32 pack(const float (&in)[1], Tag<i32>) {
    return (u32)to_i32(in[0]);
}
DEVICE u32 pack(const float (&in)[1], Tag<u32>) {
    return to_u32(in[0]);
}

// ---- vectors: N elements by accesses of up to 16 bytes, to whose size the address is a multiple ----

template <int BYTES> struct alignas(BYTES) Words {
    u32 word[BYTES / 4];
};

template <int BYTES> struct Access {
    static constexpr int SIZE = BYTES % 16 == 0 ? 16 : BYTES % 8 == 0 ? 8 : 4;
};

// `N * sizeof(T)` raw bytes; keep several of these in flight before converting them.
template <class T, int N> struct Raw {
    static constexpr int BYTES = N * (int)sizeof(T);
    static constexpr int SIZE = Access<BYTES>::SIZE;
    static_assert(BYTES % 4 == 0, "whole words");
    Words<SIZE> part[BYTES / SIZE];

    __device__ __forceinline__ void load(const T *from) {
#pragma unroll
        for (int i = 0; i < BYTES / SIZE; i++) {
            part[i] = reinterpret_cast<const Words<SIZE> *>(from)[i];
        }
    }
    __device__ __forceinline__ void store(T *to) const {
#pragma unroll
        for (int i = 0; i < BYTES / SIZE; i++) {
            reinterpret_cast<Words<SIZE> *>(to)[i] = part[i];
        }
    }
    // The same to global memory. 16 bytes are one instruction for sure: of a kernel's last plain store NVRTC 13.0 makes four.
    __device__ __forceinline__ void store_global(T *to) const {
#if PERJOULE_ARCH
        if constexpr (SIZE == 16) {
#pragma unroll
            for (int i = 0; i < BYTES / SIZE; i++) {
                const u32 (&w)[4] = part[i].word;
                asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(reinterpret_cast<Words<SIZE> *>(to) + i), "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3])
                             : "memory");
            }
            return;
        }
#endif
        store(to);
    }
    __device__ __forceinline__ void widen(float (&out)[N]) const {
        constexpr int EACH = 4 / (int)sizeof(T);
#pragma unroll
        for (int i = 0; i < BYTES / 4; i++) {
            float some[EACH];
            unpack(part[i * 4 / SIZE].word[i % (SIZE / 4)], some, Tag<T>{});
#pragma unroll
            for (int j = 0; j < EACH; j++) {
                out[i * EACH + j] = some[j];
            }
        }
    }
    __device__ __forceinline__ void narrow(const float (&in)[N]) {
        constexpr int EACH = 4 / (int)sizeof(T);
#pragma unroll
        for (int i = 0; i < BYTES / 4; i++) {
            float some[EACH];
#pragma unroll
            for (int j = 0; j < EACH; j++) {
                some[j] = in[i * EACH + j];
            }
            part[i * 4 / SIZE].word[i % (SIZE / 4)] = pack(some, Tag<T>{});
        }
    }
};

template <int N, class T> DEVICE void load_vector(const T *from, float (&out)[N]) {
    Raw<T, N> raw;
    raw.load(from);
    raw.widen(out);
}

template <int N, class T> DEVICE void store_vector(T *to, const float (&in)[N]) {
    Raw<T, N> raw;
    raw.narrow(in);
    raw.store_global(to);
}

// ---- block formats: element `i` of a block; blocks lie at any byte ----

DEVICE float half_at(const u8 *at) {
    return to_float(f16{(u16)(at[0] | (u32)at[1] << 8)});
}

DEVICE float decode_q8_0(const u8 *block, u32 i) {
    return (float)(i8)block[2 + i] * half_at(block);
}

DEVICE float decode_q4_0(const u8 *block, u32 i) {
    const u32 code = block[2 + i % 16] >> (i / 16 * 4) & 15u;
    return half_at(block) * ((float)code - 8.0f);
}

// Scale and minimum of a group of 32, in 6 bits each.
DEVICE void scale_q4_k(const u8 *block, u32 group, u32 &scale, u32 &minimum) {
    const u8 *packed = block + 4;
    if (group < 4) {
        scale = packed[group] & 63u;
        minimum = packed[group + 4] & 63u;
    } else {
        scale = (packed[group + 4] & 15u) | packed[group - 4] >> 6 << 4;
        minimum = packed[group + 4] >> 4 | packed[group] >> 6 << 4;
    }
}

DEVICE float decode_q4_k(const u8 *block, u32 i) {
    const u32 group = i / 32;
    u32 scale, minimum;
    scale_q4_k(block, group, scale, minimum);
    const u32 code = block[16 + group / 2 * 32 + i % 32] >> (group % 2 * 4) & 15u;
    // both products are exact
    return half_at(block) * (float)scale * (float)code - half_at(block + 2) * (float)minimum;
}

DEVICE float decode_q6_k(const u8 *block, u32 i) {
    const u32 half = i / 128, run = i / 32 % 4, at = i % 32;
    const u32 low = block[half * 64 + run % 2 * 32 + at] >> (run / 2 * 4) & 15u;
    const u32 high = block[128 + half * 32 + at] >> (run * 2) & 3u;
    const float step = half_at(block + 208) * (float)(i8)block[192 + i / 16];
    return step * ((float)(low | high << 4) - 32.0f);
}

// Half of the scale that an E8M0 byte stands for.
DEVICE float half_scale_mxfp4(u32 e) {
    return float_of(e == 255 ? 0x7fc00000u : e < 2 ? 0x00200000u << e : (e - 1) << 23);
}

// Twice the value of an E2M1 code, an integer.
DEVICE float doubled_e2m1(u32 code) {
    const u32 magnitude = (u32)(0x0c08060403020100ull >> (code % 8 * 8)) & 15u;
    return code & 8u ? -(float)magnitude : (float)magnitude;
}

DEVICE float decode_mxfp4(const u8 *block, u32 i) {
    const u32 code = block[1 + i % 16] >> (i / 16 * 4) & 15u;
    return half_scale_mxfp4(block[0]) * doubled_e2m1(code);
}

// ---- types that are known at run time ----

DEVICE u32 block_len(u32 dtype) {
    return dtype < DTYPE_Q8_0 ? 1 : dtype == DTYPE_Q4_K || dtype == DTYPE_Q6_K ? 256 : 32;
}

// Bytes of a block, or of an element of a plain type.
DEVICE u32 block_bytes(u32 dtype) {
    switch (dtype) {
    case DTYPE_F16:
    case DTYPE_BF16: return 2;
    case DTYPE_F8E4M3:
    case DTYPE_I8: return 1;
    case DTYPE_Q8_0: return 34;
    case DTYPE_Q4_0: return 18;
    case DTYPE_Q4_K: return 144;
    case DTYPE_Q6_K: return 210;
    case DTYPE_MXFP4: return 17;
    default: return 4;
    }
}

// Element `i` of a plain type.
DEVICE float load_element(const void *from, u64 i, u32 dtype) {
    switch (dtype) {
    case DTYPE_F32: return static_cast<const float *>(from)[i];
    case DTYPE_F16: return to_float(static_cast<const f16 *>(from)[i]);
    case DTYPE_BF16: return to_float(static_cast<const bf16 *>(from)[i]);
    case DTYPE_F8E4M3: return to_float(static_cast<const e4m3 *>(from)[i]);
    case DTYPE_I8: return (float)static_cast<const i8 *>(from)[i];
    case DTYPE_I32: return (float)static_cast<const i32 *>(from)[i];
    default: return (float)static_cast<const u32 *>(from)[i];
    }
}

DEVICE void store_element(void *to, u64 i, u32 dtype, float value) {
    switch (dtype) {
    case DTYPE_F32: static_cast<float *>(to)[i] = value; break;
    case DTYPE_F16: static_cast<f16 *>(to)[i] = to_f16(value); break;
    case DTYPE_BF16: static_cast<bf16 *>(to)[i] = to_bf16(value); break;
    case DTYPE_F8E4M3: static_cast<e4m3 *>(to)[i] = to_e4m3(value); break;
    case DTYPE_I8: static_cast<i8 *>(to)[i] = to_i8(value); break;
    case DTYPE_I32: static_cast<i32 *>(to)[i] = to_i32(value); break;
    default: static_cast<u32 *>(to)[i] = to_u32(value); break;
    }
}

// Element `i` of any type.
DEVICE float decode_element(const void *from, u64 i, u32 dtype) {
    const u8 *bytes = static_cast<const u8 *>(from);
    switch (dtype) {
    case DTYPE_Q8_0: return decode_q8_0(bytes + i / 32 * 34, (u32)(i % 32));
    case DTYPE_Q4_0: return decode_q4_0(bytes + i / 32 * 18, (u32)(i % 32));
    case DTYPE_Q4_K: return decode_q4_k(bytes + i / 256 * 144, (u32)(i % 256));
    case DTYPE_Q6_K: return decode_q6_k(bytes + i / 256 * 210, (u32)(i % 256));
    case DTYPE_MXFP4: return decode_mxfp4(bytes + i / 32 * 17, (u32)(i % 32));
    default: return load_element(from, i, dtype);
    }
}

#endif
