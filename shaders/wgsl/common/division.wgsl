// Division that rounds to nearest even: WGSL allows its own 2.5 units.

// a / b for normal numbers above 0; 0 where the quotient is below the normal range.
fn divide(a: f32, b: f32) -> f32 {
    let a_bits = bitcast<u32>(a);
    let b_bits = bitcast<u32>(b);
    var rest = (a_bits & 0x7fffffu) | 0x800000u;
    let by = (b_bits & 0x7fffffu) | 0x800000u;
    var exponent = i32(a_bits >> 23u) - i32(b_bits >> 23u) + 127;
    if rest < by {
        rest <<= 1u;
        exponent -= 1;
    }
    // 24 bits, and one to round by
    var quotient = 0u;
    for (var bit = 0u; bit < 25u; bit++) {
        quotient <<= 1u;
        if rest >= by {
            rest -= by;
            quotient |= 1u;
        }
        rest <<= 1u;
    }
    if exponent <= 0 {
        return 0.0;
    }
    if exponent >= 255 {
        return infinity();
    }
    let is_odd = (quotient >> 1u) & 1u;
    let up = (quotient & 1u) & (is_odd | select(0u, 1u, rest != 0u));
    // a carry out of the mantissa raises the exponent
    return bitcast<f32>((u32(exponent) << 23u) + ((quotient >> 1u) & 0x7fffffu) + up);
}

// perjoule_kernels::block::q8_0: the scale of a block, by its largest magnitude, and what codes are computed with.
fn q8_0_scale(most: f32) -> f32 {
    return select(0.0, divide(most, 127.0), most >= 1.1754943508e-38);
}

fn q8_0_inverse(scale: f32) -> f32 {
    return select(0.0, divide(1.0, scale), scale >= 1.1754943508e-38);
}

// Half away from zero.
fn q8_0_code(value: f32, inverse: f32) -> u32 {
    let scaled = abs(value * inverse);
    let whole = floor(scaled);
    let magnitude = i32(whole) + select(0, 1, scaled - whole >= 0.5);
    return bitcast<u32>(select(magnitude, -magnitude, value < 0.0)) & 255u;
}
