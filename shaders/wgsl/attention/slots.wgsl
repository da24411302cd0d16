// What the kernels of attention share: sizes, slots and masks.

struct Attention {
    q: Rows,
    out: Rows,
    kv: KvLayout,
    // Most query rows of a sequence, and rows of all.
    q_len: u32,
    tokens: u32,
    // Query heads, and those of a key/value head.
    heads: u32,
    group: u32,
    causal: u32,
    // Keys up to a query's position less the window are hidden; 0 where there is none.
    window: u32,
    scale: f32,
    // 0 where scores are not capped.
    soft_cap: f32,
}

// The query rows of a sequence, and its keys.
struct Sequence {
    b: u32,
    first: u32,
    count: u32,
    length: u32,
}

fn sequence_of(p: Attention, b: u32) -> Sequence {
    let rows = query_rows(b, p.q_len, p.tokens);
    // a cache without blocks has nothing to see
    let length = select(kv_length(b, p.kv.capacity), 0u, block_table_present && p.kv.blocks == 0u);
    return Sequence(b, rows.first, rows.count, length);
}

// The first key that query `i` of a sequence sees, and the one behind the last.
fn visible(p: Attention, s: Sequence, i: u32) -> vec2<u32> {
    let upto = u32(max(i32(s.length + i + 1u) - i32(s.count), 0));
    let end = select(s.length, min(upto, s.length), p.causal != 0u);
    let hidden = select(0u, upto - min(upto, p.window), p.window > 0u);
    return vec2<u32>(min(hidden, end), end);
}

// First element of the vector of `token` in key/value head `head`: of a block that does not exist the first of the cache.
fn vector_at(p: Attention, s: Sequence, head: u32, token: u32) -> u32 {
    let at = kv_vector(p.kv, s.b, token);
    return select(at, 0u, at == NOWHERE) + head * p.kv.head_stride;
}

fn score_of(p: Attention, product: f32) -> f32 {
    let score = product * p.scale;
    if p.soft_cap != 0.0 {
        return p.soft_cap * tanh_of(score / p.soft_cap);
    }
    return score;
}

// The larger one; NaN, which reaches the result through the weights, counts for nothing.
fn higher(top: f32, score: f32) -> f32 {
    return select(top, score, !is_nan(score) && score > top);
}

// The number that is subtracted from scores before they are exponentiated: 0 where there is no finite score yet.
fn subtrahend(top: f32) -> f32 {
    return select(top, 0.0, is_minus_infinity(top));
}
