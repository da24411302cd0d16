// To i8 and e4m3 with one scale: each workgroup compares what quantise/largest.wgsl left, and rounds its share.

struct Params {
    elements: u32,
    parts: u32,
    limit: f32,
    unused: u32,
}

@compute @workgroup_size(256)
fn scale_all(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    var most = 0.0;
    for (var i = lane; i < params.parts; i += 256u) {
        most = larger(most, maxima_words[i]);
    }
    let scale = quotient(reduce_max(most, lane), params.limit);
    if id.x == 0u && lane == 0u {
        scales_set(0u, scale);
    }
    for (var at = (id.x * 256u + lane) * RUN; at < params.elements; at += params.parts * 256u * RUN) {
        out_set(at, scaled_all(x_get(at), scale));
    }
}
