//! What the tests of calls share: seeded tensors, and judgement by the f64 reference.

#![allow(dead_code, reason = "each test file uses a part")]

use perjoule::{DType, Device, Op, Tensor, ops};

/// A device with a team of two.
pub(crate) fn open() -> Device {
    perjoule::open_with_threads("cpu", Some(2)).unwrap()
}

/// Numbers in -1..1, the same for the same seed.
pub(crate) fn numbers(seed: u32, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2654435761).wrapping_add(12345);
    let mut next = || {
        state = state.wrapping_mul(1664525).wrapping_add(1013904223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// A dense f32 tensor of them.
pub(crate) fn random(device: &Device, seed: u32, shape: &[usize]) -> Tensor {
    Tensor::from_slice(device, &numbers(seed, shape.iter().product()), shape).unwrap()
}

/// The same in another dtype.
pub(crate) fn random_as(device: &Device, seed: u32, shape: &[usize], dtype: DType) -> Tensor {
    let x = random(device, seed, shape);
    if dtype.is_block() { ops::quantise(&x, dtype).unwrap() } else { ops::cast(&x, dtype).unwrap() }
}

pub(crate) fn ints(device: &Device, values: &[i32]) -> Tensor {
    Tensor::from_slice(device, values, [values.len()]).unwrap()
}

/// The bytes of tensors in row-major order, which dense descriptors describe.
pub(crate) fn bytes(tensors: &[&Tensor]) -> Vec<Vec<u8>> {
    tensors.iter().map(|t| t.to_bytes().unwrap()).collect()
}

/// Compares what was written with the f64 reference of a dense descriptor, by the bound of the row that ran it: `before` are the
/// operands in order as they were before (what is only written may be empty), `after` what is written.
#[track_caller]
pub(crate) fn judge(device: &Device, op: impl Into<Op>, before: &[Vec<u8>], after: &[&Tensor]) {
    let op = op.into();
    let numerics = device.explain(&op).unwrap()[0].choice.numerics(&op, device.info());
    let after = bytes(after);
    let before: Vec<&[u8]> = before.iter().map(Vec::as_slice).collect();
    let after: Vec<&[u8]> = after.iter().map(Vec::as_slice).collect();
    let found = perjoule_suite::verify(&op, &before, &after, numerics, 4096, 7).unwrap();
    assert!(found.passed, "{op}: {:#?}", found.report);
    assert!(found.checked_elements > 0, "{op}: nothing was compared");
}

/// The message of a refusal, which must say something and name all of `parts`.
#[track_caller]
pub(crate) fn refused<T>(result: perjoule::Result<T>, parts: &[&str]) {
    let message = result.err().expect("this must be refused").to_string();
    assert!(message.len() > 20, "{message}");
    for part in parts {
        assert!(message.contains(part), "{message:?} does not say {part:?}");
    }
}
