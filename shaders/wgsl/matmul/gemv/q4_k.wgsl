// Weights in q4_k: blocks of 256 in nine times 16 bytes, of which a unit has 16 bytes of codes, 32 elements.

fn quad_of(unit: u32, q: u32) -> u32 {
    let j = unit & 7u;
    return (unit >> 3u) * 64u + (j >> 1u) * 16u + (j & 1u) * 4u + (q & 3u) + (q >> 2u) * 8u;
}

// Factor and minimum of a group.
fn group_of(head: vec4<u32>, g: u32) -> vec2<f32> {
    let shift = (g & 3u) * 8u;
    let scale = q4k_scale(g, (head.y >> shift) & 255u, (head.z >> shift) & 255u, (head.w >> shift) & 255u);
    return vec2<f32>(f16_to_f32(head.x & 65535u), f16_to_f32(head.x >> 16u)) * vec2<f32>(scale);
}

fn load_codes(side: u32, at: u32, unit: u32) -> Codes {
    let block = at + (unit >> 3u) * 9u;
    let j = unit & 7u;
    let head = weight_words(side, block);
    var words = weight_words(side, block + 1u + j);
    let low = group_of(head, j & 6u);
    let high = group_of(head, j | 1u);
    var c: Codes;
    for (var q = 0u; q < 4u; q++) {
        c.codes[q] = words[q] & 0x0f0f0f0fu;
        c.codes[q + 4u] = (words[q] >> 4u) & 0x0f0f0f0fu;
    }
    c.factors[0] = low.x;
    c.factors[1] = high.x;
    c.minima[0] = low.y;
    c.minima[1] = high.y;
    return c;
}
