// Logits in order: the largest first, of equal ones the one with the lowest index; NaN counts as larger than every number.

// Infinity's number is one less.
const NUMBER_OF_NAN = 0xff800001u;

// A number that grows with the value, above 0; equal for both zeros, and for all NaN.
fn ordered(value: f32) -> u32 {
    let bits = bitcast<u32>(value);
    if is_nan(value) {
        return NUMBER_OF_NAN;
    }
    return select(select(bits | 0x80000000u, ~bits, bits > 0x80000000u), 0x80000000u, bits == 0x80000000u);
}

// The value that a number stands for.
fn value_of(number: u32) -> f32 {
    let bits = select(~number, number & 0x7fffffffu, number >= 0x80000000u);
    return select(bitcast<f32>(bits), nan(), number == NUMBER_OF_NAN);
}

// An element: its number and its index. Nothing has number 0.
struct Candidate {
    number: u32,
    index: u32,
}

// Whether `a` comes before `b`.
fn is_before(a: Candidate, b: Candidate) -> bool {
    return a.number > b.number || (a.number == b.number && a.index < b.index);
}

fn first_of(a: Candidate, b: Candidate) -> Candidate {
    let other = is_before(b, a);
    return Candidate(select(a.number, b.number, other), select(a.index, b.index, other));
}

// The first of one and an element with a higher index.
fn or_later(a: Candidate, number: u32, index: u32) -> Candidate {
    let other = number > a.number;
    return Candidate(select(a.number, number, other), select(a.index, index, other));
}

const NOTHING = Candidate(0u, 0xffffffffu);

var<workgroup> candidates: array<Candidate, 256>;
var<workgroup> candidates_again: array<Candidate, 16>;

// The first of those of a workgroup of 256: each invocation gets it.
fn reduce_first(own: Candidate, lane: u32) -> Candidate {
    workgroupBarrier();
    candidates[lane] = own;
    workgroupBarrier();
    if lane < 16u {
        var best = candidates[lane * 16u];
        for (var i = 1u; i < 16u; i++) {
            best = first_of(best, candidates[lane * 16u + i]);
        }
        candidates_again[lane] = best;
    }
    workgroupBarrier();
    var best = candidates_again[0];
    for (var i = 1u; i < 16u; i++) {
        best = first_of(best, candidates_again[i]);
    }
    return best;
}
