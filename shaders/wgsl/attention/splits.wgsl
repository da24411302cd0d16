// Attention of few queries: the keys of a sequence are split into parts of SPLIT, and a workgroup computes R rows (pairs of a query and one
// of the heads that share keys) over one part. Queries that share keys and values share their reads.
//
// Scores: 8 invocations take a key, each the fours of the head that lie 8 apart, and the workgroup 16 keys at a time. Values: an
// invocation takes a four of the head, for every SLICES-th key. Vectors begin at multiples of four elements.
//
// Compiled for QUADS (fours of a head), R (at most 8), SUBGROUPS (whether 8 invocations add by shuffles) and CAPPED (whether scores are
// capped).

struct Params {
    op: Attention,
    // Groups of rows of a sequence and a key/value head, such pairs, and parts.
    tiles: u32,
    units: u32,
    splits: u32,
    unused: u32,
}

const LANES = 128u;
const SPLIT = 128u;
const SLICES = LANES / QUADS;
// Numbers that are added through workgroup memory.
const ADDED = select(R, 1u, SUBGROUPS) * LANES;

// Of each row and key: scores, then weights.
var<workgroup> scores: array<f32, R * SPLIT>;
// Where vectors of keys begin, in fours.
var<workgroup> places: array<u32, SPLIT>;
var<workgroup> queries: array<vec4<f32>, R * QUADS>;
var<workgroup> shares: array<f32, ADDED>;
var<workgroup> sums: array<vec4<f32>, LANES>;

@compute @workgroup_size(128)
fn parts_of(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let p = params.op;
    let number = group_number(group, groups);
    let split = number % params.splits;
    let block = number / params.splits;
    let unit = block % params.units;
    let tile = block / params.units;
    if tile >= params.tiles {
        return;
    }
    let kv_head = unit % p.kv.kv_heads;
    let s = sequence_of(p, unit / p.kv.kv_heads);
    let rows = s.count * p.group;
    let first = tile * R;
    if first >= rows {
        return;
    }
    let last = min(first + R, rows) - 1u;
    // rows see more and later keys one after the other
    let begin = max(split * SPLIT, visible(p, s, first / p.group).x);
    let end = min(split * SPLIT + SPLIT, visible(p, s, last / p.group).y);
    if begin >= end {
        return;
    }
    for (var i = lane; i < R * QUADS; i += LANES) {
        // rows that do not exist are the last one again
        let row = min(first + i / QUADS, last);
        let vector = (s.first + row / p.group) * p.heads + kv_head * p.group + row % p.group;
        queries[i] = q_quad(start_of(p.q, vector) / 4u + i % QUADS);
    }
    places[lane] = vector_at(p, s, kv_head, min(begin + lane, end - 1u)) / 4u;
    workgroupBarrier();
    let x = lane % 8u;
    let y = lane / 8u;
    for (var key = 0u; key < end - begin; key += 16u) {
        let place = places[key + y];
        var products: array<f32, R>;
        // unroll
        for (var r = 0u; r < R; r++) {
            products[r] = 0.0;
        }
        for (var i = x; i < QUADS; i += 8u) {
            let k = k_quad(place + i);
            // unroll
            for (var r = 0u; r < R; r++) {
                products[r] += dot(queries[r * QUADS + i], k);
            }
        }
        if SUBGROUPS {
            // unroll
            for (var r = 0u; r < R; r++) {
                let product = sum_of_eight(products[r]);
                if x == 0u {
                    scores[r * SPLIT + key + y] = product;
                }
            }
        } else {
            // unroll
            for (var r = 0u; r < R; r++) {
                shares[r * LANES + lane] = products[r];
            }
            workgroupBarrier();
            if x < R {
                var product = 0.0;
                // unroll
                for (var i = 0u; i < 8u; i++) {
                    product += shares[x * LANES + y * 8u + i];
                }
                scores[x * SPLIT + key + y] = product;
            }
            workgroupBarrier();
        }
    }
    workgroupBarrier();
    // a row's scores by as many invocations as there are for each
    let sharing = LANES / R;
    let own = lane / sharing;
    let seen = visible(p, s, min(first + own, last) / p.group);
    var top = -infinity();
    for (var i = lane % sharing; i < SPLIT; i += sharing) {
        var score = -infinity();
        if begin + i >= seen.x && begin + i < min(seen.y, end) {
            score = score_of(p, scores[own * SPLIT + i]);
        }
        scores[own * SPLIT + i] = score;
        top = higher(top, score);
    }
    sums[lane].x = top;
    workgroupBarrier();
    for (var i = 0u; i < sharing; i++) {
        top = higher(top, sums[own * sharing + i].x);
    }
    let less = subtrahend(top);
    var sum = 0.0;
    for (var i = lane % sharing; i < SPLIT; i += sharing) {
        let weight = exp_fast(scores[own * SPLIT + i] - less);
        scores[own * SPLIT + i] = weight;
        sum += weight;
    }
    workgroupBarrier();
    sums[lane].x = sum;
    workgroupBarrier();
    let record = ((block * params.splits + split) * R) * (QUADS + 1u) + parts_at();
    if lane % sharing == 0u {
        sum = 0.0;
        for (var i = 0u; i < sharing; i++) {
            sum += sums[own * sharing + i].x;
        }
        parts_words[record + own * (QUADS + 1u) + QUADS] = vec4<f32>(top, sum, 0.0, 0.0);
    }
    let quad = lane % QUADS;
    let slice = lane / QUADS;
    var values: array<vec4<f32>, R>;
    // unroll
    for (var r = 0u; r < R; r++) {
        values[r] = vec4<f32>(0.0);
    }
    if slice < SLICES {
        for (var i = slice; i < end - begin; i += SLICES) {
            let v = v_quad(places[i] + quad);
            // unroll
            for (var r = 0u; r < R; r++) {
                values[r] += scores[r * SPLIT + i] * v;
            }
        }
    }
    // unroll
    for (var r = 0u; r < R; r++) {
        workgroupBarrier();
        sums[lane] = values[r];
        workgroupBarrier();
        if slice == 0u {
            var all = sums[quad];
            for (var i = 1u; i < SLICES; i++) {
                all += sums[i * QUADS + quad];
            }
            parts_words[record + r * (QUADS + 1u) + quad] = all;
        }
    }
}
