//! What `verify` sees of large outputs, and what its sampling cannot see. The references run in full here, once for each op.

use perjoule_kernels::op::{Activation, Attention, GroupedMatMul, MatMul, Policy, Tensor2, Values};
use perjoule_kernels::{Access, DType, KvLayout, Matrix, Numerics, Op, block};
use perjoule_suite::verify::FULL_FLOPS;
use perjoule_suite::{Case, Fill, Tolerance, Verification, freivalds, inputs, verify, verify_matmul_sampled};

const SEED: u64 = 7;
/// A NaN that no reference gives.
const UNSET: u64 = 0x7ff8_0bad_0bad_0bad;

/// An op, the bytes before a launch and the right ones after it.
struct Launched {
    op: Op,
    before: Vec<Vec<u8>>,
    after: Vec<u8>,
    dtype: DType,
}

impl Launched {
    fn new(op: impl Into<Op>, fill: Fill) -> Self {
        let op = op.into();
        assert!(op.flops() > FULL_FLOPS, "{op} is verified in full");
        let before = inputs(&Case { id: op.to_string(), op: op.clone(), fill, seed: SEED }).unwrap();
        Launched::of(op, before)
    }

    fn of(op: Op, before: Vec<Vec<u8>>) -> Self {
        let operands = op.operands();
        let mut values: Vec<Values> = Vec::new();
        for (operand, bytes) in operands.iter().zip(&before) {
            let mut value = vec![f64::from_bits(UNSET); operand.elements as usize];
            if operand.access == Access::Read {
                block::decode_f64(operand.dtype, &bytes[..operand.bytes as usize], &mut value).unwrap();
            }
            values.push(Values::new(value));
        }
        op.reference(&mut values);
        let (dtype, result) = (operands.last().unwrap().dtype, values.pop().unwrap());
        // elements that were not set keep their bytes
        let mut after = before.last().unwrap().clone();
        let size = dtype.block_bytes();
        for (at, &value) in result.value.iter().enumerate() {
            if value.to_bits() != UNSET {
                block::encode_f64(dtype, &[value], &mut after[at * size..(at + 1) * size]).unwrap();
            }
        }
        Launched { op, before, after, dtype }
    }

    /// The output with elements changed.
    fn with(&self, at: impl IntoIterator<Item = usize>, change: impl Fn(f64) -> f64) -> Vec<u8> {
        let (mut after, size) = (self.after.clone(), self.dtype.block_bytes());
        for at in at {
            let bytes = &mut after[at * size..(at + 1) * size];
            let mut value = [0.0];
            block::decode_f64(self.dtype, bytes, &mut value).unwrap();
            block::encode_f64(self.dtype, &[change(value[0])], bytes).unwrap();
        }
        after
    }

    fn slices(&self) -> Vec<&[u8]> {
        self.before.iter().map(Vec::as_slice).collect()
    }

    fn verify(&self, after: &[u8], budget: usize, seed: u64) -> Verification {
        verify(&self.op, &self.slices(), &[after], Numerics::F32, budget, seed).unwrap()
    }
}

const M: usize = 320;
const N: usize = 288;

fn product(out: DType) -> (MatMul, Launched) {
    let op = MatMul::linear(M, N, 256, DType::BF16, DType::BF16, out);
    (op, Launched::new(op, Fill::Random))
}

#[test]
fn a_right_product_passes_in_full() {
    for out in [DType::F32, DType::BF16, DType::F16] {
        let (_, launched) = product(out);
        for seed in 0..8 {
            let found = launched.verify(&launched.after, 1024, seed);
            assert!(found.passed && found.complete && found.worst <= 1.0, "{out}: {found:?}");
            assert!((1000..1200).contains(&found.checked_elements), "{}", found.checked_elements);
        }
    }
}

#[test]
fn any_element_of_a_product_that_is_off_by_a_tenth_is_found() {
    let (op, launched) = product(DType::F32);
    let size = |at: usize| {
        let mut value = [0.0];
        block::decode_f64(DType::F32, &launched.after[at * 4..at * 4 + 4], &mut value).unwrap();
        value[0].abs()
    };
    // a few that are not nearly 0, of which a tenth would be nothing
    for at in (4001..M * N).step_by(4001).filter(|&at| size(at) > 4.0) {
        let wrong = launched.with([at], |x| x * 1.1);
        let found = launched.verify(&wrong, 64, SEED);
        let row = format!("row {} of", at / N);
        assert!(!found.passed && found.report.iter().any(|line| line.contains(&row)), "{at}: {found:?}");
        // which most samples do not see
        let seen = (0..20).filter(|&seed| {
            let slices = launched.slices();
            !verify_matmul_sampled(&op, &slices, &wrong, Numerics::F32, 64, seed).unwrap().passed
        });
        assert!(seen.count() <= 2, "{at}");
    }
}

#[test]
fn in_bf16_an_error_must_exceed_the_rounding_of_its_row() {
    let (op, launched) = product(DType::BF16);
    let tolerance = Tolerance::new(&launched.op, Numerics::F32);
    let passes =
        |after: &[u8]| freivalds(&op, &launched.slices(), after, &tolerance, SEED).unwrap().unwrap().passed;
    let at = 77 * N + 5;
    assert!(passes(&launched.with([at], |x| x + 0.25)), "less than the 288 roundings of the row");
    assert!(!passes(&launched.with([at], |x| x + 50.0)));
    assert!(!passes(&launched.with(77 * N..78 * N, |_| 0.0)), "a row of zeros");
    assert!(!passes(&launched.with(77 * N..78 * N, |x| x * 1.5)), "a row too large");
}

#[test]
fn wrong_columns_and_tiles_are_found() {
    for out in [DType::F32, DType::BF16] {
        let (op, launched) = product(out);
        let tolerance = Tolerance::new(&launched.op, Numerics::F32);
        let column = |col: usize| (0..M).map(move |row| row * N + col);
        let tile = (64..68).flat_map(|row| (32..40).map(move |col| row * N + col));
        let mut swapped = launched.after.clone();
        let size = out.block_bytes();
        for row in 0..M {
            for byte in 0..size {
                swapped.swap((row * N + 3) * size + byte, (row * N + 200) * size + byte);
            }
        }
        let faults = [
            ("a column of zeros", launched.with(column(33), |_| 0.0)),
            ("a column with the other sign", launched.with(column(33), |x| -x)),
            ("a tile of zeros", launched.with(tile.clone(), |_| 0.0)),
            ("a tile twice as large", launched.with(tile, |x| 2.0 * x)),
            ("two columns swapped", swapped),
        ];
        for (what, after) in faults {
            for seed in 0..8 {
                let found = freivalds(&op, &launched.slices(), &after, &tolerance, seed).unwrap().unwrap();
                assert!(!found.passed, "{out}: {what}");
            }
        }
    }
}

#[test]
fn products_with_an_activation_are_only_sampled() {
    let mut op = MatMul::linear(M, N, 256, DType::BF16, DType::BF16, DType::F32);
    op.epilogue.activation = Activation::Silu;
    let launched = Launched::new(op, Fill::Random);
    let found = launched.verify(&launched.after, 1024, SEED);
    assert!(found.passed && !found.complete);
    // a rectangle of twice the distance of the samples, 10 x 9 elements, always holds one
    let tile = (100..120).flat_map(|row| (50..68).map(move |col| row * N + col));
    let wrong = launched.with(tile, |x| x + 1.0);
    for seed in 0..20 {
        assert!(!launched.verify(&wrong, 1024, seed).passed);
    }
    let one = launched.with([100 * N + 50], |x| x + 1.0);
    assert!((0..20).any(|seed| launched.verify(&one, 1024, seed).passed), "one element escapes most samples");
}

const HEADS: usize = 4;
const DIM: usize = 64;
const QUERIES: usize = 400;

#[test]
fn attention_is_sampled_by_whole_vectors() {
    let kv = KvLayout::contiguous(2, QUERIES, DIM);
    let op = Attention::causal(1, QUERIES, HEADS, kv, DType::F32);
    let mut launched = Launched::new(op, Fill::Random);
    // a full cache, whatever the case drew
    launched.before[3] = (QUERIES as i32).to_le_bytes().to_vec();
    let launched = Launched::of(launched.op, launched.before);
    let vector = |query: usize, head: usize| {
        let start = op.out.start(query, head);
        start..start + DIM
    };
    let whole = QUERIES * HEADS * DIM;
    let few = 64 * DIM;
    assert!(launched.verify(&launched.after, few, SEED).passed);
    let all = launched.verify(&launched.after, whole, SEED);
    assert!(all.passed && all.complete && all.checked_elements == whole as u64, "{all:?}");

    // one vector: found with the budget of the whole, and most likely not with a small one
    let one = launched.with(vector(123, 2), |x| x * 1.1 + 0.1);
    assert!(!launched.verify(&one, whole, SEED).passed);
    assert!((0..20).any(|seed| launched.verify(&one, few, seed).passed));
    // the first and the last vector are always looked at
    for (query, head) in [(0, 0), (QUERIES - 1, HEADS - 1)] {
        let edge = launched.with(vector(query, head), |x| x + 0.5);
        assert!((0..20).all(|seed| !launched.verify(&edge, few, seed).passed));
    }
    // a tile of queries as long as two samples are apart is always found, and a head as good as always
    let tile = (200..214).flat_map(|query| (0..HEADS).flat_map(move |head| vector(query, head)));
    let head = (0..QUERIES).flat_map(|query| vector(query, 3));
    for wrong in [launched.with(tile, |x| x + 0.5), launched.with(head, |x| -x + 0.1)] {
        assert!((0..20).all(|seed| !launched.verify(&wrong, few, seed).passed));
    }
}

#[test]
fn every_busy_expert_up_to_eight_is_sampled() {
    let (rows, n, k) = (512, 128, 320);
    let op = GroupedMatMul {
        experts: 6,
        rows,
        n,
        k,
        a: Tensor2 { dtype: DType::BF16, strides: Matrix::row_major(rows, k) },
        a_rows: rows,
        a_divisor: 1,
        b: Tensor2 { dtype: DType::BF16, strides: Matrix::col_major(k, n) },
        b_constant: false,
        c: Tensor2 { dtype: DType::F32, strides: Matrix::row_major(rows + 8, n) },
        c_rows: rows + 8,
        bias: None,
        activation: Activation::None,
        policy: Policy::default(),
    };
    let launched = Launched::new(op, Fill::Random);
    assert!(launched.verify(&launched.after, 1024, SEED).passed);
    let word = |operand: usize, i: usize| {
        i32::from_le_bytes(launched.before[operand][i * 4..i * 4 + 4].try_into().unwrap()) as usize
    };
    for expert in (0..6).filter(|&e| word(2, e) < word(2, e + 1)) {
        let rows: Vec<usize> = (word(2, expert)..word(2, expert + 1)).map(|p| word(3, p)).collect();
        let elements = rows.iter().flat_map(|&row| (0..128).map(move |col| op.c.strides.at(0, row, col)));
        let found = launched.verify(&launched.with(elements, |x| x * 1.1 + 0.1), 1024, SEED);
        assert!(!found.passed, "expert {expert} with {} rows", rows.len());
    }
    // rows of C that no position names keep their bytes
    let found = launched.verify(&launched.with([(rows + 5) * n + 17], |_| 0.0), 1024, SEED);
    assert!(!found.passed && found.report[0].contains("does not write"), "{found:?}");
}

/// Slots that an op's documentation does not allow are read as the kernels read them: a check of what follows neither panics nor
/// judges by something else than the reference.
#[test]
fn nonsense_in_slots_is_judged_like_anything_else() {
    let wild = |n: usize, turn: usize| -> Vec<u8> {
        let list = [i32::MIN, 3, i32::MAX, -1, 250, 0, 7, 1 << 20];
        (0..n).flat_map(|i| list[(i * 5 + turn) % list.len()].to_le_bytes()).collect()
    };
    let kv = KvLayout::paged(2, QUERIES, DIM, perjoule_kernels::Paging { block: 16, blocks: 9 });
    let attention = Attention::causal(2, QUERIES, HEADS, kv, DType::F32);
    let attention = Op::from(Attention { ragged: true, ..attention });
    let rows = 512;
    let grouped = Op::from(GroupedMatMul {
        experts: 6,
        rows,
        n: 128,
        k: 320,
        a: Tensor2 { dtype: DType::BF16, strides: Matrix::row_major(rows, 320) },
        a_rows: rows,
        a_divisor: 1,
        b: Tensor2 { dtype: DType::BF16, strides: Matrix::col_major(320, 128) },
        b_constant: false,
        c: Tensor2 { dtype: DType::F32, strides: Matrix::row_major(rows, 128) },
        c_rows: rows,
        bias: None,
        activation: Activation::None,
        policy: Policy::default(),
    });
    for op in [attention, grouped] {
        let right = Launched::new(op.clone(), Fill::Random);
        for turn in 0..8 {
            let mut before = right.before.clone();
            for (operand, bytes) in op.operands().iter().zip(&mut before).filter(|(o, _)| o.slot) {
                *bytes = wild(operand.elements as usize, turn);
            }
            let launched = Launched::of(op.clone(), before);
            let found = launched.verify(&launched.after, 4096, SEED);
            assert!(found.passed, "{op}, turn {turn}: {:?}", found.report);
            // an output that is shorter, or operands that are, are errors
            let slices = launched.slices();
            let short = &launched.after[..launched.after.len() - 1];
            assert!(verify(&op, &slices, &[short], Numerics::F32, 64, SEED).is_err());
        }
    }
    let (op, launched) = product(DType::F32);
    let tolerance = Tolerance::new(&launched.op, Numerics::F32);
    assert!(freivalds(&op, &launched.slices()[..1], &launched.after, &tolerance, SEED).is_err());
    assert!(freivalds(&op, &launched.slices(), &launched.after[1..], &tolerance, SEED).is_err());
}

/// What a row may flush to zero is a property of the row, whatever the device.
#[test]
fn rows_that_flush_subnormals_may_lose_them() {
    let op = Op::from(perjoule_kernels::op::Add::dense(1, 4, DType::F32));
    let subnormal = f64::from(f32::MIN_POSITIVE) / 2.0;
    let error = |numerics| Tolerance::new(&op, numerics).error(subnormal);
    assert!(error(Numerics::F32) < subnormal && error(Numerics::EXACT) == 0.0);
    for numerics in [Numerics::F32, Numerics::EXACT] {
        assert!(error(numerics.flushing_subnormals()) >= subnormal);
    }
}
