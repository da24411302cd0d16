// The CUDA C++ language for g++: qualifiers, built-in variables, vector types and intrinsics, as NVRTC provides them without headers.
// `__shared__`, `__global__` and `asm` are no macros here: translate.h rewrites them.
#pragma once
#include "abi.h"

#define __device__
#define __host__
#define __constant__
#define __managed__
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __maxnreg__(...)
#define __cluster_dims__(...)
#define __block_size__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __builtin_align__(n) __attribute__((aligned(n)))
#define __builtin_assume(x) ((void)0)
#define __assume(x) ((void)0)
#define __CUDACC__ 1
#define __CUDACC_RTC__ 1
#define __CUDACC_VER_MAJOR__ 13
#define __CUDACC_VER_MINOR__ 0

using size_t = decltype(sizeof(0));
using ptrdiff_t = decltype((char*)0 - (char*)0);
using uchar = unsigned char;

#define PERJOULE_VECTOR(T, name, a2, a4)                                  \
    struct name##1 { T x; };                                              \
    struct alignas(a2) name##2 { T x, y; };                               \
    struct name##3 { T x, y, z; };                                        \
    struct alignas(a4) name##4 { T x, y, z, w; };                         \
    constexpr name##1 make_##name##1(T x) { return {x}; }                 \
    constexpr name##2 make_##name##2(T x, T y) { return {x, y}; }         \
    constexpr name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; } \
    constexpr name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
PERJOULE_VECTOR(signed char, char, 2, 4)
PERJOULE_VECTOR(unsigned char, uchar, 2, 4)
PERJOULE_VECTOR(short, short, 4, 8)
PERJOULE_VECTOR(unsigned short, ushort, 4, 8)
PERJOULE_VECTOR(int, int, 8, 16)
PERJOULE_VECTOR(unsigned, uint, 8, 16)
PERJOULE_VECTOR(long, long, 16, 16)
PERJOULE_VECTOR(unsigned long, ulong, 16, 16)
PERJOULE_VECTOR(long long, longlong, 16, 16)
PERJOULE_VECTOR(unsigned long long, ulonglong, 16, 16)
PERJOULE_VECTOR(float, float, 8, 16)
PERJOULE_VECTOR(double, double, 16, 16)

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
    constexpr dim3(perjoule::Index i) : x(i.x), y(i.y), z(i.z) {}
};

#define threadIdx (::perjoule::self().index)
#define blockIdx (::perjoule::self().block->index)
#define blockDim (::perjoule::self().block->dim)
#define gridDim (::perjoule::self().block->grid)
constexpr int warpSize = 32;

// ---- mathematics ----

extern "C" {
int printf(const char*, ...);
#define PERJOULE_MATH1(name) \
    double name(double);     \
    float name##f(float);
#define PERJOULE_MATH2(name)     \
    double name(double, double); \
    float name##f(float, float);
PERJOULE_MATH1(sqrt)
PERJOULE_MATH1(exp) PERJOULE_MATH1(exp2) PERJOULE_MATH1(expm1) PERJOULE_MATH1(log) PERJOULE_MATH1(log2) PERJOULE_MATH1(log10)
    PERJOULE_MATH1(log1p) PERJOULE_MATH1(sin) PERJOULE_MATH1(cos) PERJOULE_MATH1(tan) PERJOULE_MATH1(tanh) PERJOULE_MATH1(sinh)
        PERJOULE_MATH1(cosh) PERJOULE_MATH1(asin) PERJOULE_MATH1(acos) PERJOULE_MATH1(atan) PERJOULE_MATH1(erf) PERJOULE_MATH1(erfc)
            PERJOULE_MATH1(floor) PERJOULE_MATH1(ceil) PERJOULE_MATH1(trunc) PERJOULE_MATH1(round) PERJOULE_MATH1(rint)
                PERJOULE_MATH1(nearbyint) PERJOULE_MATH1(fabs) PERJOULE_MATH1(cbrt) PERJOULE_MATH2(fmax) PERJOULE_MATH2(fmin)
                    PERJOULE_MATH2(pow) PERJOULE_MATH2(fmod) PERJOULE_MATH2(atan2) PERJOULE_MATH2(copysign) PERJOULE_MATH2(fdim)
                        PERJOULE_MATH2(hypot) double fma(double, double, double);
float fmaf(float, float, float);
double ldexp(double, int);
float ldexpf(float, int);
float scalbnf(float, int);
float frexpf(float, int*);
double frexp(double, int*);
void sincosf(float, float*, float*);
void sincos(double, double*, double*);
int abs(int);
long labs(long);
long long llabs(long long);
long lrintf(float);
long long llrintf(float);
}
#define PERJOULE_FLOAT1(name) \
    inline float name(float x) { return name##f(x); }
PERJOULE_FLOAT1(sqrt)
PERJOULE_FLOAT1(exp) PERJOULE_FLOAT1(exp2) PERJOULE_FLOAT1(log) PERJOULE_FLOAT1(log2) PERJOULE_FLOAT1(sin) PERJOULE_FLOAT1(cos)
    PERJOULE_FLOAT1(tanh) PERJOULE_FLOAT1(erf) PERJOULE_FLOAT1(floor) PERJOULE_FLOAT1(ceil) PERJOULE_FLOAT1(trunc) PERJOULE_FLOAT1(round)
        PERJOULE_FLOAT1(rint) PERJOULE_FLOAT1(fabs) PERJOULE_FLOAT1(expm1) PERJOULE_FLOAT1(log1p) inline float pow(float x, float y) {
    return powf(x, y);
}
inline float fma(float x, float y, float z) { return fmaf(x, y, z); }
inline float copysign(float x, float y) { return copysignf(x, y); }
inline float fmax(float x, float y) { return fmaxf(x, y); }
inline float fmin(float x, float y) { return fminf(x, y); }
inline float abs(float x) { return fabsf(x); }
inline double abs(double x) { return fabs(x); }
inline long abs(long x) { return x < 0 ? -x : x; }
inline long long abs(long long x) { return x < 0 ? -x : x; }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline double rsqrt(double x) { return 1.0 / sqrt(x); }
inline float exp10f(float x) { return powf(10.0f, x); }
inline float fdividef(float x, float y) { return x / y; }
inline float sinpif(float x) { return float(sin(3.14159265358979323846 * double(x))); }
inline float cospif(float x) { return float(cos(3.14159265358979323846 * double(x))); }
inline float normcdff(float x) { return 0.5f * erfcf(-0.70710678f * x); }
inline bool isnan(float x) { return __builtin_isnan(x); }
inline bool isnan(double x) { return __builtin_isnan(x); }
inline bool isinf(float x) { return __builtin_isinf(x); }
inline bool isinf(double x) { return __builtin_isinf(x); }
inline bool isfinite(float x) { return __builtin_isfinite(x); }
inline bool isfinite(double x) { return __builtin_isfinite(x); }
inline bool signbit(float x) { return __builtin_signbit(x); }
inline float __saturatef(float x) { return x > 0 ? (x < 1 ? x : 1.0f) : 0.0f; }

#define PERJOULE_MINMAX(T)                              \
    constexpr T min(T a, T b) { return b < a ? b : a; } \
    constexpr T max(T a, T b) { return a < b ? b : a; }
PERJOULE_MINMAX(int)
PERJOULE_MINMAX(unsigned) PERJOULE_MINMAX(long) PERJOULE_MINMAX(unsigned long) PERJOULE_MINMAX(long long)
    PERJOULE_MINMAX(unsigned long long)
#define PERJOULE_MIXED(A, B, T)                                                     \
    constexpr T min(A a, B b) { return min(static_cast<T>(a), static_cast<T>(b)); } \
    constexpr T max(A a, B b) { return max(static_cast<T>(a), static_cast<T>(b)); } \
    constexpr T min(B a, A b) { return min(static_cast<T>(a), static_cast<T>(b)); } \
    constexpr T max(B a, A b) { return max(static_cast<T>(a), static_cast<T>(b)); }
        PERJOULE_MIXED(int, unsigned, unsigned) PERJOULE_MIXED(long, unsigned long, unsigned long)
            PERJOULE_MIXED(long long, unsigned long long, unsigned long long) inline float min(float a, float b) {
    return fminf(a, b);
}
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }

// What is rounded here is not contracted with what comes after.
namespace perjoule {
template <class T>
inline T apart(T x) {
    __asm__("" : "+x"(x));
    return x;
}
}  // namespace perjoule
#define PERJOULE_ROUNDED(name, expression)                                                \
    inline float __f##name##_rn(float a, float b) { return perjoule::apart(expression); } \
    inline double __d##name##_rn(double a, double b) { return perjoule::apart(expression); }
PERJOULE_ROUNDED(add, a + b)
PERJOULE_ROUNDED(sub, a - b) PERJOULE_ROUNDED(mul, a* b) PERJOULE_ROUNDED(div, a / b) inline float __fmaf_rn(float a, float b, float c) {
    return fmaf(a, b, c);
}
inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
inline float __fmaf_ieee_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __fsqrt_rn(float a) { return sqrtf(a); }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline float __frsqrt_rn(float a) { return 1.0f / sqrtf(a); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __expf(float a) { return expf(a); }
inline float __exp10f(float a) { return exp10f(a); }
inline float __logf(float a) { return logf(a); }
inline float __log2f(float a) { return log2f(a); }
inline float __log10f(float a) { return log10f(a); }
inline float __sinf(float a) { return sinf(a); }
inline float __cosf(float a) { return cosf(a); }
inline float __tanf(float a) { return tanf(a); }
inline float __powf(float a, float b) { return powf(a, b); }
inline float __tanhf(float a) { return tanhf(a); }
inline void __sincosf(float a, float* s, float* c) { sincosf(a, s, c); }

// ---- bits and integers ----

namespace perjoule {
template <class To, class From>
inline To bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "sizes differ");
    To to;
    __builtin_memcpy(&to, &from, sizeof(To));
    return to;
}
template <class T>
inline T limited(double x, T low, T high) {
    return x != x ? T(0) : x <= double(low) ? low : x >= double(high) ? high : T(x);
}
constexpr int INT_LOW = -2147483647 - 1, INT_HIGH = 2147483647;
}  // namespace perjoule
inline int __float_as_int(float x) { return perjoule::bits<int>(x); }
inline unsigned __float_as_uint(float x) { return perjoule::bits<unsigned>(x); }
inline float __int_as_float(int x) { return perjoule::bits<float>(x); }
inline float __uint_as_float(unsigned x) { return perjoule::bits<float>(x); }
inline long long __double_as_longlong(double x) { return perjoule::bits<long long>(x); }
inline double __longlong_as_double(long long x) { return perjoule::bits<double>(x); }
inline int __double2hiint(double x) { return int(perjoule::bits<unsigned long>(x) >> 32); }
inline int __double2loint(double x) { return int(perjoule::bits<unsigned long>(x)); }
inline int __float2int_rn(float x) { return perjoule::limited<int>(rint(double(x)), perjoule::INT_LOW, perjoule::INT_HIGH); }
inline int __float2int_rz(float x) { return perjoule::limited<int>(trunc(double(x)), perjoule::INT_LOW, perjoule::INT_HIGH); }
inline int __float2int_rd(float x) { return perjoule::limited<int>(floor(double(x)), perjoule::INT_LOW, perjoule::INT_HIGH); }
inline int __float2int_ru(float x) { return perjoule::limited<int>(ceil(double(x)), perjoule::INT_LOW, perjoule::INT_HIGH); }
inline unsigned __float2uint_rn(float x) { return perjoule::limited<unsigned>(rint(double(x)), 0u, ~0u); }
inline unsigned __float2uint_rz(float x) { return perjoule::limited<unsigned>(trunc(double(x)), 0u, ~0u); }
inline float __int2float_rn(int x) { return float(x); }
inline float __uint2float_rn(unsigned x) { return float(x); }
inline float __double2float_rn(double x) { return float(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll(x) : 64; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline unsigned __brev(unsigned x) {
    unsigned y = 0;
    for (int i = 0; i < 32; i++) y |= ((x >> i) & 1u) << (31 - i);
    return y;
}
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned s) {
    const unsigned long long all = (static_cast<unsigned long long>(y) << 32) | x;
    unsigned r = 0;
    for (int i = 0; i < 4; i++) {
        const unsigned selector = (s >> (4 * i)) & 15;
        unsigned byte = unsigned(all >> (8 * (selector & 7))) & 255;
        if (selector & 8) byte = byte & 128 ? 255 : 0;
        r |= byte << (8 * i);
    }
    return r;
}
inline unsigned __funnelshift_l(unsigned lo, unsigned hi, unsigned s) {
    return unsigned((((static_cast<unsigned long long>(hi) << 32) | lo) << (s & 31)) >> 32);
}
inline unsigned __funnelshift_r(unsigned lo, unsigned hi, unsigned s) {
    return unsigned(((static_cast<unsigned long long>(hi) << 32) | lo) >> (s & 31));
}
inline int __mulhi(int a, int b) { return int((static_cast<long long>(a) * b) >> 32); }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned((static_cast<unsigned long long>(a) * b) >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return static_cast<unsigned long long>((static_cast<unsigned __int128>(a) * b) >> 64);
}
inline int __mul24(int a, int b) { return a * b; }
inline int __dp4a(int a, int b, int c) {
    for (int i = 0; i < 4; i++) c += int(static_cast<signed char>(a >> (8 * i))) * int(static_cast<signed char>(b >> (8 * i)));
    return c;
}
inline unsigned __dp4a(unsigned a, unsigned b, unsigned c) {
    for (int i = 0; i < 4; i++) c += ((a >> (8 * i)) & 255) * ((b >> (8 * i)) & 255);
    return c;
}
inline unsigned __vsub4(unsigned a, unsigned b) {
    unsigned r = 0;
    for (int i = 0; i < 32; i += 8) r |= ((((a >> i) & 255) - ((b >> i) & 255)) & 255) << i;
    return r;
}
inline unsigned __vadd4(unsigned a, unsigned b) {
    unsigned r = 0;
    for (int i = 0; i < 32; i += 8) r |= ((((a >> i) & 255) + ((b >> i) & 255)) & 255) << i;
    return r;
}

// ---- memory ----

template <class T>
inline T __ldg(const T* p) {
    return *p;
}
template <class T>
inline T __ldca(const T* p) {
    return *p;
}
template <class T>
inline T __ldcs(const T* p) {
    return *p;
}
template <class T>
inline T __ldlu(const T* p) {
    return *p;
}
template <class T>
inline T __ldcg(const T* p) {
    return *const_cast<const volatile T*>(p);
}
template <class T>
inline T __ldcv(const T* p) {
    return *const_cast<const volatile T*>(p);
}
template <class T, class U>
inline void __stcs(T* p, U v) {
    *p = v;
}
template <class T, class U>
inline void __stcg(T* p, U v) {
    *p = v;
}
template <class T, class U>
inline void __stwb(T* p, U v) {
    *p = v;
}
template <class T, class U>
inline void __stwt(T* p, U v) {
    *p = v;
}
// the overloads above copy through volatile, which structs cannot
#define PERJOULE_COPIED(T)                     \
    inline T __ldcg(const T* p) { return *p; } \
    inline T __ldcv(const T* p) { return *p; }
PERJOULE_COPIED(float2)
PERJOULE_COPIED(float4) PERJOULE_COPIED(uint2) PERJOULE_COPIED(uint4) PERJOULE_COPIED(int2) PERJOULE_COPIED(int4)

    inline size_t __cvta_generic_to_shared(const void* p) {
    return size_t(static_cast<const unsigned char*>(p) - perjoule::self().block->window);
}
inline void* __cvta_shared_to_generic(size_t a) { return perjoule::self().block->window + a; }
inline size_t __cvta_generic_to_global(const void* p) { return reinterpret_cast<size_t>(p); }
inline void* __cvta_global_to_generic(size_t a) { return reinterpret_cast<void*>(a); }
inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __threadfence_block() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __threadfence_system() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

namespace perjoule {
template <class T, class F>
inline T exchanged(T* p, F next) {
    T old;
    __atomic_load(p, &old, __ATOMIC_SEQ_CST);
    for (;;) {
        T value = next(old);
        if (__atomic_compare_exchange(p, &old, &value, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) return old;
    }
}
}  // namespace perjoule
template <class T>
struct PerjouleSame {
    using Type = T;
};
#define PERJOULE_ATOMIC(name, expression)                                    \
    template <class T>                                                       \
    inline T name(T* p, typename PerjouleSame<T>::Type b) {                  \
        return perjoule::exchanged(p, [=](T a) -> T { return expression; }); \
    }                                                                        \
    template <class T>                                                       \
    inline T name##_block(T* p, typename PerjouleSame<T>::Type b) {          \
        return name(p, b);                                                   \
    }                                                                        \
    template <class T>                                                       \
    inline T name##_system(T* p, typename PerjouleSame<T>::Type b) {         \
        return name(p, b);                                                   \
    }
PERJOULE_ATOMIC(atomicAdd, a + b)
PERJOULE_ATOMIC(atomicSub, a - b)
PERJOULE_ATOMIC(atomicMax, a < b ? b : a)
PERJOULE_ATOMIC(atomicMin, b < a ? b : a)
PERJOULE_ATOMIC(atomicAnd, a& b)
PERJOULE_ATOMIC(atomicOr, a | b)
PERJOULE_ATOMIC(atomicXor, a ^ b)
PERJOULE_ATOMIC(atomicInc, a >= b ? T(0) : T(a + 1))
PERJOULE_ATOMIC(atomicDec, (a == 0 || a > b) ? b : T(a - 1))
template <class T>
inline T atomicExch(T* p, typename PerjouleSame<T>::Type b) {
    perjoule::self().runtime->yield();
    return perjoule::exchanged(p, [=](T) -> T { return b; });
}
template <class T>
inline T atomicCAS(T* p, typename PerjouleSame<T>::Type expected, typename PerjouleSame<T>::Type value) {
    perjoule::self().runtime->yield();
    T old = expected, next = value;
    __atomic_compare_exchange(p, &old, &next, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    return old;
}

// ---- barriers, votes and shuffles ----

inline void __syncthreads() { perjoule::self().runtime->barrier(0, 0, true, perjoule::Vote::none, 0); }
inline int __syncthreads_and(int v) { return perjoule::self().runtime->barrier(0, 0, true, perjoule::Vote::all, v); }
inline int __syncthreads_or(int v) { return perjoule::self().runtime->barrier(0, 0, true, perjoule::Vote::any, v); }
inline int __syncthreads_count(int v) { return perjoule::self().runtime->barrier(0, 0, true, perjoule::Vote::count, v); }

namespace perjoule {
template <class A>
inline void collect(unsigned mask, A& argument) {
    self().runtime->warp(mask, &A::all, &argument);
}
template <class F>
inline void each(unsigned mask, F f) {
    for (unsigned m = mask; m; m &= m - 1) f(unsigned(__builtin_ctz(m)));
}
struct Meet {
    static void all(void* const*, unsigned) {}
};
template <class T>
struct Shuffle {
    T value, result;
    int source;
    static void all(void* const* a, unsigned mask) {
        each(mask, [&](unsigned i) {
            Shuffle& mine = *static_cast<Shuffle*>(a[i]);
            // what a lane outside the mask holds is undefined
            const bool there = (mask >> mine.source) & 1;
            if (there)
                mine.result = static_cast<Shuffle*>(a[mine.source])->value;
            else
                __builtin_memset(&mine.result, 0xFF, sizeof(T));
        });
    }
};
template <class T>
inline T shuffle(unsigned mask, T value, int source) {
    Shuffle<T> s{value, value, source};
    collect(mask, s);
    return s.result;
}
template <int KIND>
struct Ballot {
    int predicate;
    unsigned result;
    static void all(void* const* a, unsigned mask) {
        unsigned votes = 0;
        each(mask, [&](unsigned i) { votes |= unsigned(static_cast<Ballot*>(a[i])->predicate != 0) << i; });
        each(mask, [&](unsigned i) { static_cast<Ballot*>(a[i])->result = KIND == 0 ? votes : KIND == 1 ? votes != 0 : votes == mask; });
    }
};
template <int KIND>
inline unsigned ballot(unsigned mask, int predicate) {
    Ballot<KIND> b{predicate, 0};
    collect(mask, b);
    return b.result;
}
template <class T, int KIND>
struct Reduce {
    T value;
    static void all(void* const* a, unsigned mask) {
        T sum = static_cast<Reduce*>(a[__builtin_ctz(mask)])->value;
        each(mask & (mask - 1), [&](unsigned i) {
            const T v = static_cast<Reduce*>(a[i])->value;
            sum = KIND == 0   ? T(sum + v)
                  : KIND == 1 ? (v < sum ? v : sum)
                  : KIND == 2 ? (sum < v ? v : sum)
                  : KIND == 3 ? T(sum & v)
                  : KIND == 4 ? T(sum | v)
                              : T(sum ^ v);
        });
        each(mask, [&](unsigned i) { static_cast<Reduce*>(a[i])->value = sum; });
    }
};
template <int KIND, class T>
inline T reduce(unsigned mask, T value) {
    Reduce<T, KIND> r{value};
    collect(mask, r);
    return r.value;
}
struct Match {
    unsigned long long value;
    unsigned result;
    static void all(void* const* a, unsigned mask) {
        each(mask, [&](unsigned i) {
            unsigned same = 0;
            each(mask, [&](unsigned j) { same |= unsigned(static_cast<Match*>(a[i])->value == static_cast<Match*>(a[j])->value) << j; });
            static_cast<Match*>(a[i])->result = same;
        });
    }
};
}  // namespace perjoule
inline void __syncwarp(unsigned mask = 0xFFFFFFFFu) {
    perjoule::Meet meet;
    perjoule::collect(mask, meet);
}
template <class T>
inline T __shfl_sync(unsigned mask, T v, int source, int width = 32) {
    const int lane = int(perjoule::self().lane);
    return perjoule::shuffle(mask, v, (lane & ~(width - 1)) | (source & (width - 1)));
}
template <class T>
inline T __shfl_xor_sync(unsigned mask, T v, int by, int width = 32) {
    const int lane = int(perjoule::self().lane), source = lane ^ by;
    return perjoule::shuffle(mask, v, source >= (lane & ~(width - 1)) + width ? lane : source);
}
template <class T>
inline T __shfl_down_sync(unsigned mask, T v, unsigned by, int width = 32) {
    const int lane = int(perjoule::self().lane), source = lane + int(by);
    return perjoule::shuffle(mask, v, source >= (lane & ~(width - 1)) + width ? lane : source);
}
template <class T>
inline T __shfl_up_sync(unsigned mask, T v, unsigned by, int width = 32) {
    const int lane = int(perjoule::self().lane), source = lane - int(by);
    return perjoule::shuffle(mask, v, source < (lane & ~(width - 1)) ? lane : source);
}
inline unsigned __ballot_sync(unsigned mask, int p) { return perjoule::ballot<0>(mask, p); }
inline int __any_sync(unsigned mask, int p) { return int(perjoule::ballot<1>(mask, p)); }
inline int __all_sync(unsigned mask, int p) { return int(perjoule::ballot<2>(mask, p)); }
#define PERJOULE_REDUCE(name, kind) \
    inline unsigned __reduce_##name##_sync(unsigned mask, unsigned v) { return perjoule::reduce<kind>(mask, v); }
PERJOULE_REDUCE(add, 0)
PERJOULE_REDUCE(min, 1) PERJOULE_REDUCE(max, 2) PERJOULE_REDUCE(and, 3) PERJOULE_REDUCE(or, 4)
    PERJOULE_REDUCE(xor, 5) inline int __reduce_add_sync(unsigned mask, int v) {
    return perjoule::reduce<0>(mask, v);
}
inline int __reduce_min_sync(unsigned mask, int v) { return perjoule::reduce<1>(mask, v); }
inline int __reduce_max_sync(unsigned mask, int v) { return perjoule::reduce<2>(mask, v); }
template <class T>
inline unsigned __match_any_sync(unsigned mask, T v) {
    perjoule::Match m{0, 0};
    __builtin_memcpy(&m.value, &v, sizeof(T));
    perjoule::collect(mask, m);
    return m.result;
}
// Lanes run one after another here: each is alone.
inline unsigned __activemask() { return 1u << perjoule::self().lane; }

inline long long clock64() { return static_cast<long long>(__builtin_ia32_rdtsc()); }
inline long clock() { return long(__builtin_ia32_rdtsc()); }
inline void __nanosleep(unsigned) { perjoule::self().runtime->yield(); }
[[noreturn]] inline void __trap() {
    perjoule::self().runtime->fault("trap");
    __builtin_unreachable();
}
inline void __brkpt() {}

// ---- what rewritten declarations call ----

namespace perjoule {
inline int sites = 0;
template <class T>
inline T& shared(Site& site) {
    Thread& thread = self();
    int id = __atomic_load_n(&site.id, __ATOMIC_RELAXED);
    if (id == 0) {
        const int next = __atomic_add_fetch(&sites, 1, __ATOMIC_RELAXED);
        if (__atomic_compare_exchange_n(&site.id, &id, next, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) id = next;
    }
    if (void* there = thread.block->sites[id % SITES]) return *static_cast<T*>(there);
    return *static_cast<T*>(thread.runtime->shared(&site, sizeof(T), alignof(T)));
}
// A pointer to the block's dynamic shared memory, of whatever type it is declared.
struct Dynamic {
    template <class T>
    operator T*() const {
        return reinterpret_cast<T*>(self().block->dynamic_shared);
    }
};

template <unsigned... I>
struct Sequence {};
template <class F>
struct Kernel;
template <class... A>
struct Kernel<void (*)(A...)> {
    static constexpr unsigned COUNT = sizeof...(A);
    static constexpr unsigned BYTES[COUNT + 1] = {sizeof(A)..., 0};
    template <void (*F)(A...), unsigned... I>
    static void unpack(void** p, Sequence<I...>) {
        F(*static_cast<A*>(p[I])...);
    }
    template <void (*F)(A...)>
    static void call(void** p) {
        unpack<F>(p, Sequence<__integer_pack(COUNT)...>());
    }
};
template <auto F>
inline Entry entry() {
    using K = Kernel<decltype(F)>;
    return {&K::template call<F>, K::COUNT, K::BYTES};
}
}  // namespace perjoule

#include "ptx.h"
