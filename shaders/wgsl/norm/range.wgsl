// What the kernels of RmsNorm and LayerNorm share (arXiv:1910.07467, arXiv:1607.06450).

struct Params {
    x: Rows,
    residual: Rows,
    sum: Rows,
    out: Rows,
    eps: f32,
    weight_offset: f32,
    unused_a: u32,
    unused_b: u32,
}

// Whether a sum of squares left the range in which f32 rounds relatively: then elements are scaled first.
fn is_out_of_range(squares: f32) -> bool {
    // below 1e-30, above 3e38 or NaN: bits grow with numbers that are not negative
    let bits = bitcast<u32>(squares);
    return bits < 0x0da24260u || bits > 0x7f61b1e6u;
}

// A power of two that brings numbers up to `most` near 1, so that their squares stay in range.
fn down_scale(most: f32) -> f32 {
    let exponent = (bitcast<u32>(most) >> 23u) & 255u;
    return bitcast<f32>((254u - clamp(exponent, 1u, 253u)) << 23u);
}

// 1 / sqrt(a^2 + b^2) for numbers that are not negative.
fn inverse_hypot(a: f32, b: f32) -> f32 {
    let most = max(a, b);
    let least = min(a, b);
    if most == 0.0 || least == 0.0 || is_nan(a) || !(most < 1e38) {
        // infinite for 0, NaN for NaN
        return 1.0 / (a + b);
    }
    let share = least / most;
    return 1.0 / (most * sqrt(1.0 + share * share));
}
