// The first step of quantise/tensor.wgsl: the largest magnitude of what a workgroup goes through.

struct Params {
    elements: u32,
    parts: u32,
    limit: f32,
    unused: u32,
}

@compute @workgroup_size(256)
fn find_largest(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    var most = 0.0;
    for (var at = (id.x * 256u + lane) * RUN; at < params.elements; at += params.parts * 256u * RUN) {
        most = larger(most, largest(abs(x_get(at))));
    }
    most = reduce_max(most, lane);
    if lane == 0u {
        maxima_words[id.x] = most;
    }
}
