// Words of the weights of a product.

fn weight_words(side: u32, i: u32) -> Word {
    return b_words[i];
}

fn weight_base(side: u32) -> u32 {
    return b_at();
}
