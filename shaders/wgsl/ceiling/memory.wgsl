// Streaming through memory, 16 bytes an access. A workgroup goes through a run of its own.

struct Params {
    quads: u32,
    unused0: u32,
    unused1: u32,
    unused2: u32,
}

// 16-byte accesses of an invocation
const FLIGHT: u32 = 8u;

@compute @workgroup_size(256)
fn stream_read(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let first = (group.y * groups.x + group.x) * 256u * FLIGHT + lane;
    var sum = vec4<u32>(0u);
    for (var i = 0u; i < FLIGHT; i++) {
        let at = first + i * 256u;
        if at < params.quads {
            sum ^= from_words[at];
        }
    }
    // no compiler knows that this is never so, and so all of it is read
    if (sum.x ^ sum.y ^ sum.z ^ sum.w) == 0x5eed1234u {
        to_words[0] = sum;
    }
}

@compute @workgroup_size(256)
fn stream_copy(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let first = (group.y * groups.x + group.x) * 256u * FLIGHT + lane;
    for (var i = 0u; i < FLIGHT; i++) {
        let at = first + i * 256u;
        if at < params.quads {
            to_words[at] = from_words[at];
        }
    }
}
