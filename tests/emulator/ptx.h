// Instructions of PTX as functions, for translate.h: `op.a.b.t1.t2 d, x` is `op_op_a_b<t1, t2>(d, x)`, without words that mean nothing
// here. A register is 64 bits of any type. What an emulated instruction does is what the PTX ISA says, in program order: nothing is late
// but cp.async, whose copies are carried out when they are waited for.
#pragma once

namespace perjoule::ptx {

struct Reg {
    unsigned long long bits;
};

template <class T>
inline Reg get(const T& value) {
    static_assert(sizeof(T) <= 8, "an operand of at most 64 bits");
    Reg r{0};
    __builtin_memcpy(&r.bits, &value, sizeof(T));
    return r;
}
template <class T>
inline void put(T& to, Reg r) {
    __builtin_memcpy(&to, &r.bits, sizeof(T));
}
template <class T>
inline Reg of(T value) {
    return {static_cast<unsigned long long>(value)};
}
inline Reg real(float value) { return get(value); }
inline bool truth(Reg r) { return r.bits & 1; }
inline Reg inverted(Reg r) { return {!truth(r)}; }
inline Reg sink() { return {0}; }
inline Reg* pointer(const Reg& r) { return const_cast<Reg*>(&r); }
inline long long immediate(Reg r) { return int(r.bits); }
inline void waiting() { self().runtime->yield(); }

template <int N>
struct Vec {
    Reg* r[N];
};

struct Mem {
    unsigned long long address;
};
inline Mem at(Reg base, long long offset) { return {base.bits + static_cast<unsigned long long>(offset)}; }

// Spaces of memory: how an address becomes a pointer.
inline unsigned char* window(unsigned address) { return self().block->window + address; }
struct Shared {
    static unsigned char* pointer(Mem m) { return window(unsigned(m.address)); }
};
struct Global {
    static unsigned char* pointer(Mem m) { return reinterpret_cast<unsigned char*>(m.address); }
};
inline void aligned(const void* p, unsigned bytes) {
    if (reinterpret_cast<unsigned long>(p) % bytes != 0) self().runtime->fault("misaligned address");
}

// ---- types ----

inline float half_to_float(unsigned short h) { return float(bits<_Float16>(h)); }
inline unsigned short float_to_half(float x) { return x != x ? 0x7fff : bits<unsigned short>(_Float16(x)); }
inline float bf16_to_float(unsigned short h) { return bits<float>(unsigned(h) << 16); }
inline unsigned short float_to_bf16(float x) {
    if (x != x) return 0x7fff;
    const unsigned u = bits<unsigned>(x);
    return static_cast<unsigned short>((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}
inline float e4m3_to_float(unsigned char c) {
    const int e = (c >> 3) & 15, m = c & 7;
    const float v = (c & 127) == 127 ? __builtin_nanf("") : e ? __builtin_ldexpf(float(8 + m), e - 10) : __builtin_ldexpf(float(m), -9);
    return c & 128 ? -v : v;
}
inline unsigned char float_to_e4m3(float x) {
    const unsigned char sign = __builtin_signbit(x) ? 128 : 0;
    if (x != x) return 127;
    const float a = __builtin_fabsf(x);
    if (a >= 448) return sign | 126;
    int e;
    __builtin_frexpf(a, &e);
    const int unit = (a < 0.015625f ? -6 : e - 1) - 3;
    const int n = int(__builtin_rintf(__builtin_ldexpf(a, -unit)));
    if (a < 0.015625f) return static_cast<unsigned char>(sign | n);  // 8 is the first normal number
    const unsigned code = unsigned((unit + 10) << 3) + unsigned(n) - 8;
    return static_cast<unsigned char>(sign | (code > 126 ? 126 : code));
}
inline float rounded_tf32(float x) { return bits<float>(bits<unsigned>(x) & 0xffffe000u); }

#define PERJOULE_TYPE(name, C_)                       \
    struct name {                                     \
        using C = C_;                                 \
        static C from(Reg r) {                        \
            C c;                                      \
            __builtin_memcpy(&c, &r.bits, sizeof(C)); \
            return c;                                 \
        }                                             \
        static Reg to(C c) { return get(c); }         \
    };
PERJOULE_TYPE(b8, unsigned char)
PERJOULE_TYPE(b16, unsigned short) PERJOULE_TYPE(b32, unsigned) PERJOULE_TYPE(b64, unsigned long long) PERJOULE_TYPE(u8, unsigned char)
    PERJOULE_TYPE(u16, unsigned short) PERJOULE_TYPE(u32, unsigned) PERJOULE_TYPE(u64, unsigned long long) PERJOULE_TYPE(s8, signed char)
        PERJOULE_TYPE(s16, short) PERJOULE_TYPE(s32, int) PERJOULE_TYPE(s64, long long) PERJOULE_TYPE(f32, float)
            PERJOULE_TYPE(f64, double) struct pred {
    using C = bool;
    static C from(Reg r) { return truth(r); }
    static Reg to(C c) { return {c}; }
};
// Types that are computed with as f32.
#define PERJOULE_SMALL(name, B, widen, narrow)            \
    struct name {                                         \
        using C = float;                                  \
        static C from(Reg r) { return widen(B(r.bits)); } \
        static Reg to(C c) { return get(narrow(c)); }     \
    };
PERJOULE_SMALL(f16, static_cast<unsigned short>, half_to_float, float_to_half)
PERJOULE_SMALL(bf16, static_cast<unsigned short>, bf16_to_float, float_to_bf16)
PERJOULE_SMALL(e4m3, static_cast<unsigned char>, e4m3_to_float, float_to_e4m3)
// Pairs, the first in the low bits.
template <class T, int BITS>
struct Pair {
    using Each = T;
    static constexpr int WIDTH = BITS;
    static float low(Reg r) { return T::from(r); }
    static float high(Reg r) { return T::from({r.bits >> BITS}); }
    static Reg to(float low, float high) { return {T::to(low).bits | T::to(high).bits << BITS}; }
};
using f16x2 = Pair<f16, 16>;
using bf16x2 = Pair<bf16, 16>;
using e4m3x2 = Pair<e4m3, 8>;
struct tf32 {};

template <class T>
struct is_pair {
    static constexpr bool value = false;
};
template <class T, int B>
struct is_pair<Pair<T, B>> {
    static constexpr bool value = true;
};

// ---- arithmetic ----

template <class T, class F>
inline Reg each(Reg a, F f) {
    if constexpr (is_pair<T>::value)
        return T::to(f(T::low(a)), f(T::high(a)));
    else
        return T::to(typename T::C(f(T::from(a))));
}
template <class T, class F>
inline Reg each(Reg a, Reg b, F f) {
    if constexpr (is_pair<T>::value)
        return T::to(f(T::low(a), T::low(b)), f(T::high(a), T::high(b)));
    else
        return T::to(typename T::C(f(T::from(a), T::from(b))));
}
template <class T, class F>
inline Reg each(Reg a, Reg b, Reg c, F f) {
    if constexpr (is_pair<T>::value)
        return T::to(f(T::low(a), T::low(b), T::low(c)), f(T::high(a), T::high(b), T::high(c)));
    else
        return T::to(typename T::C(f(T::from(a), T::from(b), T::from(c))));
}

#define PERJOULE_OP1(name, expression)                     \
    template <class T>                                     \
    inline void op_##name(Reg& d, Reg a) {                 \
        d = each<T>(a, [](auto x) { return expression; }); \
    }
#define PERJOULE_OP2(name, expression)                                \
    template <class T>                                                \
    inline void op_##name(Reg& d, Reg a, Reg b) {                     \
        d = each<T>(a, b, [](auto x, auto y) { return expression; }); \
    }
#define PERJOULE_OP3(name, expression)                                           \
    template <class T>                                                           \
    inline void op_##name(Reg& d, Reg a, Reg b, Reg c) {                         \
        d = each<T>(a, b, c, [](auto x, auto y, auto z) { return expression; }); \
    }
template <class C>
inline bool less(C x, C y) {
    return x < y;
}
template <class C>
inline C smallest(C x, C y) {
    return x != x ? y : y != y ? x : less(x, y) ? x : y;
}
template <class C>
inline C largest(C x, C y) {
    return x != x ? y : y != y ? x : less(x, y) ? y : x;
}
inline float multiplied(float x, float y, float z) { return __builtin_fmaf(x, y, z); }
inline double multiplied(double x, double y, double z) { return __builtin_fma(x, y, z); }

PERJOULE_OP1(neg, -x)
PERJOULE_OP1(abs, x < 0 ? -x : x) PERJOULE_OP1(not, ~x) PERJOULE_OP1(ex2_approx, __builtin_exp2f(x))
    PERJOULE_OP1(lg2_approx, __builtin_log2f(x)) PERJOULE_OP1(rcp_approx, 1.0f / x) PERJOULE_OP1(rcp_rn, 1.0f / x)
        PERJOULE_OP1(rsqrt_approx, 1.0f / __builtin_sqrtf(x)) PERJOULE_OP1(sqrt_approx, __builtin_sqrtf(x))
            PERJOULE_OP1(sqrt_rn, __builtin_sqrtf(x)) PERJOULE_OP1(sin_approx, __builtin_sinf(x))
                PERJOULE_OP1(cos_approx, __builtin_cosf(x)) PERJOULE_OP1(tanh_approx, __builtin_tanhf(x))
                    PERJOULE_OP1(popc, __builtin_popcountll(x)) PERJOULE_OP2(add, x + y) PERJOULE_OP2(add_rn, x + y)
                        PERJOULE_OP2(sub, x - y) PERJOULE_OP2(sub_rn, x - y) PERJOULE_OP2(mul, x* y) PERJOULE_OP2(mul_rn, x* y)
                            PERJOULE_OP2(mul_lo, x* y) PERJOULE_OP2(div_approx, x / y) PERJOULE_OP2(div_full, x / y)
                                PERJOULE_OP2(div_rn, x / y) PERJOULE_OP2(div, x / y) PERJOULE_OP2(rem, x % y)
                                    PERJOULE_OP2(min, smallest(x, y)) PERJOULE_OP2(max, largest(x, y))
                                        PERJOULE_OP2(max_NaN, x != x   ? x
                                                              : y != y ? y
                                                                       : largest(x, y)) PERJOULE_OP2(min_NaN, x != x   ? x
                                                                                                              : y != y ? y
                                                                                                                       : smallest(x, y))
                                            PERJOULE_OP2(and, x& y) PERJOULE_OP2(or, x | y) PERJOULE_OP2(xor, x ^ y)
                                                PERJOULE_OP3(fma_rn, multiplied(x, y, z)) PERJOULE_OP3(mad_lo, x* y + z) template <class T>
                                                inline void op_mul_hi(Reg& d, Reg a, Reg b) {
    d = T::to(typename T::C((__int128(T::from(a)) * T::from(b)) >> (8 * sizeof(typename T::C))));
}
template <class T>
inline void op_mul_wide(Reg& d, Reg a, Reg b) {
    d = get(static_cast<long long>(T::from(a)) * static_cast<long long>(T::from(b)));
}
template <class T>
inline void op_mad_wide(Reg& d, Reg a, Reg b, Reg c) {
    d = {static_cast<unsigned long long>(static_cast<long long>(T::from(a)) * static_cast<long long>(T::from(b))) + c.bits};
}
template <class T>
inline void op_shl(Reg& d, Reg a, Reg b) {
    d = unsigned(b.bits) >= 8 * sizeof(typename T::C) ? Reg{0} : T::to(typename T::C(T::from(a) << unsigned(b.bits)));
}
template <class T>
inline void op_shr(Reg& d, Reg a, Reg b) {
    const unsigned most = 8 * sizeof(typename T::C), by = unsigned(b.bits);
    d = T::to(typename T::C(by >= most ? (T::from(a) < 0 ? -1 : 0) : T::from(a) >> by));
}
template <class T>
inline void op_mov(Reg& d, Reg a) {
    d = T::to(T::from(a));
}
template <class T, int N>
inline void op_mov(Vec<N> d, Reg a) {
    for (int i = 0; i < N; i++)
        *d.r[i] = {(a.bits >> (8 * sizeof(typename T::C) / N * i)) & ((1ull << (8 * sizeof(typename T::C) / N)) - 1)};
}
template <class T, int N>
inline void op_mov(Reg& d, Vec<N> a) {
    d = {0};
    const int width = 8 * int(sizeof(typename T::C)) / N;
    for (int i = 0; i < N; i++) d.bits |= (a.r[i]->bits & ((1ull << width) - 1)) << (width * i);
}
template <class T>
inline void op_selp(Reg& d, Reg a, Reg b, Reg p) {
    d = truth(p) ? a : b;
}
#define PERJOULE_COMPARE(name, expression)             \
    template <class T>                                 \
    inline void op_setp_##name(Reg& p, Reg a, Reg b) { \
        const auto x = T::from(a), y = T::from(b);     \
        p = {bool(expression)};                        \
    }
PERJOULE_COMPARE(eq, x == y)
PERJOULE_COMPARE(ne, x != y) PERJOULE_COMPARE(lt, x < y) PERJOULE_COMPARE(le, x <= y) PERJOULE_COMPARE(gt, x > y)
    PERJOULE_COMPARE(ge, x >= y) template <class T>
    inline void op_prmt(Reg& d, Reg a, Reg b, Reg s) {
    d = get(__byte_perm(unsigned(a.bits), unsigned(b.bits), unsigned(s.bits)));
}
template <class T>
inline void op_lop3(Reg& d, Reg a, Reg b, Reg c, Reg table) {
    unsigned r = 0;
    for (int i = 0; i < 8; i++)
        if ((table.bits >> i) & 1) r |= unsigned((i & 4 ? a.bits : ~a.bits) & (i & 2 ? b.bits : ~b.bits) & (i & 1 ? c.bits : ~c.bits));
    d = {r};
}
template <class T>
inline void op_bfe(Reg& d, Reg a, Reg from, Reg length) {
    const unsigned long long mask = (1ull << (length.bits & 255)) - 1, v = (unsigned(a.bits) >> (from.bits & 31)) & mask;
    const bool negative = typename T::C(-1) < 0 && (length.bits & 255) && ((v >> ((length.bits & 255) - 1)) & 1);
    d = {(negative ? v | ~mask : v) & 0xffffffffull};
}
template <class T>
inline void op_shf_l_wrap(Reg& d, Reg a, Reg b, Reg c) {
    d = get(__funnelshift_l(unsigned(a.bits), unsigned(b.bits), unsigned(c.bits)));
}
template <class T>
inline void op_shf_r_wrap(Reg& d, Reg a, Reg b, Reg c) {
    d = get(__funnelshift_r(unsigned(a.bits), unsigned(b.bits), unsigned(c.bits)));
}
template <class T, class U>
inline void op_dp4a(Reg& d, Reg a, Reg b, Reg c) {
    int sum = int(c.bits);
    for (int i = 0; i < 4; i++) {
        const unsigned char x = static_cast<unsigned char>(a.bits >> (8 * i)), y = static_cast<unsigned char>(b.bits >> (8 * i));
        sum += (typename T::C(-1) < 0 ? int(static_cast<signed char>(x)) : int(x)) *
               (typename U::C(-1) < 0 ? int(static_cast<signed char>(y)) : int(y));
    }
    d = get(unsigned(sum));
}

// ---- conversions ----

template <class To, class From>
inline Reg converted(Reg a, double (*rounded)(double)) {
    if constexpr (is_pair<From>::value) {
        return To::to(From::low(a), From::high(a));
    } else {
        using C = typename To::C;
        const auto x = From::from(a);
        if constexpr (C(0.5) != 0) {
            return To::to(rounded ? C(rounded(double(x))) : C(x));
        } else if constexpr (decltype(x)(0.5) != 0) {
            const double low = C(-1) < 0 ? -__builtin_ldexp(1, 8 * sizeof(C) - 1) : 0,
                         high = __builtin_ldexp(1, 8 * sizeof(C) - (C(-1) < 0)) - 1;
            const double y = rounded ? rounded(double(x)) : double(x);
            return To::to(y != y ? C(0) : y <= low ? C(low) : y >= high ? C(C(-1) < 0 ? ~(C(1) << (8 * sizeof(C) - 1)) : C(-1)) : C(y));
        } else {
            return To::to(C(x));
        }
    }
}
// Saturated from integers.
template <class To, class From>
inline Reg saturated(Reg a) {
    using C = typename To::C;
    const double low = C(-1) < 0 ? -__builtin_ldexp(1, 8 * sizeof(C) - 1) : 0, high = __builtin_ldexp(1, 8 * sizeof(C) - (C(-1) < 0)) - 1;
    const double x = double(From::from(a));
    return To::to(x < low ? C(low) : x > high ? C(high) : C(From::from(a)));
}
#define PERJOULE_CVT(name, rounding)          \
    template <class To, class From>           \
    inline void op_cvt##name(Reg& d, Reg a) { \
        d = converted<To, From>(a, rounding); \
    }
PERJOULE_CVT(, nullptr)
PERJOULE_CVT(_rn, nullptr) PERJOULE_CVT(_rn_satfinite, nullptr) PERJOULE_CVT(_rni, __builtin_rint) PERJOULE_CVT(_rzi, __builtin_trunc)
    PERJOULE_CVT(_rmi, __builtin_floor) PERJOULE_CVT(_rpi, __builtin_ceil)
        PERJOULE_CVT(_rni_sat, __builtin_rint) template <class To, class From>
        inline void op_cvt_sat(Reg& d, Reg a) {
    d = saturated<To, From>(a);
}
// Two sources: the first becomes the high part.
template <class To, class From>
inline void op_cvt_rn(Reg& d, Reg high, Reg low) {
    d = To::to(From::from(low), From::from(high));
}
template <class To, class From>
inline void op_cvt_rn_satfinite(Reg& d, Reg high, Reg low) {
    d = To::to(From::from(low), From::from(high));
}
template <class To, class From>
inline void op_cvt_rn_relu(Reg& d, Reg high, Reg low) {
    const auto positive = [](float x) { return x > 0 ? x : x != x ? x : 0.0f; };
    d = To::to(positive(From::from(low)), positive(From::from(high)));
}
// To tf32: to nearest, ties away from zero.
template <class To, class From>
inline void op_cvt_rna(Reg& d, Reg a) {
    d = {(a.bits + 0x1000) & 0xffffe000ull};
}

// ---- memory ----

template <class T, class S>
inline void op_ld(S, Reg& d, Mem m) {
    aligned(S::pointer(m), sizeof(typename T::C));
    typename T::C c;
    __builtin_memcpy(&c, S::pointer(m), sizeof c);
    // widened as the register is
    if constexpr (typename T::C(0.5) == 0)
        d = get(static_cast<long long>(c));
    else
        d = T::to(c);
}
template <class T, class S, int N>
inline void load(S, Vec<N> d, Mem m) {
    constexpr unsigned each = sizeof(typename T::C);
    aligned(S::pointer(m), each * N);
    for (int i = 0; i < N; i++) {
        *d.r[i] = {0};
        __builtin_memcpy(&d.r[i]->bits, S::pointer(m) + each * unsigned(i), each);
    }
}
template <class T, class S>
inline void op_st(S, Mem m, Reg v) {
    aligned(S::pointer(m), sizeof(typename T::C));
    __builtin_memcpy(S::pointer(m), &v.bits, sizeof(typename T::C));
}
template <class T, class S, int N>
inline void store(S, Mem m, Vec<N> v) {
    constexpr unsigned each = sizeof(typename T::C);
    aligned(S::pointer(m), each * N);
    for (int i = 0; i < N; i++) __builtin_memcpy(S::pointer(m) + each * unsigned(i), &v.r[i]->bits, each);
}
template <class T, class S>
inline void op_ld_v2(S s, Vec<2> d, Mem m) {
    load<T>(s, d, m);
}
template <class T, class S>
inline void op_ld_v4(S s, Vec<4> d, Mem m) {
    load<T>(s, d, m);
}
template <class T, class S>
inline void op_st_v2(S s, Mem m, Vec<2> v) {
    store<T>(s, m, v);
}
template <class T, class S>
inline void op_st_v4(S s, Mem m, Vec<4> v) {
    store<T>(s, m, v);
}
// with a cache policy
template <class T, class S>
inline void op_ld(S s, Reg& d, Mem m, Reg) {
    op_ld<T>(s, d, m);
}
template <class T, class S>
inline void op_ld_v2(S s, Vec<2> d, Mem m, Reg) {
    load<T>(s, d, m);
}
template <class T, class S>
inline void op_ld_v4(S s, Vec<4> d, Mem m, Reg) {
    load<T>(s, d, m);
}
template <class T, class S>
inline void op_st_v4(S s, Mem m, Vec<4> v, Reg) {
    store<T>(s, m, v);
}
template <class T>
inline void op_createpolicy_fractional(Reg& d, Reg) {
    d = {0};
}
template <class T>
inline void op_createpolicy_fractional(Reg& d) {
    d = {0};
}

#define PERJOULE_ATOM(name, expression)                                                                  \
    template <class T, class S>                                                                          \
    inline void op_atom_##name(S, Reg& d, Mem m, Reg b) {                                                \
        using C = typename T::C;                                                                         \
        const C y = T::from(b);                                                                          \
        d = T::to(exchanged(reinterpret_cast<C*>(S::pointer(m)), [=](C x) -> C { return expression; })); \
    }                                                                                                    \
    template <class T, class S>                                                                          \
    inline void op_red_##name(S s, Mem m, Reg b) {                                                       \
        Reg d;                                                                                           \
        op_atom_##name<T>(s, d, m, b);                                                                   \
    }
PERJOULE_ATOM(add, x + y)
PERJOULE_ATOM(min, smallest(x, y)) PERJOULE_ATOM(max, largest(x, y)) PERJOULE_ATOM(exch, (void(x), y))
    PERJOULE_ATOM(inc, x >= y ? C(0) : C(x + 1)) PERJOULE_ATOM(and, C(x& y)) PERJOULE_ATOM(or, C(x | y))
        PERJOULE_ATOM(xor, C(x ^ y)) template <class T, class S>
        inline void op_atom_cas(S, Reg& d, Mem m, Reg b, Reg c) {
    waiting();
    d = T::to(atomicCAS(reinterpret_cast<typename T::C*>(S::pointer(m)), T::from(b), T::from(c)));
}

// cp.async: done when its group is waited for.
inline void later(void* to, const void* from, unsigned bytes, unsigned zeroed) {
    Thread& t = self();
    aligned(to, bytes + zeroed);
    if (t.pending == t.capacity) {
        t.capacity = t.capacity ? 2 * t.capacity : 64;
        t.later = static_cast<Later*>(__builtin_realloc(t.later, t.capacity * sizeof(Later)));
    }
    t.later[t.pending++] = {to, from, bytes, zeroed};
    t.open++;
}
inline void finish(unsigned groups_left) {
    Thread& t = self();
    unsigned done = 0;
    const unsigned end = t.groups > groups_left ? t.groups - groups_left : 0;
    for (unsigned g = 0; g < end; g++) {
        for (unsigned i = 0; i < t.group_size[g]; i++, done++) {
            const Later& l = t.later[done];
            __builtin_memcpy(l.to, l.from, l.bytes);
            __builtin_memset(static_cast<char*>(l.to) + l.bytes, 0, l.zeroed);
        }
    }
    for (unsigned i = done; i < t.pending; i++) t.later[i - done] = t.later[i];
    t.pending -= done;
    for (unsigned g = end; g < t.groups; g++) t.group_size[g - end] = t.group_size[g];
    t.groups -= end;
}
inline void op_cp_async_shared(Mem to, Mem from, Reg bytes) { later(Shared::pointer(to), Global::pointer(from), unsigned(bytes.bits), 0); }
inline void op_cp_async_shared(Mem to, Mem from, Reg bytes, Reg some) {
    const unsigned n = unsigned(some.bits);
    later(Shared::pointer(to), Global::pointer(from), n, unsigned(bytes.bits) - n);
}
inline void op_cp_async_commit_group() {
    Thread& t = self();
    if (t.groups == 64) t.runtime->fault("more than 64 groups of cp.async");
    t.group_size[t.groups++] = t.open;
    t.open = 0;
}
inline void op_cp_async_wait_group(Reg n) { finish(unsigned(n.bits)); }
inline void op_cp_async_wait_all() {
    op_cp_async_commit_group();
    finish(0);
}
inline void op_prefetch_tensormap(Mem) {}
inline void op_prefetch_L1(Mem) {}
inline void op_prefetch_L2(Mem) {}

// ---- barriers, fences, special registers ----

inline int bar(Reg id, Reg count, bool wait) {
    return self().runtime->barrier(unsigned(id.bits), unsigned(count.bits), wait, Vote::none, 0);
}
inline void op_bar(Reg id) { bar(id, {0}, true); }
inline void op_bar(Reg id, Reg count) { bar(id, count, true); }
inline void op_bar_arrive(Reg id, Reg count) { bar(id, count, false); }
inline void op_barrier(Reg id) { bar(id, {0}, true); }
inline void op_barrier(Reg id, Reg count) { bar(id, count, true); }
inline void op_barrier_arrive(Reg id, Reg count) { bar(id, count, false); }
inline void op_bar_warp(Reg mask) { __syncwarp(unsigned(mask.bits)); }
inline void op_membar() { __threadfence(); }
inline void op_membar_gl() { __threadfence(); }
inline void op_fence() { __threadfence(); }
inline void op_fence_acq_rel() { __threadfence(); }
inline void op_fence_sc() { __threadfence(); }
inline void op_fence_proxy_async() {}
inline void op_fence_proxy_async_shared() {}
inline void op_fence_proxy_async_global() {}
inline void op_fence_mbarrier_init() {}
inline void op_griddepcontrol_wait() {}
inline void op_griddepcontrol_launch_dependents() {}
inline void op_setmaxnreg_inc(Reg) {}
inline void op_setmaxnreg_dec(Reg) {}
template <class T>
inline void op_setmaxnreg_inc(Reg) {}
template <class T>
inline void op_setmaxnreg_dec(Reg) {}
template <class T>
inline void op_nanosleep(Reg) {
    waiting();
}
inline void op_trap() { __trap(); }
template <class T>
inline void op_activemask(Reg& d) {
    d = {__activemask()};
}
inline void op_elect(Reg d, Reg& p, Reg mask) {
    (void)d;
    p = {self().lane == unsigned(__builtin_ctz(unsigned(mask.bits)))};
}
template <class T>
inline void op_redux_add(Reg& d, Reg a, Reg mask) {
    d = T::to(reduce<0>(unsigned(mask.bits), T::from(a)));
}
template <class T>
inline void op_redux_min(Reg& d, Reg a, Reg mask) {
    d = T::to(reduce<1>(unsigned(mask.bits), T::from(a)));
}
template <class T>
inline void op_redux_max(Reg& d, Reg a, Reg mask) {
    d = T::to(reduce<2>(unsigned(mask.bits), T::from(a)));
}
template <class T>
inline void op_cvta_to_shared(Reg& d, Reg a) {
    d = {__cvta_generic_to_shared(reinterpret_cast<void*>(a.bits))};
}
template <class T>
inline void op_cvta_to_global(Reg& d, Reg a) {
    d = a;
}

#define PERJOULE_SPECIAL(name, expression) \
    inline Reg special_##name() { return of(expression); }
PERJOULE_SPECIAL(laneid, self().lane)
PERJOULE_SPECIAL(warpid, self().warp_in_block) PERJOULE_SPECIAL(smid, 0) PERJOULE_SPECIAL(nsmid, 4) PERJOULE_SPECIAL(tid_x, threadIdx.x)
    PERJOULE_SPECIAL(tid_y, threadIdx.y) PERJOULE_SPECIAL(tid_z, threadIdx.z) PERJOULE_SPECIAL(ntid_x, blockDim.x)
        PERJOULE_SPECIAL(ctaid_x, blockIdx.x) PERJOULE_SPECIAL(ctaid_y, blockIdx.y) PERJOULE_SPECIAL(ctaid_z, blockIdx.z)
            PERJOULE_SPECIAL(nctaid_x, gridDim.x) PERJOULE_SPECIAL(nctaid_y, gridDim.y) PERJOULE_SPECIAL(clock64, clock64())
                PERJOULE_SPECIAL(clock, clock()) PERJOULE_SPECIAL(globaltimer, clock64())
                    PERJOULE_SPECIAL(lanemask_lt, (1u << self().lane) - 1) PERJOULE_SPECIAL(lanemask_eq, 1u << self().lane)
                        PERJOULE_SPECIAL(cluster_ctarank, self().block->cluster_rank)
                            PERJOULE_SPECIAL(cluster_nctarank, self().block->cluster_size)
                                PERJOULE_SPECIAL(clusterid_x, self().block->cluster_index.x)
                                    PERJOULE_SPECIAL(clusterid_y, self().block->cluster_index.y)
                                        PERJOULE_SPECIAL(nclusterid_x, gridDim.x / self().block->cluster_dim.x)
                                            PERJOULE_SPECIAL(cluster_ctaid_x, self().block->cluster_rank)

    // ---- matrices of a warp ----

    // ldmatrix and stmatrix: 8 x 8 tiles of 16-bit elements, whose rows the lanes name, eight for each tile.
    struct Tiles {
    unsigned char* row;
    unsigned value[4];
    template <int N, bool STORE, bool TRANSPOSED>
    static void run(void* const* a, unsigned mask) {
        perjoule::each(mask, [&](unsigned lane) {
            Tiles& mine = *static_cast<Tiles*>(a[lane]);
            for (unsigned n = 0; n < N; n++)
                for (unsigned i = 0; i < 2; i++) {
                    const unsigned r = TRANSPOSED ? 2 * (lane % 4) + i : lane / 4, c = TRANSPOSED ? lane / 4 : 2 * (lane % 4) + i;
                    unsigned char* p = static_cast<Tiles*>(a[8 * n + r])->row + 2 * c;
                    unsigned short v = static_cast<unsigned short>(mine.value[n] >> (16 * i));
                    if (STORE)
                        __builtin_memcpy(p, &v, 2);
                    else {
                        __builtin_memcpy(&v, p, 2);
                        mine.value[n] = (mine.value[n] & ~(0xffffu << (16 * i))) | unsigned(v) << (16 * i);
                    }
                }
        });
    }
};
template <int N, bool STORE, bool TRANSPOSED>
inline void tiles(Reg* const* r, Mem m) {
    Tiles t{Shared::pointer(m), {}};
    aligned(t.row, 16);
    for (int i = 0; i < N; i++) t.value[i] = unsigned(r[i]->bits);
    self().runtime->warp(0xffffffffu, &Tiles::run<N, STORE, TRANSPOSED>, &t);
    if (!STORE)
        for (int i = 0; i < N; i++) *r[i] = {t.value[i]};
}
#define PERJOULE_TILES(suffix, n, transposed)                \
    template <class T>                                       \
    inline void op_ldmatrix_m8n8_##suffix(Vec<n> d, Mem m) { \
        tiles<n, false, transposed>(d.r, m);                 \
    }                                                        \
    template <class T>                                       \
    inline void op_stmatrix_m8n8_##suffix(Mem m, Vec<n> v) { \
        tiles<n, true, transposed>(v.r, m);                  \
    }
PERJOULE_TILES(x1_shared, 1, false)
PERJOULE_TILES(x2_shared, 2, false) PERJOULE_TILES(x4_shared, 4, false) PERJOULE_TILES(x1_trans_shared, 1, true)
    PERJOULE_TILES(x2_trans_shared, 2, true) PERJOULE_TILES(x4_trans_shared, 4, true)

    // Elements of matrix operands: how many a 32-bit register holds, and each of them.
    template <class T>
    struct Element {
    static constexpr int EACH = 2;
    static double at(unsigned word, int i) { return T::from({word >> (16 * i) & 0xffff}); }
};
template <>
struct Element<tf32> {
    static constexpr int EACH = 1;
    static double at(unsigned word, int) { return rounded_tf32(bits<float>(word)); }
};
template <class T>
struct Bytes {
    static constexpr int EACH = 4;
    static double at(unsigned word, int i) { return double(T::from({word >> (8 * i) & 0xff})); }
};
template <>
struct Element<s8> : Bytes<s8> {};
template <>
struct Element<u8> : Bytes<u8> {};
template <>
struct Element<e4m3> : Bytes<e4m3> {};

// mma.sync.m16n8kK: D = A B + C, with the fragments of the PTX ISA. Every lane holds elements of group `lane / 4` and thread `lane % 4`.
template <int K, class D, class A, class B>
struct Mma {
    static constexpr int EACH = Element<A>::EACH, NA = 16 * K / 32 / EACH, NB = 8 * K / 32 / EACH;
    unsigned a[NA], b[NB], c[4];

    static void run(void* const* lanes, unsigned) {
        double x[16][K], y[K][8];
        for (int lane = 0; lane < 32; lane++) {
            const Mma& m = *static_cast<Mma*>(lanes[lane]);
            const int group = lane / 4, thread = lane % 4;
            for (int r = 0; r < NA; r++)
                for (int i = 0; i < EACH; i++) x[group + 8 * (r & 1)][EACH * thread + (r >> 1) * 4 * EACH + i] = Element<A>::at(m.a[r], i);
            for (int r = 0; r < NB; r++)
                for (int i = 0; i < EACH; i++) y[EACH * thread + r * 4 * EACH + i][group] = Element<B>::at(m.b[r], i);
        }
        for (int lane = 0; lane < 32; lane++) {
            Mma& m = *static_cast<Mma*>(lanes[lane]);
            for (int i = 0; i < 4; i++) {
                const int row = lane / 4 + 8 * (i >> 1), column = 2 * (lane % 4) + (i & 1);
                double sum = 0;
                for (int k = 0; k < K; k++) sum += x[row][k] * y[k][column];
                using C = typename D::C;
                if constexpr (C(0.5) == 0)
                    m.c[i] = unsigned(int(m.c[i]) + int(sum));
                else
                    m.c[i] = unsigned(get(float(sum + double(bits<float>(m.c[i])))).bits);
            }
        }
    }
};
template <int K, class D, class A, class B, int NA, int NB>
inline void mma(Vec<4> d, Vec<NA> a, Vec<NB> b, Vec<4> c) {
    using M = Mma<K, D, A, B>;
    static_assert(M::NA == NA && M::NB == NB, "registers of the operands");
    M m;
    for (int i = 0; i < NA; i++) m.a[i] = unsigned(a.r[i]->bits);
    for (int i = 0; i < NB; i++) m.b[i] = unsigned(b.r[i]->bits);
    for (int i = 0; i < 4; i++) m.c[i] = unsigned(c.r[i]->bits);
    self().runtime->warp(0xffffffffu, &M::run, &m);
    for (int i = 0; i < 4; i++) *d.r[i] = {m.c[i]};
}
#define PERJOULE_MMA(k)                                                                          \
    template <class D, class A, class B, class C, int NA, int NB>                                \
    inline void op_mma_m16n8k##k##_row_col(Vec<4> d, Vec<NA> a, Vec<NB> b, Vec<4> c) {           \
        mma<k, D, A, B>(d, a, b, c);                                                             \
    }                                                                                            \
    template <class D, class A, class B, class C, int NA, int NB>                                \
    inline void op_mma_m16n8k##k##_row_col_satfinite(Vec<4> d, Vec<NA> a, Vec<NB> b, Vec<4> c) { \
        mma<k, D, A, B>(d, a, b, c);                                                             \
    }
PERJOULE_MMA(8) PERJOULE_MMA(16) PERJOULE_MMA(32)

}  // namespace perjoule::ptx

namespace pj = perjoule::ptx;

#include "hopper.h"
