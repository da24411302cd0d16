// Conversion of element types by way of f32, which holds all that is converted here; a value an invocation.

struct Params {
    x: Rows,
    out: Rows,
}

@compute @workgroup_size(256)
fn convert(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let place = place_of(params.out, group_number(group, groups) * 256u + lane);
    if place.there {
        let value = x_get(start_of(params.x, place.vector) + place.at);
        out_set(start_of(params.out, place.vector) + place.at, value);
    }
}
