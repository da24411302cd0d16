// Products of signed bytes, multiplied four at a time: of i8 by i8, or of quantised activations by block formats.
//
// A workgroup computes a tile of 64 x 64 of C. Words of four bytes of A and B, DEPTH elements deep, go through workgroup memory; an
// invocation multiplies 4 x 4 outputs, whose columns are 16 apart so that neighbours store to neighbours. With SCALES, sums of 32 are
// multiplied by the scale of A's block and the factor of B's. What a unit of B is says the file of its type (gemv/codes.wgsl).

const WORDS = DEPTH / 4u;
const BLOCKS = DEPTH / 32u;
// Of a row of words in workgroup memory.
const PITCH = 65u;
// Units of a column of a tile, of QUADS words.
const UNITS = WORDS / QUADS;

// [word][vector]
var<workgroup> left: array<u32, WORDS * PITCH>;
var<workgroup> right: array<u32, SIDES * WORDS * PITCH>;
// [block][vector]
var<workgroup> left_scales: array<f32, BLOCKS * TILE>;
var<workgroup> right_factors: array<f32, SIDES * BLOCKS * TILE>;
var<workgroup> right_minima: array<f32, MINIMA_TILE>;

fn load_left(batch: u32, k0: u32, lane: u32) {
    let first = a_at() + batch * params.a_batch;
    for (var at = lane; at < WORDS * TILE; at += 256u) {
        let word = at % WORDS;
        let row = a_rows[at / WORDS];
        var value = 0u;
        if row != NONE && k0 + word * 4u < params.k {
            value = a_words[first + row * params.a_row + k0 / 4u + word];
        }
        left[word * PITCH + at / WORDS] = value;
    }
    if SCALES && lane < BLOCKS * TILE {
        let row = a_rows[lane % TILE];
        var scale = 0.0;
        if row != NONE {
            scale = block_scales_get((batch * params.a_batch + row * params.a_row + k0 / 4u) / 8u + lane / TILE);
        }
        left_scales[lane] = scale;
    }
}

fn load_right(side: u32, first: u32, stride: u32, col0: u32, k0: u32, lane: u32) {
    for (var at = lane; at < UNITS * TILE; at += 256u) {
        let vector = at / UNITS;
        let unit = k0 / (QUADS * 4u) + at % UNITS;
        var c: Codes;
        // columns beyond the last are never stored
        if col0 + vector < params.n && unit * QUADS * 4u < params.k {
            c = load_codes(side, first + (col0 + vector) * stride, unit);
        }
        for (var q = 0u; q < QUADS; q++) {
            let word = (at % UNITS * QUADS + q) % WORDS;
            var place = word;
            if SCALES {
                place = quad_of(unit, q) - k0 / 4u;
            }
            right[(side * WORDS + place) * PITCH + vector] = c.codes[q];
        }
        if SCALES {
            for (var p = 0u; p < PARTS; p++) {
                let block = (side * BLOCKS + (quad_of(unit, p * RUNS) - k0 / 4u) / 8u) * TILE + vector;
                right_factors[block] = c.factors[p];
                if MINIMA {
                    right_minima[block] = c.minima[p];
                }
            }
        }
    }
}

// Adds the products of a tile with one side of B.
fn multiply(sums: ptr<function, array<Sum, 16>>, side: u32, row: u32, col: u32) {
    for (var block = 0u; block < BLOCKS; block++) {
        var part: array<i32, 16>;
        var total: array<i32, 4>;
        for (var i = 0u; i < 16u; i++) {
            part[i] = 0;
        }
        for (var i = 0u; i < 4u; i++) {
            total[i] = 0;
        }
        for (var step = 0u; step < 8u; step++) {
            let word = block * 8u + step;
            var b: array<u32, 4>;
            for (var j = 0u; j < 4u; j++) {
                b[j] = right[(side * WORDS + word) * PITCH + col + j * 16u];
            }
            for (var i = 0u; i < 4u; i++) {
                let a = left[word * PITCH + row + i];
                for (var j = 0u; j < 4u; j++) {
                    part[i * 4u + j] += dot4I8Packed(a, b[j]);
                }
                if MINIMA {
                    total[i] += dot4I8Packed(a, 0x01010101u);
                }
            }
        }
        for (var i = 0u; i < 4u; i++) {
            for (var j = 0u; j < 4u; j++) {
                if SCALES {
                    let place = (side * BLOCKS + block) * TILE + col + j * 16u;
                    var value = f32(part[i * 4u + j]) * CODE_UNIT * right_factors[place];
                    if MINIMA {
                        value -= f32(total[i]) * right_minima[place];
                    }
                    (*sums)[i * 4u + j] += Sum(value * left_scales[block * TILE + row + i]);
                } else {
                    (*sums)[i * 4u + j] += Sum(part[i * 4u + j]);
                }
            }
        }
    }
}

fn product(batch: u32, col0: u32, lane: u32) {
    let a_batch = select(batch, 0u, GROUPED);
    let row = lane / 16u * 4u;
    let col = lane % 16u;
    let b_first = weight_base(0u) * WORD_BYTES + params.b_first + batch * params.b_batch;
    var sums: array<Sum, 16>;
    var pair: array<Sum, 16>;
    for (var i = 0u; i < 16u; i++) {
        sums[i] = Sum(0);
        pair[i] = Sum(0);
    }
    // few rows of A leave most invocations nothing but to load
    let idle = c_rows[row] == NONE && c_rows[row + 1u] == NONE && c_rows[row + 2u] == NONE && c_rows[row + 3u] == NONE;
    for (var k0 = 0u; k0 < params.k; k0 += DEPTH) {
        load_left(a_batch, k0, lane);
        load_right(0u, b_first, params.b_col, col0, k0, lane);
        if GATED {
            load_right(1u, weight_base(1u) * WORD_BYTES, params.up_col, col0, k0, lane);
        }
        workgroupBarrier();
        if !idle {
            multiply(&sums, 0u, row, col);
            if GATED {
                multiply(&pair, 1u, row, col);
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
