// To block formats, by the rules of perjoule_kernels::block, bit for bit: operations are rounded one by one (never contracted)
// and sums run in the order of the elements.
//
// q8_0, q4_0 and mxfp4: a warp takes a block, a lane an element. q4_k and q6_k: a thread fits a group of a block, and the threads
// of a block put the codes together in shared memory.
#include "kv_append/cache.cuh"

#define THREADS 128

struct BlocksParams {
    u64 blocks;
    u32 from, to;
};

// Products and sums that no compiler contracts.
DEVICE float mul(float a, float b) {
#if PERJOULE_ARCH
    return __fmul_rn(a, b);
#else
    return a * b;
#endif
}
DEVICE float add(float a, float b) {
#if PERJOULE_ARCH
    return __fadd_rn(a, b);
#else
    return a + b;
#endif
}
DEVICE float sub(float a, float b) {
    return add(a, -b);
}

DEVICE float clamp(float value, float low, float high) {
    return value < low ? low : value > high ? high : value;
}

// `value as u8`: towards zero, saturating, NaN becomes 0.
DEVICE u32 truncated(float value) {
    return value >= 255.0f ? 255u : value > 0.0f ? (u32)value : 0u;
}

DEVICE void put_half(u8 *at, u16 bits) {
    at[0] = (u8)bits;
    at[1] = (u8)(bits >> 8);
}

// ---- a warp a block ----

DEVICE void put_q4_0(u8 *block, float value) {
    // the first of those with the largest magnitude
    const u64 key = (u64)(bits_of(value) & 0x7fffffffu) << 32 | (31 - lane_id());
    const u32 first = 31 - (u32)reduce_warp<Max>(key);
    const float extreme = __shfl_sync(FULL_MASK, value, (int)first);
    const float scale = extreme / -8.0f;
    const float inverse = scale == 0.0f ? 0.0f : 1.0f / scale;
    const u32 raw = truncated(add(mul(value, inverse), 8.5f));
    const u32 code = raw < 15 ? raw : 15;
    const u32 other = shuffle_xor(code, 16);
    if (lane_id() == 0) {
        put_half(block, to_f16(scale).bits);
    }
    if (lane_id() < 16) {
        block[2 + lane_id()] = (u8)(code | other << 4);
    }
}

DEVICE void put_mxfp4(u8 *block, float value) {
    const float largest = reduce_warp<Max>(fabsf(value));
    const u32 exponent = bits_of(largest) >> 23 & 255u;
    const u32 e = exponent < 2 ? 0 : exponent - 2;
    const float half = half_scale_mxfp4(e), magnitude = fabsf(value);
    u32 code = 0;
    code += magnitude > mul(0.5f, half);
    code += magnitude > mul(1.5f, half);
    code += magnitude > mul(2.5f, half);
    code += magnitude > mul(3.5f, half);
    code += magnitude > mul(5.0f, half);
    code += magnitude > mul(7.0f, half);
    code += magnitude > mul(10.0f, half);
    code |= code > 0 && value < 0.0f ? 8u : 0u;
    const u32 other = shuffle_xor(code, 16);
    if (lane_id() == 0) {
        block[0] = (u8)e;
    }
    if (lane_id() < 16) {
        block[1 + lane_id()] = (u8)(code | other << 4);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
    quantise_warps(const __grid_constant__ BlocksParams p, const void *__restrict__ x, void *__restrict__ out) {
    take_turn();
    const u64 block = (u64)blockIdx.x * (THREADS / WARP_SIZE) + threadIdx.x / WARP_SIZE;
    if (block >= p.blocks) {
        return;
    }
    const float value = load_element(x, block * 32 + lane_id(), p.from);
    u8 *bytes = static_cast<u8 *>(out);
    switch (p.to) {
    case DTYPE_Q8_0: store_cache(out, block * 32 + lane_id(), DTYPE_Q8_0, value); break;
    case DTYPE_Q4_0: put_q4_0(bytes + block * 18, value); break;
    default: put_mxfp4(bytes + block * 17, value); break;
    }
}

// ---- fits of a group: those of perjoule_kernels::block (llama.cpp's reference quantisers) ----

#define GROUP_Q4_K 32
#define GROUP_Q6_K 16

// Codes 0..=15 of 4 bits each.
struct Codes {
    u32 word[GROUP_Q4_K / 8];
};

DEVICE Codes quantised(const float (&x)[GROUP_Q4_K], float inverse, float low) {
    Codes codes;
#pragma unroll
    for (int w = 0; w < GROUP_Q4_K / 8; w++) {
        codes.word[w] = 0;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const float code = clamp(round_even(mul(inverse, sub(x[w * 8 + i], low))), 0.0f, 15.0f);
            codes.word[w] |= (u32)code << 4 * i;
        }
    }
    return codes;
}

DEVICE float code_of(const Codes &codes, int i) {
    return (float)(codes.word[i / 8] >> i % 8 * 4 & 15u);
}

DEVICE float error_of(const float (&x)[GROUP_Q4_K], const float (&weight)[GROUP_Q4_K], const Codes &codes, float scale,
                      float low) {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < GROUP_Q4_K; i++) {
        const float difference = sub(add(mul(scale, code_of(codes, i)), low), x[i]);
        sum = add(sum, mul(weight[i], mul(difference, difference)));
    }
    return sum;
}

// Fits the group to `scale * code - minimum`.
DEVICE void fit_affine(const float (&x)[GROUP_Q4_K], const float (&weight)[GROUP_Q4_K], Codes &codes, float &scale,
                       float &minimum) {
    float low = 0.0f, high = x[0], sum_w = 0.0f, sum_x = 0.0f;
#pragma unroll
    for (int i = 0; i < GROUP_Q4_K; i++) {
        low = x[i] < low ? x[i] : low;
        high = x[i] > high ? x[i] : high;
        sum_w = add(sum_w, weight[i]);
        sum_x = add(sum_x, mul(weight[i], x[i]));
    }
    if (high == low) {
        codes = Codes{};
        scale = 0.0f;
        minimum = -low;
        return;
    }
    const float range = sub(high, low), inverse = 15.0f / range;
    scale = 1.0f / inverse;
    codes = quantised(x, inverse, low);
    float best = error_of(x, weight, codes, scale, low);
    for (int trial = 0; trial < 21; trial++) {
        // the range shrinks or grows with the best fit so far
        const float steps = add(add(-1.0f, mul(0.1f, (float)trial)), 15.0f);
        const Codes candidate = quantised(x, steps / sub(high, low), low);
        float sum_l = 0.0f, sum_l2 = 0.0f, sum_xl = 0.0f;
#pragma unroll
        for (int i = 0; i < GROUP_Q4_K; i++) {
            const float l = code_of(candidate, i), wl = mul(weight[i], l);
            sum_l = add(sum_l, wl);
            sum_l2 = add(sum_l2, mul(wl, l));
            sum_xl = add(sum_xl, mul(wl, x[i]));
        }
        const float determinant = sub(mul(sum_w, sum_l2), mul(sum_l, sum_l));
        if (determinant > 0.0f) {
            float fitted_scale = sub(mul(sum_w, sum_xl), mul(sum_x, sum_l)) / determinant;
            float fitted_low = sub(mul(sum_l2, sum_x), mul(sum_l, sum_xl)) / determinant;
            if (fitted_low > 0.0f) {
                fitted_low = 0.0f;
                fitted_scale = sum_xl / sum_l2;
            }
            const float error = error_of(x, weight, candidate, fitted_scale, fitted_low);
            if (error < best) {
                best = error;
                scale = fitted_scale;
                low = fitted_low;
                codes = candidate;
            }
        }
    }
    minimum = -low;
}

DEVICE float level_of(float inverse, float x) {
    return clamp(round_even(mul(inverse, x)), -32.0f, 31.0f);
}

DEVICE void sums_of(const float (&x)[GROUP_Q6_K], float inverse, float &sum_xl, float &sum_l2) {
    sum_xl = 0.0f;
    sum_l2 = 0.0f;
#pragma unroll
    for (int i = 0; i < GROUP_Q6_K; i++) {
        const float l = level_of(inverse, x[i]), w = mul(x[i], x[i]);
        sum_xl = add(sum_xl, mul(mul(w, x[i]), l));
        sum_l2 = add(sum_l2, mul(mul(w, l), l));
    }
}

// Fits the group to `scale * level`: returns the scale; levels are those under `inverse`, and 0 codes where that is 0.
DEVICE float fit_symmetric(const float (&x)[GROUP_Q6_K], float &best_inverse) {
    float extreme = 0.0f;
#pragma unroll
    for (int i = 0; i < GROUP_Q6_K; i++) {
        extreme = fabsf(x[i]) > fabsf(extreme) ? x[i] : extreme;
    }
    best_inverse = 0.0f;
    if (fabsf(extreme) < 1e-15f) {
        return 0.0f;
    }
    best_inverse = -32.0f / extreme;
    float sum_xl, sum_l2;
    sums_of(x, best_inverse, sum_xl, sum_l2);
    float scale = sum_l2 == 0.0f ? 0.0f : sum_xl / sum_l2;
    float best = mul(scale, sum_xl);
    for (int trial = -9; trial <= 9; trial++) {
        const float inverse = -add(32.0f, mul(0.1f, (float)trial)) / extreme;
        if (trial == 0) {
            continue;
        }
        sums_of(x, inverse, sum_xl, sum_l2);
        if (sum_l2 > 0.0f && mul(sum_xl, sum_xl) > mul(best, sum_l2)) {
            best_inverse = inverse;
            scale = sum_xl / sum_l2;
            best = mul(scale, sum_xl);
        }
    }
    return scale;
}

// ---- a thread a group ----

// Scale of the scales of a block's groups, and the code of this thread's; not negative.
DEVICE u32 scale_code(float value, float &scale) {
    const float largest = reduce_warp<Max>(value > 0.0f ? value : 0.0f, 8);
    const float inverse = largest > 0.0f ? 63.0f / largest : 0.0f;
    scale = largest / 63.0f;
    const u32 code = truncated(round_even(mul(inverse, value)));
    return code < 63 ? code : 63;
}

extern "C" __global__ void __launch_bounds__(THREADS)
    quantise_q4_k(const __grid_constant__ BlocksParams p, const void *__restrict__ x, u8 *__restrict__ out) {
    take_turn();
    constexpr u32 GROUPS = 256 / GROUP_Q4_K, BLOCKS = THREADS / GROUPS;
    __shared__ u8 codes[BLOCKS][256], steps[BLOCKS][2][GROUPS];
    const u32 own = threadIdx.x / GROUPS, g = threadIdx.x % GROUPS;
    const u64 index = (u64)blockIdx.x * BLOCKS + own;
    const bool there = index < p.blocks;
    float values[GROUP_Q4_K], weight[GROUP_Q4_K], squares = 0.0f;
#pragma unroll
    for (int i = 0; i < GROUP_Q4_K; i++) {
        values[i] = there ? load_element(x, index * 256 + g * GROUP_Q4_K + i, p.from) : 0.0f;
        squares = add(squares, mul(values[i], values[i]));
    }
    const float rms = sqrtf(squares / (float)GROUP_Q4_K);
#pragma unroll
    for (int i = 0; i < GROUP_Q4_K; i++) {
        weight[i] = add(rms, fabsf(values[i]));
    }
    Codes fitted;
    float own_scale, own_minimum, scale, minimum;
    fit_affine(values, weight, fitted, own_scale, own_minimum);
    const u32 scale_step = scale_code(own_scale, scale), minimum_step = scale_code(own_minimum, minimum);
    const f16 d = to_f16(scale), dmin = to_f16(minimum);
    const float step = mul(to_float(d), (float)scale_step), offset = mul(to_float(dmin), (float)minimum_step);
#pragma unroll
    for (int i = 0; i < GROUP_Q4_K; i++) {
        const float code = step == 0.0f ? code_of(fitted, i) : clamp(round_even(add(values[i], offset) / step), 0.0f, 15.0f);
        codes[own][g * GROUP_Q4_K + i] = (u8)code;
    }
    steps[own][0][g] = (u8)scale_step;
    steps[own][1][g] = (u8)minimum_step;
    __syncthreads();
    if (!there) {
        return;
    }
    u8 *block = out + index * 144;
    if (g == 0) {
        put_half(block, d.bits);
        put_half(block + 2, dmin.bits);
        const u8 *s = steps[own][0], *m = steps[own][1];
        for (int i = 0; i < 4; i++) {
            block[4 + i] = (u8)(s[i] | s[i + 4] >> 4 << 6);
            block[8 + i] = (u8)(m[i] | m[i + 4] >> 4 << 6);
            block[12 + i] = (u8)((s[i + 4] & 15) | (m[i + 4] & 15) << 4);
        }
    }
    for (u32 i = g; i < 128; i += GROUPS) {
        const u8 *pair = codes[own] + i / 32 * 64 + i % 32;
        block[16 + i] = (u8)(pair[0] | pair[32] << 4);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    quantise_q6_k(const __grid_constant__ BlocksParams p, const void *__restrict__ x, u8 *__restrict__ out) {
    take_turn();
    constexpr u32 GROUPS = 256 / GROUP_Q6_K, BLOCKS = THREADS / GROUPS;
    __shared__ u8 codes[BLOCKS][256];
    const u32 own = threadIdx.x / GROUPS, g = threadIdx.x % GROUPS;
    const u64 index = (u64)blockIdx.x * BLOCKS + own;
    const bool there = index < p.blocks;
    float values[GROUP_Q6_K];
#pragma unroll
    for (int i = 0; i < GROUP_Q6_K; i++) {
        values[i] = there ? load_element(x, index * 256 + g * GROUP_Q6_K + i, p.from) : 0.0f;
    }
    float fitted;
    const float group_scale = fit_symmetric(values, fitted);
    // the first of the groups whose scale has the largest magnitude
    u64 key = (u64)(bits_of(group_scale) & 0x7fffffffu) << 32 | (GROUPS - 1 - g);
    key = reduce_warp<Max>(key, GROUPS);
    const u32 first = lane_id() / GROUPS * GROUPS + GROUPS - 1 - (u32)key;
    const float extreme = __shfl_sync(FULL_MASK, group_scale, (int)first);
    const bool nothing = fabsf(extreme) < 1e-15f;
    const float inverse = nothing ? 0.0f : -128.0f / extreme;
    const f16 d = to_f16(nothing ? 0.0f : 1.0f / inverse);
    const i32 scale = (i32)to_i8(mul(inverse, group_scale));
    const float step = mul(to_float(d), (float)scale);
#pragma unroll
    for (int i = 0; i < GROUP_Q6_K; i++) {
        const float level = step == 0.0f ? level_of(fitted, values[i]) : clamp(round_even(values[i] / step), -32.0f, 31.0f);
        const u32 code = step == 0.0f && fitted == 0.0f ? 0u : (u32)(i32)add(level, 32.0f);
        codes[own][g * GROUP_Q6_K + i] = (u8)(nothing ? 0u : code);
    }
    __syncthreads();
    if (!there) {
        return;
    }
    u8 *block = out + index * 210;
    block[192 + g] = (u8)scale;
    if (g == 0) {
        put_half(block + 208, d.bits);
    }
    for (u32 i = g; i < 64; i += GROUPS) {
        const u32 half = i / 32, at = i % 32;
        const u8 *run = codes[own] + half * 128 + at;
        block[half * 64 + at] = (u8)((run[0] & 15) | (run[64] & 15) << 4);
        block[half * 64 + 32 + at] = (u8)((run[32] & 15) | (run[96] & 15) << 4);
        block[128 + half * 32 + at] = (u8)(run[0] >> 4 | run[32] >> 4 << 2 | run[64] >> 4 << 4 | run[96] >> 4 << 6);
    }
}
