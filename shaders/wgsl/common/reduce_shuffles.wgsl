// What stands for reduce.wgsl on devices whose subgroups have SUBGROUP invocations or more, a power of two: neighbours within one add by
// shuffles, and through workgroup memory goes only what is left of WIDTH invocations that are more. The order is fixed here, too, which that
// of subgroupAdd is not, and maxima pass over NaN, which those of subgroupMax may not.

const SPAN = select(WIDTH, SUBGROUP, SUBGROUP < WIDTH);
// Of a workgroup.
const SPANS = 256u / SPAN;

// What is left of each span, in two halves that take turns: who writes one has seen all others leave what it held before.
var<workgroup> reduced: array<f32, 2u * SPANS>;
var<private> turn: u32;

var<workgroup> found: u32;

// Begins a kernel that asks `any_of`, once, behind a sum or maximum.
fn expect_none(lane: u32) {
    if lane == 0u {
        found = 0u;
    }
    // sums within subgroups wait for nobody
    if WIDTH == SPAN {
        workgroupBarrier();
    }
}

// Whether it holds for any of the workgroup: the same for all, which compilers know.
fn any_of(holds: bool) -> bool {
    if holds {
        found = 1u;
    }
    return workgroupUniformLoad(&found) != 0u;
}

// Gives where the spans of the invocation's row begin.
fn meet(value: f32, lane: u32) -> u32 {
    let half = turn * SPANS;
    turn = 1u - turn;
    if lane % SPAN == 0u {
        reduced[half + lane / SPAN] = value;
    }
    workgroupBarrier();
    return half + lane / WIDTH * (WIDTH / SPAN);
}

fn reduce_sum(value: f32, lane: u32) -> f32 {
    var sum = value;
    for (var step = 1u; step < SPAN; step *= 2u) {
        sum += subgroupShuffleXor(sum, step);
    }
    if WIDTH == SPAN {
        return sum;
    }
    let first = meet(sum, lane);
    sum = reduced[first];
    for (var i = 1u; i < WIDTH / SPAN; i++) {
        sum += reduced[first + i];
    }
    return sum;
}

fn reduce_max(value: f32, lane: u32) -> f32 {
    var most = value;
    for (var step = 1u; step < SPAN; step *= 2u) {
        most = larger(most, subgroupShuffleXor(most, step));
    }
    if WIDTH == SPAN {
        return most;
    }
    let first = meet(most, lane);
    most = reduced[first];
    for (var i = 1u; i < WIDTH / SPAN; i++) {
        most = larger(most, reduced[first + i]);
    }
    return most;
}
