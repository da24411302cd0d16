// The second step of route/experts.wgsl.

struct Params {
    tokens: u32,
    experts: u32,
    top_k: u32,
    over_all: u32,
}

// Pairs of an invocation at a time, one after the other.
const EACH = 8u;

var<workgroup> of_lanes: array<u32, 256>;
var<workgroup> of_groups: array<u32, 16>;

// What the invocations before this one have, and what all have together.
fn scan(own: u32, lane: u32) -> vec2<u32> {
    workgroupBarrier();
    of_lanes[lane] = own;
    workgroupBarrier();
    if lane < 16u {
        var sum = 0u;
        for (var i = 0u; i < 16u; i++) {
            sum += of_lanes[lane * 16u + i];
        }
        of_groups[lane] = sum;
    }
    workgroupBarrier();
    var before = 0u;
    var all = 0u;
    for (var i = 0u; i < 16u; i++) {
        before += select(0u, of_groups[i], i < lane / 16u);
        all += of_groups[i];
    }
    for (var i = lane / 16u * 16u; i < lane; i++) {
        before += of_lanes[i];
    }
    return vec2<u32>(before, all);
}

@compute @workgroup_size(256)
fn sort(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let expert = group_number(group, groups);
    if expert >= params.experts {
        return;
    }
    let pairs = params.tokens * params.top_k;
    var below = 0u;
    for (var pair = lane; pair < pairs; pair += 256u) {
        below += u32(u32(chosen_int(pair)) < expert);
    }
    var at = scan(below, lane).y;
    if lane == 0u {
        offsets_of_set_int(expert, bitcast<i32>(at));
        if expert + 1u == params.experts {
            offsets_of_set_int(expert + 1u, bitcast<i32>(pairs));
        }
    }
    for (var from_pair = 0u; from_pair < pairs; from_pair += EACH * 256u) {
        let first = from_pair + EACH * lane;
        var mine = 0u;
        for (var i = 0u; i < EACH; i++) {
            if first + i < pairs && u32(chosen_int(first + i)) == expert {
                mine |= 1u << i;
            }
        }
        let place = scan(countOneBits(mine), lane);
        var to = at + place.x;
        while mine != 0u {
            order_set_int(to, bitcast<i32>(first + countTrailingZeros(mine)));
            to += 1u;
            mine &= mine - 1u;
        }
        at += place.y;
    }
}
