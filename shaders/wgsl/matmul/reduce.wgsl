// Sums of the parts of k that matmul/tiled.wgsl left in `partial`, and the epilogue: an element of C an invocation.

struct Params {
    epilogue: Epilogue,
    m: u32,
    n: u32,
    matrices: u32,
    parts: u32,
}

@compute @workgroup_size(256)
fn reduce(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let plane = params.m * params.n;
    let index = group_number(group, groups) * 256u + lane;
    if index >= plane * params.matrices {
        return;
    }
    let matrix = index / plane;
    let element = index % plane;
    let row = element / params.n;
    let col = element % params.n;
    var sum = 0.0;
    var other = 0.0;
    for (var part = 0u; part < params.parts; part++) {
        let at = (part * params.matrices + matrix) * SIDES * plane + element;
        sum += partial_get(at);
        if SIDES == 2u {
            other += partial_get(at + plane);
        }
    }
    if SIDES == 2u {
        store_gated(sum, other, row, col);
    } else {
        store(sum, matrix, row, col);
    }
}
