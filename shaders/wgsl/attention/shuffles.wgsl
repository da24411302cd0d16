// Sums of 8 neighbours, by shuffles: in a file of its own, since compilers refuse what a device does not have even where it is never run.

fn sum_of_eight(x: f32) -> f32 {
    let pair = x + subgroupShuffleXor(x, 1u);
    let four = pair + subgroupShuffleXor(pair, 2u);
    return four + subgroupShuffleXor(four, 4u);
}
