// Weights in block formats beside activations of 8 bits, in blocks of 32 with a scale each, multiplied four at a time.

alias Weights = Codes;

struct Activations {
    codes: array<u32, QUADS>,
    scales: array<f32, PARTS>,
}

fn load_weights(side: u32, at: u32, unit: u32) -> Weights {
    return load_codes(side, at, unit);
}

fn load_activations(at: u32, unit: u32) -> Activations {
    var x: Activations;
    // unroll
    for (var q = 0u; q < QUADS; q++) {
        x.codes[q] = a_words[at + quad_of(unit, q)];
    }
    // unroll
    for (var p = 0u; p < PARTS; p++) {
        x.scales[p] = block_scales_get((at - a_at() + quad_of(unit, p * RUNS)) / 8u);
    }
    return x;
}

fn activation_base() -> u32 {
    return a_at();
}

fn multiply(w: Weights, x: Activations) -> Sum {
    var left = w;
    var right = x;
    var sum = 0.0;
    // unroll
    for (var p = 0u; p < PARTS; p++) {
        var product = 0;
        var total = 0;
        // unroll
        for (var i = 0u; i < RUNS; i++) {
            product += dot4I8Packed(left.codes[p * RUNS + i], right.codes[p * RUNS + i]);
            if MINIMA {
                total += dot4I8Packed(right.codes[p * RUNS + i], 0x01010101u);
            }
        }
        var value = f32(product) * CODE_UNIT * left.factors[p];
        if MINIMA {
            value -= f32(total) * left.minima[p];
        }
        sum += value * right.scales[p];
    }
    return Sum(sum);
}
