// The first of one and the elements of a run, of which the first has that index, a higher one.
fn or_run(a: Candidate, run: vec4<f32>, index: u32) -> Candidate {
    let first = or_later(a, ordered(run.x), index);
    let second = or_later(first, ordered(run.y), index + 1u);
    return or_later(or_later(second, ordered(run.z), index + 2u), ordered(run.w), index + 3u);
}
