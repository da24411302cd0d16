// To q4_k, by the rules of perjoule_kernels::block (those of llama.cpp's reference quantiser), bit for bit: operations are rounded one by
// one, and sums run in the order of the elements. An invocation fits a group of 32 elements of a block; a workgroup has 8 blocks.

struct Params {
    blocks: u32,
    unused_a: u32,
    unused_b: u32,
    unused_c: u32,
}

const GROUP = 32u;
const GROUPS = 8u;

// Codes 0 to 15 of a group, 4 bits each.
alias Codes = array<u32, 4>;

struct Fit {
    codes: Codes,
    scale: f32,
    minimum: f32,
}

var<private> x: array<f32, GROUP>;
var<private> weights: array<f32, GROUP>;
// Of each invocation.
var<workgroup> scales: array<f32, 64>;
var<workgroup> minima: array<f32, 64>;
var<workgroup> scale_steps: array<u32, 64>;
var<workgroup> minimum_steps: array<u32, 64>;
var<workgroup> all_codes: array<Codes, 64>;

fn code_of(codes: Codes, i: u32) -> f32 {
    var own = codes;
    return f32((own[i / 8u] >> (i % 8u * 4u)) & 15u);
}

fn quantised(inverse: f32, low: f32) -> Codes {
    var codes = Codes(0u, 0u, 0u, 0u);
    for (var i = 0u; i < GROUP; i++) {
        let code = bounded(round(times(inverse, minus(x[i], low))), 0.0, 15.0);
        codes[i / 8u] |= u32(code) << (i % 8u * 4u);
    }
    return codes;
}

fn error_of(codes: Codes, scale: f32, low: f32) -> f32 {
    var sum = 0.0;
    for (var i = 0u; i < GROUP; i++) {
        let difference = minus(plus(times(scale, code_of(codes, i)), low), x[i]);
        sum = plus(sum, times(weights[i], times(difference, difference)));
    }
    return sum;
}

// Fits the group to `scale * code - minimum`.
fn fit_affine() -> Fit {
    var low = 0.0;
    var high = x[0];
    var sum_w = 0.0;
    var sum_x = 0.0;
    for (var i = 0u; i < GROUP; i++) {
        low = select(low, x[i], x[i] < low);
        high = select(high, x[i], x[i] > high);
        sum_w = plus(sum_w, weights[i]);
        sum_x = plus(sum_x, times(weights[i], x[i]));
    }
    if high == low {
        return Fit(Codes(0u, 0u, 0u, 0u), 0.0, -low);
    }
    let inverse = quotient(15.0, minus(high, low));
    var fit = Fit(quantised(inverse, low), quotient(1.0, inverse), 0.0);
    var best = error_of(fit.codes, fit.scale, low);
    for (var trial = 0u; trial < 21u; trial++) {
        // the range shrinks or grows with the best fit so far
        let steps = plus(plus(-1.0, times(0.1, f32(trial))), 15.0);
        let candidate = quantised(quotient(steps, minus(high, low)), low);
        var sum_l = 0.0;
        var sum_l2 = 0.0;
        var sum_xl = 0.0;
        for (var i = 0u; i < GROUP; i++) {
            let l = code_of(candidate, i);
            let wl = times(weights[i], l);
            sum_l = plus(sum_l, wl);
            sum_l2 = plus(sum_l2, times(wl, l));
            sum_xl = plus(sum_xl, times(wl, x[i]));
        }
        let determinant = minus(times(sum_w, sum_l2), times(sum_l, sum_l));
        if determinant > 0.0 {
            var scale = quotient(minus(times(sum_w, sum_xl), times(sum_x, sum_l)), determinant);
            var fitted_low = quotient(minus(times(sum_l2, sum_x), times(sum_l, sum_xl)), determinant);
            if fitted_low > 0.0 {
                fitted_low = 0.0;
                scale = quotient(sum_xl, sum_l2);
            }
            let error = error_of(candidate, scale, fitted_low);
            if error < best {
                best = error;
                low = fitted_low;
                fit.scale = scale;
                fit.codes = candidate;
            }
        }
    }
    fit.minimum = -low;
    return fit;
}

// The largest of a block's scales or minima, none of which counts below 0.
fn largest_of_block(value: f32, other: f32) -> f32 {
    return select(value, other, other > value);
}

fn step_of(value: f32, most: f32) -> u32 {
    if !(most > 0.0) {
        return 0u;
    }
    return min(truncated(round(times(quotient(63.0, most), value))), 63u);
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
    var squares = 0.0;
    for (var i = 0u; i < GROUP; i++) {
        x[i] = 0.0;
        if there {
            x[i] = x_in_get(block * 256u + g * GROUP + i);
        }
        squares = plus(squares, times(x[i], x[i]));
    }
    let rms = root(squares / 32.0);
    for (var i = 0u; i < GROUP; i++) {
        weights[i] = plus(rms, abs(x[i]));
    }
    var fit = fit_affine();
    scales[lane] = fit.scale;
    minima[lane] = fit.minimum;
    workgroupBarrier();
    var most_scale = 0.0;
    var most_minimum = 0.0;
    for (var i = 0u; i < GROUPS; i++) {
        most_scale = largest_of_block(most_scale, scales[first_lane + i]);
        most_minimum = largest_of_block(most_minimum, minima[first_lane + i]);
    }
    let d = f32_to_f16(quotient(most_scale, 63.0));
    let dmin = f32_to_f16(quotient(most_minimum, 63.0));
    let scale_step = step_of(fit.scale, most_scale);
    let minimum_step = step_of(fit.minimum, most_minimum);
    let step = times(f16_to_f32(d), f32(scale_step));
    let offset = times(f16_to_f32(dmin), f32(minimum_step));
    if step != 0.0 {
        var codes = Codes(0u, 0u, 0u, 0u);
        for (var i = 0u; i < GROUP; i++) {
            let code = bounded(round(quotient(plus(x[i], offset), step)), 0.0, 15.0);
            codes[i / 8u] |= u32(code) << (i % 8u * 4u);
        }
        fit.codes = codes;
    }
    scale_steps[lane] = scale_step;
    minimum_steps[lane] = minimum_step;
    all_codes[lane] = fit.codes;
    workgroupBarrier();
    if !there {
        return;
    }
    let to = block * 144u;
    if g == 0u {
        out_put_byte(to, d & 255u);
        out_put_byte(to + 1u, d >> 8u);
        out_put_byte(to + 2u, dmin & 255u);
        out_put_byte(to + 3u, dmin >> 8u);
        for (var i = 0u; i < 4u; i++) {
            let s = scale_steps[lane + i];
            let m = minimum_steps[lane + i];
            let s_high = scale_steps[lane + i + 4u];
            let m_high = minimum_steps[lane + i + 4u];
            out_put_byte(to + 4u + i, s | ((s_high >> 4u) << 6u));
            out_put_byte(to + 8u + i, m | ((m_high >> 4u) << 6u));
            out_put_byte(to + 12u + i, (s_high & 15u) | ((m_high & 15u) << 4u));
        }
    }
    for (var i = g; i < 128u; i += GROUPS) {
        let pair = first_lane + i / 32u * 2u;
        let shift = i % 8u * 4u;
        let low = (all_codes[pair][i % 32u / 8u] >> shift) & 15u;
        let high = (all_codes[pair + 1u][i % 32u / 8u] >> shift) & 15u;
        out_put_byte(to + 16u + i, low | (high << 4u));
    }
}
