// To q8_0, q4_0 and mxfp4, by the rules of perjoule_kernels::block, bit for bit: an invocation makes as many blocks as whole words hold, and
// stores these one by one. FORMAT is 0, 1 or 2, in that order; BLOCKS are 2, 2 or 4 of 34, 18 or 17 bytes.

struct Params {
    // Whole sets of BLOCKS.
    sets: u32,
    unused_a: u32,
    unused_b: u32,
    unused_c: u32,
}

// The word that is being put together, how many bytes it has, and where it goes.
struct Writer {
    word: u32,
    bytes: u32,
    at: u32,
}

var<private> writer: Writer;

fn put(byte: u32) {
    writer.word |= byte << (8u * writer.bytes);
    writer.bytes += 1u;
    if writer.bytes == 4u {
        out_words[writer.at] = writer.word;
        writer = Writer(0u, 0u, writer.at + 1u);
    }
}

fn put_half(bits: u32) {
    put(bits & 255u);
    put(bits >> 8u);
}

// Elements of the block.
var<private> values: array<vec4<f32>, 8>;

fn q8_0() {
    var most = 0.0;
    for (var i = 0u; i < 8u; i++) {
        most = larger(most, largest(abs(values[i])));
    }
    let scale = quotient(most, 127.0);
    let inverse = reciprocal(scale);
    put_half(f32_to_f16(scale));
    for (var i = 0u; i < 8u; i++) {
        for (var j = 0u; j < 4u; j++) {
            put(q8_0_code(values[i][j], inverse));
        }
    }
}

fn q4_0() {
    // the first of those with the largest magnitude
    var extreme = values[0].x;
    for (var i = 0u; i < 8u; i++) {
        for (var j = 0u; j < 4u; j++) {
            let value = values[i][j];
            extreme = select(extreme, value, abs(value) > abs(extreme));
        }
    }
    let scale = extreme * -0.125;
    let inverse = reciprocal(scale);
    put_half(f32_to_f16(scale));
    for (var i = 0u; i < 4u; i++) {
        for (var j = 0u; j < 4u; j++) {
            put(q4_0_code(values[i][j], inverse) | (q4_0_code(values[i + 4u][j], inverse) << 4u));
        }
    }
}

fn mxfp4() {
    var most = 0.0;
    for (var i = 0u; i < 8u; i++) {
        most = larger(most, largest(abs(values[i])));
    }
    let e = mxfp4_exponent(most);
    let half = half_scale(e);
    put(e);
    for (var i = 0u; i < 4u; i++) {
        for (var j = 0u; j < 4u; j++) {
            put(mxfp4_code(values[i][j], half) | (mxfp4_code(values[i + 4u][j], half) << 4u));
        }
    }
}

@compute @workgroup_size(64)
fn quantise(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let index = group_number(group, groups) * 64u + lane;
    if index >= params.sets {
        return;
    }
    writer = Writer(0u, 0u, out_at() + index * WORDS);
    for (var block = index * BLOCKS; block < (index + 1u) * BLOCKS; block++) {
        for (var i = 0u; i < 8u; i++) {
            values[i] = x_get(block * 32u + i * 4u);
        }
        if FORMAT == 0u {
            q8_0();
        } else if FORMAT == 1u {
            q4_0();
        } else {
            mxfp4();
        }
    }
}
