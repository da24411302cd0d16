// A token at random, of any vectors: a workgroup takes one, and goes through it once for each digit of each question.

// By digit: sums of 64 bits in two words, and counts.
var<workgroup> low: array<atomic<u32>, BINS>;
var<workgroup> high: array<atomic<u32>, BINS>;
var<workgroup> counts: array<atomic<u32>, BINS>;
var<workgroup> search: Search;
var<workgroup> mass: Wide;
var<workgroup> goal: Wide;
var<workgroup> done: u32;

fn bin_count(bin: u32) -> u32 {
    return atomicLoad(&counts[bin]);
}

fn bin_weight(bin: u32) -> Wide {
    return Wide(atomicLoad(&low[bin]), atomicLoad(&high[bin]));
}

fn add_to_bin(bin: u32, weight: Wide) {
    let before = atomicAdd(&low[bin], weight.x);
    // whoever overflows carries
    let more = weight.y + u32(before + weight.x < before);
    if more != 0u {
        atomicAdd(&high[bin], more);
    }
    atomicAdd(&counts[bin], 1u);
}

fn clear(lane: u32) {
    workgroupBarrier();
    atomicStore(&low[lane], 0u);
    atomicStore(&high[lane], 0u);
    atomicStore(&counts[lane], 0u);
    workgroupBarrier();
}

// Answers a question, whose target is `goal`: leaves the number in `search`, and the weight of all through it in `mass`. Gives how many of
// that number it takes.
fn select_candidate(question: u32, start: u32, top: u32, lane: u32) -> u32 {
    if lane == 0u {
        search = Search(0u, Wide(0u), 0u, 0u);
    }
    for (var digit = 0u; digit < 4u; digit++) {
        clear(lane);
        let known = search.prefix;
        let shift = 24u - 8u * digit;
        for (var d = lane; d < params.x.len; d += 256u) {
            let number = ordered(x_get(start + d));
            if digit == 0u || (number >> shift) >> 8u == known {
                add_to_bin((number >> shift) & 255u, weight_of(number, top));
            }
        }
        workgroupBarrier();
        if lane == 0u {
            search = follow(search, question == ASK_TOP_K, goal);
        }
    }
    workgroupBarrier();
    let weight = weight_of(search.prefix, top);
    var taken = goal.x - search.before_count;
    if question != ASK_TOP_K {
        taken = count_to_reach(search.before, weight, search.count, goal);
    }
    workgroupBarrier();
    if lane == 0u {
        mass = wide_add(search.before, wide_times(weight, taken));
    }
    workgroupBarrier();
    return taken;
}

@compute @workgroup_size(256)
fn sample(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let vector = group_number(group, groups);
    if vector >= params.x.outer * params.x.inner {
        return;
    }
    let start = start_of(params.x, vector);
    let len = params.x.len;
    var best = NOTHING;
    for (var d = lane; d < len; d += 256u) {
        best = first_of(best, Candidate(ordered(x_get(start + d)), d));
    }
    best = reduce_first(best, lane);
    let top = best.number;
    if lane == 0u {
        // NaN, an infinity, an only candidate
        let value = value_of(top);
        done = u32((bitcast<u32>(value) & 0x7f800000u) == 0x7f800000u || (params.has_top_k == 1u && params.top_k == 1u));
        if done == 1u {
            ids_set_int(vector, bitcast<i32>(best.index));
        }
    }
    if workgroupUniformLoad(&done) == 1u {
        return;
    }
    if params.has_top_k == 1u {
        if lane == 0u {
            goal = Wide(params.top_k, 0u);
        }
        select_candidate(ASK_TOP_K, start, top, lane);
    } else {
        clear(lane);
        for (var d = lane; d < len; d += 256u) {
            add_to_bin(d & 255u, weight_of(ordered(x_get(start + d)), top));
        }
        workgroupBarrier();
        if lane == 0u {
            var sum = Wide(0u);
            for (var bin = 0u; bin < BINS; bin++) {
                sum = wide_add(sum, bin_weight(bin));
            }
            mass = sum;
        }
    }
    if params.has_top_p == 1u {
        if lane == 0u {
            goal = target_of_share(mass);
        }
        select_candidate(ASK_TOP_P, start, top, lane);
    }
    if lane == 0u {
        goal = target_of_draw(mass, uniform_get(vector));
    }
    let taken = select_candidate(ASK_DRAW, start, top, lane);
    // the one of that number by its index: how many there are in each invocation's part, then within it
    let number = search.prefix;
    let each = (len + 255u) / 256u;
    let first = min(lane * each, len);
    let end = min(first + each, len);
    var own = 0u;
    for (var d = first; d < end; d++) {
        own += u32(ordered(x_get(start + d)) == number);
    }
    atomicStore(&counts[lane], own);
    workgroupBarrier();
    var before = 0u;
    for (var i = 0u; i < lane; i++) {
        before += atomicLoad(&counts[i]);
    }
    if before < taken && taken <= before + own {
        for (var d = first; d < end; d++) {
            before += u32(ordered(x_get(start + d)) == number);
            if before == taken {
                ids_set_int(vector, bitcast<i32>(d));
                break;
            }
        }
    }
}
