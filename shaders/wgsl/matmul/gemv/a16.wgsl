// Four elements of A in f16 or bf16.
fn a_quad(i: u32) -> vec4<f32> {
    let bits = halves(a_words[i].x, a_words[i].y);
    if A_BF16 {
        return bf16_quad(bits);
    }
    return f16_quad(bits);
}
