// A value is a run of four elements.

alias Value = vec4<f32>;
const RUN = 4u;

fn total(value: Value) -> f32 {
    return (value.x + value.y) + (value.z + value.w);
}

fn largest(value: Value) -> f32 {
    return larger(larger(value.x, value.y), larger(value.z, value.w));
}
