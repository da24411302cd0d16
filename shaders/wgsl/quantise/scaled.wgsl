// What is rounded for `value` under `scale`.
fn scaled(value: f32, scale: f32) -> f32 {
    if scale == 0.0 && !is_nan(value) {
        return 0.0;
    }
    return quotient(value, scale);
}
