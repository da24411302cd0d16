// Products of panels of A and B (matmul/direct/pack.wgsl) without workgroup memory, for adapters that are processors: an invocation is a lane of
// a vector register there, and what all lanes read alike is a scalar.
//
// A workgroup of 8 invocations multiplies a panel of A by a panel of B. An invocation has 4 columns of each of VECTORS groups of 32, for
// all ROWS rows. Everything is unrolled by hand, so that sums are registers. Workgroups along x share a panel of B, which stays in the cache.
//
// Sums are stored in fours: in C, where it is nothing else, or where matmul/reduce.wgsl finishes them. So one compilation serves all
// products.
//
// Behind a file with `eight`, which multiplies a quad of eight rows: matmul/direct/broadcast.wgsl or matmul/direct/uniform.wgsl.

struct Params {
    // Rows, and columns up to a multiple of four.
    m: u32,
    n: u32,
    // Quads of k.
    quads: u32,
    // Panels from one matrix to the next: 0 where all share one.
    a_panels: u32,
    b_panels: u32,
    // Of what is stored, in elements: from one matrix to the next, and from one row to the next.
    out_batch: u32,
    out_row: u32,
    // First element.
    out_first: u32,
    // Columns of a panel of B; where an invocation's second vector belongs, in columns, and in elements of what is stored.
    cols: u32,
    second_col: u32,
    second: u32,
    unused: u32,
}

@compute @workgroup_size(8)
fn multiply(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let quads = params.quads;
    var left = left_at() + (group.z * params.a_panels + group.x) * quads * ROWS;
    var right = right_at() + (group.z * params.b_panels + group.y) * quads * 4u * VECTORS * 8u + lane;
    var sums: Sums;
    for (var quad = 0u; quad < quads; quad++) {
        var b: Quad;
        b.x = right_words[right];
        b.y = right_words[right + VECTORS * 8u];
        b.z = right_words[right + VECTORS * 16u];
        b.w = right_words[right + VECTORS * 24u];
        if VECTORS == 2u {
            b.second_x = right_words[right + 8u];
            b.second_y = right_words[right + 24u];
            b.second_z = right_words[right + 40u];
            b.second_w = right_words[right + 56u];
        }
        eight(&sums, 0u, left, lane, b);
        if ROWS > 8u {
            eight(&sums, 8u, left, lane, b);
        }
        if ROWS > 16u {
            eight(&sums, 16u, left, lane, b);
            eight(&sums, 24u, left, lane, b);
        }
        left += ROWS;
        right += VECTORS * 32u;
    }
    let row = group.x * ROWS;
    let col = group.y * params.cols + lane * 4u;
    let at = params.out_first + group.z * params.out_batch + row * params.out_row + col;
    put_eight(&sums, 0u, at, row, col);
    if ROWS > 8u {
        put_eight(&sums, 8u, at, row, col);
    }
    if ROWS > 16u {
        put_eight(&sums, 16u, at, row, col);
        put_eight(&sums, 24u, at, row, col);
    }
}

fn put(sum: vec4<f32>, at: u32) {
    out_set(at, sum.x);
    out_set(at + 1u, sum.y);
    out_set(at + 2u, sum.z);
    out_set(at + 3u, sum.w);
}

fn put_row(sums: ptr<function, Sums>, r: u32, at: u32, row: u32, col: u32) {
    if row + r < params.m {
        let here = at + r * params.out_row;
        if col < params.n {
            put((*sums)[r * VECTORS], here);
        }
        if VECTORS == 2u && col + params.second_col < params.n {
            put((*sums)[r * 2u + 1u], here + params.second);
        }
    }
}

fn put_eight(sums: ptr<function, Sums>, r: u32, at: u32, row: u32, col: u32) {
    put_row(sums, r, at, row, col);
    put_row(sums, r + 1u, at, row, col);
    put_row(sums, r + 2u, at, row, col);
    put_row(sums, r + 3u, at, row, col);
    put_row(sums, r + 4u, at, row, col);
    put_row(sums, r + 5u, at, row, col);
    put_row(sums, r + 6u, at, row, col);
    put_row(sums, r + 7u, at, row, col);
}
