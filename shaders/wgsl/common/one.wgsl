// A value is an element.

alias Value = f32;
const RUN = 1u;

fn total(value: Value) -> f32 {
    return value;
}

fn largest(value: Value) -> f32 {
    return value;
}
