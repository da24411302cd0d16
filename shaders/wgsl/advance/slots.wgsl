// Lengths and positions of a step: one workgroup, which writes the positions of all rows by the lengths before it raises them.

struct Params {
    batch: u32,
    q_len: u32,
    tokens: u32,
    unused: u32,
}

const LANES = 256u;

fn saturating(value: i32, more: u32) -> i32 {
    // what is left up to the highest number: below 2^32
    let room = 0x7fffffffu - bitcast<u32>(value);
    return select(value + bitcast<i32>(more), 0x7fffffff, more > room);
}

// Rows that sequences of the current round begin with.
var<workgroup> starts: array<i32, 257>;

@compute @workgroup_size(256)
fn advance(@builtin(local_invocation_index) lane: u32) {
    if !q_offsets_present {
        for (var row = lane; row < params.tokens; row += LANES) {
            let b = row / params.q_len;
            positions_set_int(row, saturating(kv_len_int(b), row % params.q_len));
        }
        storageBarrier();
        for (var b = lane; b < params.batch; b += LANES) {
            kv_len_set_int(b, saturating(kv_len_int(b), params.q_len));
        }
        return;
    }
    // rows of no sequence
    for (var row = lane; row < params.tokens; row += LANES) {
        positions_set_int(row, 0);
    }
    var before = 0;
    for (var first = 0u; first < params.batch; first += LANES) {
        // the highest offset so far, of every sequence of the round and of the one behind
        if lane == 0u {
            for (var i = 0u; i <= min(LANES, params.batch - first); i++) {
                before = max(before, q_offsets_int(first + i));
                starts[i] = before;
            }
        }
        storageBarrier();
        workgroupBarrier();
        let b = first + lane;
        if b < params.batch {
            let begin = min(u32(starts[lane]), params.tokens);
            let end = min(u32(starts[lane + 1u]), params.tokens);
            let count = min(end - begin, params.q_len);
            let length = kv_len_int(b);
            for (var row = 0u; row < count; row++) {
                positions_set_int(begin + row, saturating(length, row));
            }
            kv_len_set_int(b, saturating(length, count));
        }
        workgroupBarrier();
    }
}
