fn scaled_all(value: Value, scale: f32) -> Value {
    return scaled(value, scale);
}
