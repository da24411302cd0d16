// A row of sums of matmul/direct/multiply.wgsl.

// [row][vector]
alias Sums = array<vec4<f32>, TILE_VECTORS>;

// Four steps of k of an invocation's columns.
struct Quad {
    x: vec4<f32>,
    y: vec4<f32>,
    z: vec4<f32>,
    w: vec4<f32>,
    // Where VECTORS is 2.
    second_x: vec4<f32>,
    second_y: vec4<f32>,
    second_z: vec4<f32>,
    second_w: vec4<f32>,
}

// Adds four steps of k to row `r`, a constant wherever this is inlined.
fn multiply_row(sums: ptr<function, Sums>, r: u32, a: vec4<f32>, b: Quad) {
    var sum = (*sums)[r * VECTORS];
    sum += a.x * b.x;
    sum += a.y * b.y;
    sum += a.z * b.z;
    sum += a.w * b.w;
    (*sums)[r * VECTORS] = sum;
    if VECTORS == 2u {
        sum = (*sums)[r * 2u + 1u];
        sum += a.x * b.second_x;
        sum += a.y * b.second_y;
        sum += a.z * b.second_z;
        sum += a.w * b.second_w;
        (*sums)[r * 2u + 1u] = sum;
    }
}
