fn gate_all(gate: Value, up: Value) -> Value {
    return gate_one(gate, up);
}
