// Where elements lie: perjoule_kernels::layout, field by field. Strides in elements.

// `outer x inner` vectors of `len` contiguous elements.
struct Rows {
    outer: u32,
    inner: u32,
    len: u32,
    outer_stride: u32,
    inner_stride: u32,
    unused_a: u32,
    unused_b: u32,
    unused_c: u32,
}

// First element of vector `index`, counting inner first.
fn start_of(rows: Rows, index: u32) -> u32 {
    // most operands: a division takes longer than all the rest of an addition
    if rows.inner == 1u {
        return index * rows.outer_stride;
    }
    return (index / rows.inner) * rows.outer_stride + (index % rows.inner) * rows.inner_stride;
}

// A KV cache; `block` is 0 where it is contiguous.
struct KvLayout {
    kv_heads: u32,
    capacity: u32,
    head_dim: u32,
    batch_stride: u32,
    head_stride: u32,
    token_stride: u32,
    block: u32,
    blocks: u32,
}

// Number of a workgroup in a grid of two dimensions, which stands for one of more than 65,535.
fn group_number(id: vec3<u32>, count: vec3<u32>) -> u32 {
    return id.y * count.x + id.x;
}
