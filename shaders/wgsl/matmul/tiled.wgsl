// Products of floats by tiles in workgroup memory, for GPUs.
//
// A workgroup computes TILE_M x TILE_N of C; a slice of both operands, QUADS * 4 deep, is in workgroup memory as f32, [quad of k][vector]
// with the four of a quad together and PAD places between planes, while the next one is on its way through registers to the other half. An invocation has ROWS x COLS
// outputs, TILE_M / ROWS rows and TILE_N / COLS columns apart, so that neighbours read and write neighbours.
//
// Edges are zeroes on the way in and left out on the way out. A pair (SIDES is 2) has the columns of the up projection behind the gate's.
// Which matrix of B and which rows a workgroup has is said by the file before this one: matrices.wgsl, or experts.wgsl for grouped products.
// SPLIT: workgroups along z share k, and their sums go to `partial`, [part][matrix][side][m][n], for matmul/reduce.wgsl.
//
// A_QUADS, B_QUADS: lines along k are contiguous and begin at multiples of four elements. A_ALONG_K, B_ALONG_K: neighbours read along k.

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
    up_row: u32,
    up_col: u32,
    n: u32,
    matrices: u32,
    // Of k, and elements of one: a multiple of a slice.
    parts: u32,
    depth: u32,
    // QUADS, for a loop that compilers do not unroll: what is in it has been.
    quads: u32,
    // Grouped products: capacity of positions, rows of A, values of `order` that read one row of A, experts, and the first of `matrices`.
    positions: u32,
    a_rows: u32,
    a_divisor: u32,
    experts: u32,
    first: u32,
}

const DEPTH = QUADS * 4u;
// Vectors of a slice of B.
const WIDTH = TILE_N * SIDES;
// Invocations along C's columns, and along its rows.
const ACROSS = TILE_N / COLS;
const DOWN = TILE_M / ROWS;
const THREADS = ACROSS * DOWN;
// Quads of a slice that an invocation moves.
const LEFT_EACH = (TILE_M * QUADS + THREADS - 1u) / THREADS;
const RIGHT_EACH = (WIDTH * QUADS + THREADS - 1u) / THREADS;
const SUMS = ROWS * COLS * SIDES;

// From one quad of k to the next.
const LEFT_PITCH = TILE_M + PAD;
const RIGHT_PITCH = WIDTH + PAD;

var<workgroup> left: array<vec4<f32>, 2u * QUADS * LEFT_PITCH>;
var<workgroup> right: array<vec4<f32>, 2u * QUADS * RIGHT_PITCH>;

// The place in a slice of `vectors` that an invocation moves as its number `i`: vector and quad.
fn place_of(at: u32, vectors: u32, along_k: bool) -> vec2<u32> {
    if along_k {
        return vec2<u32>(at / QUADS, at % QUADS);
    }
    return vec2<u32>(at % vectors, at / vectors);
}

// Four elements along k of a row of A, from `at` on, of which `count` are there.
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

fn up_right_quad(at: u32, count: u32) -> vec4<f32> {
    if B_QUADS && count >= 4u {
        return up_quad(at / 4u);
    }
    return up_line(at, params.up_row, count);
}

@compute @workgroup_size(WORKGROUP)
fn tiled(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let matrix = matrix_of(group, lane);
    if matrix >= params.matrices {
        return;
    }
    let begin = group.z % params.parts * params.depth;
    let end = min(params.k, begin + params.depth);
    let col0 = group.y * TILE_N;
    let tx = lane % ACROSS;
    let ty = lane / ACROSS;
    let quads = select(0u, params.quads, has_rows(ty));
    var sums: array<f32, SUMS>;
    var a_next: array<vec4<f32>, LEFT_EACH>;
    var b_next: array<vec4<f32>, RIGHT_EACH>;
    var half = 0u;
    // a slice ahead of the one that is multiplied
    for (var k0 = begin; k0 < end + DEPTH; k0 += DEPTH) {
        if k0 < end {
            // unroll
            for (var i = 0u; i < LEFT_EACH; i++) {
                let place = place_of(lane + i * THREADS, TILE_M, A_ALONG_K);
                let row = left_row(group, place.x);
                let k = k0 + place.y * 4u;
                var value = vec4<f32>();
                if place.y < QUADS && row < params.m && k < end {
                    value = left_quad(matrix * params.a_batch + row * params.a_row + k * params.a_col, end - k);
                }
                a_next[i] = value;
            }
            // unroll
            for (var i = 0u; i < RIGHT_EACH; i++) {
                let place = place_of(lane + i * THREADS, WIDTH, B_ALONG_K);
                let col = col0 + place.x % TILE_N;
                let k = k0 + place.y * 4u;
                var value = vec4<f32>();
                if place.x < WIDTH && place.y < QUADS && col < params.n && k < end {
                    if SIDES == 1u || place.x < TILE_N {
                        value = right_quad(matrix * params.b_batch + col * params.b_col + k * params.b_row, end - k);
                    } else {
                        value = up_right_quad(col * params.up_col + k * params.up_row, end - k);
                    }
                }
                b_next[i] = value;
            }
        }
        if k0 > begin {
            let left_half = (1u - half) * QUADS * LEFT_PITCH;
            let right_half = (1u - half) * QUADS * RIGHT_PITCH;
            for (var q = 0u; q < quads; q++) {
                var a: array<vec4<f32>, ROWS>;
                // unroll
                for (var i = 0u; i < ROWS; i++) {
                    a[i] = left[left_half + q * LEFT_PITCH + ty + i * DOWN];
                }
                // unroll
                for (var j = 0u; j < COLS * SIDES; j++) {
                    let b = right[right_half + q * RIGHT_PITCH + tx + j * ACROSS];
                    // unroll
                    for (var i = 0u; i < ROWS; i++) {
                        var sum = sums[i * COLS * SIDES + j];
                        sum = fma(a[i].x, b.x, sum);
                        sum = fma(a[i].y, b.y, sum);
                        sum = fma(a[i].z, b.z, sum);
                        sum = fma(a[i].w, b.w, sum);
                        sums[i * COLS * SIDES + j] = sum;
                    }
                }
            }
        }
        if k0 < end {
            // unroll
            for (var i = 0u; i < LEFT_EACH; i++) {
                let place = place_of(lane + i * THREADS, TILE_M, A_ALONG_K);
                if place.x < TILE_M && place.y < QUADS {
                    left[(half * QUADS + place.y) * LEFT_PITCH + place.x] = a_next[i];
                }
            }
            // unroll
            for (var i = 0u; i < RIGHT_EACH; i++) {
                let place = place_of(lane + i * THREADS, WIDTH, B_ALONG_K);
                if place.x < WIDTH && place.y < QUADS {
                    right[(half * QUADS + place.y) * RIGHT_PITCH + place.x] = b_next[i];
                }
            }
        }
        workgroupBarrier();
        half = 1u - half;
    }
    // not written out: what stores an element is long
    for (var i = 0u; i < ROWS; i++) {
        let row = result_row(group, ty + i * DOWN);
        // unroll
        for (var j = 0u; j < COLS; j++) {
            var sum = 0.0;
            var other = 0.0;
            // unroll
            for (var r = 0u; r < ROWS; r++) {
                sum = select(sum, sums[r * COLS * SIDES + j], r == i);
                other = select(other, sums[r * COLS * SIDES + j + COLS * (SIDES - 1u)], r == i);
            }
            let col = col0 + tx + j * ACROSS;
            if row < params.m && col < params.n {
                if SPLIT {
                    let part = group.z % params.parts;
                    let plane = params.m * params.n;
                    let at = (part * params.matrices + matrix) * SIDES * plane + row * params.n + col;
                    partial_set(at, sum);
                    if SIDES == 2u {
                        partial_set(at + plane, other);
                    }
                } else if SIDES == 2u {
                    store_gated(sum, other, row, col);
                } else {
                    store(sum, matrix, row, col);
                }
            }
        }
    }
}
