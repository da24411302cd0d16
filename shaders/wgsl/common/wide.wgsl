// Integers of 64 bits, the lower half first.

alias Wide = vec2<u32>;

fn wide_add(a: Wide, b: Wide) -> Wide {
    let low = a.x + b.x;
    return Wide(low, a.y + b.y + u32(low < a.x));
}

fn wide_less(a: Wide, b: Wide) -> bool {
    return a.y < b.y || (a.y == b.y && a.x < b.x);
}

fn wide_subtract(a: Wide, b: Wide) -> Wide {
    return Wide(a.x - b.x, a.y - b.y - u32(a.x < b.x));
}

// The product of two numbers of 32 bits.
fn wide_product(a: u32, b: u32) -> Wide {
    let low = (a & 65535u) * (b & 65535u);
    let first = (a >> 16u) * (b & 65535u) + (low >> 16u);
    let second = (a & 65535u) * (b >> 16u) + (first & 65535u);
    return Wide((second << 16u) | (low & 65535u), (a >> 16u) * (b >> 16u) + (first >> 16u) + (second >> 16u));
}

// a * b modulo 2^64.
fn wide_times(a: Wide, b: u32) -> Wide {
    let low = wide_product(a.x, b);
    return Wide(low.x, low.y + a.y * b);
}

fn wide_left(a: Wide, shift: u32) -> Wide {
    if shift >= 64u {
        return Wide(0u);
    }
    if shift >= 32u {
        return Wide(0u, a.x << (shift - 32u));
    }
    if shift == 0u {
        return a;
    }
    return Wide(a.x << shift, (a.y << shift) | (a.x >> (32u - shift)));
}

fn wide_right(a: Wide, shift: u32) -> Wide {
    if shift >= 64u {
        return Wide(0u);
    }
    if shift >= 32u {
        return Wide(a.y >> (shift - 32u), 0u);
    }
    if shift == 0u {
        return a;
    }
    return Wide((a.x >> shift) | (a.y << (32u - shift)), a.y >> shift);
}

// floor(share * 2^exponent) of a share of 0 to 1: the number that it has in fixed point.
fn wide_of(share: f32, exponent: u32) -> Wide {
    let bits = bitcast<u32>(share);
    let own = bits >> 23u;
    if own == 0u {
        return Wide(0u);
    }
    let mantissa = Wide((bits & 0x7fffffu) | 0x800000u, 0u);
    // mantissa * 2^(own - 150 + exponent)
    let left = own + exponent;
    if left >= 150u {
        return wide_left(mantissa, left - 150u);
    }
    return wide_right(mantissa, 150u - left);
}

// share * a of a share of 0 to 1: its floor, and whether something was cut off.
struct Shared {
    floor: Wide,
    is_cut: bool,
}

fn wide_share(a: Wide, share: f32) -> Shared {
    let bits = bitcast<u32>(share);
    let own = bits >> 23u;
    if own == 0u {
        return Shared(Wide(0u), (bits != 0u) && any(a != Wide(0u)));
    }
    let mantissa = (bits & 0x7fffffu) | 0x800000u;
    // 96 bits: the lowest 32, and the rest
    let low = wide_product(a.x, mantissa);
    let high = wide_add(wide_product(a.y, mantissa), Wide(low.y, 0u));
    // to be shifted by 23 to 149 bits
    let shift = 150u - own;
    if shift >= 32u {
        let floor = wide_right(high, shift - 32u);
        return Shared(floor, low.x != 0u || any(wide_left(floor, min(shift - 32u, 64u)) != high));
    }
    let floor = wide_add(wide_left(high, 32u - shift), Wide(low.x >> shift, 0u));
    return Shared(floor, (low.x << (32u - shift)) != 0u);
}
