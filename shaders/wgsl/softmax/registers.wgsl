// Softmax in one pass over memory: a vector stays in the registers of the WIDTH invocations that share it, ITEMS runs of four elements each,
// which lie WIDTH runs apart. A workgroup has 256 / WIDTH vectors.

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
    let index = group_number(group, groups) * (256u / WIDTH) + lane / WIDTH;
    let there = index < params.x.outer * params.x.inner;
    let vector = select(0u, index, there);
    let end = select(0u, params.x.len, there);
    let begin = lane % WIDTH * 4u;
    let x_at = start_of(params.x, vector);
    let out_at = start_of(params.out, vector);
    var values: array<vec4<f32>, ITEMS>;
    var top = -infinity();
    // unroll
    for (var i = 0u; i < ITEMS; i++) {
        let d = begin + i * WIDTH * 4u;
        if d < end {
            values[i] = x_get(x_at + d) * params.scale;
            top = larger(top, largest(values[i]));
        }
    }
    top = reduce_max(top, lane);
    var sum = vec4<f32>(0.0);
    // unroll
    for (var i = 0u; i < ITEMS; i++) {
        if begin + i * WIDTH * 4u < end {
            let value = values[i] - top;
            values[i] = vec4<f32>(exp_of(value.x), exp_of(value.y), exp_of(value.z), exp_of(value.w));
            sum += values[i];
        }
    }
    let inverse = 1.0 / reduce_sum(total(sum), lane);
    // unroll
    for (var i = 0u; i < ITEMS; i++) {
        let d = begin + i * WIDTH * 4u;
        if d < end {
            out_set(out_at + d, values[i] * inverse);
        }
    }
}
