// What becomes of a sum of products before it is stored: scales, bias, activation, residual and rounding, or the gate of a pair.
//
// Shared by every kernel of matmul, gated_matmul and grouped_matmul. A kernel stands behind common/element.wgsl, common/math.wgsl and
// this file, has a field `epilogue: Epilogue` in its `Params`, and binds in this order, behind its own A and B, what
// `Form::epilogue_bindings` (launch/matmul/form.rs) gives: a_scale, b_scale, bias, up_bias, residual, c. Constants and the alias `Sum` come
// from `Form::variant`:
//
// | | |
// |---|---|
// | `Sum` | what products are summed in: i32 for integers, else f32 |
// | `C_INTEGER` | C holds i32: sums are stored as they are |
// | `A_SCALE_UNIFORM`, `B_SCALE_UNIFORM` | scales that do not vary along k: multiplied here |
// | `A_SCALE_GROUPS`, `B_SCALE_GROUPS` | scales of groups of k: the kernel multiplies products of a group by `a_scale_of`, `b_scale_of` |
//
// A kernel ends with `store(sum, batch, row, col)`, or `store_gated(gate, up, row, col)` for a pair, for every element of C within
// `m x n`. Kernels that store several neighbours at once take `finished` or `gated` and `c_at`, and write to `c` themselves. `batch` is the
// matrix of a batch, or the expert of a grouped product. Rows, columns and matrices count from those of the operands as they are bound: a
// product that is split into windows binds parts of operands, and kernels need not know.

struct Epilogue {
    // Strides in elements.
    c_batch: u32,
    c_row: u32,
    c_col: u32,
    residual_batch: u32,
    residual_row: u32,
    residual_col: u32,
    // From the bias of an expert to the next one's; 0 for other products.
    bias_batch: u32,
    // perjoule_kernels::op::Activation, in its order.
    activation: u32,
    // Scales from one matrix, and from one row of A or column of B, to the next.
    a_scale_batch: u32,
    a_scale_row: u32,
    b_scale_batch: u32,
    b_scale_col: u32,
    // Elements of k under one scale of a group; at least 1.
    a_group: u32,
    b_group: u32,
    scale: f32,
    // perjoule_kernels::op::GatedKind, in its order, with alpha and limit of the last one.
    gate: u32,
    alpha: f32,
    limit: f32,
    unused_a: u32,
    unused_b: u32,
}

// Scale of the products of row `row` of A with element `k`.
fn a_scale_of(batch: u32, row: u32, k: u32) -> f32 {
    let e = params.epilogue;
    return a_scale_get(batch * e.a_scale_batch + row * e.a_scale_row + k / e.a_group);
}

// Scale of the products of column `col` of B with element `k`.
fn b_scale_of(batch: u32, col: u32, k: u32) -> f32 {
    let e = params.epilogue;
    return b_scale_get(batch * e.b_scale_batch + col * e.b_scale_col + k / e.b_group);
}

// Index in `c` of an element.
fn c_at(batch: u32, row: u32, col: u32) -> u32 {
    let e = params.epilogue;
    return batch * e.c_batch + row * e.c_row + col * e.c_col;
}

// An element of C before it is rounded, from its sum.
fn finished(sum: f32, batch: u32, row: u32, col: u32) -> f32 {
    let e = params.epilogue;
    var value = sum;
    if A_SCALE_UNIFORM {
        value *= a_scale_of(batch, row, 0u);
    }
    if B_SCALE_UNIFORM {
        value *= b_scale_of(batch, col, 0u);
    }
    value *= e.scale;
    if bias_present {
        value += bias_get(batch * e.bias_batch + col);
    }
    value = activate(value, e.activation);
    if residual_present {
        value += residual_get(batch * e.residual_batch + row * e.residual_row + col * e.residual_col);
    }
    return value;
}

// One element of C from its sum.
fn store(sum: Sum, batch: u32, row: u32, col: u32) {
    let at = c_at(batch, row, col);
    if C_INTEGER {
        c_set_int(at, i32(sum));
    } else {
        c_set(at, finished(f32(sum), batch, row, col));
    }
}

// The gated activation.
fn gate_by(gate: f32, up: f32) -> f32 {
    let e = params.epilogue;
    switch e.gate {
        case 0u: { return silu(gate) * up; }
        case 1u: { return gelu(gate) * up; }
        case 2u: { return gelu_tanh(gate) * up; }
        default: {
            return swish(at_most(gate, e.limit), e.alpha) * (within(up, e.limit) + 1.0);
        }
    }
}

// An element of C before it is rounded, from the sums of a pair.
fn gated(gate: f32, up: f32, col: u32) -> f32 {
    var g = gate;
    var u = up;
    if bias_present {
        g += bias_get(col);
    }
    if up_bias_present {
        u += up_bias_get(col);
    }
    return gate_by(g, u);
}

// One element of C from the sums of a pair.
fn store_gated(gate: Sum, up: Sum, row: u32, col: u32) {
    c_set(c_at(0u, row, col), gated(f32(gate), f32(up), col));
}
