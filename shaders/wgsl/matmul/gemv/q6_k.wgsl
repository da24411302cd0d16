// Weights in q6_k: blocks of 256 in 210 bytes, of which a unit has 16 elements: four neighbours in each of four groups of 32.

fn quad_of(unit: u32, q: u32) -> u32 {
    return (unit >> 3u) * 32u + q * 8u + (unit & 7u);
}

fn load_codes(side: u32, at: u32, unit: u32) -> Codes {
    let block = at + (unit >> 4u) * 210u;
    let half = (unit >> 3u) & 1u;
    let i = unit & 7u;
    let low = vec2<u32>(word_at(side, block + half * 64u + i * 4u), word_at(side, block + half * 64u + 32u + i * 4u));
    let high = word_at(side, block + 128u + half * 32u + i * 4u);
    let scales = vec2<u32>(word_at(side, block + 192u + half * 8u), word_at(side, block + 196u + half * 8u));
    let factor = half_at(side, block + 208u);
    var c: Codes;
    for (var q = 0u; q < 4u; q++) {
        let nibbles = (select(low.x, low.y, (q & 1u) == 1u) >> ((q >> 1u) * 4u)) & 0x0f0f0f0fu;
        let codes = nibbles | (((high >> (q * 2u)) & 0x03030303u) << 4u);
        // bytes below 64, less 32
        c.codes[q] = ((codes | 0x80808080u) - 0x20202020u) ^ 0x80808080u;
        // of groups of 16
        let scale = sign_extend((select(scales.x, scales.y, q >= 2u) >> ((i >> 2u) * 8u + (q & 1u) * 16u)) & 255u);
        c.factors[q] = factor * f32(scale);
    }
    return c;
}
