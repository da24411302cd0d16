// Sines and cosines of products of positions and frequencies. Angles are counted in units of 2^-64 turns, so that what is a multiple of a
// turn overflows, and large positions are as exact as small ones.

// The product of two numbers of 32 bits: low and high half.
fn wide_product(a: u32, b: u32) -> vec2<u32> {
    let a_low = a & 0xffffu;
    let a_high = a >> 16u;
    let b_low = b & 0xffffu;
    let b_high = b >> 16u;
    let low = a_low * b_low;
    // below 2^32: (2^16 - 1)^2 and twice 2^16 - 1
    let middle = a_high * b_low + (low >> 16u);
    let other = a_low * b_high + (middle & 0xffffu);
    return vec2<u32>((other << 16u) | (low & 0xffffu), a_high * b_high + (middle >> 16u) + (other >> 16u));
}

// `position` times a number of 64 bits, modulo 2^64.
fn turned(position: i32, turn: vec2<u32>) -> vec2<u32> {
    let low = bitcast<u32>(position);
    let product = wide_product(low, turn.x);
    // the upper half of a position below 0 is 2^32 - 1
    let sign = select(0u, turn.x, position < 0);
    return vec2<u32>(product.x, product.y + low * turn.y - sign);
}

// Sine and cosine of an angle. Polynomials of Cephes (sinf.c, cosf.c) for an eighth of a turn to either side.
fn sincos_turns(turns: vec2<u32>) -> vec2<f32> {
    let quarter = (turns.y + (1u << 29u)) >> 30u;
    let rest = f32(turns.x) * 3.40612158e-19;
    let angle = f32(bitcast<i32>(turns.y - (quarter << 30u))) * 1.462918079e-9 + rest;
    let square = angle * angle;
    var s = square * -1.9515295891e-4 + 8.3321608736e-3;
    s = square * s - 1.6666654611e-1;
    s = square * angle * s + angle;
    var c = square * 2.443315711809948e-5 - 1.388731625493765e-3;
    c = square * c + 4.166664568298827e-2;
    c = square * square * c + (1.0 - 0.5 * square);
    let swapped = select(vec2<f32>(s, c), vec2<f32>(c, s), (quarter & 1u) != 0u);
    return vec2<f32>(
        select(swapped.x, -swapped.x, (quarter & 2u) != 0u),
        select(swapped.y, -swapped.y, ((quarter + 1u) & 2u) != 0u),
    );
}

// A rotation (arXiv:2104.09864). Beside it kernels are given a table: by how many 2^-64 turns a token moves each pair.
struct Rotation {
    // Pairs that are rotated: half of rotary_dim.
    pairs: u32,
    // Whether the elements of a pair are neighbours, not a half of rotary_dim apart.
    interleaved: u32,
    // Factor of cosine and sine.
    factor: f32,
    unused: u32,
}

// The elements of a pair.
fn elements_of(rotation: Rotation, pair: u32) -> vec2<u32> {
    return select(
        vec2<u32>(pair, pair + rotation.pairs),
        vec2<u32>(2u * pair, 2u * pair + 1u),
        rotation.interleaved != 0u,
    );
}

// Four pairs, as memory has them: their first and second elements, or two pairs each.
struct Pairs {
    a: vec4<f32>,
    b: vec4<f32>,
}

// Which fours of a vector the pairs 4 * quad to 4 * quad + 3 are.
fn quads_of(rotation: Rotation, quad: u32) -> vec2<u32> {
    return select(
        vec2<u32>(quad, quad + rotation.pairs / 4u),
        vec2<u32>(2u * quad, 2u * quad + 1u),
        rotation.interleaved != 0u,
    );
}

fn rotate(rotation: Rotation, pairs: Pairs, sine: vec4<f32>, cosine: vec4<f32>) -> Pairs {
    let interleaved = rotation.interleaved != 0u;
    let x = select(pairs.a, vec4<f32>(pairs.a.xz, pairs.b.xz), interleaved);
    let y = select(pairs.b, vec4<f32>(pairs.a.yw, pairs.b.yw), interleaved);
    let u = x * cosine - y * sine;
    let v = x * sine + y * cosine;
    return Pairs(
        select(u, vec4<f32>(u.x, v.x, u.y, v.y), interleaved),
        select(v, vec4<f32>(u.z, v.z, u.w, v.w), interleaved),
    );
}
