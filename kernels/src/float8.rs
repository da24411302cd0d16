//! 8-bit floats: OCP OFP8 E4M3 to and from `f32`.
//!
//! Sign, 4 exponent bits (bias 7), 3 fraction bits. Unlike an IEEE format it has no infinities: the top
//! exponent holds finite values up to 448, and only `0x7f` and `0xff` are NaN. (PyTorch calls it
//! `float8_e4m3fn`.) Specification: OCP 8-bit Floating Point Specification (OFP8), revision 1.0.

/// Largest finite magnitude.
pub const E4M3_MAX: f32 = 448.0;

/// The value of an E4M3 code. Exact.
pub fn e4m3_to_f32(code: u8) -> f32 {
    let exponent = u32::from(code >> 3) & 0xf;
    let fraction = u32::from(code) & 7;
    let magnitude = match (exponent, fraction) {
        (0xf, 7) => f32::NAN,
        (0, _) => fraction as f32 / 512.0,
        _ => f32::from_bits(((exponent + 127 - 7) << 23) | (fraction << 20)),
    };
    if code & 0x80 == 0 { magnitude } else { -magnitude }
}

/// Rounds to the nearest E4M3 value, ties to even.
///
/// This is OFP8's saturating conversion, the one that GPUs offer as `satfinite`: magnitudes beyond 448,
/// infinity included, become 448 with their sign, so that an outlier stays large instead of poisoning a whole
/// row. NaN stays NaN. (PyTorch 2.15 does the same; older releases turn magnitudes beyond 464 into NaN.)
pub fn f32_to_e4m3(value: f32) -> u8 {
    let sign = ((value.to_bits() >> 24) & 0x80) as u8;
    let magnitude = value.abs();
    let code = if magnitude.is_nan() {
        0x7f
    } else if magnitude >= E4M3_MAX {
        0x7e
    } else if magnitude < 1.0 / 64.0 {
        // Subnormals are multiples of 2^-9; rounding up to 8 of them lands on the code of the smallest
        // normal.
        (magnitude * 512.0).round_ties_even() as u8
    } else {
        // Round 20 fraction bits off; a carry runs on into the exponent, as it should.
        let bits = magnitude.to_bits();
        let rounded = (bits + 0x7_ffff + ((bits >> 20) & 1)) >> 20;
        (rounded - ((127 - 7) << 3)) as u8
    };
    sign | code
}
