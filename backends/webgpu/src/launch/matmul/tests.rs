//! Products that are split into windows, and products of quantised activations, on the first adapter.

use super::form::Form;
use super::window::{Window, windows, windows_of_work};
use super::{any, gemv, refuse_beyond, tiled};
use crate::device::WebGpuDevice;
use perjoule_kernels::op::{GroupedMatMul, MatMul, Op, Policy, Tensor2};
use perjoule_kernels::{
    Alignment, Candidate, Choice, Config, DType, Device, Kernel, Matrix, Numerics, Reason, prepare,
};
use perjoule_suite::{Buffers, Case, Fill, Outcome, Place, Scope, cases, inputs, run, verify};

/// Bytes of a binding of most adapters.
const COMMON: u64 = (128 << 20) - 512;

fn windows_of(op: impl Into<Op>, most: u64) -> Option<Vec<Window>> {
    let form = Form::of(&op.into()).unwrap();
    let list = windows(&form, most)?;
    // every element of C belongs to one window
    let sizes = |w: &Window| w.matrices.len() * w.rows.len() * w.cols.len();
    assert_eq!(list.iter().map(sizes).sum::<usize>(), form.matrices * form.m * form.n);
    for window in &list {
        for extents in form.extents() {
            let (at, bytes) = extents.part(window);
            assert!(bytes <= most, "{window:?}: {bytes} bytes from {at} on");
            // kernels read A and B by words of 16 bytes; those that do ask for strides of matrices that allow it
            let one = window.matrices.start == 0 && extents.operand < 2;
            assert!(!one || at % 16 == 0, "{window:?} begins at {at}");
        }
    }
    Some(list)
}

#[test]
fn large_weights_are_split_along_n() {
    let head = MatMul::linear(1, 128_256, 2048, DType::F32, DType::F32, DType::F32);
    let list = windows_of(head, COMMON).unwrap();
    assert!((8..=9).contains(&list.len()), "{}", list.len());
    assert!(list.iter().all(|w| w.rows == (0..1) && w.cols.start % 16 == 0));
    // 151,936 x 4096 in q4_k
    let head = MatMul::linear(1, 151_936, 4096, DType::F32, DType::Q4K, DType::F32);
    assert_eq!(windows_of(head, COMMON).unwrap().len(), 3);
    // as large as it may be, and no window more
    let fits = MatMul::linear(1, 4096, 4096, DType::F32, DType::BF16, DType::F32);
    assert_eq!(windows_of(fits, COMMON).unwrap().len(), 1);
}

#[test]
fn large_results_are_split_along_m_and_experts_by_number() {
    let logits = MatMul::linear(2048, 128_256, 2048, DType::F32, DType::BF16, DType::F32);
    let list = windows_of(logits, COMMON).unwrap();
    assert!(list.iter().all(|w| w.rows.len() < 2048 && w.cols.len() < 128_256));
    let (n, k) = (5760, 2880);
    let experts = GroupedMatMul {
        experts: 32,
        rows: 4,
        n,
        k,
        a: Tensor2 { dtype: DType::F32, strides: Matrix::row_major(1, k) },
        a_rows: 1,
        a_divisor: 4,
        b: Tensor2 { dtype: DType::MxFp4, strides: Matrix::col_major(k, n) },
        b_constant: true,
        c: Tensor2 { dtype: DType::F32, strides: Matrix::row_major(4, n) },
        c_rows: 4,
        bias: None,
        activation: Default::default(),
        policy: Policy::default(),
    };
    let list = windows_of(experts, COMMON).unwrap();
    assert_eq!(list.iter().map(|w| w.matrices.len()).collect::<Vec<_>>(), [11, 11, 10]);
    assert!(list.iter().all(|w| w.cols == (0..n)));
}

#[test]
fn long_products_are_split_by_their_work() {
    let most = 64.0 * 64.0 * 64.0 * 4096.0;
    let split = |op: Op| windows_of_work(&Form::of(&op).unwrap(), u64::MAX, most).unwrap();
    let square = |m, n| Op::MatMul(MatMul::linear(m, n, 4096, DType::F32, DType::Q8_0, DType::F32));
    assert_eq!(split(square(64, 4096)).len(), 1);
    let list = split(square(512, 4096));
    assert_eq!(list.len(), 8);
    assert!(list.iter().all(|w| w.rows == (0..512) && w.cols.len() == 512));
    // columns do not suffice
    let list = split(square(1 << 20, 64));
    assert!(list.len() >= 64 && list.iter().all(|w| w.cols == (0..64) && w.rows.len() % 64 == 0));
}

#[test]
fn what_has_no_small_part_is_refused() {
    // one row of A alone is larger
    let deep = MatMul::linear(1, 16, 1 << 20, DType::F32, DType::F32, DType::F32);
    assert_eq!(windows_of(deep, 1 << 20), None);
    let nothing = MatMul::linear(0, 0, 5, DType::F32, DType::F32, DType::F32);
    assert_eq!(windows_of(nothing, 1 << 20).unwrap().len(), 1);
}

/// A binding so small that operands of most cases take several.
const SMALL: u64 = 6000;

const PLAIN: gemv::Way = gemv::Way { subgroup: false, quantised: false };

fn refuse_small(candidate: &Candidate<'_>) -> Option<Reason> {
    super::refuse(candidate).or_else(|| refuse_beyond(candidate, SMALL))
}

fn refuse_small_gemv(candidate: &Candidate<'_>) -> Option<Reason> {
    gemv::refuse(candidate, PLAIN).or_else(|| refuse_beyond(candidate, SMALL))
}

const fn split(name: &'static str, op: &'static str) -> Kernel {
    Kernel::new(name, op, any::cost, |request| any::prepare_within(request, SMALL))
        .with_configs(any::CONFIGS)
        .with_reject(refuse_small)
        .with_numerics(|_| Numerics::F32.flushing_subnormals())
}

const fn split_gemv(name: &'static str, op: &'static str) -> Kernel {
    Kernel::new(
        name,
        op,
        |candidate| gemv::cost(candidate, PLAIN),
        |request| gemv::prepare_within(request, PLAIN, SMALL),
    )
    .with_configs(&[Config { name: "split", tile: &[8, 40, 64], params: &[64, 4] }])
    .with_reject(refuse_small_gemv)
    .with_numerics(|_| Numerics::F32.flushing_subnormals())
    .with_align(gemv::align)
}

fn refuse_small_tiled(candidate: &Candidate<'_>) -> Option<Reason> {
    tiled::refuse(candidate).or_else(|| refuse_beyond(candidate, SMALL))
}

static SPLIT: [Kernel; 7] = [
    split("matmul_any_64x64_webgpu_any_split", "matmul"),
    split("gated_matmul_any_64x64_webgpu_any_split", "gated_matmul"),
    split("grouped_matmul_any_64x64_webgpu_any_split", "grouped_matmul"),
    split_gemv("matmul_any_8x4_webgpu_any_split", "matmul"),
    split_gemv("gated_matmul_any_8x4_webgpu_any_split", "gated_matmul"),
    split_gemv("grouped_matmul_any_8x4_webgpu_any_split", "grouped_matmul"),
    Kernel::new(
        "grouped_matmul_any_64x64_webgpu_any_split_tiled",
        "grouped_matmul",
        tiled::cost,
        |request| tiled::prepare_within(request, SMALL),
    )
    .with_configs(tiled::GROUPED)
    .with_reject(refuse_small_tiled)
    .with_numerics(|_| Numerics::F32.flushing_subnormals())
    .with_align(tiled::align),
];

/// Cases of a row that are split, at most.
const MOST_CASES: usize = 6;

#[test]
fn windows_compute_what_the_whole_does() {
    let Ok(device) = WebGpuDevice::open(0) else {
        eprintln!("skipped: no adapter");
        return;
    };
    for kernel in &SPLIT {
        let alignment = Alignment::uniform(device.info().arena.align);
        let choice = Choice::new(kernel, 0, None).with_alignment(alignment);
        let mut list = cases(&device, &choice, Scope::Sample).unwrap();
        list.retain(|case| windows_of(case.op.clone(), SMALL).is_some_and(|windows| windows.len() > 1));
        assert!(list.len() >= 5, "{}: {} cases are split", kernel.name, list.len());
        let every = list.len().div_ceil(MOST_CASES);
        for case in list.iter().step_by(every) {
            let outcome = run(&device, choice, case, &[&Buffers { replay: false }]);
            assert!(matches!(outcome, Outcome::Passed { .. }), "{}: {outcome:?}", case.id);
        }
    }
}

/// Activations that quantisation keeps as they are: integers up to 127, which every block of 32 contains.
fn whole_numbers(count: usize) -> Vec<u8> {
    let value = |i: usize| match i % 32 {
        31 => 127.0,
        _ => ((i * 7919) % 255) as f32 - 127.0,
    };
    (0..count).flat_map(|i| value(i).to_le_bytes()).collect()
}

#[test]
fn quantised_activations_lose_nothing_but_their_rounding() {
    let Ok(device) = WebGpuDevice::open(0) else {
        eprintln!("skipped: no adapter");
        return;
    };
    let alignment = Alignment::uniform(device.info().arena.align);
    let row = |name: &str| device.kernels().iter().copied().find(|k| k.name == name).unwrap();
    let few = "matmul_blocks_8x4_webgpu_any_dot4";
    let tiles = "matmul_blocks_64x64_webgpu_any_dot4";
    for b in [DType::Q8_0, DType::Q4_0, DType::Q4K, DType::Q6K, DType::MxFp4] {
        for (name, m, n, k) in [(few, 1, 5, 512), (few, 3, 9, 768), (tiles, 66, 65, 512)] {
            if name == tiles && b == DType::Q6K {
                continue;
            }
            let mut op = MatMul::linear(m, n, k, DType::F32, b, DType::F32);
            op.policy.quantised_activations = true;
            let op = Op::MatMul(op);
            let case = Case { id: String::new(), op: op.clone(), fill: Fill::Random, seed: 7 };
            let mut contents = inputs(&case).unwrap();
            contents[0] = whole_numbers(m * k);
            let plain = contents.clone();
            let choice = Choice::new(row(name), 0, None);
            let prepared = prepare(&device, &op, choice.with_alignment(alignment), None).unwrap();
            let mut stream = device.stream().unwrap();
            Buffers { replay: false }.launch(&device, &mut *stream, &prepared, &mut contents).unwrap();
            let read: Vec<&[u8]> = plain.iter().map(Vec::as_slice).collect();
            // as exact as products in f32
            let numerics = Numerics::F32.flushing_subnormals();
            let found = verify(&op, &read, &[&contents[2]], numerics, 4096, 7).unwrap();
            assert!(found.passed, "{name}, {b} {m} x {n} x {k}: {:?}", found.report);
        }
    }
}
