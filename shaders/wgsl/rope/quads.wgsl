// Rotary position embedding in place: an invocation takes four pairs of up to HEADS heads of a token, for which it computes sines and
// cosines once. Vectors begin at multiples of four elements, and rotated pairs are a multiple of four.

struct Params {
    x: Rows,
    rotation: Rotation,
}

const HEADS = 4u;

@compute @workgroup_size(64)
fn rope(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let at = group_number(group, groups) * 64u + lane;
    let quads = params.rotation.pairs / 4u;
    let shares = (params.x.inner + HEADS - 1u) / HEADS;
    let token = at / quads / shares;
    if token >= params.x.outer {
        return;
    }
    let quad = at % quads;
    let first = at / quads % shares * HEADS;
    var sine: vec4<f32>;
    var cosine: vec4<f32>;
    let position = positions_int(token);
    for (var j = 0u; j < 4u; j++) {
        let turn = table_words[table_at() + 4u * quad + j];
        let factors = sincos_turns(turned(position, turn)) * params.rotation.factor;
        sine[j] = factors.x;
        cosine[j] = factors.y;
    }
    for (var head = first; head < min(first + HEADS, params.x.inner); head++) {
        let start = (token * params.x.outer_stride + head * params.x.inner_stride) / 4u;
        let places = start + quads_of(params.rotation, quad);
        let rotated = rotate(params.rotation, Pairs(x_quad(places.x), x_quad(places.y)), sine, cosine);
        x_quad_set(places.x, rotated.a);
        x_quad_set(places.y, rotated.b);
    }
}
