// Weights of i8, 16 elements a unit, in the form of those in block formats.

fn quad_of(unit: u32, q: u32) -> u32 {
    return unit * QUADS + q;
}

fn load_codes(side: u32, at: u32, unit: u32) -> Codes {
    var words = weight_words(side, at + unit);
    var c: Codes;
    // unroll
    for (var q = 0u; q < QUADS; q++) {
        c.codes[q] = words[q];
    }
    return c;
}
