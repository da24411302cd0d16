// Index of the largest element of any vectors: a workgroup takes one.

struct Params {
    x: Rows,
}

@compute @workgroup_size(256)
fn argmax(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let vector = group_number(group, groups);
    if vector >= params.x.outer * params.x.inner {
        return;
    }
    let start = start_of(params.x, vector);
    var best = NOTHING;
    for (var d = lane; d < params.x.len; d += 256u) {
        best = or_later(best, ordered(x_get(start + d)), d);
    }
    best = reduce_first(best, lane);
    if lane == 0u {
        ids_set_int(vector, bitcast<i32>(best.index));
    }
}
