// To q8_0, q4_0 and mxfp4, by the rules of perjoule_kernels::block, bit for bit: an invocation takes a block of 32 elements. FORMAT is 0, 1
// or 2, in that order.

struct Params {
    blocks: u32,
    unused_a: u32,
    unused_b: u32,
    unused_c: u32,
}

fn put_half(at: u32, bits: u32) {
    out_put_byte(at, bits & 255u);
    out_put_byte(at + 1u, bits >> 8u);
}

// The largest magnitude of a block; or the first element that has it.
fn extreme_of(first: u32, signed: bool) -> f32 {
    var extreme = select(0.0, x_get(first), signed);
    for (var i = 0u; i < 32u; i++) {
        let value = x_get(first + i);
        if abs(value) > abs(extreme) {
            extreme = value;
        }
    }
    return select(abs(extreme), extreme, signed);
}

fn q8_0(first: u32, to: u32) {
    let scale = quotient(extreme_of(first, false), 127.0);
    let inverse = reciprocal(scale);
    put_half(to, f32_to_f16(scale));
    for (var i = 0u; i < 32u; i++) {
        out_put_byte(to + 2u + i, q8_0_code(x_get(first + i), inverse));
    }
}

fn q4_0(first: u32, to: u32) {
    let scale = extreme_of(first, true) * -0.125;
    let inverse = reciprocal(scale);
    put_half(to, f32_to_f16(scale));
    for (var i = 0u; i < 16u; i++) {
        let low = q4_0_code(x_get(first + i), inverse);
        out_put_byte(to + 2u + i, low | (q4_0_code(x_get(first + 16u + i), inverse) << 4u));
    }
}

fn mxfp4(first: u32, to: u32) {
    let e = mxfp4_exponent(extreme_of(first, false));
    let half = half_scale(e);
    out_put_byte(to, e);
    for (var i = 0u; i < 16u; i++) {
        let low = mxfp4_code(x_get(first + i), half);
        out_put_byte(to + 1u + i, low | (mxfp4_code(x_get(first + 16u + i), half) << 4u));
    }
}

@compute @workgroup_size(256)
fn quantise(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let block = group_number(group, groups) * 256u + lane;
    if block >= params.blocks {
        return;
    }
    if FORMAT == 0u {
        q8_0(block * 32u, block * 34u);
    } else if FORMAT == 1u {
        q4_0(block * 32u, block * 18u);
    } else {
        mxfp4(block * 32u, block * 17u);
    }
}
