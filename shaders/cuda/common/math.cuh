// Functions of f32 whose errors are a few units in the last place: what tolerances of sums in f32 leave room for.
#ifndef PERJOULE_MATH_CUH
#define PERJOULE_MATH_CUH

#include "common/element.cuh"

// 2^x; 0 for -inf. Results below the normal range may be 0.
DEVICE float exp2_fast(float x) {
#if PERJOULE_ARCH
    float out;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
    return out;
#else
    return exp2f(x);
#endif
}

// e^x. The product is rounded: a relative error of |x| units besides that of the exponential, as x itself has when rounded.
DEVICE float exp_fast(float x) {
    return exp2_fast(x * 1.442695041f);
}

// 1 / x; 0 where x is beyond 2^126.
DEVICE float reciprocal_fast(float x) {
#if PERJOULE_ARCH
    float out;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
    return out;
#else
    return 1.0f / x;
#endif
}

// x / (1 + e^(-slope x))
DEVICE float swish(float x, float slope) {
    return x * reciprocal_fast(1.0f + exp2_fast(-1.442695041f * slope * x));
}

DEVICE float silu(float x) {
    return swish(x, 1.0f);
}

DEVICE float gelu(float x) {
    return 0.5f * x * (1.0f + erff(x * 0.7071067812f));
}

// 0.5 x (1 + tanh(u)) is x / (1 + e^(-2 u))
DEVICE float gelu_tanh(float x) {
    const float u = 0.7978845608f * (x + 0.044715f * x * x * x);
    return x * reciprocal_fast(1.0f + exp2_fast(-2.885390082f * u));
}

// perjoule_kernels::op::Activation, in its order.
enum Activation : u32 { ACTIVATION_NONE, ACTIVATION_SILU, ACTIVATION_GELU, ACTIVATION_GELU_TANH };

DEVICE float activate(float x, u32 activation) {
    switch (activation) {
    case ACTIVATION_SILU: return silu(x);
    case ACTIVATION_GELU: return gelu(x);
    case ACTIVATION_GELU_TANH: return gelu_tanh(x);
    default: return x;
    }
}

// Sine and cosine of an angle in units of 2^-64 turns: what is a multiple of a turn has overflowed, so that large angles are as
// exact as small ones. Polynomials of Cephes (sinf.c, cosf.c) for an eighth of a turn to either side.
DEVICE void sincos_turns(u64 turns, float &sine, float &cosine) {
    const u32 high = (u32)(turns >> 32), quarter = (high + (1u << 29)) >> 30;
    // in halves, each of which converts in one instruction
    const float rest = (float)(u32)turns * 3.40612158e-19f;
    const float angle = fmaf((float)(i32)(high - (quarter << 30)), 1.462918079e-9f, rest);
    const float square = angle * angle;
    float sin = fmaf(square, -1.9515295891e-4f, 8.3321608736e-3f);
    sin = fmaf(square, sin, -1.6666654611e-1f);
    sin = fmaf(square * angle, sin, angle);
    float cos = fmaf(square, 2.443315711809948e-5f, -1.388731625493765e-3f);
    cos = fmaf(square, cos, 4.166664568298827e-2f);
    cos = fmaf(square * square, cos, fmaf(square, -0.5f, 1.0f));
    const bool swap = quarter & 1;
    const float s = swap ? cos : sin, c = swap ? sin : cos;
    sine = quarter & 2 ? -s : s;
    cosine = (quarter + 1) & 2 ? -c : c;
}

#endif
