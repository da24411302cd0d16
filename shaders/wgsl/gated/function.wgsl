// Gated activations (arXiv:2002.05202). KIND is the place in perjoule_kernels::op::GatedKind.

fn gate_one(gate: f32, up: f32) -> f32 {
    switch KIND {
        case 0u: { return silu(gate) * up; }
        case 1u: { return gelu(gate) * up; }
        case 2u: { return gelu_tanh(gate) * up; }
        default: {
            // comparisons that let NaN through
            let g = select(gate, params.limit, gate > params.limit);
            let u = select(select(up, -params.limit, up < -params.limit), params.limit, up > params.limit);
            return swish(g, params.alpha) * (u + 1.0);
        }
    }
}
