// Rows of A as blocks of 32 signed bytes with a scale each, a block an invocation.

struct Params {
    // Strides of A in elements, and rows of a matrix.
    a_batch: u32,
    a_row: u32,
    rows: u32,
    // Blocks of a row, and of all.
    blocks: u32,
    all: u32,
    unused_a: u32,
    unused_b: u32,
    unused_c: u32,
}

@compute @workgroup_size(64)
fn quantise(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let at = group_number(group, groups) * 64u + lane;
    if at >= params.all {
        return;
    }
    let row = at / params.blocks;
    let begin = row / params.rows * params.a_batch + row % params.rows * params.a_row + at % params.blocks * 32u;
    // by their bits, among which those of NaN are the largest
    var most = 0u;
    for (var i = 0u; i < 32u; i++) {
        most = max(most, bitcast<u32>(a_get(begin + i)) & 0x7fffffffu);
    }
    let scale = bitcast<f32>(most) / 127.0;
    let inverse = select(0.0, 127.0 / bitcast<f32>(most), most >= 0x00800000u);
    for (var word = 0u; word < 8u; word++) {
        var codes = 0u;
        for (var i = 0u; i < 4u; i++) {
            let code = f32_to_i8(a_get(begin + word * 4u + i) * inverse);
            codes |= (bitcast<u32>(code) & 255u) << (i * 8u);
        }
        codes_words[codes_at() + at * 8u + word] = codes;
    }
    block_scales_words[block_scales_at() + at] = scale;
}
