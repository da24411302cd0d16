// Products of f16 summed in f32 by matrices in the registers of subgroups.
//
// A workgroup of four subgroups computes TILE x TILE of C, a subgroup a quarter of it, two by two matrices of SIDE x SIDE. Slices of both
// operands, DEPTH deep, are in workgroup memory as f16, [vector][k], with PITCH elements from one vector to the next; the following slice is
// on its way through registers. Sums go to the epilogue by way of workgroup memory.
//
// Edges are zeroes on the way in and left out on the way out. A of another type (ROUNDED) is rounded to f16 on the way, each row under a power
// of two that matmul/row_scales.wgsl gives: f16 ends at 65504, and activations do not.

struct Params {
    epilogue: Epilogue,
    // Strides in elements.
    a_batch: u32,
    a_row: u32,
    a_col: u32,
    k: u32,
    b_batch: u32,
    b_row: u32,
    b_col: u32,
    m: u32,
    n: u32,
    // DEPTH, for a loop that compilers do not unroll.
    depth: u32,
    // Scales from one matrix to the next: 0 where all share one A.
    scale_batch: u32,
    unused: u32,
}

const TILE = SIDE * 4u;
const DEPTH = 32u;
const PITCH = 40u;
const QUADS = DEPTH / 4u;
// Quads of a slice that an invocation moves.
const EACH = TILE * QUADS / WORKGROUP;

var<workgroup> left: array<f16, TILE * PITCH>;
var<workgroup> right: array<f16, TILE * PITCH>;
var<workgroup> sums: array<f32, TILE * TILE>;

// The quad of a slice that an invocation moves as its number `i`: vector and quad.
fn place_of(at: u32, along_k: bool) -> vec2<u32> {
    if along_k {
        return vec2<u32>(at / QUADS, at % QUADS);
    }
    return vec2<u32>(at % TILE, at / TILE);
}

fn left_quad(at: u32, count: u32) -> vec4<f32> {
    if A_QUADS && count >= 4u {
        return a_quad(at / 4u);
    }
    return a_line(at, params.a_col, count);
}

fn right_quad(at: u32, count: u32) -> vec4<f32> {
    if B_QUADS && count >= 4u {
        return b_quad(at / 4u);
    }
    return b_line(at, params.b_row, count);
}

// What a row of A is multiplied by on the way in; rows beyond the last are zeroes.
fn scale_of(matrix: u32, row: u32) -> f32 {
    return row_scales_get(matrix * params.scale_batch + min(row, params.m - 1u));
}

// The quad number `index` of a slice of A that begins at `k0`.
fn left_at(matrix: u32, row0: u32, k0: u32, index: u32, scale: f32) -> vec4<f16> {
    let place = place_of(index, A_ALONG_K);
    let row = row0 + place.x;
    let k = k0 + place.y * 4u;
    var value = vec4<f32>();
    if row < params.m && k < params.k {
        value = left_quad(matrix * params.a_batch + row * params.a_row + k * params.a_col, params.k - k);
        if ROUNDED {
            value *= scale;
        }
    }
    return vec4<f16>(value);
}

fn right_at(matrix: u32, col0: u32, k0: u32, index: u32) -> vec4<f16> {
    let place = place_of(index, B_ALONG_K);
    let col = col0 + place.x;
    let k = k0 + place.y * 4u;
    var value = vec4<f32>();
    if col < params.n && k < params.k {
        value = right_quad(matrix * params.b_batch + col * params.b_col + k * params.b_row, params.k - k);
    }
    return vec4<f16>(value);
}

// Puts the quads number `index` into workgroup memory.
fn keep(index: u32, a: vec4<f16>, b: vec4<f16>) {
    let a_place = place_of(index, A_ALONG_K);
    let a_at = a_place.x * PITCH + a_place.y * 4u;
    left[a_at] = a.x;
    left[a_at + 1u] = a.y;
    left[a_at + 2u] = a.z;
    left[a_at + 3u] = a.w;
    let b_place = place_of(index, B_ALONG_K);
    let b_at = b_place.x * PITCH + b_place.y * 4u;
    right[b_at] = b.x;
    right[b_at + 1u] = b.y;
    right[b_at + 2u] = b.z;
    right[b_at + 3u] = b.w;
}

@compute @workgroup_size(WORKGROUP)
fn cooperative(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
    @builtin(subgroup_id) subgroup: u32,
) {
    let matrix = group.z;
    let row0 = group.x * TILE;
    let col0 = group.y * TILE;
    let first_row = subgroup / 2u * SIDE * 2u;
    let first_col = subgroup % 2u * SIDE * 2u;
    var c00 = CoopC();
    var c01 = CoopC();
    var c10 = CoopC();
    var c11 = CoopC();
    var a_next: array<vec4<f16>, EACH>;
    var b_next: array<vec4<f16>, EACH>;
    // an invocation's quads are of the same rows in every slice
    var a_scales: array<f32, EACH>;
    if ROUNDED {
        // unroll
        for (var i = 0u; i < EACH; i++) {
            a_scales[i] = scale_of(matrix, row0 + place_of(index + i * WORKGROUP, A_ALONG_K).x);
        }
    }
    // unroll
    for (var i = 0u; i < EACH; i++) {
        a_next[i] = left_at(matrix, row0, 0u, index + i * WORKGROUP, a_scales[i]);
        b_next[i] = right_at(matrix, col0, 0u, index + i * WORKGROUP);
    }
    // unroll
    for (var i = 0u; i < EACH; i++) {
        keep(index + i * WORKGROUP, a_next[i], b_next[i]);
    }
    workgroupBarrier();
    // no condition around the products: all of a subgroup have to be seen to take part
    for (var k0 = 0u; k0 < params.k; k0 += DEPTH) {
        // unroll
        for (var i = 0u; i < EACH; i++) {
            a_next[i] = left_at(matrix, row0, k0 + DEPTH, index + i * WORKGROUP, a_scales[i]);
            b_next[i] = right_at(matrix, col0, k0 + DEPTH, index + i * WORKGROUP);
        }
        for (var k = 0u; k < params.depth; k += SIDE) {
            let a0 = coopLoadT<CoopA>(&left[first_row * PITCH + k], PITCH);
            let a1 = coopLoadT<CoopA>(&left[(first_row + SIDE) * PITCH + k], PITCH);
            let b0 = coopLoad<CoopB>(&right[first_col * PITCH + k], PITCH);
            let b1 = coopLoad<CoopB>(&right[(first_col + SIDE) * PITCH + k], PITCH);
            c00 = coopMultiplyAdd(a0, b0, c00);
            c01 = coopMultiplyAdd(a0, b1, c01);
            c10 = coopMultiplyAdd(a1, b0, c10);
            c11 = coopMultiplyAdd(a1, b1, c11);
        }
        workgroupBarrier();
        // unroll
        for (var i = 0u; i < EACH; i++) {
            keep(index + i * WORKGROUP, a_next[i], b_next[i]);
        }
        workgroupBarrier();
    }
    let area = SIDE * SIDE;
    let mine = subgroup * 4u * area;
    coopStoreT(c00, &sums[mine], SIDE);
    coopStoreT(c01, &sums[mine + area], SIDE);
    coopStoreT(c10, &sums[mine + 2u * area], SIDE);
    coopStoreT(c11, &sums[mine + 3u * area], SIDE);
    workgroupBarrier();
    for (var e = index; e < TILE * TILE; e += WORKGROUP) {
        let row = e / TILE;
        let col = e % TILE;
        let owner = row / (2u * SIDE) * 2u + col / (2u * SIDE);
        let part = row / SIDE % 2u * 2u + col / SIDE % 2u;
        if row0 + row < params.m && col0 + col < params.n {
            var sum = sums[(owner * 4u + part) * area + row % SIDE * SIDE + col % SIDE];
            if ROUNDED {
                // the inverse of a power of two
                sum *= bitcast<f32>((254u << 23u) - bitcast<u32>(scale_of(matrix, row0 + row)));
            }
            store(sum, matrix, row0 + row, col0 + col);
        }
    }
}
