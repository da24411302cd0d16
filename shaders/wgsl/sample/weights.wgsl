// What the kernels share that draw a token (top-k; top-p, arXiv:1904.09751).
//
// Each question is the same: which candidate, in descending order, is the first at which a sum reaches a target? The sum is one of
// candidates (top-k) or of weights (top-p, and the draw itself). Histograms of counts and weights over the digits of the logits' numbers
// lead to it, digit by digit. Weights are integers (fixed point), so that sums do not depend on the order of atomics.

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
    unused: u32,
}

const ASK_TOP_K = 0u;
const ASK_TOP_P = 1u;
const ASK_DRAW = 2u;

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
    if !(uniform_value < 1.0) {
        return mass;
    }
    if !(uniform_value > 0.0) {
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

// Bins of a digit.
const BINS = 256u;

// The digit at which the sum reaches the target, by one invocation; `HISTOGRAM_` functions give bins. Bins of larger digits come first.
fn follow(search: Search, by_count: bool, goal: Wide) -> Search {
    var next = search;
    for (var i = 0u; i < BINS; i++) {
        let bin = BINS - 1u - i;
        let count = bin_count(bin);
        if count == 0u {
            continue;
        }
        let weight = wide_add(next.before, bin_weight(bin));
        let reached = select(!wide_less(weight, goal), next.before_count + count >= goal.x, by_count);
        // where nothing reaches it, which rounding does not bring about, the last one counts
        next.prefix = (search.prefix << 8u) | bin;
        next.count = count;
        if reached {
            break;
        }
        next.before = weight;
        next.before_count += count;
    }
    return next;
}
