// Products of everything that the ops allow: matmul, gated_matmul and grouped_matmul of any element types, strides, batches, scales and
// epilogues.
//
// A workgroup computes a tile of 64 x 64 of C. Tiles of A and B, 16 deep, are converted to `Sum` on the way into workgroup memory; an
// invocation multiplies 4 x 4 outputs, whose columns are 16 apart so that neighbours store to neighbours. Invocations read along
// whichever dimension is contiguous in memory.
//
// GATED: a second B, `up`, and sums of pairs. GROUPED: matrices of B are experts, whose rows of A and C `order` names (tiles.wgsl).

const DEPTH = 16u;
// Of a row of a tile in workgroup memory.
const PITCH = 65u;

// [k][vector]
var<workgroup> left: array<Sum, 1040>;
var<workgroup> right: array<Sum, 1040>;
var<workgroup> other: array<Sum, UP_TILE>;

// The element of a tile that an invocation loads as its number `i`: step along k, and vector.
fn place_of(lane: u32, i: u32, along_k: bool) -> vec2<u32> {
    let at = lane + i * 256u;
    if along_k {
        return vec2<u32>(at % DEPTH, at / DEPTH);
    }
    return vec2<u32>(at / TILE, at % TILE);
}

fn load_left(batch: u32, k0: u32, lane: u32) {
    for (var i = 0u; i < 4u; i++) {
        let place = place_of(lane, i, params.a_col == 1u);
        let row = a_rows[place.y];
        let k = k0 + place.x;
        var value = Sum(0);
        if row != NONE && k < params.k {
            value = Sum(a_get(batch * params.a_batch + row * params.a_row + k * params.a_col));
            if A_SCALE_GROUPS {
                value *= Sum(a_scale_of(batch, row, k));
            }
        }
        left[place.x * PITCH + place.y] = value;
    }
}

fn load_right(batch: u32, col0: u32, k0: u32, lane: u32) {
    for (var i = 0u; i < 4u; i++) {
        let place = place_of(lane, i, params.b_row == 1u);
        let col = col0 + place.y;
        let k = k0 + place.x;
        var value = Sum(0);
        if col < params.n && k < params.k {
            value = Sum(b_get(batch * params.b_batch + col * params.b_col + k * params.b_row));
            if B_SCALE_GROUPS {
                value *= Sum(b_scale_of(batch, col, k));
            }
        }
        right[place.x * PITCH + place.y] = value;
    }
}

fn load_other(col0: u32, k0: u32, lane: u32) {
    for (var i = 0u; i < 4u; i++) {
        let place = place_of(lane, i, params.up_row == 1u);
        let col = col0 + place.y;
        let k = k0 + place.x;
        var value = Sum(0);
        if col < params.n && k < params.k {
            value = Sum(up_get(col * params.up_col + k * params.up_row));
        }
        other[place.x * PITCH + place.y] = value;
    }
}

// The tile of columns from `col0` on of matrix `batch`, for the rows in `a_rows` and `c_rows`. Of grouped products A has one matrix.
fn product(batch: u32, col0: u32, lane: u32) {
    let a_batch = select(batch, 0u, GROUPED);
    let row = lane / 16u * 4u;
    let col = lane % 16u;
    var sums: array<Sum, 16>;
    var pair: array<Sum, 16>;
    for (var i = 0u; i < 16u; i++) {
        sums[i] = Sum(0);
        pair[i] = Sum(0);
    }
    // few rows of A leave most invocations nothing but to load
    let idle = c_rows[row] == NONE && c_rows[row + 1u] == NONE && c_rows[row + 2u] == NONE && c_rows[row + 3u] == NONE;
    let depth = select(DEPTH, 0u, idle);
    for (var k0 = 0u; k0 < params.k; k0 += DEPTH) {
        load_left(a_batch, k0, lane);
        load_right(batch, col0, k0, lane);
        if GATED {
            load_other(col0, k0, lane);
        }
        workgroupBarrier();
        for (var step = 0u; step < depth; step++) {
            for (var i = 0u; i < 4u; i++) {
                let a = left[step * PITCH + row + i];
                for (var j = 0u; j < 4u; j++) {
                    sums[i * 4u + j] += a * right[step * PITCH + col + j * 16u];
                    if GATED {
                        pair[i * 4u + j] += a * other[step * PITCH + col + j * 16u];
                    }
                }
            }
        }
        workgroupBarrier();
    }
    for (var i = 0u; i < 4u; i++) {
        let r = c_rows[row + i];
        for (var j = 0u; j < 4u; j++) {
            let n = col0 + col + j * 16u;
            if r != NONE && n < params.n {
                if GATED {
                    store_gated(sums[i * 4u + j], pair[i * 4u + j], r, n);
                } else {
                    store(sums[i * 4u + j], batch, r, n);
                }
            }
        }
    }
}
