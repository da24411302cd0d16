//! Running references in tests.

use perjoule_kernels::Access;
use perjoule_kernels::op::{Op, Values};

/// Validates `op` and runs its reference. `inputs` are those of the operands that are read, in order; what is only written starts
/// as NaN. Returns all operands.
#[track_caller]
pub(crate) fn run(op: impl Into<Op>, inputs: &[&[f64]]) -> Vec<Values> {
    let op = op.into();
    if let Err(error) = op.validate() {
        panic!("{error}");
    }
    let operands = op.operands();
    let mut inputs = inputs.iter();
    let mut args: Vec<Values> = operands
        .iter()
        .map(|o| match o.access {
            Access::Write => Values::new(vec![f64::NAN; o.elements as usize]),
            Access::Read | Access::ReadWrite => {
                let input = inputs.next().unwrap_or_else(|| panic!("{op}: no input for {}", o.name));
                assert_eq!(input.len() as u64, o.elements, "{op}: length of {}", o.name);
                Values::new(input.to_vec())
            }
        })
        .collect();
    assert_eq!(inputs.count(), 0, "{op}: more inputs than operands");
    op.reference(&mut args);
    for (arg, operand) in args.iter().zip(&operands).filter(|(_, o)| o.access.writes()) {
        assert_eq!(arg.magnitude.len(), arg.value.len(), "{op}: magnitudes of {}", operand.name);
        // a sum is at most the sum of the absolute values of its terms
        for (at, (value, magnitude)) in arg.value.iter().zip(&arg.magnitude).enumerate() {
            let bounded = !value.is_finite() || *magnitude == 0.0 || value.abs() <= magnitude * (1.0 + 1e-9);
            assert!(bounded, "{op}: {}[{at}] is {value}, its magnitude {magnitude}", operand.name);
        }
    }
    args
}

/// The last operand after the reference has run: mostly the result.
#[track_caller]
pub(crate) fn result(op: impl Into<Op>, inputs: &[&[f64]]) -> Vec<f64> {
    run(op, inputs).pop().expect("every op has operands").value
}

/// Whether all elements agree to `tolerance`, relative to the larger of 1 and the wanted value; NaN agrees with NaN.
#[track_caller]
pub(crate) fn assert_close(what: &str, got: &[f64], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len(), "{what}: length");
    for (at, (g, w)) in got.iter().zip(want).enumerate() {
        let close = (g.is_nan() && w.is_nan()) || g == w || (g - w).abs() <= tolerance * w.abs().max(1.0);
        assert!(close, "{what}: element {at} is {g}, wanted {w}");
    }
}

/// Pseudo-random numbers (splitmix64) from a seed that a failing property prints.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`, which is above 0.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    pub(crate) fn flip(&mut self) -> bool {
        self.below(2) == 1
    }

    pub(crate) fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    /// A number in `-2..2`.
    pub(crate) fn real(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 51) as f64 - 2.0
    }

    pub(crate) fn reals(&mut self, count: usize) -> Vec<f64> {
        (0..count).map(|_| self.real()).collect()
    }

    /// `0..n` in random order.
    pub(crate) fn permutation(&mut self, n: usize) -> Vec<usize> {
        let mut list: Vec<usize> = (0..n).collect();
        for i in (1..n).rev() {
            list.swap(i, self.below(i + 1));
        }
        list
    }
}

/// Slots as a reference reads them.
pub(crate) fn slots(list: impl IntoIterator<Item = usize>) -> Vec<f64> {
    list.into_iter().map(|x| x as f64).collect()
}
