// Weights in block formats, widened to f32.

fn load_weights(side: u32, at: u32, unit: u32) -> Weights {
    var c = load_codes(side, at, unit);
    var w: Weights;
    // unroll
    for (var q = 0u; q < QUADS; q++) {
        var quad = vec4<f32>(unpack4xI8(c.codes[q])) * CODE_UNIT * c.factors[q / RUNS];
        if MINIMA {
            quad -= vec4<f32>(c.minima[q / RUNS]);
        }
        w.quads[q] = quad;
    }
    return w;
}
