// Slots as untrusted numbers: perjoule_kernels::op::slots. Whatever they hold, what follows stays within the operands. Kernels bind them
// as kv_len, q_offsets and block_table; those that an op does not have are absent.

const NOWHERE = 0xffffffffu;

// Keys of a sequence: at most `capacity`, and none for lengths below 0.
fn kv_length(sequence: u32, capacity: u32) -> u32 {
    return min(u32(max(kv_len_int(sequence), 0)), capacity);
}

fn blocks_per_sequence(kv: KvLayout) -> u32 {
    return (kv.capacity + kv.block - 1u) / kv.block;
}

// First element of the vector of `token`, below the capacity, in head 0 of `sequence`; NOWHERE where the block table names no block of the
// cache.
fn kv_vector(kv: KvLayout, sequence: u32, token: u32) -> u32 {
    if !block_table_present {
        return sequence * kv.batch_stride + token * kv.token_stride;
    }
    // the numbers of absent slots are 0, and nothing is to be divided by that
    let length = max(kv.block, 1u);
    let block = block_table_int(sequence * blocks_per_sequence(kv) + token / length);
    if block < 0 || u32(block) >= kv.blocks {
        return NOWHERE;
    }
    return u32(block) * kv.batch_stride + (token % length) * kv.token_stride;
}

// Query rows of one sequence.
struct QueryRows {
    first: u32,
    count: u32,
}

// Those of sequence `b`. Offsets that go down count as if they stayed.
fn query_rows(b: u32, q_len: u32, tokens: u32) -> QueryRows {
    if !q_offsets_present {
        return QueryRows(b * q_len, q_len);
    }
    var highest = 0;
    for (var i = 0u; i <= b; i++) {
        highest = max(highest, q_offsets_int(i));
    }
    let first = min(u32(highest), tokens);
    let end = min(u32(max(highest, q_offsets_int(b + 1u))), tokens);
    return QueryRows(first, min(end - first, q_len));
}

// The sequence that a query row belongs to.
struct Owner {
    // Whether there is one: rows behind the last are padding.
    found: bool,
    sequence: u32,
    rows: QueryRows,
}

// That of row `token`: the sequence before the first offset beyond the row, since offsets that go down count as if they stayed.
fn owner_of(token: u32, batch: u32, q_len: u32, tokens: u32) -> Owner {
    if !q_offsets_present {
        let b = token / max(q_len, 1u);
        return Owner(b < batch, b, QueryRows(b * q_len, q_len));
    }
    var highest = 0;
    for (var next = 0u; next <= batch; next++) {
        let offset = q_offsets_int(next);
        if offset > 0 && u32(offset) > token {
            let first = u32(highest);
            let count = min(min(u32(offset), tokens) - first, q_len);
            return Owner(next > 0u && token < first + count, next - 1u, QueryRows(first, count));
        }
        highest = max(highest, offset);
    }
    return Owner(false, 0u, QueryRows(0u, 0u));
}

// First element of the place in the caches of row `token`, in head 0; NOWHERE where it has none.
fn cache_place(kv: KvLayout, token: u32, batch: u32, q_len: u32, tokens: u32) -> u32 {
    let owner = owner_of(token, batch, q_len, tokens);
    if !owner.found {
        return NOWHERE;
    }
    let length = kv_len_int(owner.sequence);
    // below 2^32
    let behind = u32(max(length, 0)) + (token - owner.rows.first);
    if length < 0 || behind < owner.rows.count {
        return NOWHERE;
    }
    let position = behind - owner.rows.count;
    if position >= kv.capacity {
        return NOWHERE;
    }
    return kv_vector(kv, owner.sequence, position);
}
