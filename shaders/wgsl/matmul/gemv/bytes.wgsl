// Weights whose rows begin at any byte, read as words that may straddle two.

// The upper part of one word and the lower part of the next.
fn straddle(low: u32, high: u32, at: u32) -> u32 {
    let shift = (at & 3u) * 8u;
    return (low >> shift) | ((high << 1u) << (31u - shift));
}

// Four bytes. No word is touched that has none of them.
fn word_at(side: u32, at: u32) -> u32 {
    return straddle(weight_words(side, at >> 2u), weight_words(side, (at + 3u) >> 2u), at);
}

fn byte_at(side: u32, at: u32) -> u32 {
    return (weight_words(side, at >> 2u) >> ((at & 3u) * 8u)) & 255u;
}

// A number in f16 at an even byte.
fn half_at(side: u32, at: u32) -> f32 {
    return f16_to_f32((weight_words(side, at >> 2u) >> ((at & 2u) * 8u)) & 65535u);
}
