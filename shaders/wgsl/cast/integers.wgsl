// Conversion of 32-bit integers, which f32 does not hold; an element an invocation. SIGNED says which of the two they are, and TO what they
// become: 0 a float narrower than f32, 1 f32, 2 i8, 3 i32, 4 u32.

struct Params {
    x: Rows,
    out: Rows,
}

// The nearest f32, ties to even; or, where `odd`, the f32 that rounds to the same value of a narrower float as the integer itself does
// (round to odd: Boldo and Melquiond, "When double rounding is odd").
fn magnitude_to_f32(magnitude: u32, odd: bool) -> f32 {
    if magnitude == 0u {
        return 0.0;
    }
    let zeros = countLeadingZeros(magnitude);
    let normal = magnitude << zeros;
    let kept = normal >> 8u;
    let rest = normal & 255u;
    let up = rest > 128u || (rest == 128u && (kept & 1u) == 1u);
    let rounded = select(kept + u32(up), kept | u32(rest != 0u), odd);
    // the leading bit counts as one of the exponent
    return bitcast<f32>(((157u - zeros) << 23u) + rounded);
}

@compute @workgroup_size(256)
fn convert(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let place = place_of(params.out, group_number(group, groups) * 256u + lane);
    if !place.there {
        return;
    }
    let value = x_int(start_of(params.x, place.vector) + place.at);
    let bits = bitcast<u32>(value);
    let negative = SIGNED && value < 0;
    let magnitude = select(bits, 0u - bits, negative);
    let to = start_of(params.out, place.vector) + place.at;
    if TO <= 1u {
        let wide = magnitude_to_f32(magnitude, TO == 0u);
        out_set(to, select(wide, -wide, negative));
    } else if TO == 2u {
        // -128 to 127
        let code = bitcast<i32>(min(magnitude, select(127u, 128u, negative)));
        out_set_int(to, select(code, -code, negative));
    } else if TO == 3u {
        out_set_int(to, select(bitcast<i32>(min(bits, 0x7fffffffu)), value, SIGNED));
    } else {
        out_set_int(to, select(value, 0, negative));
    }
}
