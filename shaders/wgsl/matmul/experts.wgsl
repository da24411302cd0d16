// What stands for matrices.wgsl in grouped products: a tile is TILE_M positions of an expert or less, whose rows `order` names.
//
// Tile j of expert e, whose positions begin at b, belongs to workgroup e + b / TILE_M + j. No two tiles share one: an expert's positions end
// where the next one's begin, and the next one's number is higher. So a workgroup finds its tile without counting those before, in no more
// than as many workgroups as there are experts and whole tiles of positions. Offsets that go down count as if they stayed, as
// perjoule_kernels::op::slots::Segments has them.

const NONE = 0xffffffffu;

// Rows of A and C of the tile; NONE beyond the last.
var<workgroup> a_rows: array<u32, TILE_M>;
var<workgroup> c_rows: array<u32, TILE_M>;

// The first expert whose tiles belong to later workgroups, where the positions of the one before it begin, and what is known to all: the
// expert, and the tile's positions.
var<workgroup> beyond: atomic<u32>;
var<workgroup> begins: atomic<i32>;
var<workgroup> found: vec3<u32>;

fn position(offset: i32) -> u32 {
    return min(u32(max(offset, 0)), params.positions);
}

// The expert, counted from the first of those that are bound; `params.matrices` or more where the workgroup has none of theirs.
fn matrix_of(group: vec3<u32>, lane: u32) -> u32 {
    let number = group.x;
    if lane == 0u {
        atomicStore(&beyond, params.experts);
        atomicStore(&begins, 0);
    }
    workgroupBarrier();
    for (var i = lane; i < params.experts; i += THREADS) {
        // no expert from this one on begins earlier
        let tiles = min(position(segments_int(i)) / TILE_M, number + 1u);
        atomicMin(&beyond, max(i, number + 1u - tiles));
    }
    workgroupBarrier();
    let end = atomicLoad(&beyond);
    for (var i = lane; i < end; i += THREADS) {
        atomicMax(&begins, segments_int(i));
    }
    workgroupBarrier();
    if lane == 0u {
        found = vec3<u32>(NONE, 0u, 0u);
        if end > 0u {
            let begin = position(atomicLoad(&begins));
            let first = begin + (number - (end - 1u) - begin / TILE_M) * TILE_M;
            let last = position(segments_int(end));
            if first < last {
                found = vec3<u32>(end - 1u, first, last);
            }
        }
    }
    let tile = workgroupUniformLoad(&found);
    if tile.x != NONE {
        for (var i = lane; i < TILE_M; i += THREADS) {
            a_rows[i] = NONE;
            c_rows[i] = NONE;
            if tile.y + i < tile.z {
                let row = order_int(tile.y + i);
                if row >= 0 && u32(row) < params.m && u32(row) / params.a_divisor < params.a_rows {
                    a_rows[i] = u32(row) / params.a_divisor;
                    c_rows[i] = u32(row);
                }
            }
        }
        workgroupBarrier();
    }
    return tile.x - params.first;
}

fn left_row(group: vec3<u32>, i: u32) -> u32 {
    return a_rows[min(i, TILE_M - 1u)];
}

fn result_row(group: vec3<u32>, i: u32) -> u32 {
    return c_rows[i];
}

// Few rows leave most invocations nothing but to load.
fn has_rows(first: u32) -> bool {
    var has = false;
    for (var i = 0u; i < ROWS; i++) {
        has = has || c_rows[first + i * DOWN] != NONE;
    }
    return has;
}
