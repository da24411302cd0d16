// Norm and rotation of the heads of queries and keys, and the append to the caches, in one pass over memory: SHARING invocations take a
// vector of queries, keys or values, each eight elements, and a workgroup as many vectors as it has room for. Of queries, keys and values
// those that are present, and of norms those whose weights are. All of a head is rotated. Vectors begin at multiples of four elements.

struct Params {
    q: Rows,
    k: Rows,
    v: Rows,
    out: Rows,
    kv: KvLayout,
    rotation: Rotation,
    batch: u32,
    q_len: u32,
    q_eps: f32,
    q_weight_offset: f32,
    k_eps: f32,
    k_weight_offset: f32,
    unused_a: u32,
    unused_b: u32,
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

// One over the root of the mean of the squares of a vector, of which the invocation has `x`.
fn inverse_root_of(lane: u32, x: Pairs, len: f32, eps: f32) -> f32 {
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
    return inverse_root(squares, total, factor, len, eps);
}

// The first four elements of a vector.
fn quad_of(rows: Rows, token: u32, head: u32) -> u32 {
    return (token * rows.outer_stride + head * rows.inner_stride) / 4u;
}

@compute @workgroup_size(64)
fn heads(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let queries = select(0u, params.q.inner, q_present);
    let keys = select(0u, params.k.inner, k_present);
    let each = queries + keys + select(0u, params.v.inner, v_present);
    let vectors = params.q.outer * each;
    // what does not exist is the last vector again, and never stored
    let number = group_number(group, groups) * HEADS + lane / SHARING;
    let vector = min(number, vectors - 1u);
    let token = vector / each;
    let index = vector % each;
    let is_query = index < queries;
    let is_value = index >= queries + keys;
    let head = index - select(queries + select(0u, keys, is_value), 0u, is_query);
    let places = quads_of(params.rotation, lane % SHARING);
    var x: Pairs;
    if is_query {
        let at = places + quad_of(params.q, token, head);
        x = Pairs(q_quad(at.x), q_quad(at.y));
    } else if is_value {
        let at = places + quad_of(params.v, token, head);
        x = Pairs(v_quad(at.x), v_quad(at.y));
    } else {
        let at = places + quad_of(params.k, token, head);
        x = Pairs(k_quad(at.x), k_quad(at.y));
    }
    var inverse = 1.0;
    if q_weight_present || k_weight_present {
        inverse = inverse_root_of(lane, x, f32(8u * SHARING), select(params.k_eps, params.q_eps, is_query));
    }
    if number >= vectors || lane / SHARING >= HEADS {
        return;
    }
    var to = places;
    if is_query {
        to += quad_of(params.out, token, head);
    } else {
        let place = cache_place(params.kv, token, params.batch, params.q_len, params.q.outer);
        if place == NOWHERE {
            return;
        }
        to += (place + head * params.kv.head_stride) / 4u;
    }
    if is_value {
        v_cache_quad_set(to.x, x.a);
        v_cache_quad_set(to.y, x.b);
        return;
    }
    if is_query && q_weight_present {
        x.a *= inverse * (q_weight_quad(places.x) + params.q_weight_offset);
        x.b *= inverse * (q_weight_quad(places.y) + params.q_weight_offset);
    }
    if !is_query && k_weight_present {
        x.a *= inverse * (k_weight_quad(places.x) + params.k_weight_offset);
        x.b *= inverse * (k_weight_quad(places.y) + params.k_weight_offset);
    }
    var sine: vec4<f32>;
    var cosine: vec4<f32>;
    let position = positions_int(token);
    for (var j = 0u; j < 4u; j++) {
        let turn = table_words[table_at() + 4u * (lane % SHARING) + j];
        let factors = sincos_turns(turned(position, turn)) * params.rotation.factor;
        sine[j] = factors.x;
        cosine[j] = factors.y;
    }
    let rotated = rotate(params.rotation, x, sine, cosine);
    if is_query {
        out_quad_set(to.x, rotated.a);
        out_quad_set(to.y, rotated.b);
    } else {
        k_cache_quad_set(to.x, rotated.a);
        k_cache_quad_set(to.y, rotated.b);
    }
}
