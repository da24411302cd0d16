// Codes of q8_0, q4_0 and mxfp4, by the rules of perjoule_kernels::block, bit for bit.

fn reciprocal(scale: f32) -> f32 {
    if scale == 0.0 {
        return 0.0;
    }
    return quotient(1.0, scale);
}

fn q8_0_code(value: f32, inverse: f32) -> u32 {
    return bitcast<u32>(f32_to_i8(round_away(times(value, inverse)))) & 255u;
}

fn q4_0_code(value: f32, inverse: f32) -> u32 {
    return min(truncated(plus(times(value, inverse), 8.5)), 15u);
}

fn mxfp4_exponent(most: f32) -> u32 {
    return max(bitcast<u32>(most) >> 23u, 2u) - 2u;
}

// Half of the scale that `e` stands for, 2^(e - 128).
fn half_scale(e: u32) -> f32 {
    return bitcast<f32>(select((e - 1u) << 23u, 0x200000u << e, e < 2u));
}

fn mxfp4_code(value: f32, half: f32) -> u32 {
    // midpoints between neighbouring magnitudes, in halves of the scale
    let magnitude = abs(value);
    var code = u32(magnitude > 0.5 * half) + u32(magnitude > 1.5 * half) + u32(magnitude > 2.5 * half);
    code += u32(magnitude > 3.5 * half) + u32(magnitude > 5.0 * half) + u32(magnitude > 7.0 * half);
    code += u32(magnitude > 10.0 * half);
    return select(code, code | 8u, code > 0u && value < 0.0);
}
