// Rows of A that every lane reads.

fn eight(sums: ptr<function, Sums>, r: u32, left: u32, lane: u32, b: Quad) {
    multiply_row(sums, r, left_words[left + r], b);
    multiply_row(sums, r + 1u, left_words[left + r + 1u], b);
    multiply_row(sums, r + 2u, left_words[left + r + 2u], b);
    multiply_row(sums, r + 3u, left_words[left + r + 3u], b);
    multiply_row(sums, r + 4u, left_words[left + r + 4u], b);
    multiply_row(sums, r + 5u, left_words[left + r + 5u], b);
    multiply_row(sums, r + 6u, left_words[left + r + 6u], b);
    multiply_row(sums, r + 7u, left_words[left + r + 7u], b);
}
