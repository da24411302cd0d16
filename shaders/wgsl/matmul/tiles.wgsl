// Which tile of C a workgroup of 256 has, for kernels that compute tiles of 64 x 64: matmul, gated_matmul and grouped_matmul.
//
// The file behind this one defines `product(batch, col0, lane)`: the tile of columns from `col0` on of matrix `batch` (an expert where
// GROUPED), for the rows in `a_rows` and `c_rows`.

struct Params {
    epilogue: Epilogue,
    // Strides of A and B, in elements or whatever the kernel counts in.
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
    // Matrices: of a batch, or experts.
    matrices: u32,
    // Grouped products: capacity of positions, rows of A, values of `order` that read one row of A, the first expert.
    positions: u32,
    a_rows: u32,
    a_divisor: u32,
    first: u32,
    // Workgroups that share the rows of an expert.
    parts: u32,
    // Where B begins in its first word, in bytes.
    b_first: u32,
    unused_a: u32,
    unused_b: u32,
}

const TILE = 64u;
const NONE = 0xffffffffu;

// Rows of A and C of the tile; NONE beyond the last.
var<workgroup> a_rows: array<u32, 64>;
var<workgroup> c_rows: array<u32, 64>;

// Positions of an expert, as perjoule_kernels::op::slots::Segments has them: offsets that go down count as if they stayed.
fn segment(expert: u32) -> vec2<u32> {
    var highest = 0;
    for (var i = 0u; i <= expert; i++) {
        highest = max(highest, segments_int(i));
    }
    let end = max(highest, segments_int(expert + 1u));
    return min(vec2<u32>(u32(highest), u32(end)), vec2<u32>(params.positions));
}

@compute @workgroup_size(256)
fn matmul(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let index = group_number(group, groups);
    let columns = (params.n + TILE - 1u) / TILE;
    let col0 = index % columns * TILE;
    let rest = index / columns;
    if GROUPED {
        let expert = rest % params.matrices;
        let part = rest / params.matrices;
        if part >= params.parts {
            return;
        }
        let positions = segment(params.first + expert);
        for (var begin = positions.x + part * TILE; begin < positions.y; begin += params.parts * TILE) {
            if lane < TILE {
                var a_row = NONE;
                var c_row = NONE;
                if begin + lane < positions.y {
                    let row = order_int(begin + lane);
                    if row >= 0 && u32(row) < params.m && u32(row) / params.a_divisor < params.a_rows {
                        a_row = u32(row) / params.a_divisor;
                        c_row = u32(row);
                    }
                }
                a_rows[lane] = a_row;
                c_rows[lane] = c_row;
            }
            workgroupBarrier();
            product(expert, col0, lane);
            workgroupBarrier();
        }
    } else {
        let tiles = (params.m + TILE - 1u) / TILE;
        let batch = rest / tiles;
        if batch >= params.matrices {
            return;
        }
        if lane < TILE {
            let row = rest % tiles * TILE + lane;
            let inside = select(NONE, row, row < params.m);
            a_rows[lane] = inside;
            c_rows[lane] = inside;
        }
        workgroupBarrier();
        product(batch, col0, lane);
    }
}
