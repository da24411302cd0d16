// Index of the largest element: `parts` workgroups share a vector and leave what they found, argmax/whole.wgsl compares that. ALONE where a
// vector has one workgroup.

struct Params {
    x: Rows,
    parts: u32,
    unused_a: u32,
    unused_b: u32,
    unused_c: u32,
}

@compute @workgroup_size(256)
fn find_best(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let index = group_number(group, groups);
    let vector = index / params.parts;
    if vector >= params.x.outer * params.x.inner {
        return;
    }
    let part = index - vector * params.parts;
    let start = start_of(params.x, vector);
    var best = NOTHING;
    for (var d = (part * 256u + lane) * RUN; d < params.x.len; d += params.parts * 256u * RUN) {
        best = or_run(best, x_get(start + d), d);
    }
    best = reduce_first(best, lane);
    if lane == 0u {
        if ALONE {
            found_words[found_at() + vector] = best.index;
        } else {
            found_words[2u * index] = best.number;
            found_words[2u * index + 1u] = best.index;
        }
    }
}
