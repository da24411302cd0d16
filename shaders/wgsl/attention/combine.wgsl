// Puts the parts of splits.wgsl together: a workgroup takes a row, an invocation a four of the head.

struct Params {
    op: Attention,
    tiles: u32,
    units: u32,
    splits: u32,
    unused: u32,
}

const SPLIT = 128u;

var<workgroup> broken: array<u32, 64>;

@compute @workgroup_size(64)
fn combine(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let p = params.op;
    let number = group_number(group, groups);
    let block = number / R;
    let unit = block % params.units;
    if block / params.units >= params.tiles {
        return;
    }
    let kv_head = unit % p.kv.kv_heads;
    let s = sequence_of(p, unit / p.kv.kv_heads);
    let row = block / params.units * R + number % R;
    if row >= s.count * p.group {
        return;
    }
    let head = kv_head * p.group + row % p.group;
    let seen = visible(p, s, row / p.group);
    let is_empty = seen.x >= seen.y;
    let first = seen.x / SPLIT;
    let behind = select((seen.y + SPLIT - 1u) / SPLIT, first, is_empty);
    let record = (block * params.splits * R + number % R) * (QUADS + 1u) + parts_at();
    let pitch = R * (QUADS + 1u);
    var top = -infinity();
    if sinks_present {
        top = higher(top, sinks_get(head));
    }
    for (var split = first; split < behind; split++) {
        top = higher(top, parts_words[record + split * pitch + QUADS].x);
    }
    let less = subtrahend(top);
    var sum = 0.0;
    if sinks_present {
        sum = exp_fast(sinks_get(head) - less);
    }
    var value = vec4<f32>(0.0);
    for (var split = first; split < behind; split++) {
        let at = record + split * pitch;
        let end = parts_words[at + QUADS];
        let weight = exp_fast(end.x - less);
        sum += end.y * weight;
        value += weight * parts_words[at + min(lane, QUADS - 1u)];
    }
    value = select(value / sum, vec4<f32>(0.0), is_empty);
    if lane < QUADS {
        out_quad_set(start_of(p.out, (s.first + row / p.group) * p.heads + head) / 4u + lane, value);
    }
    let total = value * 0.0;
    broken[lane] = select(0u, 1u, is_nan(total.x + total.y + total.z + total.w));
    storageBarrier();
    workgroupBarrier();
    if lane == 0u {
        var any = 0u;
        for (var i = 0u; i < QUADS; i++) {
            any |= broken[i];
        }
        if any != 0u {
            exact_row(p, s, row / p.group, head, seen);
        }
    }
}
