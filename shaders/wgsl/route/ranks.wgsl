// Choice of up to 256 experts: each of the WIDTH invocations that take a token counts how many experts come before its own. A workgroup has
// 256 / WIDTH tokens.

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
    let token = group_number(group, groups) * (256u / WIDTH) + lane / WIDTH;
    let expert = lane % WIDTH;
    let first = lane - expert;
    var own = NOTHING;
    if token < params.tokens && expert < params.experts {
        own = Candidate(ordered(logits_get(token * params.experts + expert)), expert);
    }
    candidates[lane] = own;
    workgroupBarrier();
    var rank = 0u;
    var top = 0u;
    for (var i = first; i < first + WIDTH; i++) {
        rank += u32(is_before(candidates[i], own));
        top = max(top, candidates[i].number);
    }
    let is_chosen = own.number != 0u && rank < params.top_k;
    var share = 0.0;
    if is_chosen || (own.number != 0u && params.over_all == 1u) {
        // where the largest is NaN all weights are, as they are where it is infinite
        share = exp_of(value_of(own.number) - value_of(top));
    }
    let sum = reduce_sum(share, lane);
    if is_chosen {
        weights_set(token * params.top_k + rank, share / sum);
        chosen_set_int(token * params.top_k + rank, bitcast<i32>(expert));
    }
}
