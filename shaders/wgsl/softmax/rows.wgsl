// Softmax of any types, strides and lengths: a workgroup takes a vector, and reads it for the maximum, for the sum and for the result.

struct Params {
    x: Rows,
    out: Rows,
    scale: f32,
    unused_a: u32,
    unused_b: u32,
    unused_c: u32,
}

@compute @workgroup_size(256)
fn softmax(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let vector = group_number(group, groups);
    if vector >= params.x.outer * params.x.inner {
        return;
    }
    let begin = start_of(params.x, vector);
    let to = start_of(params.out, vector);
    // NaN does not count here: it reaches the result through the sum, as a largest value that is infinite does
    var top = -infinity();
    for (var d = lane; d < params.x.len; d += 256u) {
        top = larger(top, x_get(begin + d) * params.scale);
    }
    top = reduce_max(top, lane);
    var sum = 0.0;
    for (var d = lane; d < params.x.len; d += 256u) {
        sum += exp_of(x_get(begin + d) * params.scale - top);
    }
    let inverse = 1.0 / reduce_sum(sum, lane);
    for (var d = lane; d < params.x.len; d += 256u) {
        out_set(to + d, exp_of(x_get(begin + d) * params.scale - top) * inverse);
    }
}
