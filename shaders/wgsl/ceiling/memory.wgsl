// Reading and copying memory, 16 bytes an access. Invocations side by side access neighbours, and go on a grid further.

struct Params {
    // accesses
    count: u32,
    // invocations of the grid
    stride: u32,
    unused_a: u32,
    unused_b: u32,
}

@compute @workgroup_size(256)
fn read_all(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let first = group_number(group, groups) * 256u + lane;
    var sum = vec4<u32>(0u);
    var other = vec4<u32>(0u);
    var at = first;
    for (; at + 3u * params.stride < params.count; at += 4u * params.stride) {
        let a = source_words[at];
        let b = source_words[at + params.stride];
        let c = source_words[at + 2u * params.stride];
        let d = source_words[at + 3u * params.stride];
        sum ^= a + b;
        other ^= c + d;
    }
    for (; at < params.count; at += params.stride) {
        sum ^= source_words[at];
    }
    sum ^= other;
    // one in 2^32, so that nothing of it may be left out
    if ((sum.x ^ sum.y) ^ (sum.z ^ sum.w)) == 0x9e3779b9u {
        sink_words[first] = sum;
    }
}

@compute @workgroup_size(256)
fn copy_all(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    for (var at = group_number(group, groups) * 256u + lane; at < params.count; at += params.stride) {
        sink_words[at] = source_words[at];
    }
}
