// A token at random, of any vectors: a workgroup takes one, and goes through it once for each digit of each question.

struct Params {
    x: Rows,
    top_k: u32,
    top_p: f32,
    inverse_temperature: f32,
    // A weight of 1 is 2^scale.
    scale: u32,
    // Whether they leave anything out.
    has_top_k: u32,
    has_top_p: u32,
    unused_a: u32,
    unused_b: u32,
}


var<workgroup> done: u32;

// Answers a question: leaves the number in `search`, and gives how many of that number it takes.
fn find_candidate(by_count: bool, wanted: Wide, start: u32, top: u32, lane: u32) -> u32 {
    var goal = wanted;
    workgroupBarrier();
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
        add_groups(lane);
        if digit == 0u {
            goal = reached(by_count, goal);
        }
        follow(by_count, goal, lane);
    }
    return taken_of(by_count, goal, top);
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
        best = or_later(best, ordered(x_get(start + d)), d);
    }
    best = reduce_first(best, lane);
    let top = best.number;
    if lane == 0u {
        done = u32(is_answer(top));
        if done == 1u {
            ids_set_int(vector, bitcast<i32>(best.index));
        }
    }
    if workgroupUniformLoad(&done) == 1u {
        return;
    }
    var mass = Wide(0u);
    if params.has_top_k == 1u {
        mass = weight_through(find_candidate(true, Wide(params.top_k, 0u), start, top, lane), top);
    } else {
        clear(lane);
        for (var d = lane; d < len; d += 256u) {
            add_to_bin(d & 255u, weight_of(ordered(x_get(start + d)), top));
        }
        workgroupBarrier();
        add_groups(lane);
        mass = weight_of_all();
    }
    if params.has_top_p == 1u {
        mass = weight_through(find_candidate(false, target_of_share(mass), start, top, lane), top);
    }
    let taken = find_candidate(false, target_of_draw(mass, uniform_get(vector)), start, top, lane);
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
