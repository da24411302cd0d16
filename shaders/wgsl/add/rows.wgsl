// out = a + b, a value an invocation.

struct Params {
    a: Rows,
    b: Rows,
    out: Rows,
}

@compute @workgroup_size(256)
fn add(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let place = place_of(params.out, group_number(group, groups) * 256u + lane);
    if place.there {
        let sum = a_get(start_of(params.a, place.vector) + place.at) + b_get(start_of(params.b, place.vector) + place.at);
        out_set(start_of(params.out, place.vector) + place.at, sum);
    }
}
