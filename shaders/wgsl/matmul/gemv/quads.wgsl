// Units of weights in f32: QUADS runs of four elements along k, of which `quad_of(unit, q)` says where they lie.

struct Weights {
    quads: array<vec4<f32>, QUADS>,
}

alias Activations = Weights;

fn load_activations(at: u32, unit: u32) -> Activations {
    var x: Activations;
    // unroll
    for (var q = 0u; q < QUADS; q++) {
        x.quads[q] = a_quad(at + quad_of(unit, q));
    }
    return x;
}

fn activation_base() -> u32 {
    return a_at();
}

fn multiply(w: Weights, x: Activations) -> Sum {
    var left = w;
    var right = x;
    var sum = 0.0;
    // unroll
    for (var q = 0u; q < QUADS; q++) {
        sum += dot(left.quads[q], right.quads[q]);
    }
    return Sum(sum);
}

// f16 in the lower halves of words: element.wgsl has it for one.
fn f16_quad(bits: vec4<u32>) -> vec4<f32> {
    let sign = (bits & vec4<u32>(0x8000u)) << vec4<u32>(16u);
    let rest = bits & vec4<u32>(0x7fffu);
    let shifted = rest << vec4<u32>(13u);
    let normal = shifted + vec4<u32>(112u << 23u);
    let tiny = bitcast<vec4<u32>>(vec4<f32>(rest) * 5.9604644775390625e-8);
    let magnitude = select(normal, tiny, rest < vec4<u32>(0x400u));
    return bitcast<vec4<f32>>(sign | select(magnitude, shifted | vec4<u32>(0x7f800000u), rest >= vec4<u32>(0x7c00u)));
}

// Four elements of 16 bits in two words.
fn halves(a: u32, b: u32) -> vec4<u32> {
    return vec4<u32>(a & 65535u, a >> 16u, b & 65535u, b >> 16u);
}

fn bf16_quad(bits: vec4<u32>) -> vec4<f32> {
    return bitcast<vec4<f32>>(bits << vec4<u32>(16u));
}
