// The second step of route/ranks.wgsl where there are few pairs: one workgroup counts for each of them how many come before it.

struct Params {
    tokens: u32,
    experts: u32,
    top_k: u32,
    over_all: u32,
}

const MOST_PAIRS = 1024u;

var<workgroup> experts_of: array<u32, MOST_PAIRS>;

@compute @workgroup_size(256)
fn sort(@builtin(local_invocation_index) lane: u32) {
    let pairs = params.tokens * params.top_k;
    for (var pair = lane; pair < pairs; pair += 256u) {
        experts_of[pair] = u32(chosen_int(pair));
    }
    workgroupBarrier();
    for (var pair = lane; pair < pairs; pair += 256u) {
        let own = experts_of[pair];
        var place = 0u;
        for (var i = 0u; i < pairs; i++) {
            place += u32(experts_of[i] < own || (experts_of[i] == own && i < pair));
        }
        order_set_int(place, bitcast<i32>(pair));
    }
    for (var expert = lane; expert <= params.experts; expert += 256u) {
        var below = 0u;
        for (var i = 0u; i < pairs; i++) {
            below += u32(experts_of[i] < expert);
        }
        offsets_of_set_int(expert, bitcast<i32>(below));
    }
}
