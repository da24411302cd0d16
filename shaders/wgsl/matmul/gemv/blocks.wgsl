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

// Twice the numbers of four codes of e2m1.
fn e2m1_quad(codes: u32) -> vec4<f32> {
    let c = unpack4xU8(codes);
    let magnitude = (vec4<u32>(0xc8643210u) >> ((c & vec4<u32>(7u)) * 4u)) & vec4<u32>(15u);
    let value = vec4<f32>(magnitude);
    return select(value, -value, c >= vec4<u32>(8u));
}

fn load_weights(side: u32, at: u32, unit: u32) -> Weights {
    let block = at + (unit >> 2u) * BLOCK_BYTES;
    let j = unit & 3u;
    var w: Weights;
    if FORMAT == Q8_0 {
        let codes = block + 2u + j * 8u;
        let middle = weight_words(side, (codes + 4u) >> 2u);
        let first = straddle(weight_words(side, codes >> 2u), middle, codes);
        let second = straddle(middle, weight_words(side, (codes + 7u) >> 2u), codes);
        let scale = half_at(side, block);
        w.quads[0] = vec4<f32>(unpack4xI8(first)) * scale;
        w.quads[1] = vec4<f32>(unpack4xI8(second)) * scale;
    } else if FORMAT == Q4_0 {
        let codes = word_at(side, block + 2u + j * 4u);
        let scale = half_at(side, block);
        w.quads[0] = (vec4<f32>(unpack4xU8(codes & 0x0f0f0f0fu)) - 8.0) * scale;
        w.quads[1] = (vec4<f32>(unpack4xU8((codes >> 4u) & 0x0f0f0f0fu)) - 8.0) * scale;
    } else {
        let codes = word_at(side, block + 1u + j * 4u);
        let scale = e8m0_to_f32(byte_at(side, block));
        w.quads[0] = e2m1_quad(codes & 0x0f0f0f0fu) * 0.5 * scale;
        w.quads[1] = e2m1_quad((codes >> 4u) & 0x0f0f0f0fu) * 0.5 * scale;
    }
    return w;
}
