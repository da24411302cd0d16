// Attention of many queries: a workgroup of 8 x 16 invocations computes 64 rows (pairs of a query and one of the heads that share keys),
// 32 keys at a time (arXiv:2205.14135).
//
// Invocation (x, y) has the scores of rows 4 y to 4 y + 3 and of keys x, x + 8, x + 16 and x + 24, and of the results of these rows the
// fours x, x + 8, ... of the head. Scores take queries and keys through workgroup memory 32 elements of the head at a time; then weights
// and as many values as fit lie there. Vectors begin at multiples of four elements.
//
// Compiled for QUADS (fours of a head), SHARE (fours of an invocation), VALUES (keys whose values fit) and CAPPED (whether scores are
// capped).

struct Params {
    op: Attention,
    // Groups of rows of a sequence and a key/value head, and such pairs.
    tiles: u32,
    units: u32,
    unused_a: u32,
    unused_b: u32,
}

const ROWS = 64u;
const KEYS = 32u;
const LANES = 128u;
// Fours of a vector that are multiplied at a time, and how far vectors lie apart: lines of neighbours do not share banks.
const PART = 8u;
const PITCH = 9u;
// Where values begin, behind the weights: those of a key are 16 fours of rows.
const BEHIND = 512u;

var<workgroup> tile: array<vec4<f32>, 1024>;

fn exp_quad(x: vec4<f32>) -> vec4<f32> {
    return vec4<f32>(exp_fast(x.x), exp_fast(x.y), exp_fast(x.z), exp_fast(x.w));
}

fn subtrahends(top: vec4<f32>) -> vec4<f32> {
    return select(top, vec4<f32>(0.0), bitcast<vec4<u32>>(top) == vec4<u32>(0xff800000u));
}

@compute @workgroup_size(128)
fn attention(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let p = params.op;
    let number = group_number(group, groups);
    let unit = number % params.units;
    if number / params.units >= params.tiles {
        return;
    }
    let kv_head = unit % p.kv.kv_heads;
    let s = sequence_of(p, unit / p.kv.kv_heads);
    let rows = s.count * p.group;
    // those that see the most keys first
    let first = (params.tiles - 1u - number / params.units) * ROWS;
    if first >= rows {
        return;
    }
    let last = min(first + ROWS, rows) - 1u;
    let seen_first = visible(p, s, first / p.group);
    let seen_last = visible(p, s, last / p.group);
    let x = lane % 8u;
    let y = lane / 8u;
    var tops = vec4<f32>(-infinity());
    var sums = vec4<f32>(0.0);
    var values: array<array<vec4<f32>, 4>, SHARE>;
    // unroll
    for (var c = 0u; c < SHARE; c++) {
        // unroll
        for (var r = 0u; r < 4u; r++) {
            values[c][r] = vec4<f32>(0.0);
        }
    }
    for (var key = seen_first.x; key < seen_last.y; key += KEYS) {
        var scores: array<vec4<f32>, 4>;
        // unroll
        for (var j = 0u; j < 4u; j++) {
            scores[j] = vec4<f32>(0.0);
        }
        for (var part = 0u; part < QUADS; part += PART) {
            workgroupBarrier();
            for (var i = lane; i < (ROWS + KEYS) * PART; i += LANES) {
                let quad = part + i % PART;
                let vector = i / PART;
                var elements = vec4<f32>(0.0);
                if quad < QUADS {
                    if vector < ROWS {
                        // rows that do not exist are the last one again, and never stored
                        let row = min(first + vector, last);
                        let from_row = (s.first + row / p.group) * p.heads + kv_head * p.group + row % p.group;
                        elements = q_quad(start_of(p.q, from_row) / 4u + quad);
                    } else {
                        let token = min(key + vector - ROWS, seen_last.y - 1u);
                        elements = k_quad(vector_at(p, s, kv_head, token) / 4u + quad);
                    }
                }
                tile[vector * PITCH + i % PART] = elements;
            }
            workgroupBarrier();
            for (var quad = 0u; quad < PART; quad++) {
                let at = 4u * y * PITCH + quad;
                let a = tile[at];
                let b = tile[at + PITCH];
                let c = tile[at + 2u * PITCH];
                let d = tile[at + 3u * PITCH];
                // unroll
                for (var j = 0u; j < 4u; j++) {
                    let k = tile[(ROWS + x + 8u * j) * PITCH + quad];
                    scores[j] += vec4<f32>(dot(a, k), dot(b, k), dot(c, k), dot(d, k));
                }
            }
        }
        // rows see more and later keys one after the other
        let masked = key < seen_last.x || key + KEYS > seen_first.y;
        var most = vec4<f32>(-infinity());
        // unroll
        for (var j = 0u; j < 4u; j++) {
            scores[j] *= p.scale;
            if CAPPED {
                let inner = scores[j] / p.soft_cap;
                scores[j] = p.soft_cap * vec4<f32>(tanh_of(inner.x), tanh_of(inner.y), tanh_of(inner.z), tanh_of(inner.w));
            }
            if masked {
                // unroll
                for (var r = 0u; r < 4u; r++) {
                    let seen = visible(p, s, min(first + 4u * y + r, last) / p.group);
                    let own = key + x + 8u * j;
                    scores[j][r] = select(-infinity(), scores[j][r], own >= seen.x && own < seen.y);
                }
            }
            // false where a score is NaN
            most = select(most, scores[j], scores[j] > most);
        }
        // queries and keys have been read
        workgroupBarrier();
        tile[BEHIND + x * 16u + y] = most;
        workgroupBarrier();
        var next = tops;
        // unroll
        for (var i = 0u; i < 8u; i++) {
            let other = tile[BEHIND + i * 16u + y];
            next = select(next, other, other > next);
        }
        let less = subtrahends(next);
        let keep = exp_quad(tops - less);
        tops = next;
        sums *= keep;
        // unroll
        for (var j = 0u; j < 4u; j++) {
            let weights = exp_quad(scores[j] - less);
            sums += weights;
            tile[(x + 8u * j) * 16u + y] = weights;
        }
        // unroll
        for (var c = 0u; c < SHARE; c++) {
            // unroll
            for (var r = 0u; r < 4u; r++) {
                values[c][r] *= keep[r];
            }
        }
        for (var part = 0u; part < KEYS; part += VALUES) {
            workgroupBarrier();
            for (var i = lane; i < VALUES * QUADS; i += LANES) {
                let token = min(key + part + i / QUADS, seen_last.y - 1u);
                tile[BEHIND + i] = v_quad(vector_at(p, s, kv_head, token) / 4u + i % QUADS);
            }
            workgroupBarrier();
            for (var j = 0u; j < VALUES; j++) {
                let weights = tile[(part + j) * 16u + y];
                // unroll
                for (var c = 0u; c < SHARE; c++) {
                    // behind the head lie other values, of which nothing is stored
                    let v = tile[BEHIND + j * QUADS + min(x + 8u * c, QUADS - 1u)];
                    values[c][0] += weights.x * v;
                    values[c][1] += weights.y * v;
                    values[c][2] += weights.z * v;
                    values[c][3] += weights.w * v;
                }
            }
        }
    }
    workgroupBarrier();
    tile[x * 16u + y] = sums;
    workgroupBarrier();
    sums = vec4<f32>(0.0);
    // unroll
    for (var i = 0u; i < 8u; i++) {
        sums += tile[i * 16u + y];
    }
    // more than 0 where a row has what is NaN or infinite
    var broken = vec4<f32>(0.0);
    // unroll
    for (var r = 0u; r < 4u; r++) {
        let row = first + 4u * y + r;
        if row <= last {
            let head = kv_head * p.group + row % p.group;
            let begin = start_of(p.out, (s.first + row / p.group) * p.heads + head) / 4u;
            let seen = visible(p, s, row / p.group);
            var share = 1.0;
            var sum = sums[r];
            if sinks_present {
                let top = higher(tops[r], sinks_get(head));
                let less = subtrahend(top);
                share = exp_fast(tops[r] - less);
                sum = sum * share + exp_fast(sinks_get(head) - less);
            }
            share /= sum;
            var all_finite = true;
            // unroll
            for (var c = 0u; c < SHARE; c++) {
                if x + 8u * c < QUADS {
                    let value = values[c][r] * share;
                    all_finite = all_finite && are_finite(value);
                    out_quad_set(begin + x + 8u * c, select(vec4<f32>(0.0), value, seen.x < seen.y));
                }
            }
            broken[r] = select(0.0, 1.0, !all_finite && seen.x < seen.y);
        }
    }
    // what others stored of the row comes before
    storageBarrier();
    workgroupBarrier();
    tile[x * 16u + y] = broken;
    workgroupBarrier();
    // unroll
    for (var i = 0u; i < 8u; i++) {
        broken += tile[i * 16u + y];
    }
    if x < 4u && broken[x] > 0.0 {
        let row = first + 4u * y + x;
        exact_row(p, s, row / p.group, kv_head * p.group + row % p.group, visible(p, s, row / p.group));
    }
}
