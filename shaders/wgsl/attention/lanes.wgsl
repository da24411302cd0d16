// Attention without workgroup memory, for adapters that compute on the CPU: an invocation is a lane of a vector of 8, and holds R rows
// (pairs of a query and one of the heads that share keys) with their results in registers or what stands for them. Each lane reads the
// elements of one key, which go to all of them by broadcasts: those take an instruction, while reads of memory are checked one by one.
//
// Vectors begin at multiples of four elements. Compiled for OUTER and INNER (loops over the fours of a head, each short enough to be unrolled), R, and CAPPED
// (whether scores are capped).

struct Params {
    op: Attention,
    // Groups of rows of a sequence and a key/value head, and such pairs.
    tiles: u32,
    units: u32,
    unused_a: u32,
    unused_b: u32,
}

const LANES = 8u;
const QUADS = OUTER * INNER;

// What every lane has, for all of them.
fn spread(x: f32) -> array<f32, 8> {
    return array<f32, 8>(
        subgroupBroadcast(x, 0u),
        subgroupBroadcast(x, 1u),
        subgroupBroadcast(x, 2u),
        subgroupBroadcast(x, 3u),
        subgroupBroadcast(x, 4u),
        subgroupBroadcast(x, 5u),
        subgroupBroadcast(x, 6u),
        subgroupBroadcast(x, 7u),
    );
}

@compute @workgroup_size(8)
fn attention(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let p = params.op;
    let number = group_number(group, groups);
    // neighbours share keys and values: what caches hold
    let unit = number / params.tiles;
    let tile = number % params.tiles;
    if unit >= params.units {
        return;
    }
    let kv_head = unit % p.kv.kv_heads;
    let s = sequence_of(p, unit / p.kv.kv_heads);
    let rows = s.count * p.group;
    // those that see the most keys first
    let first = (params.tiles - 1u - tile) * LANES * R;
    if first >= rows {
        return;
    }
    var q: array<array<vec4<f32>, QUADS>, R>;
    var values: array<array<vec4<f32>, QUADS>, R>;
    var tops: array<f32, R>;
    var sums: array<f32, R>;
    for (var r = 0u; r < R; r++) {
        // rows that do not exist are the last one again, and never stored
        let row = min(first + r * LANES + lane, rows - 1u);
        let vector = (s.first + row / p.group) * p.heads + kv_head * p.group + row % p.group;
        let begin = start_of(p.q, vector) / 4u;
        tops[r] = -infinity();
        sums[r] = 0.0;
        for (var o = 0u; o < OUTER; o++) {
            for (var i = 0u; i < INNER; i++) {
                q[r][o * INNER + i] = q_quad(begin + o * INNER + i);
                values[r][o * INNER + i] = vec4<f32>(0.0);
            }
        }
    }
    let last = min(first + LANES * R, rows) - 1u;
    let seen_first = visible(p, s, first / p.group);
    let seen_last = visible(p, s, last / p.group);
    for (var key = seen_first.x; key < seen_last.y; key += LANES) {
        let at = vector_at(p, s, kv_head, min(key + lane, seen_last.y - 1u)) / 4u;
        var scores: array<array<f32, 8>, R>;
        for (var r = 0u; r < R; r++) {
            for (var j = 0u; j < LANES; j++) {
                scores[r][j] = 0.0;
            }
        }
        for (var o = 0u; o < OUTER; o++) {
            for (var i = 0u; i < INNER; i++) {
                let own = k_quad(at + o * INNER + i);
                for (var c = 0u; c < 4u; c++) {
                    let elements = spread(own[c]);
                    for (var r = 0u; r < R; r++) {
                        for (var j = 0u; j < LANES; j++) {
                            scores[r][j] += q[r][o * INNER + i][c] * elements[j];
                        }
                    }
                }
            }
        }
        for (var r = 0u; r < R; r++) {
            for (var j = 0u; j < LANES; j++) {
                scores[r][j] *= p.scale;
                if CAPPED {
                    scores[r][j] = p.soft_cap * tanh_of(scores[r][j] / p.soft_cap);
                }
            }
        }
        // rows see more and later keys one after the other
        let masked = key < seen_last.x || key + LANES > seen_first.y;
        if masked {
            for (var r = 0u; r < R; r++) {
                let seen = visible(p, s, min(first + r * LANES + lane, rows - 1u) / p.group);
                for (var j = 0u; j < LANES; j++) {
                    scores[r][j] = select(-infinity(), scores[r][j], key + j >= seen.x && key + j < seen.y);
                }
            }
        }
        var keeps: array<f32, R>;
        for (var r = 0u; r < R; r++) {
            var top = tops[r];
            for (var j = 0u; j < LANES; j++) {
                // false where a score is NaN
                top = select(top, scores[r][j], scores[r][j] > top);
            }
            let less = subtrahend(top);
            keeps[r] = exp_fast(tops[r] - less);
            tops[r] = top;
            sums[r] *= keeps[r];
            for (var j = 0u; j < LANES; j++) {
                scores[r][j] = exp_fast(scores[r][j] - less);
                sums[r] += scores[r][j];
            }
        }
        for (var o = 0u; o < OUTER; o++) {
            for (var i = 0u; i < INNER; i++) {
                let own = v_quad(at + o * INNER + i);
                for (var c = 0u; c < 4u; c++) {
                    let elements = spread(own[c]);
                    for (var r = 0u; r < R; r++) {
                        var value = values[r][o * INNER + i][c] * keeps[r];
                        for (var j = 0u; j < LANES; j++) {
                            value += scores[r][j] * elements[j];
                        }
                        values[r][o * INNER + i][c] = value;
                    }
                }
            }
        }
    }
    // a bit for each row that is to be computed again
    var broken = 0u;
    for (var r = 0u; r < R; r++) {
        let row = first + r * LANES + lane;
        if row < rows {
            let head = kv_head * p.group + row % p.group;
            let begin = start_of(p.out, (s.first + row / p.group) * p.heads + head) / 4u;
            let seen = visible(p, s, row / p.group);
            var share = 1.0;
            if sinks_present {
                let top = higher(tops[r], sinks_get(head));
                let less = subtrahend(top);
                share = exp_fast(tops[r] - less);
                sums[r] = sums[r] * share + exp_fast(sinks_get(head) - less);
            }
            share /= sums[r];
            var all_finite = true;
            for (var o = 0u; o < OUTER; o++) {
                for (var i = 0u; i < INNER; i++) {
                    let value = values[r][o * INNER + i] * share;
                    all_finite = all_finite && are_finite(value);
                    out_quad_set(begin + o * INNER + i, select(vec4<f32>(0.0), value, seen.x < seen.y));
                }
            }
            broken |= select(0u, 1u << r, !all_finite && seen.x < seen.y);
        }
    }
    while broken != 0u {
        let r = countTrailingZeros(broken);
        broken &= broken - 1u;
        let row = first + r * LANES + lane;
        exact_row(p, s, row / p.group, kv_head * p.group + row % p.group, visible(p, s, row / p.group));
    }
}
