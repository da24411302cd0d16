// The first of the elements of a value, of which the first has that index.
fn candidate_of(value: Value, index: u32) -> Candidate {
    return first_of(
        first_of(Candidate(ordered(value.x), index), Candidate(ordered(value.y), index + 1u)),
        first_of(Candidate(ordered(value.z), index + 2u), Candidate(ordered(value.w), index + 3u)),
    );
}
