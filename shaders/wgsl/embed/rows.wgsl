// Rows of a table by index, scaled; NaN where the table has no such row. The table, or where that is too large for a binding a window of
// its rows: then each launch writes what its window has.

struct Params {
    out: Rows,
    // Rows of the table.
    vocab: u32,
    // First row of the window, and how many it has.
    first: u32,
    rows: u32,
    scale: f32,
    // Whether this launch writes the NaN.
    is_first: u32,
    unused_a: u32,
    unused_b: u32,
    unused_c: u32,
}

@compute @workgroup_size(256)
fn embed(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let place = place_of(params.out, group_number(group, groups) * 256u + lane);
    if !place.there {
        return;
    }
    let id = bitcast<u32>(ids_int(place.vector));
    let to = start_of(params.out, place.vector) + place.at;
    // negative ones are large
    if id >= params.vocab {
        if params.is_first == 1u {
            out_set(to, Value(nan()));
        }
        return;
    }
    let row = id - params.first;
    if row < params.rows {
        out_set(to, table_get(row * params.out.len + place.at) * params.scale);
    }
}
