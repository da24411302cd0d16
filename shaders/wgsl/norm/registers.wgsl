// RmsNorm and LayerNorm in one pass over memory: a vector stays in the registers of the WIDTH invocations that share it, ITEMS runs of four
// elements each, which lie WIDTH runs apart. A workgroup has 256 / WIDTH vectors.

@compute @workgroup_size(256)
fn norm(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    expect_none(lane);
    let index = group_number(group, groups) * (256u / WIDTH) + lane / WIDTH;
    let there = index < params.x.outer * params.x.inner;
    let vector = select(0u, index, there);
    let end = select(0u, params.x.len, there);
    let begin = lane % WIDTH * 4u;
    let x_at = start_of(params.x, vector);
    let residual_at = start_of(params.residual, vector);
    let sum_at = start_of(params.sum, vector);
    let out_at = start_of(params.out, vector);
    let share = 1.0 / f32(params.x.len);
    var values: array<vec4<f32>, ITEMS>;
    var sum = vec4<f32>(0.0);
    // unroll
    for (var i = 0u; i < ITEMS; i++) {
        let d = begin + i * WIDTH * 4u;
        values[i] = vec4<f32>(0.0);
        if d < end {
            let value = x_get(x_at + d) + residual_get(residual_at + d);
            sum_set(sum_at + d, value);
            values[i] = value;
            sum += select(value * value, value, LAYER);
        }
    }
    var squares = reduce_sum(total(sum), lane);
    var centre = 0.0;
    if LAYER {
        centre = squares * share;
        sum = vec4<f32>(0.0);
        // unroll
        for (var i = 0u; i < ITEMS; i++) {
            if begin + i * WIDTH * 4u < end {
                let value = values[i] - centre;
                sum += value * value;
            }
        }
        squares = reduce_sum(total(sum), lane);
    }
    var inverse = 1.0 / sqrt(squares * share + params.eps);
    let far = there && is_out_of_range(squares);
    if any_of(far) {
        var most = 0.0;
        // unroll
        for (var i = 0u; i < ITEMS; i++) {
            most = larger(most, largest(abs(values[i])));
        }
        let factor = down_scale(reduce_max(most, lane));
        sum = vec4<f32>(0.0);
        // unroll
        for (var i = 0u; i < ITEMS; i++) {
            sum += values[i] * factor;
        }
        let middle = select(0.0, reduce_sum(total(sum), lane) * share, LAYER);
        sum = vec4<f32>(0.0);
        // unroll
        for (var i = 0u; i < ITEMS; i++) {
            if begin + i * WIDTH * 4u < end {
                let value = values[i] * factor - middle;
                sum += value * value;
            }
        }
        squares = reduce_sum(total(sum), lane);
        if far {
            centre = middle / factor;
            inverse = inverse_hypot(sqrt(squares * share) / factor, sqrt(params.eps));
        }
    }
    // unroll
    for (var i = 0u; i < ITEMS; i++) {
        let d = begin + i * WIDTH * 4u;
        if d < end {
            let scaled = (values[i] - centre) * inverse * (weight_get(d) + params.weight_offset);
            out_set(out_at + d, scaled + bias_get(d));
        }
    }
}
