// Units of weights in block formats, as they lie: QUADS runs of four signed bytes in PARTS parts, each with a factor, and a minimum that is
// subtracted (MINIMA). An element is `code * CODE_UNIT * factor - minimum`. `quad_of(unit, q)` says where along k a run lies; a part lies
// within one of the 32 elements from a multiple of 32 on.

struct Codes {
    codes: array<u32, QUADS>,
    factors: array<f32, PARTS>,
    minima: array<f32, PARTS>,
}

// Runs of a part.
const RUNS = QUADS / PARTS;
