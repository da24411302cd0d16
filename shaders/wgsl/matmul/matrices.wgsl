// Which matrix of B a workgroup of tiled.wgsl has, and which rows of A and C its tile: those of a grid.

fn matrix_of(group: vec3<u32>, lane: u32) -> u32 {
    return group.z / params.parts;
}

// The row of A that is number `i` of the tile, of C the same; `params.m` or more where there is none.
fn left_row(group: vec3<u32>, i: u32) -> u32 {
    return group.x * TILE_M + i;
}

fn result_row(group: vec3<u32>, i: u32) -> u32 {
    return group.x * TILE_M + i;
}

// Whether there is any of the rows of an invocation, the first of them `first`.
fn has_rows(first: u32) -> bool {
    return true;
}
