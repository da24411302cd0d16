// A token at random, of vectors of whole runs: `parts` workgroups share a vector. Each digit of each question is a step: workgroups go on with
// what the step before counted, all in the same way, and count the next digit. Steps are `begin`, `count_digit` for each digit, `count_equal`
// for those that all digits leave, and `pick`. The first digit's bins serve all questions. State of a vector, in words:
//
// | from | |
// |---|---|
// | 0 | number and index of the largest of each part |
// | EQUAL_AT | how many each part has that equal the candidate's number |
// | SLOTS_AT | of each step a slot of 8: the search, and its target |
// | BINS_AT | of each step 3 words for each bin |

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
    // Workgroups that share a vector.
    parts: u32,
    // The digit's step, from 0; behind those of digits, how many there are.
    step: u32,
}

const MOST_PARTS = 64u;
const EQUAL_AT = 2u * MOST_PARTS;
const SLOTS_AT = EQUAL_AT + MOST_PARTS;
const BINS_AT = SLOTS_AT + 16u * 8u;
const STATE = BINS_AT + 3u * BINS * STEPS;

var<workgroup> done: u32;

// Which question a step is about: 0 top-k, 1 top-p, 2 the draw.
fn question_of(step: u32) -> u32 {
    let index = (max(step, 1u) - 1u) / 3u;
    if params.has_top_k == 1u {
        return select(select(1u, 2u, params.has_top_p == 0u || index == 2u), 0u, index == 0u);
    }
    return select(2u, 1u, params.has_top_p == 1u && index == 0u);
}

// The largest of the vector.
fn best_of(state: u32, lane: u32) -> Candidate {
    var best = NOTHING;
    if lane < params.parts {
        best = Candidate(atomicLoad(&state_words[state + 2u * lane]), atomicLoad(&state_words[state + 2u * lane + 1u]));
    }
    return reduce_first(best, lane);
}

// Takes over the bins of a step.
fn load_bins(state: u32, step: u32, lane: u32) {
    workgroupBarrier();
    let at = state + BINS_AT + 3u * (BINS * step + lane);
    atomicStore(&low[lane], atomicLoad(&state_words[at]));
    atomicStore(&high[lane], atomicLoad(&state_words[at + 1u]));
    atomicStore(&counts[lane], atomicLoad(&state_words[at + 2u]));
    workgroupBarrier();
    add_groups(lane);
}

fn load_search(state: u32, step: u32, lane: u32) -> Wide {
    let at = state + SLOTS_AT + 8u * step;
    if lane == 0u {
        search = Search(
            atomicLoad(&state_words[at]),
            Wide(atomicLoad(&state_words[at + 1u]), atomicLoad(&state_words[at + 2u])),
            atomicLoad(&state_words[at + 3u]),
            atomicLoad(&state_words[at + 4u]),
        );
    }
    return Wide(atomicLoad(&state_words[at + 5u]), atomicLoad(&state_words[at + 6u]));
}

fn store_search(state: u32, step: u32, goal: Wide) {
    let at = state + SLOTS_AT + 8u * step;
    atomicStore(&state_words[at], search.prefix);
    atomicStore(&state_words[at + 1u], search.before.x);
    atomicStore(&state_words[at + 2u], search.before.y);
    atomicStore(&state_words[at + 3u], search.before_count);
    atomicStore(&state_words[at + 4u], search.count);
    atomicStore(&state_words[at + 5u], goal.x);
    atomicStore(&state_words[at + 6u], goal.y);
}

@compute @workgroup_size(256)
fn begin(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let vector = group.y;
    let state = vector * STATE;
    for (var i = group.x * 256u + lane; i < 3u * BINS * STEPS; i += params.parts * 256u) {
        atomicStore(&state_words[state + BINS_AT + i], 0u);
    }
    let start = start_of(params.x, vector);
    var best = NOTHING;
    for (var d = (group.x * 256u + lane) * RUN; d < params.x.len; d += params.parts * 256u * RUN) {
        best = or_run(best, x_get(start + d), d);
    }
    best = reduce_first(best, lane);
    if lane == 0u {
        atomicStore(&state_words[state + 2u * group.x], best.number);
        atomicStore(&state_words[state + 2u * group.x + 1u], best.index);
    }
}

@compute @workgroup_size(256)
fn count_digit(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let vector = group.y;
    let state = vector * STATE;
    let best = best_of(state, lane);
    let top = best.number;
    if lane == 0u {
        done = u32(is_answer(top));
        if done == 1u && params.step == 0u && group.x == 0u {
            atomicStore(&ids_words[ids_at() + vector], best.index);
        }
    }
    if workgroupUniformLoad(&done) == 1u {
        return;
    }
    let digit = select(0u, (params.step - 1u) % 3u + 1u, params.step > 0u);
    if params.step > 0u {
        let question = question_of(params.step);
        var goal = Wide(params.top_k, 0u);
        if digit == 1u {
            var mass = Wide(0u);
            if params.step > 1u {
                // the question before
                load_bins(state, params.step - 1u, lane);
                let by_count = question_of(params.step - 1u) == 0u;
                let last = load_search(state, params.step - 1u, lane);
                workgroupBarrier();
                follow(by_count, last, lane);
                mass = weight_through(taken_of(by_count, last, top), top);
            }
            load_bins(state, 0u, lane);
            if params.step == 1u {
                mass = weight_of_all();
            }
            if question == 1u {
                goal = target_of_share(mass);
            } else if question == 2u {
                goal = target_of_draw(mass, uniform_get(vector));
            }
            goal = reached(question == 0u, goal);
            if lane == 0u {
                search = Search(0u, Wide(0u), 0u, 0u);
            }
        } else {
            load_bins(state, params.step - 1u, lane);
            goal = load_search(state, params.step - 1u, lane);
        }
        workgroupBarrier();
        follow(question == 0u, goal, lane);
        if lane == 0u && group.x == 0u {
            store_search(state, params.step, goal);
        }
    }
    clear(lane);
    let known = search.prefix;
    let shift = 24u - 8u * digit;
    let start = start_of(params.x, vector);
    for (var d = (group.x * 256u + lane) * RUN; d < params.x.len; d += params.parts * 256u * RUN) {
        let value = x_get(start + d);
        for (var j = 0u; j < RUN; j++) {
            let number = ordered(value[j]);
            if digit == 0u || (number >> shift) >> 8u == known {
                add_to_bin((number >> shift) & 255u, weight_of(number, top));
            }
        }
    }
    workgroupBarrier();
    let weight = bin_weight(lane);
    let count = atomicLoad(&counts[lane]);
    if count != 0u {
        let at = state + BINS_AT + 3u * (BINS * params.step + lane);
        let before = atomicAdd(&state_words[at], weight.x);
        let more = weight.y + u32(before + weight.x < before);
        if more != 0u {
            atomicAdd(&state_words[at + 1u], more);
        }
        atomicAdd(&state_words[at + 2u], count);
    }
}

// This workgroup's part, in the order of the elements: first element and end of invocation `lane`.
fn run_of(part: u32, lane: u32) -> vec2<u32> {
    let runs = params.x.len / RUN;
    let each = (runs + params.parts * 256u - 1u) / (params.parts * 256u);
    let first = min((part * 256u + lane) * each, runs);
    return vec2<u32>(first, min(first + each, runs)) * RUN;
}

fn equal_in(start: u32, own: vec2<u32>, number: u32) -> u32 {
    var count = 0u;
    for (var d = own.x; d < own.y; d += RUN) {
        let value = x_get(start + d);
        for (var j = 0u; j < RUN; j++) {
            count += u32(ordered(value[j]) == number);
        }
    }
    return count;
}

@compute @workgroup_size(256)
fn count_equal(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let vector = group.y;
    let state = vector * STATE;
    let top = best_of(state, lane).number;
    load_bins(state, params.step - 1u, lane);
    let goal = load_search(state, params.step - 1u, lane);
    workgroupBarrier();
    follow(false, goal, lane);
    if lane == 0u && group.x == 0u {
        // for `pick`: the number, and how many it takes
        store_search(state, params.step, Wide(taken_of(false, goal, top), 0u));
    }
    let number = search.prefix;
    clear(lane);
    atomicAdd(&counts[0], equal_in(start_of(params.x, vector), run_of(group.x, lane), number));
    workgroupBarrier();
    if lane == 0u {
        atomicStore(&state_words[state + EQUAL_AT + group.x], atomicLoad(&counts[0]));
    }
}

@compute @workgroup_size(256)
fn pick(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let vector = group.y;
    let state = vector * STATE;
    let top = best_of(state, lane).number;
    let slot = state + SLOTS_AT + 8u * params.step;
    let number = atomicLoad(&state_words[slot]);
    let taken = atomicLoad(&state_words[slot + 5u]);
    var before = 0u;
    for (var part = 0u; part < group.x; part++) {
        before += atomicLoad(&state_words[state + EQUAL_AT + part]);
    }
    let end = before + atomicLoad(&state_words[state + EQUAL_AT + group.x]);
    if lane == 0u {
        done = u32(is_answer(top) || !(before < taken && taken <= end));
    }
    if workgroupUniformLoad(&done) == 1u {
        return;
    }
    let start = start_of(params.x, vector);
    let own = run_of(group.x, lane);
    let count = equal_in(start, own, number);
    atomicStore(&counts[lane], count);
    workgroupBarrier();
    for (var i = 0u; i < lane; i++) {
        before += atomicLoad(&counts[i]);
    }
    if before < taken && taken <= before + count {
        for (var d = own.x; d < own.y; d += RUN) {
            let value = x_get(start + d);
            for (var j = 0u; j < RUN; j++) {
                if ordered(value[j]) == number {
                    before += 1u;
                    if before == taken {
                        atomicStore(&ids_words[ids_at() + vector], d + j);
                    }
                }
            }
        }
    }
}
