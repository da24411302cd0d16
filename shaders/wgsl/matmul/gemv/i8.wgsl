// Weights and activations of i8, 16 elements a unit, multiplied four at a time. Sums are exact, and wrap as i32 does.

struct Weights {
    words: vec4<u32>,
}

alias Activations = Weights;

fn load_weights(side: u32, at: u32, unit: u32) -> Weights {
    return Weights(weight_words(side, at + unit));
}

fn load_activations(at: u32, unit: u32) -> Activations {
    return Activations(a_words[at + unit]);
}

fn activation_base() -> u32 {
    return a_at();
}

fn multiply(w: Weights, x: Activations) -> Sum {
    let first = dot4I8Packed(w.words.x, x.words.x) + dot4I8Packed(w.words.y, x.words.y);
    return Sum(first + dot4I8Packed(w.words.z, x.words.z) + dot4I8Packed(w.words.w, x.words.w));
}
