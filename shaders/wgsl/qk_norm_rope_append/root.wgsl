// What the kernels of heads share.

// 1 / sqrt(mean of squares + eps). `total`: the sum of the squares of `factor` times the elements, which stays within the range in which
// f32 rounds relatively, whatever the sum of the squares does.
fn inverse_root(squares: f32, total: f32, factor: f32, len: f32, eps: f32) -> f32 {
    // of two magnitudes far apart, or that both may overflow when squared
    let root = sqrt(total / len) / factor;
    let least = sqrt(eps);
    let large = select(root, least, least > root);
    let ratio = select(root, least, least <= root) / large;
    let far = 1.0 / (large * sqrt(1.0 + ratio * ratio));
    return select(far, 1.0 / sqrt(squares / len + eps), squares >= 1e-30 && squares <= 3.0e38);
}
