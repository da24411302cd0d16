// Powers of two that bring the largest number of each row of A to 2^14 and more, below 2^15: what f16 has room for. A workgroup takes a row.

struct Params {
    // Strides of A in elements, and elements of a row.
    a_batch: u32,
    a_row: u32,
    a_col: u32,
    k: u32,
    // Rows of a matrix, and of all.
    m: u32,
    rows: u32,
    unused_a: u32,
    unused_b: u32,
}

@compute @workgroup_size(256)
fn row_scales(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = group_number(group, groups);
    if row >= params.rows {
        return;
    }
    let begin = row / params.m * params.a_batch + row % params.m * params.a_row;
    var most = 0.0;
    for (var k = lane; k < params.k; k += 256u) {
        let value = abs(a_get(begin + k * params.a_col));
        // infinities and NaN stay what they are
        most = select(most, max(most, value), bitcast<u32>(value) < 0x7f800000u);
    }
    // so that it and its inverse are normal numbers
    let exponent = clamp(bitcast<u32>(reduce_max(most, lane)) >> 23u, 15u, 254u);
    if lane == 0u {
        scales_words[scales_at() + row] = bitcast<f32>((268u - exponent) << 23u);
    }
}
