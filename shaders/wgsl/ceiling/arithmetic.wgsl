// Multiply-adds out of registers: nothing but arithmetic. `Lanes` is a vector of four of the type.

struct Params {
    rounds: u32,
    a: f32,
    b: f32,
    unused: u32,
}

// 8 chains that do not depend on one another, of 4 lanes each: 64 operations a round
@compute @workgroup_size(256)
fn arithmetic(@builtin(global_invocation_id) id: vec3<u32>) {
    let start = Lanes(Scalar(f32(id.x & 1023u) * 0.0009765625));
    let a = Lanes(Scalar(params.a));
    let b = Lanes(Scalar(params.b));
    var c0 = start;
    var c1 = start + a;
    var c2 = start + b;
    var c3 = start - a;
    var c4 = start - b;
    var c5 = start * a;
    var c6 = start * b;
    var c7 = a - b;
    for (var round = 0u; round < params.rounds; round++) {
        c0 = c0 * a + b;
        c1 = c1 * a + b;
        c2 = c2 * a + b;
        c3 = c3 * a + b;
        c4 = c4 * a + b;
        c5 = c5 * a + b;
        c6 = c6 * a + b;
        c7 = c7 * a + b;
    }
    let sum = ((c0 + c1) + (c2 + c3)) + ((c4 + c5) + (c6 + c7));
    // no compiler knows that this is never so, and so all of it is computed
    if f32(sum.x + sum.y + sum.z + sum.w) == 12345.678 {
        out_words[0] = id.x;
    }
}
