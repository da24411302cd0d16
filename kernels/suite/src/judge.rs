//! Whether an output is what the reference says, element by element.
//!
//! A row may compute `want + error` with `|error| <= slack * unit * (4 + sqrt(reduction)) * magnitude` (see
//! [`Numerics`]) and then rounds to the output type once. Rounding is monotonic: a result is right when it lies between the roundings of
//! `want - error` and `want + error`. That covers overflow, saturation and integer outputs alike. Where the inputs make every sum
//! exact, `error` is 0. NaN must match NaN, and elements that the op does not write must keep their bytes.

use crate::case::Fill;
use perjoule_kernels::op::{Activation, Policy, Values};
use perjoule_kernels::{Access, DType, Numerics, Op, Operand, Result, block};

/// Marks elements of an output that the reference did not set: a NaN that no arithmetic gives.
const UNSET: u64 = 0x7ff8_dead_beef_0001;

/// How far a result may be from the reference.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tolerance {
    /// Multiple of an element's magnitude.
    pub relative: f64,
    /// Elements with magnitudes up to this one are exact.
    pub exact_below: f64,
    /// Absolute error that is allowed besides: what rounding to subnormals, or flushing them to zero, may lose.
    pub floor: f64,
    /// Whether subnormal inputs may be taken for zero. NaN is then right where the reference of such inputs gives it: an infinity times 0.
    pub flushes: bool,
}

impl Tolerance {
    /// The bound of `numerics` for `op`: see [`Numerics`].
    pub fn new(op: &Op, numerics: Numerics) -> Self {
        let relative = numerics.slack * numerics.unit * (4.0 + (op.spec().reduction() as f64).sqrt());
        // sums of products below the normal range of f32 round to multiples of its smallest subnormal
        let terms = op.spec().reduction() as f64 + 4.0;
        let floor = match numerics.flushes_subnormals {
            true => terms * f64::from(f32::MIN_POSITIVE),
            false if relative > 0.0 => terms * f64::from(f32::from_bits(1)),
            false => 0.0,
        };
        Tolerance { relative, exact_below: 0.0, floor, flushes: numerics.flushes_subnormals }
    }

    /// The same where inputs were filled as `fill` says.
    pub fn for_fill(mut self, op: &Op, fill: Fill) -> Self {
        if fill == Fill::Integers {
            self.exact_below = exact_below(op);
        }
        self
    }

    /// Largest error before the last rounding of an element whose terms have that magnitude.
    pub fn error(&self, magnitude: f64) -> f64 {
        if magnitude <= self.exact_below { 0.0 } else { self.relative * magnitude + self.floor }
    }
}

/// Magnitude up to which sums of small integers are exact in any order, 0 for ops that are not linear. Terms are multiples of 1/16.
fn exact_below(op: &Op) -> f64 {
    const F32: f64 = (1u64 << 20) as f64;
    let product = |policy: Policy, activation: Activation| match (policy, activation) {
        (Policy { quantised_activations: true, .. }, _) => 0.0,
        (_, activation) if activation != Activation::None => 0.0,
        (Policy { f16_accumulate: true, .. }, _) => 128.0,
        _ => F32,
    };
    match op {
        Op::MatMul(op) => product(op.policy, op.epilogue.activation),
        Op::GroupedMatMul(op) => product(op.policy, op.activation),
        Op::Add(_) | Op::Combine(_) | Op::KvAppend(_) => F32,
        _ => 0.0,
    }
}

/// One element that is wrong.
#[derive(Debug, Clone, PartialEq)]
pub struct Mismatch {
    /// Operand.
    pub operand: &'static str,
    /// Element within the operand's extent.
    pub index: usize,
    /// What is there.
    pub got: f64,
    /// What the reference says, before rounding.
    pub want: f64,
    /// Error that was allowed before the last rounding; NaN where the element must keep its bytes.
    pub error: f64,
}

impl std::fmt::Display for Mismatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Mismatch { operand, index, got, want, error } = self;
        if error.is_nan() {
            return write!(f, "{operand}[{index}] is {got:?}, but the op does not write it");
        }
        write!(f, "{operand}[{index}] is {got:?}, expected {want:?} within {error:.3e}")
    }
}

/// What comparing gave.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Verdict {
    /// Elements compared.
    pub checked: u64,
    /// Largest `|got - want|` as a share of what is allowed, half a unit in the last place included; at most 1 where all is right.
    pub worst: f64,
    /// Largest `|got - want| / magnitude`, or over the smallest normal number of the output's type where that is larger: what lies below
    /// it is rounded in steps that say nothing of the kernel.
    pub relative: f64,
    /// Elements that are wrong.
    pub wrong: u64,
    /// The first of them.
    pub mismatches: Vec<Mismatch>,
}

impl Verdict {
    /// Mismatches that are kept.
    const KEPT: usize = 8;

    fn reject(&mut self, mismatch: Mismatch) {
        self.wrong += 1;
        if self.mismatches.len() < Self::KEPT {
            self.mismatches.push(mismatch);
        }
    }

    /// Rejects an element that the op does not write and whose bytes have changed.
    pub(crate) fn overwritten(&mut self, operand: &'static str, index: usize, got: f64) {
        self.reject(Mismatch { operand, index, got, want: f64::NAN, error: f64::NAN });
    }

    /// Judges one element of type `dtype`.
    pub(crate) fn element(
        &mut self,
        operand: &'static str,
        index: usize,
        dtype: DType,
        got: f64,
        (want, magnitude): (f64, f64),
        tolerance: &Tolerance,
    ) {
        self.checked += 1;
        let error = match tolerance.error(magnitude) {
            _ if !want.is_finite() => 0.0,
            error if error.is_finite() => error,
            // an infinite input whose share of a finite result is 0
            _ => tolerance.error(want.abs()),
        };
        let (low, high) = (rounded(dtype, want - error), rounded(dtype, want + error));
        let right = match (got.is_nan(), low.is_nan()) {
            (true, nan) => nan,
            (false, true) => false,
            _ => low <= got && got <= high,
        };
        if !right {
            self.reject(Mismatch { operand, index, got, want, error });
        }
        let distance = (got - want).abs();
        if distance > 0.0 && distance.is_finite() {
            let allowed = (high - want).max(want - low);
            if allowed.is_finite() && allowed > 0.0 {
                self.worst = self.worst.max(distance / allowed);
            }
            if magnitude > 0.0 {
                self.relative = self.relative.max(distance / magnitude.max(smallest_normal(dtype)));
            }
        }
    }
}

/// The smallest number that a type of floats holds with all of its digits; 0 for others.
fn smallest_normal(dtype: DType) -> f64 {
    match dtype {
        DType::F32 | DType::BF16 => f64::from(f32::MIN_POSITIVE),
        DType::F16 => 2f64.powi(-14),
        DType::F8E4M3 => 2f64.powi(-6),
        _ => 0.0,
    }
}

/// `value` as an element of type `dtype` holds it; block formats are compared as they are.
fn rounded(dtype: DType, value: f64) -> f64 {
    if dtype.is_block() {
        return value;
    }
    let (mut bytes, mut out) = ([0u8; 4], [0.0]);
    let bytes = &mut bytes[..dtype.block_bytes()];
    // the lengths agree, so that neither can fail; if one did the element would not match
    match block::encode_f64(dtype, &[value], bytes).and_then(|()| block::decode_f64(dtype, bytes, &mut out)) {
        Ok(()) => out[0],
        Err(_) => f64::NAN,
    }
}

/// What the reference makes of the bytes before a launch.
pub(crate) struct Expected {
    operands: Vec<Operand>,
    values: Vec<Values>,
    original: Vec<Vec<f64>>,
    /// What it makes of the same inputs with zeroes for subnormals, where infinities stand beside some.
    flushed: Option<Vec<Values>>,
}

impl Expected {
    /// Runs the reference on `before`, the bytes of every operand in order.
    pub(crate) fn new(op: &Op, before: &[&[u8]]) -> Result<Self> {
        let operands = op.operands();
        let mut values = Vec::with_capacity(operands.len());
        let mut original = Vec::with_capacity(operands.len());
        for (operand, bytes) in operands.iter().zip(before) {
            let mut value = vec![f64::from_bits(UNSET); operand.elements as usize];
            if operand.access != Access::Write {
                block::decode_f64(operand.dtype, &bytes[..operand.bytes as usize], &mut value)?;
            }
            original.push(if operand.access.writes() { value.clone() } else { Vec::new() });
            values.push(Values::new(value));
        }
        let subnormal = |v: &f64| *v != 0.0 && v.abs() < f64::from(f32::MIN_POSITIVE);
        let inputs = || values.iter().flat_map(|v| &v.value);
        let flushed = (inputs().any(subnormal) && inputs().any(|v| v.is_infinite())).then(|| {
            let mut flushed = values.clone();
            let all = flushed.iter_mut().flat_map(|v| &mut v.value);
            all.filter(|v| subnormal(v)).for_each(|v| *v = 0.0);
            op.reference(&mut flushed);
            flushed
        });
        op.reference(&mut values);
        Ok(Expected { operands, values, original, flushed })
    }

    /// Compares `after`, the bytes of written operand `index`, with the reference; `before` are its bytes before the launch.
    pub(crate) fn judge(
        &self,
        index: usize,
        before: &[u8],
        after: &[u8],
        tolerance: &Tolerance,
        verdict: &mut Verdict,
    ) -> Result<()> {
        let (operand, values) = (&self.operands[index], &self.values[index]);
        let dtype = operand.dtype;
        let mut got = vec![0.0; operand.elements as usize];
        block::decode_f64(dtype, &after[..operand.bytes as usize], &mut got)?;
        let size = dtype.block_bytes();
        for (at, &got) in got.iter().enumerate() {
            let want = values.value[at];
            let magnitude = values.magnitude.get(at).copied().unwrap_or(0.0);
            let unset = want.to_bits() == self.original[index][at].to_bits() && magnitude == 0.0;
            if unset {
                let bytes = at / dtype.block_len() * size..(at / dtype.block_len() + 1) * size;
                let kept = before.get(bytes.clone()) == after.get(bytes);
                let same = operand.access == Access::ReadWrite && got == want;
                verdict.checked += 1;
                if !kept && !same {
                    verdict.overwritten(operand.name, at, got);
                }
                continue;
            }
            let flushed = || self.flushed.as_ref().is_some_and(|values| values[index].value[at].is_nan());
            let want = if tolerance.flushes && got.is_nan() && flushed() { f64::NAN } else { want };
            verdict.element(operand.name, at, dtype, got, (want, magnitude), tolerance);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(dtype: DType, got: f64, want: f64, magnitude: f64, relative: f64) -> bool {
        let tolerance = Tolerance { relative, exact_below: 0.0, floor: 0.0, flushes: false };
        let mut verdict = Verdict::default();
        verdict.element("c", 0, dtype, got, (want, magnitude), &tolerance);
        verdict.wrong == 0
    }

    #[test]
    fn half_a_unit_in_the_last_place_and_no_more() {
        // bf16 has 8 significant bits: neighbours of 1 are 1 + 2^-7 and 1 - 2^-8
        assert!(judged(DType::BF16, 1.0, 1.0 + 0.9 / 256.0, 1.0, 0.0));
        assert!(!judged(DType::BF16, 1.0, 1.0 + 1.1 / 256.0, 1.0, 0.0));
        assert!(judged(DType::BF16, 1.0, 1.0 + 1.1 / 256.0, 1.0, 1e-3));
        assert!(!judged(DType::BF16, 1.0 + 1.0 / 128.0, 1.0, 1.0, 1e-3));
    }

    #[test]
    fn rounding_to_subnormals_is_no_large_error() {
        let relative = |dtype: DType, got: f64, want: f64| {
            let tolerance = Tolerance { relative: 0.0, exact_below: 0.0, floor: 0.0, flushes: false };
            let mut verdict = Verdict::default();
            verdict.element("y", 0, dtype, got, (want, want.abs()), &tolerance);
            assert_eq!(verdict.wrong, 0);
            verdict.relative
        };
        // f16 goes in steps of 2^-24 there: 1.5 of them are 2
        let step = 2f64.powi(-24);
        assert_eq!(relative(DType::F16, 2.0 * step, 1.5 * step), 0.5 * step / 2f64.powi(-14));
        assert_eq!(relative(DType::F16, 1.0, 1.0 + step), step / (1.0 + step), "of normal numbers as before");
        for (dtype, digits) in [(DType::F32, 23), (DType::BF16, 7), (DType::F16, 10), (DType::F8E4M3, 3)] {
            let next = smallest_normal(dtype) * (1.0 + 2f64.powi(-digits));
            assert_eq!(rounded(dtype, next), next, "{dtype}");
            assert_ne!(rounded(dtype, next / 2.0), next / 2.0, "{dtype}");
        }
    }

    #[test]
    fn an_infinity_times_what_was_flushed_is_nan_and_nothing_else_is() {
        let op = Op::from(perjoule_kernels::op::MatMul::nn(1, 2, 1, DType::F32, DType::F32, DType::F32));
        let bytes = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
        let judged = |b: [f32; 2], c: [f32; 2], numerics: Numerics| {
            let before = [bytes(&[f32::INFINITY]), bytes(&b), bytes(&[0.0; 2])];
            let expected = Expected::new(&op, &before.each_ref().map(|b| b.as_slice())).unwrap();
            let mut verdict = Verdict::default();
            let tolerance = Tolerance::new(&op, numerics);
            expected.judge(2, &before[2], &bytes(&c), &tolerance, &mut verdict).unwrap();
            verdict.wrong
        };
        let (subnormal, flushing) = (1e-40, Numerics::F32.flushing_subnormals());
        assert_eq!(judged([subnormal, 1.0], [f32::INFINITY; 2], flushing), 0);
        assert_eq!(judged([subnormal, 1.0], [f32::NAN, f32::INFINITY], flushing), 0);
        assert_eq!(judged([subnormal, 1.0], [f32::NAN; 2], flushing), 1, "1 is not flushed");
        assert_eq!(judged([1.0, 1.0], [f32::NAN; 2], flushing), 2);
        assert_eq!(judged([subnormal, 1.0], [f32::NAN, f32::INFINITY], Numerics::F32), 1);
    }

    #[test]
    fn overflow_saturation_and_nan() {
        assert!(judged(DType::F16, f64::INFINITY, 70_000.0, 1.0, 0.0));
        assert!(!judged(DType::F16, 65_504.0, 70_000.0, 1.0, 0.0));
        // at the border of overflow either side is right
        assert!(judged(DType::F16, 65_504.0, 65_520.0, 65_520.0, 1e-6));
        assert!(judged(DType::F16, f64::INFINITY, 65_519.9, 65_520.0, 1e-4));
        assert!(judged(DType::F8E4M3, 448.0, 1e6, 1.0, 0.0));
        assert!(judged(DType::F32, f64::NAN, f64::NAN, 1.0, 0.0));
        assert!(!judged(DType::F32, f64::NAN, 1.0, 1.0, 1.0));
        assert!(!judged(DType::F32, 1.0, f64::NAN, 1.0, 1.0));
        assert!(!judged(DType::F32, f64::INFINITY, f64::NEG_INFINITY, f64::INFINITY, 1.0));
    }

    #[test]
    fn integers_are_exact() {
        assert!(judged(DType::I32, 7.0, 7.0, 0.0, 1.0));
        assert!(!judged(DType::I32, 8.0, 7.0, 0.0, 1.0));
    }
}
