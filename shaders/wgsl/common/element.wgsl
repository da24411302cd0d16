// Elements of every type as f32 and back. Conversions round to nearest even by integer arithmetic: WGSL leaves the rounding of its own to
// the implementation.

// What is NaN or infinite is told by its bits: compilers may take it that nothing is (Metal's and FXC's do), and fold comparisons and
// products that would tell.

fn is_nan(value: f32) -> bool {
    return (bitcast<u32>(value) & 0x7fffffffu) > 0x7f800000u;
}

fn is_minus_infinity(value: f32) -> bool {
    return bitcast<u32>(value) == 0xff800000u;
}

// Whether all four are neither NaN nor infinite.
fn are_finite(value: vec4<f32>) -> bool {
    return all((bitcast<vec4<u32>>(value) & vec4<u32>(0x7f800000u)) != vec4<u32>(0x7f800000u));
}

// The larger number; NaN only where both are.
fn larger(a: f32, b: f32) -> f32 {
    return select(a, b, b > a || is_nan(a));
}

// A number that no compiler can take for a constant to fold: WGSL has no literal for NaN.
fn nan() -> f32 {
    return bitcast<f32>(offsets_zero() | 0x7fc00000u);
}

fn infinity() -> f32 {
    return bitcast<f32>(offsets_zero() | 0x7f800000u);
}

// 0, read from memory. Offsets are below 2^32 - 1.
fn offsets_zero() -> u32 {
    return select(0u, 1u, offsets[0].x == 0xffffffffu);
}

fn sign_extend(byte: u32) -> i32 {
    return bitcast<i32>(byte << 24u) >> 24u;
}

fn f16_to_f32(bits: u32) -> f32 {
    let sign = (bits & 0x8000u) << 16u;
    let rest = bits & 0x7fffu;
    if rest >= 0x7c00u {
        return bitcast<f32>(sign | 0x7f800000u | (rest << 13u));
    }
    // the exponent's bias by a multiplication, which is exact; subnormals by their integer, since f32 may flush what is on the way
    let normal = bitcast<f32>((rest << 13u) + (112u << 23u));
    let magnitude = select(normal, f32(rest) * 5.9604644775390625e-8, rest < 0x400u);
    return bitcast<f32>(bitcast<u32>(magnitude) | sign);
}

fn f32_to_f16(value: f32) -> u32 {
    let bits = bitcast<u32>(value);
    let sign = (bits >> 16u) & 0x8000u;
    let rest = bits & 0x7fffffffu;
    if rest > 0x7f800000u {
        return sign | 0x7e00u;
    }
    if rest >= 0x477ff000u {
        return sign | 0x7c00u; // from 65520 on
    }
    if rest < 0x38800000u {
        // subnormal: the unit in the last place of 0.5 is 2^-24
        return sign | (bitcast<u32>(bitcast<f32>(rest) + 0.5) - 0x3f000000u);
    }
    return sign | ((rest + 0xfffu + ((rest >> 13u) & 1u) - (112u << 23u)) >> 13u);
}

fn f32_to_bf16(value: f32) -> u32 {
    let bits = bitcast<u32>(value);
    if (bits & 0x7fffffffu) > 0x7f800000u {
        return (bits >> 16u) | 0x40u;
    }
    return (bits + 0x7fffu + ((bits >> 16u) & 1u)) >> 16u;
}

// OFP8 E4M3: no infinities.
fn e4m3_to_f32(code: u32) -> f32 {
    let rest = code & 0x7fu;
    let normal = bitcast<f32>((rest << 20u) + (120u << 23u));
    var magnitude = select(normal, f32(rest) * 0.001953125, rest < 8u);
    magnitude = select(magnitude, nan(), rest == 0x7fu);
    return bitcast<f32>(bitcast<u32>(magnitude) | ((code & 0x80u) << 24u));
}

// Saturating.
fn f32_to_e4m3(value: f32) -> u32 {
    let bits = bitcast<u32>(value);
    let sign = (bits >> 24u) & 0x80u;
    let rest = bits & 0x7fffffffu;
    if rest > 0x7f800000u {
        return sign | 0x7fu;
    }
    if rest >= 0x43e00000u {
        return sign | 0x7eu; // from 448 on
    }
    if rest < 0x3c800000u {
        // subnormal, below 2^-6: the unit in the last place of 2^14 is 2^-9
        return sign | (bitcast<u32>(bitcast<f32>(rest) + 16384.0) - 0x46800000u);
    }
    return sign | (((rest + 0x7ffffu + ((rest >> 20u) & 1u)) >> 20u) - (120u << 3u));
}

// Saturating; NaN becomes 0.
fn f32_to_i32(value: f32) -> i32 {
    let rounded = round(value);
    if is_nan(value) {
        return 0;
    }
    if rounded >= 2147483648.0 {
        return 0x7fffffff;
    }
    if rounded < -2147483648.0 {
        return bitcast<i32>(0x80000000u);
    }
    return i32(rounded);
}

fn f32_to_u32(value: f32) -> u32 {
    let rounded = round(value);
    if is_nan(value) || rounded < 0.0 {
        return 0u;
    }
    if rounded >= 4294967296.0 {
        return 0xffffffffu;
    }
    return u32(rounded);
}

fn f32_to_i8(value: f32) -> i32 {
    return clamp(f32_to_i32(value), -128, 127);
}

// ---- four elements, the first in the lowest bits; without branches ----

fn f16x4_to_f32(words: vec2<u32>) -> vec4<f32> {
    let bits = vec4<u32>(words.x & 0xffffu, words.x >> 16u, words.y & 0xffffu, words.y >> 16u);
    let rest = bits & vec4<u32>(0x7fffu);
    let normal = bitcast<vec4<f32>>((rest << vec4<u32>(13u)) + (112u << 23u));
    let finite = select(normal, vec4<f32>(rest) * 5.9604644775390625e-8, rest < vec4<u32>(0x400u));
    let other = bitcast<vec4<f32>>((rest << vec4<u32>(13u)) | vec4<u32>(0x7f800000u));
    let magnitude = select(finite, other, rest >= vec4<u32>(0x7c00u));
    return bitcast<vec4<f32>>(bitcast<vec4<u32>>(magnitude) | ((bits & vec4<u32>(0x8000u)) << vec4<u32>(16u)));
}

fn f32_to_f16x4(value: vec4<f32>) -> vec2<u32> {
    let bits = bitcast<vec4<u32>>(value);
    let rest = bits & vec4<u32>(0x7fffffffu);
    let odd = (rest >> vec4<u32>(13u)) & vec4<u32>(1u);
    let normal = (rest + 0xfffu + odd - (112u << 23u)) >> vec4<u32>(13u);
    let small = bitcast<vec4<u32>>(bitcast<vec4<f32>>(min(rest, vec4<u32>(0x38800000u))) + 0.5) - 0x3f000000u;
    var code = select(normal, small, rest < vec4<u32>(0x38800000u));
    code = select(code, vec4<u32>(0x7c00u), rest >= vec4<u32>(0x477ff000u));
    code = select(code, vec4<u32>(0x7e00u), rest > vec4<u32>(0x7f800000u));
    code |= (bits >> vec4<u32>(16u)) & vec4<u32>(0x8000u);
    return vec2<u32>(code.x | (code.y << 16u), code.z | (code.w << 16u));
}

fn bf16x4_to_f32(words: vec2<u32>) -> vec4<f32> {
    return bitcast<vec4<f32>>(
        vec4<u32>(words.x << 16u, words.x & 0xffff0000u, words.y << 16u, words.y & 0xffff0000u),
    );
}

fn f32_to_bf16x4(value: vec4<f32>) -> vec2<u32> {
    let bits = bitcast<vec4<u32>>(value);
    let rounded = (bits + 0x7fffu + ((bits >> vec4<u32>(16u)) & vec4<u32>(1u))) >> vec4<u32>(16u);
    let is_number = (bits & vec4<u32>(0x7fffffffu)) <= vec4<u32>(0x7f800000u);
    let code = select((bits >> vec4<u32>(16u)) | vec4<u32>(0x40u), rounded, is_number);
    return vec2<u32>(code.x | (code.y << 16u), code.z | (code.w << 16u));
}

fn e4m3x4_to_f32(word: u32) -> vec4<f32> {
    let bits = vec4<u32>(word & 255u, (word >> 8u) & 255u, (word >> 16u) & 255u, word >> 24u);
    let rest = bits & vec4<u32>(0x7fu);
    let normal = bitcast<vec4<f32>>((rest << vec4<u32>(20u)) + (120u << 23u));
    let finite = select(normal, vec4<f32>(rest) * 0.001953125, rest < vec4<u32>(8u));
    let magnitude = select(finite, vec4<f32>(nan()), rest == vec4<u32>(0x7fu));
    return bitcast<vec4<f32>>(bitcast<vec4<u32>>(magnitude) | ((bits & vec4<u32>(0x80u)) << vec4<u32>(24u)));
}

fn f32_to_e4m3x4(value: vec4<f32>) -> u32 {
    return f32_to_e4m3(value.x) | (f32_to_e4m3(value.y) << 8u) | (f32_to_e4m3(value.z) << 16u) | (f32_to_e4m3(value.w) << 24u);
}

fn i8x4_to_f32(word: u32) -> vec4<f32> {
    return vec4<f32>(vec4<i32>(
        sign_extend(word), sign_extend(word >> 8u), sign_extend(word >> 16u), sign_extend(word >> 24u)
    ));
}

fn f32_to_i8x4(value: vec4<f32>) -> u32 {
    let codes = vec4<u32>(vec4<i32>(
        f32_to_i8(value.x), f32_to_i8(value.y), f32_to_i8(value.z), f32_to_i8(value.w)
    )) & vec4<u32>(255u);
    return codes.x | (codes.y << 8u) | (codes.z << 16u) | (codes.w << 24u);
}

// ---- block formats ----

// Nibble of element `e` of 32 in the byte that holds it.
fn q4_nibble(byte: u32, e: u32) -> u32 {
    return select(byte >> 4u, byte & 15u, e < 16u);
}

fn q4_code(byte: u32, e: u32) -> i32 {
    return i32(q4_nibble(byte, e)) - 8;
}

// Scale and minimum of group `g` of q4_k: `a`, `b` and `c` are bytes g % 4, g % 4 + 4 and g % 4 + 8 of the packed ones.
fn q4k_scale(g: u32, a: u32, b: u32, c: u32) -> vec2<u32> {
    if g < 4u {
        return vec2<u32>(a & 63u, b & 63u);
    }
    return vec2<u32>((c & 15u) | ((a >> 6u) << 4u), (c >> 4u) | ((b >> 6u) << 4u));
}

fn e8m0_to_f32(code: u32) -> f32 {
    if code == 255u {
        return nan();
    }
    return select(bitcast<f32>(code << 23u), 5.8774717541114375e-39, code == 0u);
}

fn e2m1_to_f32(code: u32) -> f32 {
    let magnitude = code & 7u;
    let normal = bitcast<f32>((((magnitude >> 1u) + 126u) << 23u) | ((magnitude & 1u) << 22u));
    let value = select(normal, f32(magnitude) * 0.5, magnitude < 2u);
    return select(value, -value, code >= 8u);
}
