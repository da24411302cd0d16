// Bytes from anywhere to anywhere, a word of the target an invocation: copies of buffers move whole words only.

struct Params {
    bytes: u32,
    unused_a: u32,
    unused_b: u32,
    unused_c: u32,
}

@compute @workgroup_size(256)
fn copy(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    // the first byte of each, in its binding
    let source_at = offsets[0].x;
    let target_at = offsets[0].y;
    let end = target_at + params.bytes;
    let word = (target_at >> 2u) + group_number(group, groups) * 256u + lane;
    if word * 4u >= end {
        return;
    }
    let first = max(word * 4u, target_at);
    let last = min(word * 4u + 4u, end);
    // bytes beside the range stay, and no other invocation writes this word
    var value = target_words[word];
    for (var byte = first; byte < last; byte++) {
        let place = source_at + (byte - target_at);
        let bits = (source_words[place >> 2u] >> ((place & 3u) * 8u)) & 255u;
        let shift = (byte & 3u) * 8u;
        value = (value & ~(255u << shift)) | (bits << shift);
    }
    target_words[word] = value;
}
