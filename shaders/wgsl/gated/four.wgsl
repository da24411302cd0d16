fn gate_all(gate: Value, up: Value) -> Value {
    return Value(
        gate_one(gate.x, up.x), gate_one(gate.y, up.y), gate_one(gate.z, up.z), gate_one(gate.w, up.w)
    );
}
