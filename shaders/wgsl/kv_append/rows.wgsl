// Keys and values of new tokens into the caches, UNIT elements an invocation: one, or a block of q8_0. Of keys and values those that are
// present.

struct Params {
    k: Rows,
    v: Rows,
    kv: KvLayout,
    batch: u32,
    q_len: u32,
    tokens: u32,
    unused: u32,
}

fn source(values: bool, i: u32) -> f32 {
    if values {
        return v_get(i);
    }
    return k_get(i);
}

fn put_byte(values: bool, at: u32, byte: u32) {
    if values {
        v_cache_put_byte(at, byte);
    } else {
        k_cache_put_byte(at, byte);
    }
}

@compute @workgroup_size(64)
fn append(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let at = group_number(group, groups) * 64u + lane;
    let units = params.kv.head_dim / UNIT;
    let kinds = select(1u, 2u, k_present);
    let token = at / (units * params.kv.kv_heads * kinds);
    if token >= params.tokens {
        return;
    }
    let place = cache_place(params.kv, token, params.batch, params.q_len, params.tokens);
    if place == NOWHERE {
        return;
    }
    let vector = at / units % (params.kv.kv_heads * kinds);
    let d = at % units * UNIT;
    let head = vector / kinds;
    let values = !k_present || vector % 2u == 1u;
    let view_start = select(
        token * params.k.outer_stride + head * params.k.inner_stride,
        token * params.v.outer_stride + head * params.v.inner_stride,
        values,
    );
    let begin = view_start + d;
    let to = place + head * params.kv.head_stride + d;
    if UNIT == 1u {
        if values {
            v_cache_set(to, v_get(begin));
        } else {
            k_cache_set(to, k_get(begin));
        }
        return;
    }
    var most = 0.0;
    for (var i = 0u; i < 32u; i++) {
        let magnitude = abs(source(values, begin + i));
        // what a block holds whose source is not finite is not specified
        most = select(most, magnitude, magnitude > most);
    }
    let scale = q8_0_scale(most);
    let inverse = q8_0_inverse(scale);
    let block = to / 32u * 34u;
    let bits = f32_to_f16(scale);
    put_byte(values, block, bits & 255u);
    put_byte(values, block + 1u, bits >> 8u);
    for (var i = 0u; i < 32u; i++) {
        put_byte(values, block + 2u + i, q8_0_code(source(values, begin + i), inverse));
    }
}
