// Few rows of A with weights that stream from memory, k contiguous: matmul, gated_matmul and grouped_matmul.
//
// A workgroup has ROWS columns of B (rows of the weight, which is stored n x k) and up to TOKENS rows of A. Its LANES invocations go through
// k in units, each loading one unit of every weight row and multiplying it with all tokens; sums meet at the end. What a unit is says
// the file of the weights' type, by
//
// | | |
// |---|---|
// | `Weights`, `Activations` | a unit of a weight row, and what it is multiplied with |
// | `load_weights(side, at, unit)` | `side`: 0 for B, 1 for the up projection; `at`: where the weight row begins, as `Params` counts |
// | `load_activations(at, unit)` | `at`: where the row of A begins, as `Params` counts |
// | `multiply(w, x)` | their sum of products |
//
// How sums meet is for the file with the entry point: `meet(sums, lane)` gives lane v < VALUES the total of value v.

struct Params {
    epilogue: Epilogue,
    // From one matrix or row to the next: of A in elements of `a_words`; of B in elements of `b_words`, or bytes (WORD_BYTES is 4).
    a_batch: u32,
    a_row: u32,
    b_batch: u32,
    b_col: u32,
    up_col: u32,
    // Units of a row.
    units: u32,
    m: u32,
    n: u32,
    // Matrices: of a batch, or experts of this window, of all, and the first of the window.
    matrices: u32,
    experts: u32,
    first: u32,
    // Grouped products: capacity of positions, rows of A, values of `order` that read one row of A.
    positions: u32,
    a_rows: u32,
    a_divisor: u32,
    // Where B begins in its first word, in bytes.
    b_first: u32,
    unused: u32,
}

const NONE = 0xffffffffu;
// [side][weight row][token]
const VALUES = SIDES * ROWS * TOKENS;
const WEIGHT_ROWS = SIDES * ROWS;

// Rows of A and C of the tokens; c is NONE where there is none.
struct Token {
    a: u32,
    c: u32,
}

// Grouped products: the first offset beyond a position, the positions of its expert, and what is known to all.
var<workgroup> beyond: atomic<u32>;
var<workgroup> begin: atomic<i32>;
var<workgroup> found: vec2<u32>;

// The expert of a position, and the position at which a workgroup for this expert starts; NONE where there is none. As
// perjoule_kernels::op::slots::Segments has it: a position is the expert's whose end is the first offset beyond it.
fn expert_of(position: u32, lane: u32) -> vec2<u32> {
    if lane == 0u {
        atomicStore(&beyond, NONE);
        atomicStore(&begin, 0);
    }
    workgroupBarrier();
    for (var i = lane; i <= params.experts; i += LANES) {
        if segments_int(i) > i32(position) {
            atomicMin(&beyond, i);
        }
    }
    workgroupBarrier();
    let end = atomicLoad(&beyond);
    if end != NONE {
        for (var i = lane; i < end; i += LANES) {
            atomicMax(&begin, segments_int(i));
        }
    }
    workgroupBarrier();
    if lane == 0u {
        let inside = end != NONE && end > 0u;
        found = vec2<u32>(select(NONE, end - 1u, inside), u32(atomicLoad(&begin)));
    }
    return workgroupUniformLoad(&found);
}

fn gemv(group: vec3<u32>, groups: vec3<u32>, lane: u32) {
    let number = group_number(group, groups);
    let strips = (params.n + ROWS - 1u) / ROWS;
    let col0 = number % strips * ROWS;
    let rest = number / strips;
    var matrix = 0u;
    var tokens: array<Token, TOKENS>;
    if GROUPED {
        if rest >= params.positions {
            return;
        }
        let expert = expert_of(rest, lane);
        matrix = expert.x - params.first;
        // an expert's positions are taken TOKENS at a time by the workgroup of the first of them
        if expert.x == NONE || matrix >= params.matrices || (rest - expert.y) % TOKENS != 0u {
            return;
        }
        let end = min(u32(segments_int(expert.x + 1u)), params.positions);
        // unroll
        for (var t = 0u; t < TOKENS; t++) {
            tokens[t] = Token(0u, NONE);
            if rest + t < end {
                let row = order_int(rest + t);
                if row >= 0 && u32(row) < params.m && u32(row) / params.a_divisor < params.a_rows {
                    tokens[t] = Token(u32(row) / params.a_divisor, u32(row));
                }
            }
        }
    } else {
        let tiles = (params.m + TOKENS - 1u) / TOKENS;
        matrix = rest / tiles;
        if matrix >= params.matrices {
            return;
        }
        let row0 = rest % tiles * TOKENS;
        // unroll
        for (var t = 0u; t < TOKENS; t++) {
            // what is beyond the last is computed again, and not stored
            let row = row0 + t;
            tokens[t] = Token(min(row, params.m - 1u), select(NONE, row, row < params.m));
        }
    }

    var a_at: array<u32, TOKENS>;
    // unroll
    for (var t = 0u; t < TOKENS; t++) {
        a_at[t] = activation_base() + select(matrix, 0u, GROUPED) * params.a_batch + tokens[t].a * params.a_row;
    }
    var b_at: array<u32, WEIGHT_ROWS>;
    // unroll
    for (var r = 0u; r < ROWS; r++) {
        let col = min(col0 + r, params.n - 1u);
        b_at[r] = weight_base(0u) * WORD_BYTES + params.b_first + matrix * params.b_batch + col * params.b_col;
        if GATED {
            b_at[min(ROWS + r, WEIGHT_ROWS - 1u)] = weight_base(1u) * WORD_BYTES + col * params.up_col;
        }
    }
    var sums: array<Sum, VALUES>;
    // unroll
    for (var v = 0u; v < VALUES; v++) {
        sums[v] = Sum(0);
    }
    for (var unit = lane; unit < params.units; unit += LANES) {
        // unroll
        for (var side = 0u; side < SIDES; side++) {
            var w: array<Weights, ROWS>;
            // unroll
            for (var r = 0u; r < ROWS; r++) {
                w[r] = load_weights(side, b_at[side * ROWS + r], unit);
            }
            // unroll
            for (var t = 0u; t < TOKENS; t++) {
                let x = load_activations(a_at[t], unit);
                // unroll
                for (var r = 0u; r < ROWS; r++) {
                    sums[(side * ROWS + r) * TOKENS + t] += multiply(w[r], x);
                }
            }
        }
    }
    let total = meet(sums, lane);
    var up = Sum(0);
    if GATED {
        up = of_up(total, lane);
    }
    if lane < ROWS * TOKENS {
        let col = col0 + lane / TOKENS;
        // a token by its number would keep the array out of registers
        var row = NONE;
        // unroll
        for (var t = 0u; t < TOKENS; t++) {
            row = select(row, tokens[t].c, t == lane % TOKENS);
        }
        if row != NONE && col < params.n {
            if GATED {
                store_gated(total, up, row, col);
            } else {
                store(total, matrix, row, col);
            }
        }
    }
}
