// The first of the elements of a value, of which the first has that index.
fn candidate_of(value: Value, index: u32) -> Candidate {
    return Candidate(ordered(value), index);
}
