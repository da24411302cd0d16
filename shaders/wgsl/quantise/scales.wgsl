// To i8 and e4m3 with f32 scales, of any tensors: scale = max|x| / limit over a group, out = round(x / scale). Operations are rounded one
// by one, as the reference has it. WIDTH invocations take a group of a vector.

struct Params {
    // Elements of the tensor, of a vector, and of a group; groups of a vector.
    elements: u32,
    len: u32,
    group: u32,
    each: u32,
    limit: f32,
    unused_a: u32,
    unused_b: u32,
    unused_c: u32,
}

@compute @workgroup_size(256)
fn groups(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let task = group_number(id, count) * (256u / WIDTH) + lane / WIDTH;
    let vector = task / params.each;
    let part = task - vector * params.each;
    let first = vector * params.len + part * params.group;
    let there = vector < params.elements / max(params.len, 1u);
    let end = select(0u, min(first + min(params.group, params.len), (vector + 1u) * params.len), there);
    var most = 0.0;
    for (var at = first + lane % WIDTH; at < end; at += WIDTH) {
        most = larger(most, abs(x_get(at)));
    }
    let scale = quotient(reduce_max(most, lane), params.limit);
    if there && lane % WIDTH == 0u {
        scales_set(task, scale);
    }
    for (var at = first + lane % WIDTH; at < end; at += WIDTH) {
        out_set(at, scaled(x_get(at), scale));
    }
}
