// Gated activations (arXiv:2002.05202). KIND is the place in perjoule_kernels::op::GatedKind.

fn gate_one(gate: f32, up: f32) -> f32 {
    switch KIND {
        case 0u: { return silu(gate) * up; }
        case 1u: { return gelu(gate) * up; }
        case 2u: { return gelu_tanh(gate) * up; }
        default: {
            return swish(at_most(gate, params.limit), params.alpha) * (within(up, params.limit) + 1.0);
        }
    }
}
