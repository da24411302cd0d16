// Functions of f32 to a few units in the last place. WGSL leaves its own far more room (2^-11 for sines, 3 + 2|x| units for exponentials),
// so these are made of sums and products, which are rounded.

// value * 2^exponent, for results in the normal range.
fn scale_by(value: f32, exponent: i32) -> f32 {
    // in two steps: 2^128 is no f32
    let half = exponent / 2;
    return value * bitcast<f32>(u32(half + 127) << 23u) * bitcast<f32>(u32(exponent - half + 127) << 23u);
}

// e^x; 0 from -87.3 on down, infinite from 88.73 on up. Cephes, expf.c.
fn exp_of(x: f32) -> f32 {
    if is_nan(x) {
        return x;
    }
    let bounded = clamp(x, -87.33, 88.72);
    let n = round(bounded * 1.442695041);
    // ln 2 in two parts, the first of few bits
    let r = (bounded - n * 0.693359375) - n * -2.12194440e-4;
    var p = 1.9875691500e-4;
    p = p * r + 1.3981999507e-3;
    p = p * r + 8.3334519073e-3;
    p = p * r + 4.1665795894e-2;
    p = p * r + 1.6666665459e-1;
    p = p * r + 5.0000001201e-1;
    let value = scale_by(p * (r * r) + r + 1.0, i32(n));
    return select(select(value, infinity(), x > 88.722835), 0.0, x < -87.33);
}

// tanh x. Cephes, tanhf.c.
fn tanh_of(x: f32) -> f32 {
    let magnitude = abs(x);
    if magnitude < 0.625 {
        let s = x * x;
        var p = -5.70498872745e-3;
        p = p * s + 2.06390887954e-2;
        p = p * s - 5.37397155531e-2;
        p = p * s + 1.33314422036e-1;
        p = p * s - 3.33332819422e-1;
        return p * s * x + x;
    }
    if is_nan(x) {
        return x;
    }
    let value = 1.0 - 2.0 / (exp_of(2.0 * min(magnitude, 40.0)) + 1.0);
    return select(value, -value, x < 0.0);
}

// 1 - erf(x) for x >= 0, to 1.2e-7 of itself. Numerical Recipes in C, section 6.2: erfcc.
fn erfc_of(x: f32) -> f32 {
    let t = 1.0 / (1.0 + 0.5 * x);
    var p = 0.17087277;
    p = p * t - 0.82215223;
    p = p * t + 1.48851587;
    p = p * t - 1.13520398;
    p = p * t + 0.27886807;
    p = p * t - 0.18628806;
    p = p * t + 0.09678418;
    p = p * t + 0.37409196;
    p = p * t + 1.00002368;
    p = p * t - 1.26551223;
    return t * exp_of(p - x * x);
}

// erf x.
fn erf_of(x: f32) -> f32 {
    let magnitude = abs(x);
    if magnitude < 0.75 {
        // Taylor: what comes next is below 2^-26 of the sum
        let s = x * x;
        var p = 1.646211437e-06;
        p = p * s - 1.492565036e-05;
        p = p * s + 0.0001205533298;
        p = p * s - 0.0008548327023;
        p = p * s + 0.005223977625;
        p = p * s - 0.02686617065;
        p = p * s + 0.1128379167;
        p = p * s - 0.376126389;
        p = p * s + 1.128379167;
        return p * x;
    }
    if is_nan(x) {
        return x;
    }
    let value = 1.0 - erfc_of(min(magnitude, 6.0));
    return select(value, -value, x < 0.0);
}

// x / (1 + e^(-slope x))
fn swish(x: f32, slope: f32) -> f32 {
    return x / (1.0 + exp_of(-slope * x));
}

fn silu(x: f32) -> f32 {
    return swish(x, 1.0);
}

fn gelu(x: f32) -> f32 {
    let u = x * 0.70710678;
    // far below 0 the sum of 1 and erf would cancel
    if u < -0.75 {
        return 0.5 * x * erfc_of(min(-u, 12.0));
    }
    return 0.5 * x * (1.0 + erf_of(u));
}

// 0.5 x (1 + tanh(u)) is x / (1 + e^(-2 u))
fn gelu_tanh(x: f32) -> f32 {
    let u = 0.7978845608 * (x + 0.044715 * x * x * x);
    return x / (1.0 + exp_of(-2.0 * u));
}

// The smaller of a number and a limit; NaN stays NaN.
fn at_most(x: f32, limit: f32) -> f32 {
    return select(min(x, limit), x, is_nan(x));
}

// A number within a limit to either side; NaN stays NaN.
fn within(x: f32, limit: f32) -> f32 {
    return select(clamp(x, -limit, limit), x, is_nan(x));
}

// perjoule_kernels::op::Activation, in its order.
fn activate(x: f32, activation: u32) -> f32 {
    switch activation {
        case 1u: { return silu(x); }
        case 2u: { return gelu(x); }
        case 3u: { return gelu_tanh(x); }
        default: { return x; }
    }
}
