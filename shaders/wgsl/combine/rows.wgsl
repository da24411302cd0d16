// The experts' results of each token, weighted and added up, with the residual; a value an invocation.

struct Params {
    x: Rows,
    out: Rows,
    top_k: u32,
    unused_a: u32,
    unused_b: u32,
    unused_c: u32,
}

@compute @workgroup_size(256)
fn combine(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let place = place_of(params.out, group_number(group, groups) * 256u + lane);
    if !place.there {
        return;
    }
    let token = place.vector / params.out.inner;
    let to = start_of(params.out, place.vector) + place.at;
    var sum = Value(residual_get(to));
    let begin = (place.vector - token * params.out.inner) * params.x.inner_stride + place.at;
    for (var j = 0u; j < params.top_k; j++) {
        let row = token * params.top_k + j;
        sum += weights_get(row) * x_get(row * params.x.outer_stride + begin);
    }
    out_set(to, sum);
}
