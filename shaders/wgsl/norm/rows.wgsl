// RmsNorm and LayerNorm of any types and strides: a workgroup takes a vector and reads it from memory for each pass.

// Element `d` of the input, the residual added.
fn input(x_at: u32, residual_at: u32, d: u32) -> f32 {
    return x_get(x_at + d) + residual_get(residual_at + d);
}

@compute @workgroup_size(256)
fn norm(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let vector = group_number(group, groups);
    if vector >= params.x.outer * params.x.inner {
        return;
    }
    expect_none(lane);
    let len = params.x.len;
    let x_at = start_of(params.x, vector);
    let residual_at = start_of(params.residual, vector);
    let sum_at = start_of(params.sum, vector);
    let out_at = start_of(params.out, vector);
    let share = 1.0 / f32(len);
    var sum = 0.0;
    var squares = 0.0;
    var most = 0.0;
    for (var d = lane; d < len; d += 256u) {
        let value = input(x_at, residual_at, d);
        sum_set(sum_at + d, value);
        sum += value;
        squares += value * value;
        most = larger(most, abs(value));
    }
    var centre = 0.0;
    if LAYER {
        centre = reduce_sum(sum, lane) * share;
        squares = 0.0;
        for (var d = lane; d < len; d += 256u) {
            let value = input(x_at, residual_at, d) - centre;
            squares += value * value;
        }
    }
    squares = reduce_sum(squares, lane);
    most = reduce_max(most, lane);
    var inverse = 1.0 / sqrt(squares * share + params.eps);
    if any_of(is_out_of_range(squares)) {
        let factor = down_scale(most);
        var middle = 0.0;
        if LAYER {
            sum = 0.0;
            for (var d = lane; d < len; d += 256u) {
                sum += input(x_at, residual_at, d) * factor;
            }
            middle = reduce_sum(sum, lane) * share;
        }
        squares = 0.0;
        for (var d = lane; d < len; d += 256u) {
            let value = input(x_at, residual_at, d) * factor - middle;
            squares += value * value;
        }
        squares = reduce_sum(squares, lane);
        centre = middle / factor;
        inverse = inverse_hypot(sqrt(squares * share) / factor, sqrt(params.eps));
    }
    for (var d = lane; d < len; d += 256u) {
        let centred = input(x_at, residual_at, d) - centre;
        let scaled = centred * inverse * (weight_get(d) + params.weight_offset);
        out_set(out_at + d, select(scaled, scaled + bias_get(d), bias_present));
    }
}
