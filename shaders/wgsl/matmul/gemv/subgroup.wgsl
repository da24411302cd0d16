// Sums meet by additions within subgroups, then in workgroup memory.

// [value][subgroup]; no subgroup has fewer than four invocations.
const MOST_SUBGROUPS = LANES / 4u;
var<workgroup> partial: array<Sum, VALUES * MOST_SUBGROUPS>;

// Number of the subgroup, of the lane in it, and how many there are.
var<private> place: vec3<u32>;

fn meet(sums: array<Sum, VALUES>, lane: u32) -> Sum {
    var own = sums;
    // unroll
    for (var v = 0u; v < VALUES; v++) {
        let sum = subgroupAdd(own[v]);
        if place.y == 0u {
            partial[v * MOST_SUBGROUPS + place.x] = sum;
        }
    }
    workgroupBarrier();
    var total = Sum(0);
    if lane < VALUES {
        for (var i = 0u; i < place.z; i++) {
            total += partial[lane * MOST_SUBGROUPS + i];
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
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_invocation_id) within: u32,
    @builtin(num_subgroups) subgroups: u32,
) {
    place = vec3<u32>(subgroup, within, subgroups);
    gemv(group, groups, lane);
}
