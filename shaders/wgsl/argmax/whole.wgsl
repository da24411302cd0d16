// The second step of argmax/parts.wgsl: an invocation takes a vector.

struct Params {
    x: Rows,
    parts: u32,
    unused_a: u32,
    unused_b: u32,
    unused_c: u32,
}

@compute @workgroup_size(64)
fn compare(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let vector = group_number(group, groups) * 64u + lane;
    if vector >= params.x.outer * params.x.inner {
        return;
    }
    var best = NOTHING;
    for (var i = vector * params.parts; i < (vector + 1u) * params.parts; i++) {
        best = first_of(best, Candidate(found_words[2u * i], found_words[2u * i + 1u]));
    }
    ids_words[ids_at() + vector] = best.index;
}
