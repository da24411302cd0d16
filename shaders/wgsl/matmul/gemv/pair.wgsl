// Words of the weights of a pair: gate, then up.

fn weight_words(side: u32, i: u32) -> Word {
    if side == 0u {
        return b_words[i];
    }
    return up_words[i];
}

fn weight_base(side: u32) -> u32 {
    return select(up_at(), b_at(), side == 0u);
}
