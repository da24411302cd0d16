// Weights in q8_0, q4_0 or mxfp4: blocks of 32, of which a unit has eight elements.

const Q8_0 = 0u;
const Q4_0 = 1u;
const MXFP4 = 2u;

fn quad_of(unit: u32, q: u32) -> u32 {
    if FORMAT == Q8_0 {
        return unit * 2u + q;
    }
    // lower halves of four bytes, and upper ones
    return (unit >> 2u) * 8u + (unit & 3u) + q * 4u;
}

// Bytes below 16, less 8.
fn less_8(codes: u32) -> u32 {
    return ((codes | 0x80808080u) - 0x08080808u) ^ 0x80808080u;
}

// Twice the numbers of four codes of e2m1, as signed bytes.
fn twice_e2m1(codes: u32) -> u32 {
    let low = codes & 0x01010101u;
    let middle = (codes >> 1u) & 0x01010101u;
    let high = (codes >> 2u) & 0x01010101u;
    // 0, 1, 2, 3, 4, 6, 8, 12: what 5, 6 and 7 have more than their codes
    let both = high & middle;
    let value = (codes & 0x07070707u) + (high & low) + ((both + (both & low)) << 1u);
    // there is no byte for the negative zero
    let sign = (codes >> 3u) & ((value + 0x7f7f7f7fu) >> 7u) & 0x01010101u;
    return (value ^ (sign * 255u)) + sign;
}

fn load_codes(side: u32, at: u32, unit: u32) -> Codes {
    let block = at + (unit >> 2u) * BLOCK_BYTES;
    let j = unit & 3u;
    var c: Codes;
    if FORMAT == Q8_0 {
        let codes = block + 2u + j * 8u;
        let middle = weight_words(side, (codes + 4u) >> 2u);
        c.codes[0] = straddle(weight_words(side, codes >> 2u), middle, codes);
        c.codes[1] = straddle(middle, weight_words(side, (codes + 7u) >> 2u), codes);
        c.factors[0] = half_at(side, block);
    } else if FORMAT == Q4_0 {
        let codes = word_at(side, block + 2u + j * 4u);
        c.codes[0] = less_8(codes & 0x0f0f0f0fu);
        c.codes[1] = less_8((codes >> 4u) & 0x0f0f0f0fu);
        c.factors[0] = half_at(side, block);
    } else {
        let codes = word_at(side, block + 1u + j * 4u);
        c.codes[0] = twice_e2m1(codes & 0x0f0f0f0fu);
        c.codes[1] = twice_e2m1((codes >> 4u) & 0x0f0f0f0fu);
        c.factors[0] = e8m0_to_f32(byte_at(side, block));
    }
    return c;
}
