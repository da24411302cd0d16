fn scaled_all(value: Value, scale: f32) -> Value {
    return Value(scaled(value.x, scale), scaled(value.y, scale), scaled(value.z, scale), scaled(value.w, scale));
}
