// Choice of experts: first a workgroup takes a token and picks its experts one by one; then a workgroup takes an expert and lists the pairs
// of token and place that chose it, in ascending order (a counting sort, stable).

struct Params {
    tokens: u32,
    experts: u32,
    top_k: u32,
    // Whether the softmax is one over all experts.
    over_all: u32,
}

@compute @workgroup_size(256)
fn choose(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let token = group_number(group, groups);
    if token >= params.tokens {
        return;
    }
    let row = token * params.experts;
    let pairs = token * params.top_k;
    // what most mixtures have stays in a register
    let held = Candidate(select(0u, ordered(logits_get(row + min(lane, params.experts - 1u))), lane < params.experts), lane);
    var before = Candidate(0xffffffffu, 0u);
    var top = 0.0;
    var sum = 0.0;
    for (var j = 0u; j < params.top_k; j++) {
        var best = NOTHING;
        if held.number != 0u && is_before(before, held) {
            best = held;
        }
        for (var e = lane + 256u; e < params.experts; e += 256u) {
            let own = Candidate(ordered(logits_get(row + e)), e);
            if is_before(before, own) {
                best = first_of(best, own);
            }
        }
        before = reduce_first(best, lane);
        let value = value_of(before.number);
        if j == 0u {
            top = value;
        }
        // where the largest is NaN all weights are, as they are where it is infinite
        let share = exp_of(value - top);
        sum += share;
        if lane == 0u {
            weights_set(pairs + j, share);
            chosen_set_int(pairs + j, bitcast<i32>(before.index));
        }
    }
    if params.over_all == 1u {
        sum = 0.0;
        for (var e = lane; e < params.experts; e += 256u) {
            sum += exp_of(logits_get(row + e) - top);
        }
        sum = reduce_sum(sum, lane);
    }
    // invocation 0 wrote the shares itself
    if lane == 0u {
        for (var j = 0u; j < params.top_k; j++) {
            weights_set(pairs + j, weights_get(pairs + j) / sum);
        }
    }
}
