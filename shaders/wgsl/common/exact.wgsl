// Arithmetic of f32 as IEEE 754 has it: WGSL lets implementations contract products and sums, and gives quotients and roots a few units of
// room. What follows is for results whose every bit is determined.

// A product or sum that is rounded before it goes on: no compiler sees that nothing changes.
fn rounded(value: f32) -> f32 {
    return bitcast<f32>(bitcast<u32>(value) | offsets_zero());
}

fn times(a: f32, b: f32) -> f32 {
    return rounded(a * b);
}

fn plus(a: f32, b: f32) -> f32 {
    return rounded(a + b);
}

fn minus(a: f32, b: f32) -> f32 {
    return rounded(a - b);
}

// A magnitude as mantissa * 2^(exponent - 150), the mantissa's leading bit being bit 23.
struct Split {
    mantissa: u32,
    exponent: i32,
}

fn split(magnitude: u32) -> Split {
    if magnitude < 0x800000u {
        let shift = countLeadingZeros(magnitude) - 8u;
        return Split(magnitude << shift, 1 - i32(shift));
    }
    return Split((magnitude & 0x7fffffu) | 0x800000u, i32(magnitude >> 23u));
}

// a / b, to nearest, ties to even. The hardware's quotient is some units off at most; what is left over, which is small, follows from
// products modulo 2^32.
fn quotient(a: f32, b: f32) -> f32 {
    let a_bits = bitcast<u32>(a) & 0x7fffffffu;
    let b_bits = bitcast<u32>(b) & 0x7fffffffu;
    let sign = (bitcast<u32>(a) ^ bitcast<u32>(b)) & 0x80000000u;
    if a_bits > 0x7f800000u || b_bits > 0x7f800000u || a_bits + b_bits == 0u
        || (a_bits == 0x7f800000u && b_bits == 0x7f800000u) {
        return nan();
    }
    if a_bits == 0u || b_bits == 0x7f800000u {
        return bitcast<f32>(sign);
    }
    if b_bits == 0u || a_bits == 0x7f800000u {
        return bitcast<f32>(sign | 0x7f800000u);
    }
    let x = split(a_bits);
    let y = split(b_bits);
    // a quotient of 25 bits
    let shift = select(25u, 24u, x.mantissa >= y.mantissa);
    var q = u32(f32(x.mantissa) / f32(y.mantissa) * select(33554432.0, 16777216.0, x.mantissa >= y.mantissa));
    var rest = bitcast<i32>((x.mantissa << shift) - q * y.mantissa);
    let divisor = i32(y.mantissa);
    for (var i = 0u; i < 64u && rest < 0; i++) {
        q -= 1u;
        rest += divisor;
    }
    for (var i = 0u; i < 64u && rest >= divisor; i++) {
        q += 1u;
        rest -= divisor;
    }
    return bitcast<f32>(sign | joined(q, rest != 0, x.exponent - y.exponent - i32(shift) + 151));
}

// The bits of the f32 nearest to (q + a part of 1, if there is a rest) / 2 * 2^(exponent - 150), where q has 25 bits; ties to even.
fn joined(q: u32, has_rest: bool, exponent: i32) -> u32 {
    if exponent >= 1 {
        let kept = q >> 1u;
        let up = (q & 1u) & (u32(has_rest) | (kept & 1u));
        return select((u32(exponent - 1) << 23u) + kept + up, 0x7f800000u, exponent > 254);
    }
    let shift = u32(min(2 - exponent, 31));
    let kept = q >> shift;
    let rest = q & ((1u << shift) - 1u);
    let half = 1u << (shift - 1u);
    let up = rest > half || (rest == half && (has_rest || (kept & 1u) == 1u));
    return kept + u32(up);
}

// The square root, to nearest. NaN below 0.
fn root(value: f32) -> f32 {
    let bits = bitcast<u32>(value);
    if (bits & 0x7fffffffu) == 0u || bits == 0x7f800000u {
        return value;
    }
    if bits > 0x7f800000u {
        return nan();
    }
    let x = split(bits);
    // the mantissa by 2^25 or 2^26, so that the exponent is even, has a root of 25 bits
    let is_odd = (x.exponent & 1) != 0;
    var q = u32(select(sqrt(f32(x.mantissa)) * 8192.0, sqrt(f32(x.mantissa) * 2.0) * 4096.0, is_odd));
    var rest = bitcast<i32>((x.mantissa << select(26u, 25u, is_odd)) - q * q);
    for (var i = 0u; i < 64u && rest < 0; i++) {
        q -= 1u;
        rest += i32(2u * q + 1u);
    }
    for (var i = 0u; i < 64u && rest > i32(2u * q); i++) {
        rest -= i32(2u * q + 1u);
        q += 1u;
    }
    return bitcast<f32>(joined(q, rest != 0, (x.exponent - select(176, 175, is_odd)) / 2 + 151));
}

// The nearest integer, ties away from 0.
fn round_away(value: f32) -> f32 {
    let magnitude = abs(value);
    let whole = floor(magnitude);
    let away = select(whole, whole + 1.0, magnitude - whole >= 0.5);
    return select(away, -away, value < 0.0);
}

// `value as u8`: towards zero, saturating, NaN becomes 0.
fn truncated(value: f32) -> u32 {
    if value >= 255.0 {
        return 255u;
    }
    if value > 0.0 {
        return u32(value);
    }
    return 0u;
}

fn bounded(value: f32, low: f32, high: f32) -> f32 {
    return select(select(value, low, value < low), high, value > high);
}
