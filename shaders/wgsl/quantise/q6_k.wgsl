// To q6_k, by the rules of perjoule_kernels::block (those of llama.cpp's reference quantiser), bit for bit: operations are rounded one by
// one, and sums run in the order of the elements. An invocation fits a group of 16 elements of a block; a workgroup has 4 blocks.

struct Params {
    blocks: u32,
    unused_a: u32,
    unused_b: u32,
    unused_c: u32,
}

const GROUP = 16u;
const GROUPS = 16u;

// Sums of w x l and w l l, whose quotient is the best scale for levels l.
struct Sums {
    xl: f32,
    l2: f32,
}

// The scale, and that under which levels are found; 0 where codes are 0.
struct Fit {
    scale: f32,
    inverse: f32,
}

var<private> x: array<f32, GROUP>;
// Of each invocation.
var<workgroup> scales: array<f32, 64>;
// Codes of 8 bits each.
var<workgroup> all_codes: array<array<u32, 4>, 64>;

fn level_of(inverse: f32, value: f32) -> f32 {
    return bounded(round(times(inverse, value)), -32.0, 31.0);
}

fn sums_of(inverse: f32) -> Sums {
    var sums = Sums(0.0, 0.0);
    for (var i = 0u; i < GROUP; i++) {
        let l = level_of(inverse, x[i]);
        let w = times(x[i], x[i]);
        sums.xl = plus(sums.xl, times(times(w, x[i]), l));
        sums.l2 = plus(sums.l2, times(times(w, l), l));
    }
    return sums;
}

// Fits the group to `scale * level`.
fn fit_symmetric() -> Fit {
    var extreme = 0.0;
    for (var i = 0u; i < GROUP; i++) {
        extreme = select(extreme, x[i], abs(x[i]) > abs(extreme));
    }
    if abs(extreme) < 1e-15 {
        return Fit(0.0, 0.0);
    }
    var fit = Fit(0.0, quotient(-32.0, extreme));
    let sums = sums_of(fit.inverse);
    if sums.l2 != 0.0 {
        fit.scale = quotient(sums.xl, sums.l2);
    }
    var best = times(fit.scale, sums.xl);
    for (var trial = -9; trial <= 9; trial++) {
        if trial == 0 {
            continue;
        }
        let inverse = quotient(-plus(32.0, times(0.1, f32(trial))), extreme);
        let tried = sums_of(inverse);
        if tried.l2 > 0.0 && times(tried.xl, tried.xl) > times(best, tried.l2) {
            fit = Fit(quotient(tried.xl, tried.l2), inverse);
            best = times(fit.scale, tried.xl);
        }
    }
    return fit;
}

fn code_at(first_lane: u32, at: u32) -> u32 {
    let i = at % GROUP;
    return (all_codes[first_lane + at / GROUP][i / 4u] >> (i % 4u * 8u)) & 255u;
}

@compute @workgroup_size(64)
fn quantise(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let block = group_number(group, groups) * (64u / GROUPS) + lane / GROUPS;
    let there = block < params.blocks;
    let g = lane % GROUPS;
    let first_lane = lane - g;
    for (var i = 0u; i < GROUP; i++) {
        x[i] = 0.0;
        if there {
            x[i] = x_in_get(block * 256u + g * GROUP + i);
        }
    }
    let fit = fit_symmetric();
    scales[lane] = fit.scale;
    workgroupBarrier();
    // the first of the groups whose scale has the largest magnitude
    var extreme = 0.0;
    for (var i = 0u; i < GROUPS; i++) {
        let other = scales[first_lane + i];
        extreme = select(extreme, other, abs(other) > abs(extreme));
    }
    let nothing = abs(extreme) < 1e-15;
    var inverse = 0.0;
    var d = 0u;
    if !nothing {
        inverse = quotient(-128.0, extreme);
        d = f32_to_f16(quotient(1.0, inverse));
    }
    let scale = f32_to_i8(times(inverse, fit.scale));
    let step = times(f16_to_f32(d), f32(scale));
    var codes = array<u32, 4>(0u, 0u, 0u, 0u);
    if !nothing && (step != 0.0 || fit.inverse != 0.0) {
        for (var i = 0u; i < GROUP; i++) {
            var level = level_of(fit.inverse, x[i]);
            if step != 0.0 {
                level = bounded(round(quotient(x[i], step)), -32.0, 31.0);
            }
            codes[i / 4u] |= u32(i32(level) + 32) << (i % 4u * 8u);
        }
    }
    all_codes[lane] = codes;
    workgroupBarrier();
    if !there {
        return;
    }
    let to = block * 210u;
    out_put_byte(to + 192u + g, bitcast<u32>(scale) & 255u);
    if g == 0u {
        out_put_byte(to + 208u, d & 255u);
        out_put_byte(to + 209u, d >> 8u);
    }
    for (var i = g; i < 64u; i += GROUPS) {
        let part = i / 32u;
        let at = part * 128u + i % 32u;
        let a = code_at(first_lane, at);
        let b = code_at(first_lane, at + 32u);
        let c = code_at(first_lane, at + 64u);
        let e = code_at(first_lane, at + 96u);
        out_put_byte(to + part * 64u + i % 32u, (a & 15u) | ((c & 15u) << 4u));
        out_put_byte(to + part * 64u + 32u + i % 32u, (b & 15u) | ((e & 15u) << 4u));
        out_put_byte(to + 128u + i, (a >> 4u) | ((b >> 4u) << 2u) | ((c >> 4u) << 4u) | ((e >> 4u) << 6u));
    }
}
