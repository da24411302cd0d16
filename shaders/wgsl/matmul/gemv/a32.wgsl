// Four elements of A in f32.
fn a_quad(i: u32) -> vec4<f32> {
    return a_words[i];
}
