//! What a case is.

use perjoule_kernels::Op;

/// How the operands of a case are filled. Every number is stored in the operand's type first, so that kernel and reference see the
/// same values; gaps between rows, unused cache entries and outputs hold NaN.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Fill {
    /// Small integers (and powers of two for scales): linear ops are exact in whatever order they sum, so their tolerance is 0.
    Integers,
    /// Nearly normal numbers.
    Random,
    /// Magnitudes spread over many powers of two.
    Wide,
    /// Normal numbers, those of f32 and bf16 times 1e5: beyond f16, as activations of some models are.
    Large,
    /// Normal numbers with a few NaN, infinities and subnormals among them, and ids out of range where an op defines what they give.
    Special,
    /// Every bit pattern of 8- and 16-bit types, random patterns of wider ones.
    Codes,
}

impl Fill {
    /// The name in ids of cases.
    pub fn name(self) -> &'static str {
        match self {
            Fill::Integers => "int",
            Fill::Random => "rand",
            Fill::Wide => "wide",
            Fill::Large => "large",
            Fill::Special => "special",
            Fill::Codes => "codes",
        }
    }
}

/// How many cases.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Scope {
    /// Every edge of every dimension, pairs of edges as far as they are small: what tests and `check` run by default.
    #[default]
    Sample,
    /// All pairs of edges, more random shapes, larger real shapes.
    Full,
}

/// One case: plain data from which inputs, reference and judgement follow.
#[derive(Clone, PartialEq, Debug)]
pub struct Case {
    /// Name, unique among the cases of a row, configuration and pack format.
    pub id: String,
    /// What is computed.
    pub op: Op,
    /// How the operands are filled.
    pub fill: Fill,
    /// Seed of everything random in it; follows from the id.
    pub seed: u64,
}
