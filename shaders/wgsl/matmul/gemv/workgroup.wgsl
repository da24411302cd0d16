// Sums meet in workgroup memory: for every adapter.

// [value][lane]
var<workgroup> partial: array<Sum, VALUES * LANES>;

// Lanes that add up one value.
const SHARE = LANES / VALUES;

fn meet(sums: array<Sum, VALUES>, lane: u32) -> Sum {
    var own = sums;
    // unroll
    for (var v = 0u; v < VALUES; v++) {
        partial[v * LANES + lane] = own[v];
    }
    workgroupBarrier();
    let value = lane / SHARE;
    var sum = Sum(0);
    for (var i = lane % SHARE; i < LANES; i += SHARE) {
        sum += partial[value * LANES + i];
    }
    workgroupBarrier();
    partial[lane] = sum;
    workgroupBarrier();
    var total = Sum(0);
    if lane < VALUES {
        for (var i = 0u; i < SHARE; i++) {
            total += partial[lane * SHARE + i];
        }
    }
    return total;
}

// The total of the up projection beside that of the gate in the same lane.
fn of_up(total: Sum, lane: u32) -> Sum {
    workgroupBarrier();
    if lane < VALUES {
        partial[lane] = total;
    }
    workgroupBarrier();
    return partial[(lane + ROWS * TOKENS) % VALUES];
}

@compute @workgroup_size(LANES)
fn matmul(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    gemv(group, groups, lane);
}
