// What fast kernels of attention share: exponentials of a few instructions, and one row by its definition.

// e^x for x up to 0, to a few units in the last place besides those of x; 0 from -87.33 on down.
fn exp_fast(x: f32) -> f32 {
    let scaled = x * 1.442695041;
    let n = round(max(scaled, -126.0));
    // NaN where x is, whatever was made of it above
    let r = scaled - n;
    // Cephes, exp2f.c
    var p = 1.535336188319500e-4;
    p = p * r + 1.339887440266574e-3;
    p = p * r + 9.618437357674640e-3;
    p = p * r + 5.550332471162809e-2;
    p = p * r + 2.402264791363012e-1;
    p = p * r + 6.931472028550421e-1;
    p = p * r + 1.0;
    // a sum beyond 2^23 holds its integer in its lowest bits: conversions are slow on some CPUs
    let power = bitcast<f32>(bitcast<u32>(n + 12583039.0) << 23u);
    return select(p * power, 0.0, x < -87.33);
}

// The whole of a row by its definition, by one invocation: of rows that became NaN because a weight of 0 met a value that they do not see
// (or do, and then they are NaN again). `keys`: those that it sees. Vectors begin at multiples of four elements.
fn exact_row(p: Attention, s: Sequence, query: u32, head: u32, keys: vec2<u32>) {
    let vector = (s.first + query) * p.heads + head;
    let q_begin = start_of(p.q, vector) / 4u;
    let out_begin = start_of(p.out, vector) / 4u;
    let quads = p.kv.head_dim / 4u;
    // elements of a result, four at a time; the first round finds the highest score alone
    var top = -infinity();
    if sinks_present {
        top = higher(top, sinks_get(head));
    }
    for (var round = 0u; round <= quads; round++) {
        let less = subtrahend(top);
        var sum = 0.0;
        if sinks_present {
            sum = exp_of(sinks_get(head) - less);
        }
        var values = vec4<f32>(0.0);
        for (var key = keys.x; key < keys.y; key++) {
            let at = vector_at(p, s, head / p.group, key) / 4u;
            var product = 0.0;
            for (var i = 0u; i < quads; i++) {
                product += dot(q_quad(q_begin + i), k_quad(at + i));
            }
            let score = score_of(p, product);
            if round == 0u {
                top = higher(top, score);
            } else {
                let weight = exp_of(score - less);
                sum += weight;
                values += weight * v_quad(at + round - 1u);
            }
        }
        if round > 0u {
            out_quad_set(out_begin + round - 1u, select(vec4<f32>(0.0), values / sum, keys.x < keys.y));
        }
    }
}
