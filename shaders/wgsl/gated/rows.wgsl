// out = activation(gate) * up, a value an invocation.

struct Params {
    gate: Rows,
    up: Rows,
    out: Rows,
    alpha: f32,
    limit: f32,
    unused_a: u32,
    unused_b: u32,
}

@compute @workgroup_size(256)
fn gated(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let place = place_of(params.out, group_number(group, groups) * 256u + lane);
    if place.there {
        let gate = gate_get(start_of(params.gate, place.vector) + place.at);
        let up = up_get(start_of(params.up, place.vector) + place.at);
        out_set(start_of(params.out, place.vector) + place.at, gate_all(gate, up));
    }
}
