// Rotary position embedding in place, a pair of elements an invocation.

struct Params {
    x: Rows,
    rotation: Rotation,
}

@compute @workgroup_size(256)
fn rope(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let at = group_number(group, groups) * 256u + lane;
    let vector = at / params.rotation.pairs;
    if vector >= params.x.outer * params.x.inner {
        return;
    }
    let pair = at % params.rotation.pairs;
    let angle = turned(positions_int(vector / params.x.inner), table_words[table_at() + pair]);
    let factors = sincos_turns(angle) * params.rotation.factor;
    let elements = start_of(params.x, vector) + elements_of(params.rotation, pair);
    let a = x_get(elements.x);
    let b = x_get(elements.y);
    x_set(elements.x, a * factors.y - b * factors.x);
    x_set(elements.y, a * factors.x + b * factors.y);
}
