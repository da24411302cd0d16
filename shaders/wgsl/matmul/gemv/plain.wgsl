// Weights in f32, f16, bf16 or f8e4m3, 16 bytes a unit.

fn quad_of(unit: u32, q: u32) -> u32 {
    return unit * QUADS + q;
}

fn load_weights(side: u32, at: u32, unit: u32) -> Weights {
    var words = weight_words(side, at + unit);
    var w: Weights;
    // unroll
    for (var q = 0u; q < QUADS; q++) {
        if QUADS == 1u {
            w.quads[q] = bitcast<vec4<f32>>(words);
        } else if QUADS == 2u {
            let bits = select(halves(words.x, words.y), halves(words.z, words.w), q == 1u);
            if B_BF16 {
                w.quads[q] = bf16_quad(bits);
            } else {
                w.quads[q] = f16_quad(bits);
            }
        } else {
            let codes = unpack4xU8(words[q]);
            w.quads[q] = vec4<f32>(e4m3_to_f32(codes.x), e4m3_to_f32(codes.y), e4m3_to_f32(codes.z), e4m3_to_f32(codes.w));
        }
    }
    return w;
}
