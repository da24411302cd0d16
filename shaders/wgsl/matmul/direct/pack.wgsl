// A or B in panels of f32 for matmul/direct/multiply.wgsl: zeroes beyond the edges, whatever the type, the strides and the sizes were.
//
// A panel of A is ROWS of its rows: [quad of k][row][4 of k]. A panel of B is WORDS * 4 columns: [k][column]; of a pair its first half is the
// gate's columns, the second the same columns of the up projection. Panels follow each other along a matrix, matrices follow each other.
// A_QUADS, B_QUADS: lines along k are contiguous and begin at multiples of four elements. B_LINES: so are those along its
// rows.

struct Params {
    // Strides in elements: from one matrix, row of A or column of B, and element along k to the next.
    batch: u32,
    vector: u32,
    step: u32,
    up_vector: u32,
    up_step: u32,
    // Rows of A or columns of B, elements along k, and quads of them.
    count: u32,
    k: u32,
    quads: u32,
    // The first panel and the first matrix.
    panel: u32,
    matrix: u32,
    unused_a: u32,
    unused_b: u32,
}

@compute @workgroup_size(256)
fn rows(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let r = lane % ROWS;
    let quad = group.x * (256u / ROWS) + lane / ROWS;
    let row = (params.panel + group.y) * ROWS + r;
    if quad >= params.quads {
        return;
    }
    var value = vec4<f32>();
    if row < params.count {
        let k = quad * 4u;
        let at = (params.matrix + group.z) * params.batch + row * params.vector + k * params.step;
        if A_QUADS && k + 3u < params.k {
            value = a_quad(at / 4u);
        } else {
            value = a_line(at, params.step, params.k - k);
        }
    }
    panels_words[panels_at() + ((group.z * groups.y + group.y) * params.quads + quad) * ROWS + r] = value;
}

// Four elements along k of a column, from `at` on, of which `count` are there.
fn right_quad(at: u32, count: u32) -> vec4<f32> {
    if B_QUADS && count >= 4u {
        return b_quad(at / 4u);
    }
    return b_line(at, params.step, count);
}

fn other_quad(at: u32, count: u32) -> vec4<f32> {
    if B_QUADS && count >= 4u {
        return up_quad(at / 4u);
    }
    return up_line(at, params.up_step, count);
}

// Where columns are contiguous along k: four by four elements an invocation.
@compute @workgroup_size(256)
fn transposed(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    // words of a side
    let each = select(WORDS, WORDS / 2u, up_present);
    let word = lane % WORDS;
    let quad = group.x * (256u / WORDS) + lane / WORDS;
    let k = quad * 4u;
    let col = ((params.panel + group.y) * each + word % each) * 4u;
    if quad >= params.quads {
        return;
    }
    var lines: array<vec4<f32>, 4>;
    for (var i = 0u; i < 4u; i++) {
        if col + i < params.count {
            let matrix = (params.matrix + group.z) * params.batch;
            if word < each {
                lines[i] = right_quad(matrix + (col + i) * params.vector + k * params.step, params.k - k);
            } else {
                lines[i] = other_quad(matrix + (col + i) * params.up_vector + k * params.up_step, params.k - k);
            }
        }
    }
    let at = panels_at() + ((group.z * groups.y + group.y) * params.quads + quad) * 4u * WORDS + word;
    panels_words[at] = vec4<f32>(lines[0].x, lines[1].x, lines[2].x, lines[3].x);
    panels_words[at + WORDS] = vec4<f32>(lines[0].y, lines[1].y, lines[2].y, lines[3].y);
    panels_words[at + 2u * WORDS] = vec4<f32>(lines[0].z, lines[1].z, lines[2].z, lines[3].z);
    panels_words[at + 3u * WORDS] = vec4<f32>(lines[0].w, lines[1].w, lines[2].w, lines[3].w);
}

// Where they are not.
@compute @workgroup_size(256)
fn columns(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    // words of a side
    let each = select(WORDS, WORDS / 2u, up_present);
    let word = lane % WORDS;
    let k = group.x * (256u / WORDS) + lane / WORDS;
    let col = ((params.panel + group.y) * each + word % each) * 4u;
    if k >= params.quads * 4u {
        return;
    }
    var value = vec4<f32>();
    if col < params.count && k < params.k {
        let matrix = (params.matrix + group.z) * params.batch;
        if word < each {
            let at = matrix + col * params.vector + k * params.step;
            if B_LINES && col + 3u < params.count {
                value = b_quad(at / 4u);
            } else {
                value = b_line(at, params.vector, params.count - col);
            }
        } else {
            let at = matrix + col * params.up_vector + k * params.up_step;
            if B_LINES && col + 3u < params.count {
                value = up_quad(at / 4u);
            } else {
                value = up_line(at, params.up_vector, params.count - col);
            }
        }
    }
    panels_words[panels_at() + ((group.z * groups.y + group.y) * params.quads * 4u + k) * WORDS + word] = value;
}
