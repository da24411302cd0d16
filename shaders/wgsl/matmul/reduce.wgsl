// The epilogue for sums in `partial`, [part][matrix][side][m][pitch]: those of parts of k are added. An element of C an invocation.

struct Params {
    epilogue: Epilogue,
    m: u32,
    n: u32,
    matrices: u32,
    parts: u32,
    // Elements from one row of sums to the next.
    pitch: u32,
    // The first row, column and matrix of C.
    row: u32,
    col: u32,
    matrix: u32,
}

@compute @workgroup_size(256)
fn reduce(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let plane = params.m * params.pitch;
    let each = params.m * params.n;
    let index = group_number(group, groups) * 256u + lane;
    if index >= each * params.matrices {
        return;
    }
    let matrix = index / each;
    let element = index % each;
    let row = element / params.n;
    let col = element % params.n;
    var sum = 0.0;
    var other = 0.0;
    for (var part = 0u; part < params.parts; part++) {
        let at = (part * params.matrices + matrix) * SIDES * plane + row * params.pitch + col;
        sum += partial_get(at);
        if SIDES == 2u {
            other += partial_get(at + plane);
        }
    }
    if SIDES == 2u {
        store_gated(sum, other, params.row + row, params.col + col);
    } else {
        store(sum, params.matrix + matrix, params.row + row, params.col + col);
    }
}
