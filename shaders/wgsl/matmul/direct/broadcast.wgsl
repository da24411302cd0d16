// Rows of A that reach all lanes from the lane that reads them: for subgroups of 8 invocations or more.

fn eight(sums: ptr<function, Sums>, r: u32, left: u32, lane: u32, b: Quad) {
    let a = left_words[left + r + lane];
    multiply_row(sums, r, subgroupBroadcast(a, 0u), b);
    multiply_row(sums, r + 1u, subgroupBroadcast(a, 1u), b);
    multiply_row(sums, r + 2u, subgroupBroadcast(a, 2u), b);
    multiply_row(sums, r + 3u, subgroupBroadcast(a, 3u), b);
    multiply_row(sums, r + 4u, subgroupBroadcast(a, 4u), b);
    multiply_row(sums, r + 5u, subgroupBroadcast(a, 5u), b);
    multiply_row(sums, r + 6u, subgroupBroadcast(a, 6u), b);
    multiply_row(sums, r + 7u, subgroupBroadcast(a, 7u), b);
}
