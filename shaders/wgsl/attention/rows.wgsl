// Attention by online softmax (arXiv:1805.02867) in f32: every type, head length, mask and cache.
//
// A workgroup computes rows (a query and a head) one after the other: an invocation computes the score of one of LANES keys, and then all
// of them add the values, each the elements of the head that lie LANES apart. Heads of more than DIMS * LANES elements are computed so many
// at a time.
//
// Grid: `items` workgroups for each sequence and head; workgroup `i` has the query rows `i`, `i + items`, ...

struct Params {
    op: Attention,
    items: u32,
    units: u32,
    unused_a: u32,
    unused_b: u32,
}

const LANES = 64u;
const DIMS = 4u;

var<workgroup> scores: array<f32, 64>;
var<workgroup> places: array<u32, 64>;

// Elements of a row from `base` on.
fn attend(s: Sequence, row: u32, head: u32, base: u32, lane: u32) {
    let p = params.op;
    let q_at = start_of(p.q, (s.first + row) * p.heads + head);
    let keys = visible(p, s, row);
    var top = -infinity();
    var sum = 0.0;
    var values: array<f32, 4>;
    for (var j = 0u; j < DIMS; j++) {
        values[j] = 0.0;
    }
    if sinks_present {
        top = higher(top, sinks_get(head));
        sum = exp_of(sinks_get(head) - subtrahend(top));
    }
    for (var first = keys.x; first < keys.y; first += LANES) {
        let count = min(keys.y - first, LANES);
        var score = -infinity();
        if lane < count {
            let at = vector_at(p, s, head / p.group, first + lane);
            var product = 0.0;
            for (var d = 0u; d < p.kv.head_dim; d++) {
                product += q_get(q_at + d) * k_get(at + d);
            }
            score = score_of(p, product);
            places[lane] = at;
        }
        scores[lane] = score;
        workgroupBarrier();
        var next = top;
        for (var i = 0u; i < count; i++) {
            next = higher(next, scores[i]);
        }
        workgroupBarrier();
        let less = subtrahend(next);
        scores[lane] = exp_of(score - less);
        workgroupBarrier();
        let keep = exp_of(top - less);
        top = next;
        sum *= keep;
        for (var j = 0u; j < DIMS; j++) {
            values[j] *= keep;
        }
        for (var i = 0u; i < count; i++) {
            let weight = scores[i];
            sum += weight;
            for (var j = 0u; j < DIMS; j++) {
                let d = base + j * LANES + lane;
                if d < p.kv.head_dim {
                    values[j] += weight * v_get(places[i] + d);
                }
            }
        }
        workgroupBarrier();
    }
    let out_at = start_of(p.out, (s.first + row) * p.heads + head);
    for (var j = 0u; j < DIMS; j++) {
        let d = base + j * LANES + lane;
        if d < p.kv.head_dim {
            out_set(out_at + d, select(0.0, values[j] / sum, keys.x < keys.y));
        }
    }
}

@compute @workgroup_size(64)
fn attention(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let number = group_number(group, groups);
    let unit = number / params.items;
    if unit >= params.units {
        return;
    }
    let head = unit % params.op.heads;
    let s = sequence_of(params.op, unit / params.op.heads);
    for (var row = number % params.items; row < s.count; row += params.items) {
        for (var base = 0u; base < params.op.kv.head_dim; base += DIMS * LANES) {
            attend(s, row, head, base, lane);
        }
    }
}
