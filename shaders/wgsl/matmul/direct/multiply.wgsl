// Products of panels of A and B (matmul/direct/pack.wgsl) without workgroup memory, for adapters that are processors: an invocation is a lane of
// a vector register there, and what all lanes read alike is a scalar.
//
// A workgroup of 8 invocations multiplies a panel of A by a panel of B. An invocation has 4 columns of each of VECTORS groups of 32, for
// all ROWS rows. Everything is unrolled by hand, so that sums are registers. PLAIN: C is f32 and nothing but the sums, in fours. Workgroups along x share a panel of B, which stays in the cache.
//
// Behind a file with `eight`, which multiplies a quad of eight rows: matmul/direct/broadcast.wgsl or matmul/direct/uniform.wgsl.

struct Params {
    epilogue: Epilogue,
    m: u32,
    n: u32,
    // Quads of k.
    quads: u32,
    // Panels from one matrix to the next: 0 where all share one.
    a_panels: u32,
    b_panels: u32,
    // The first row, column and matrix.
    row: u32,
    col: u32,
    matrix: u32,
}

// Sums on their way from what has them in registers to what goes over them in a loop.
var<workgroup> tile: array<vec4<f32>, TILE_WORDS>;

@compute @workgroup_size(8)
fn multiply(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let quads = params.quads;
    var left = left_at() + (group.z * params.a_panels + group.x) * quads * ROWS;
    var right = right_at() + (group.z * params.b_panels + group.y) * quads * 4u * VECTORS * 8u + lane;
    var sums: array<vec4<f32>, TILE_VECTORS>;
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
    let row = params.row + group.x * ROWS;
    let each = select(VECTORS, 1u, GATED);
    let col = params.col + group.y * each * 32u + lane * 4u;
    let batch = params.matrix + group.z;
    keep_eight(&sums, 0u, lane, batch, row, col);
    if ROWS > 8u {
        keep_eight(&sums, 8u, lane, batch, row, col);
    }
    if ROWS > 16u {
        keep_eight(&sums, 16u, lane, batch, row, col);
        keep_eight(&sums, 24u, lane, batch, row, col);
    }
    if PLAIN {
        return;
    }
    let count = min(ROWS, params.m - row);
    for (var r = 0u; r < count; r++) {
        for (var i = 0u; i < 4u * each; i++) {
            let c = col + i / 4u * 32u + i % 4u;
            if c < params.n {
                let sum = tile[(r * VECTORS + i / 4u) * 8u + lane][i % 4u];
                if GATED {
                    store_gated(sum, tile[(r * VECTORS + 1u) * 8u + lane][i], row + r, c);
                } else {
                    store(sum, batch, row + r, c);
                }
            }
        }
    }
}

// Four neighbours of C, which is nothing but the sums.
fn put(sum: vec4<f32>, batch: u32, row: u32, col: u32) {
    if row < params.m && col < params.n {
        let at = c_at(batch, row, col);
        c_set(at, sum.x);
        c_set(at + 1u, sum.y);
        c_set(at + 2u, sum.z);
        c_set(at + 3u, sum.w);
    }
}

fn keep(sums: ptr<function, array<vec4<f32>, TILE_VECTORS>>, r: u32, lane: u32, batch: u32, row: u32, col: u32) {
    if PLAIN {
        put((*sums)[r * VECTORS], batch, row + r, col);
        if VECTORS == 2u {
            put((*sums)[r * 2u + 1u], batch, row + r, col + 32u);
        }
        return;
    }
    tile[r * VECTORS * 8u + lane] = (*sums)[r * VECTORS];
    if VECTORS == 2u {
        tile[r * 16u + 8u + lane] = (*sums)[r * 2u + 1u];
    }
}

fn keep_eight(
    sums: ptr<function, array<vec4<f32>, TILE_VECTORS>>,
    r: u32,
    lane: u32,
    batch: u32,
    row: u32,
    col: u32,
) {
    keep(sums, r, lane, batch, row, col);
    keep(sums, r + 1u, lane, batch, row, col);
    keep(sums, r + 2u, lane, batch, row, col);
    keep(sums, r + 3u, lane, batch, row, col);
    keep(sums, r + 4u, lane, batch, row, col);
    keep(sums, r + 5u, lane, batch, row, col);
    keep(sums, r + 6u, lane, batch, row, col);
    keep(sums, r + 7u, lane, batch, row, col);
}
