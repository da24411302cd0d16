// Puts the parts of splits.wgsl together: a workgroup takes a row, an invocation a four of the head, for every SLICES-th part.

struct Params {
    op: Attention,
    tiles: u32,
    units: u32,
    splits: u32,
    unused: u32,
}

const SPLIT = 128u;

const LANES = 64u;
const SLICES = LANES / QUADS;

var<workgroup> tops: array<f32, LANES>;
var<workgroup> sums: array<f32, LANES>;
var<workgroup> values: array<vec4<f32>, LANES>;
var<workgroup> broken: array<u32, LANES>;

@compute @workgroup_size(LANES)
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
    for (var split = first + lane; split < behind; split += LANES) {
        top = higher(top, parts_words[record + split * pitch + QUADS].x);
    }
    tops[lane] = top;
    workgroupBarrier();
    for (var i = 0u; i < min(behind - first, LANES); i++) {
        top = higher(top, tops[i]);
    }
    if sinks_present {
        top = higher(top, sinks_get(head));
    }
    let less = subtrahend(top);
    let slice = lane / QUADS;
    var sum = 0.0;
    var value = vec4<f32>(0.0);
    if slice < SLICES {
        for (var split = first + slice; split < behind; split += SLICES) {
            let at = record + split * pitch;
            let end = parts_words[at + QUADS];
            let weight = exp_fast(end.x - less);
            sum += end.y * weight;
            value += weight * parts_words[at + lane % QUADS];
        }
    }
    sums[lane] = sum;
    values[lane] = value;
    workgroupBarrier();
    for (var i = 1u; i < SLICES; i++) {
        sum += sums[i * QUADS];
        value += values[i * QUADS + lane % QUADS];
    }
    if sinks_present {
        sum += exp_fast(sinks_get(head) - less);
    }
    value = select(value / sum, vec4<f32>(0.0), is_empty);
    if lane < QUADS {
        out_quad_set(start_of(p.out, (s.first + row / p.group) * p.heads + head) / 4u + lane, value);
    }
    broken[lane] = select(1u, 0u, are_finite(value));
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
