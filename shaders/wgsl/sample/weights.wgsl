// What the kernels share that draw a token (top-k; top-p, arXiv:1904.09751).
//
// Each question is the same: which candidate, in descending order, is the first at which a sum reaches a target? The sum is one of
// candidates (top-k) or of weights (top-p, and the draw itself). Histograms of counts and weights over the digits of the logits' numbers
// lead to it, digit by digit. Weights are integers (fixed point), so that sums do not depend on the order of atomics.

// The weight of the logit of that number, beside the largest.
fn weight_of(number: u32, top: u32) -> Wide {
    // equal values have no distance, infinite ones neither
    if number == top {
        return wide_of(1.0, params.scale);
    }
    return wide_of(exp_of((value_of(number) - value_of(top)) * params.inverse_temperature), params.scale);
}

// The target of top-p: at least this share of the mass.
fn target_of_share(mass: Wide) -> Wide {
    let share = wide_share(mass, params.top_p);
    var enough = share.floor;
    if share.is_cut || all(enough == Wide(0u)) {
        enough = wide_add(enough, Wide(1u, 0u));
    }
    if wide_less(mass, enough) {
        return mass;
    }
    return enough;
}

// The draw's target: the sum has to exceed this share of the mass. Also for what is no number in [0, 1): the last candidate, or the first.
fn target_of_draw(mass: Wide, uniform_value: f32) -> Wide {
    let one = Wide(1u, 0u);
    if uniform_value >= 1.0 || is_nan(uniform_value) {
        return mass;
    }
    if uniform_value <= 0.0 {
        return one;
    }
    let below = wide_share(mass, uniform_value).floor;
    if wide_less(below, mass) {
        return wide_add(below, one);
    }
    return mass;
}

// Of so many candidates of equal weight behind a sum of `before`, how many it takes to reach the target.
fn count_to_reach(before: Wide, weight: Wide, count: u32, goal: Wide) -> u32 {
    let missing = wide_subtract(goal, before);
    var low = 1u;
    var high = max(count, 1u);
    while low < high {
        let middle = low + (high - low) / 2u;
        if wide_less(wide_times(weight, middle), missing) {
            low = middle + 1u;
        } else {
            high = middle;
        }
    }
    return low;
}

// What is left after some digits of the candidate that is looked for.
struct Search {
    // Its digits so far.
    prefix: u32,
    // Sums before it.
    before: Wide,
    before_count: u32,
    // How many agree in these digits.
    count: u32,
}

// Bins of a digit: one for each invocation.
const BINS = 256u;

// Sums of 64 bits in two words, and counts.
var<workgroup> low: array<atomic<u32>, BINS>;
var<workgroup> high: array<atomic<u32>, BINS>;
var<workgroup> counts: array<atomic<u32>, BINS>;
// Of sixteen each, those of the largest digits first.
var<workgroup> group_weights: array<Wide, 16>;
var<workgroup> group_counts: array<u32, 16>;
var<workgroup> search: Search;

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

// Sums of groups of bins. Behind a barrier, and with one behind it.
fn add_groups(lane: u32) {
    if lane < 16u {
        var weight = Wide(0u);
        var count = 0u;
        for (var i = 0u; i < 16u; i++) {
            let bin = BINS - 1u - (lane * 16u + i);
            weight = wide_add(weight, bin_weight(bin));
            count += atomicLoad(&counts[bin]);
        }
        group_weights[lane] = weight;
        group_counts[lane] = count;
    }
    workgroupBarrier();
}

// The weight of all bins, behind `add_groups`.
fn weight_of_all() -> Wide {
    var weight = Wide(0u);
    for (var i = 0u; i < 16u; i++) {
        weight = wide_add(weight, group_weights[i]);
    }
    return weight;
}

// A target that the candidates reach, behind the first digit's `add_groups`: the same weight may be rounded otherwise where a compiler
// contracts what it is made of.
fn reached(by_count: bool, goal: Wide) -> Wide {
    let most = weight_of_all();
    if !by_count && wide_less(most, goal) {
        return most;
    }
    return goal;
}

// Goes on with the digit at which the sum reaches the target, behind `add_groups`; bins of larger digits come first.
fn follow(by_count: bool, goal: Wide, lane: u32) {
    let bin = BINS - 1u - lane;
    var before = search.before;
    var before_count = search.before_count;
    for (var i = 0u; i < lane / 16u; i++) {
        before = wide_add(before, group_weights[i]);
        before_count += group_counts[i];
    }
    for (var i = lane / 16u * 16u; i < lane; i++) {
        before = wide_add(before, bin_weight(BINS - 1u - i));
        before_count += atomicLoad(&counts[BINS - 1u - i]);
    }
    let count = atomicLoad(&counts[bin]);
    let is_it_by_count = before_count < goal.x && goal.x <= before_count + count;
    let is_it_by_weight = wide_less(before, goal) && !wide_less(wide_add(before, bin_weight(bin)), goal);
    let prefix = (search.prefix << 8u) | bin;
    workgroupBarrier();
    if select(is_it_by_weight, is_it_by_count, by_count) {
        search = Search(prefix, before, before_count, count);
    }
    workgroupBarrier();
}

// Of the candidates that are left once all digits are known, how many it takes to reach the target.
fn taken_of(by_count: bool, goal: Wide, top: u32) -> u32 {
    if by_count {
        return goal.x - search.before_count;
    }
    return count_to_reach(search.before, weight_of(search.prefix, top), search.count, goal);
}

// The weight of all through the last one that is taken.
fn weight_through(taken: u32, top: u32) -> Wide {
    return wide_add(search.before, wide_times(weight_of(search.prefix, top), taken));
}

// Whether the largest is the answer: NaN, an infinity, an only candidate.
fn is_answer(top: u32) -> bool {
    return (bitcast<u32>(value_of(top)) & 0x7f800000u) == 0x7f800000u || (params.has_top_k == 1u && params.top_k == 1u);
}
