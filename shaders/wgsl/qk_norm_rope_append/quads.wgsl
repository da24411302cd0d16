// Norm and rotation of the heads of queries, or of keys, which go to the cache, in one pass over memory: SHARING invocations take a head,
// each four pairs, and a workgroup as many heads as it has room for. All of a head is rotated. Vectors begin at multiples of four elements.

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
const HEADS = LANES / SHARING;

// Largest magnitudes, and sums of squares.
var<workgroup> shares: array<vec2<f32>, LANES>;

fn largest(x: vec4<f32>, before: f32) -> f32 {
    var most = before;
    for (var i = 0u; i < 4u; i++) {
        most = select(most, abs(x[i]), abs(x[i]) > most);
    }
    return most;
}

@compute @workgroup_size(64)
fn heads(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let vectors = params.x.outer * params.x.inner;
    // what does not exist is the last head again, and never stored
    let number = group_number(group, groups) * HEADS + lane / SHARING;
    let vector = min(number, vectors - 1u);
    let quad = lane % SHARING;
    let token = vector / params.x.inner;
    let head = vector % params.x.inner;
    let start = start_of(params.x, vector) / 4u;
    let places = quads_of(params.rotation, quad);
    let x = Pairs(x_quad(start + places.x), x_quad(start + places.y));
    let most_here = largest(x.b, largest(x.a, 0.0));
    shares[lane] = vec2<f32>(most_here, dot(x.a, x.a) + dot(x.b, x.b));
    workgroupBarrier();
    let first = lane / SHARING * SHARING;
    var most = 0.0;
    var squares = 0.0;
    for (var i = 0u; i < SHARING; i++) {
        let share = shares[min(first + i, LANES - 1u)];
        most = select(most, share.x, share.x > most);
        squares += share.y;
    }
    // squares may leave the range in which f32 rounds relatively: a power of two brings them near 1
    let exponent = clamp((bitcast<u32>(most) >> 23u) & 255u, 1u, 253u);
    let factor = bitcast<f32>((254u - exponent) << 23u);
    let scaled_a = x.a * factor;
    let scaled_b = x.b * factor;
    workgroupBarrier();
    shares[lane].y = dot(scaled_a, scaled_a) + dot(scaled_b, scaled_b);
    workgroupBarrier();
    var total = 0.0;
    for (var i = 0u; i < SHARING; i++) {
        total += shares[min(first + i, LANES - 1u)].y;
    }
    let inverse = inverse_root(squares, total, factor, f32(params.x.len), params.eps);
    if number >= vectors || lane / SHARING >= HEADS {
        return;
    }
    var to = start_of(params.out, vector) / 4u;
    if KEYS {
        let place = cache_place(params.kv, token, params.batch, params.q_len, params.x.outer);
        if place == NOWHERE {
            return;
        }
        to = (place + head * params.kv.head_stride) / 4u;
    }
    var sine: vec4<f32>;
    var cosine: vec4<f32>;
    let position = positions_int(token);
    for (var j = 0u; j < 4u; j++) {
        let turn = table_words[table_at() + 4u * quad + j];
        let factors = sincos_turns(turned(position, turn)) * params.rotation.factor;
        sine[j] = factors.x;
        cosine[j] = factors.y;
    }
    let normalised = Pairs(
        x.a * inverse * (weight_quad(places.x) + params.weight_offset),
        x.b * inverse * (weight_quad(places.y) + params.weight_offset),
    );
    let rotated = rotate(params.rotation, normalised, sine, cosine);
    out_quad_set(to + places.x, rotated.a);
    out_quad_set(to + places.y, rotated.b);
}
