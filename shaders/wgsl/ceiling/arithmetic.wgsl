// Multiply-adds out of registers: chains that do not wait for each other, as many as a pipeline is deep. `Wide` is a vector of four of
// the type that is driven, `Scalar` its element.

struct Params {
    rounds: u32,
    // 0: nothing is stored, and no compiler knows it
    store: u32,
    unused_a: u32,
    unused_b: u32,
}

@compute @workgroup_size(256)
fn multiply_add(@builtin(global_invocation_id) id: vec3<u32>) {
    let seed = f32(id.x & 7u) * 0.125;
    let x = Wide(Scalar(0.999));
    let y = Wide(Scalar(0.001 * seed));
    var a = Wide(Scalar(seed));
    var b = a + y;
    var c = b + y;
    var d = c + y;
    var e = d + y;
    var f = e + y;
    for (var round = 0u; round < params.rounds; round++) {
        a = fma(a, x, y);
        b = fma(b, x, y);
        c = fma(c, x, y);
        d = fma(d, x, y);
        e = fma(e, x, y);
        f = fma(f, x, y);
    }
    let sum = (a + b) + (c + d) + (e + f);
    if params.store != 0u {
        out_words[id.x] = u32(f32(sum.x + sum.y + sum.z + sum.w));
    }
}
