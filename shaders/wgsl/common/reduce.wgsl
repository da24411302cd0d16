// Sums and maxima over WIDTH neighbouring invocations of a workgroup of 256, a power of two: each gets the result. The order is fixed,
// so that results are repeatable. All of the workgroup call them together.

var<workgroup> reduced: array<f32, 256>;
// Of sixteen each.
var<workgroup> reduced_again: array<f32, 16>;

var<workgroup> found: u32;

// Begins a kernel that asks `any_of`, once, behind a sum or maximum.
fn expect_none(lane: u32) {
    if lane == 0u {
        found = 0u;
    }
    // a sum of one waits for nobody
    if WIDTH == 1u {
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

fn sum_of(first: u32, count: u32) -> f32 {
    var sum = reduced[first];
    for (var i = 1u; i < count; i++) {
        sum += reduced[first + i];
    }
    return sum;
}

fn largest_of(first: u32, count: u32) -> f32 {
    var most = reduced[first];
    for (var i = 1u; i < count; i++) {
        most = larger(most, reduced[first + i]);
    }
    return most;
}

fn reduce_sum(value: f32, lane: u32) -> f32 {
    if WIDTH == 1u {
        return value;
    }
    // what an earlier one left may still be read
    workgroupBarrier();
    reduced[lane] = value;
    workgroupBarrier();
    let row = lane / WIDTH * WIDTH;
    if WIDTH <= 16u {
        return sum_of(row, WIDTH);
    }
    if lane < 16u {
        reduced_again[lane] = sum_of(lane * 16u, 16u);
    }
    workgroupBarrier();
    var sum = reduced_again[row / 16u];
    for (var i = 1u; i < WIDTH / 16u; i++) {
        sum += reduced_again[row / 16u + i];
    }
    return sum;
}

fn reduce_max(value: f32, lane: u32) -> f32 {
    if WIDTH == 1u {
        return value;
    }
    workgroupBarrier();
    reduced[lane] = value;
    workgroupBarrier();
    let row = lane / WIDTH * WIDTH;
    if WIDTH <= 16u {
        return largest_of(row, WIDTH);
    }
    if lane < 16u {
        reduced_again[lane] = largest_of(lane * 16u, 16u);
    }
    workgroupBarrier();
    var most = reduced_again[row / 16u];
    for (var i = 1u; i < WIDTH / 16u; i++) {
        most = larger(most, reduced_again[row / 16u + i]);
    }
    return most;
}
