// out = a + b, an element an invocation.

struct Params {
    a: Rows,
    b: Rows,
    out: Rows,
}

@compute @workgroup_size(256)
fn add(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let vectors = params.out.outer * params.out.inner;
    let at = group_number(group, groups) * 256u + lane;
    let vector = at / params.out.len;
    let d = at % params.out.len;
    if vector < vectors {
        let sum = a_get(start_of(params.a, vector) + d) + b_get(start_of(params.b, vector) + d);
        out_set(start_of(params.out, vector) + d, sum);
    }
}
