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

fn load_weights(side: u32, at: u32, unit: u32) -> Weights {
    let block = at + (unit >> 3u) * 9u;
    let j = unit & 7u;
    let head = weight_words(side, block);
    var codes = weight_words(side, block + 1u + j);
    let low = group_of(head, j & 6u);
    let high = group_of(head, j | 1u);
    var w: Weights;
    for (var q = 0u; q < 4u; q++) {
        w.quads[q] = vec4<f32>(unpack4xU8(codes[q] & 0x0f0f0f0fu)) * low.x - low.y;
        w.quads[q + 4u] = vec4<f32>(unpack4xU8((codes[q] >> 4u) & 0x0f0f0f0fu)) * high.x - high.y;
    }
    return w;
}
