// Keys and values of new tokens into the caches, four elements an invocation. Of keys and values those that are present. Vectors begin at
// multiples of four elements.

struct Params {
    k: Rows,
    v: Rows,
    kv: KvLayout,
    batch: u32,
    q_len: u32,
    tokens: u32,
    unused: u32,
}

@compute @workgroup_size(64)
fn append(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let at = group_number(group, groups) * 64u + lane;
    let quads = params.kv.head_dim / 4u;
    let kinds = select(1u, 2u, k_present);
    let token = at / (quads * params.kv.kv_heads * kinds);
    if token >= params.tokens {
        return;
    }
    let place = cache_place(params.kv, token, params.batch, params.q_len, params.tokens);
    if place == NOWHERE {
        return;
    }
    let quad = at % quads;
    let vector = at / quads % (params.kv.kv_heads * kinds);
    let head = vector / kinds;
    let to = (place + head * params.kv.head_stride) / 4u + quad;
    if !k_present || vector % 2u == 1u {
        v_cache_quad_set(to, v_quad((token * params.v.outer_stride + head * params.v.inner_stride) / 4u + quad));
    } else {
        k_cache_quad_set(to, k_quad((token * params.k.outer_stride + head * params.k.inner_stride) / 4u + quad));
    }
}
