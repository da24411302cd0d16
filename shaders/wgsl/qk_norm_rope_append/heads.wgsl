// Norm and rotation of the heads of queries, or of keys, which go to the cache: a workgroup takes a head. It reads the head for its norm, if
// there is a weight, and again for the rotated elements, UNIT neighbours an invocation: one, or a block of q8_0.

struct Params {
    x: Rows,
    out: Rows,
    kv: KvLayout,
    rotation: Rotation,
    batch: u32,
    q_len: u32,
    eps: f32,
    weight_offset: f32,
}

const LANES = 64u;

var<workgroup> shares: array<f32, 64>;

// One result, which all of them read alike: compilers that ask for proof of uniform control flow take it.
var<workgroup> result: f32;

// The sum of what the invocations have, in a fixed order.
fn sum_of(lane: u32, value: f32) -> f32 {
    workgroupBarrier();
    shares[lane] = value;
    workgroupBarrier();
    if lane == 0u {
        var sum = 0.0;
        for (var i = 0u; i < LANES; i++) {
            sum += shares[i];
        }
        result = sum;
    }
    return workgroupUniformLoad(&result);
}

// The largest of what they have; NaN counts for nothing.
fn most_of(lane: u32, value: f32) -> f32 {
    workgroupBarrier();
    shares[lane] = value;
    workgroupBarrier();
    var most = 0.0;
    for (var i = 0u; i < LANES; i++) {
        most = select(most, shares[i], shares[i] > most);
    }
    return most;
}

// One over the root of the mean of the squares of the head that begins at `begin`.
fn inverse_root_of(lane: u32, begin: u32, len: u32) -> f32 {
    var squares = 0.0;
    for (var d = lane; d < len; d += LANES) {
        let value = x_get(begin + d);
        squares += value * value;
    }
    squares = sum_of(lane, squares);
    // squares may leave the range in which f32 rounds relatively: a power of two brings them near 1. Everybody takes part in the sums.
    var most = 0.0;
    for (var d = lane; d < len; d += LANES) {
        let magnitude = abs(x_get(begin + d));
        most = select(most, magnitude, magnitude > most);
    }
    most = most_of(lane, most);
    let exponent = clamp((bitcast<u32>(most) >> 23u) & 255u, 1u, 253u);
    let factor = bitcast<f32>((254u - exponent) << 23u);
    var total = 0.0;
    for (var d = lane; d < len; d += LANES) {
        let value = x_get(begin + d) * factor;
        total += value * value;
    }
    total = sum_of(lane, total);
    return inverse_root(squares, total, factor, f32(len), params.eps);
}

// Element `d` of the normalised head that begins at `begin`.
fn normalised(begin: u32, d: u32, inverse: f32) -> f32 {
    if !weight_present {
        return x_get(begin + d);
    }
    return x_get(begin + d) * inverse * (weight_get(d) + params.weight_offset);
}

// Element `d` of the rotated head.
fn rotated(begin: u32, d: u32, inverse: f32, position: i32) -> f32 {
    let pairs = params.rotation.pairs;
    if d >= 2u * pairs {
        return normalised(begin, d, inverse);
    }
    let interleaved = params.rotation.interleaved != 0u;
    let second = select(d >= pairs, (d & 1u) == 1u, interleaved);
    let pair = select(d - select(0u, pairs, second), d / 2u, interleaved);
    let elements = elements_of(params.rotation, pair);
    let factors = sincos_turns(turned(position, table_words[table_at() + pair])) * params.rotation.factor;
    let a = normalised(begin, elements.x, inverse);
    let b = normalised(begin, elements.y, inverse);
    return select(a * factors.y - b * factors.x, a * factors.x + b * factors.y, second);
}

// Stores UNIT elements of the rotated head from `d` on; `to` is where the head goes.
fn store_from(d: u32, to: u32, begin: u32, inverse: f32, position: i32) {
    if UNIT == 1u {
        out_set(to + d, rotated(begin, d, inverse, position));
        return;
    }
    var most = 0.0;
    for (var i = 0u; i < 32u; i++) {
        let magnitude = abs(rotated(begin, d + i, inverse, position));
        most = select(most, magnitude, magnitude > most);
    }
    let scale = q8_0_scale(most);
    let inverse_scale = q8_0_inverse(scale);
    let block = (to + d) / 32u * 34u;
    let bits = f32_to_f16(scale);
    out_put_byte(block, bits & 255u);
    out_put_byte(block + 1u, bits >> 8u);
    for (var i = 0u; i < 32u; i++) {
        let value = rotated(begin, d + i, inverse, position);
        out_put_byte(block + 2u + i, q8_0_code(value, inverse_scale));
    }
}

@compute @workgroup_size(64)
fn heads(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let vector = group_number(group, groups);
    if vector >= params.x.outer * params.x.inner {
        return;
    }
    let token = vector / params.x.inner;
    let head = vector % params.x.inner;
    var to = start_of(params.out, vector);
    if KEYS {
        let place = cache_place(params.kv, token, params.batch, params.q_len, params.x.outer);
        if place == NOWHERE {
            return;
        }
        to = place + head * params.kv.head_stride;
    }
    let begin = start_of(params.x, vector);
    let len = params.x.len;
    var inverse = 1.0;
    if weight_present {
        inverse = inverse_root_of(lane, begin, len);
    }
    let position = positions_int(token);
    // all lanes go round as often: atomics in a loop that a group of lanes has left read through a null pointer on Mesa 26.1
    for (var first = 0u; first < len; first += LANES * UNIT) {
        let d = first + lane * UNIT;
        if d < len {
            store_from(d, to, begin, inverse, position);
        }
    }
}
