// To i8 and e4m3 with f32 scales, in one pass over memory: what shares a scale stays in the registers of the WIDTH invocations that take it,
// ITEMS runs of four elements each, which lie WIDTH runs apart. A workgroup has 256 / WIDTH groups, which are dense and as long as each other.

struct Params {
    // Of elements, and how many there are.
    group: u32,
    count: u32,
    limit: f32,
    unused: u32,
}

@compute @workgroup_size(256)
fn groups(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) ids: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let index = group_number(id, ids) * (256u / WIDTH) + lane / WIDTH;
    let there = index < params.count;
    let start = index * params.group;
    let end = select(0u, params.group, there);
    var values: array<vec4<f32>, ITEMS>;
    var most = 0.0;
    for (var i = 0u; i < ITEMS; i++) {
        let d = (lane % WIDTH + i * WIDTH) * 4u;
        if d < end {
            values[i] = x_get(start + d);
            most = larger(most, largest(abs(values[i])));
        }
    }
    let scale = quotient(reduce_max(most, lane), params.limit);
    if there && lane % WIDTH == 0u {
        scales_set(index, scale);
    }
    for (var i = 0u; i < ITEMS; i++) {
        let d = (lane % WIDTH + i * WIDTH) * 4u;
        if d < end {
            out_set(start + d, scaled_all(values[i], scale));
        }
    }
}
