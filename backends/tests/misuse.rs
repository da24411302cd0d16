//! Views and calls that once looked right and computed something else, or could break memory safety.

use perjoule::kernels::op::{MatMul, RmsNorm};
use perjoule::kernels::tune::Tuning;
use perjoule::kernels::{Choice, PackFormat};
use perjoule::{Arg, DType, Device, Error, Op, Tensor, cpu, ops};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

fn open() -> Device {
    perjoule::open_with_threads("cpu", Some(2)).unwrap()
}

fn iota(device: &Device, shape: &[usize]) -> Tensor {
    let values: Vec<f32> = (0..shape.iter().product::<usize>()).map(|i| (i % 17) as f32 - 8.0).collect();
    Tensor::from_slice(device, &values, shape).unwrap()
}

#[test]
fn rope_of_sliced_tokens_rotates_those_or_refuses() {
    let d = open();
    for heads in [1, 2] {
        let whole = iota(&d, &[2, 5, heads, 4]);
        let before = whole.to_vec::<f32>().unwrap();
        let view = whole.slice(1, 0..3).unwrap();
        let positions = Tensor::from_slice(&d, &[1i32; 6], [6]).unwrap();
        assert!(ops::rope(&view, &positions, 1e4).is_err());
        assert_eq!(whole.to_vec::<f32>().unwrap(), before, "{heads} heads: what lies outside the view stays");
        // a slice of a fused row is regular
        let fused = iota(&d, &[2, 3, 5, 4]);
        let part = fused.slice(2, 1..1 + heads).unwrap();
        let copy = Tensor::from_slice(&d, &part.to_vec::<f32>().unwrap(), part.shape()).unwrap();
        ops::rope(&part, &positions, 1e4).unwrap();
        ops::rope(&copy, &positions, 1e4).unwrap();
        assert_eq!(part.to_vec::<f32>().unwrap(), copy.to_vec::<f32>().unwrap());
    }
}

#[test]
fn a_cache_takes_regular_tokens_in_order() {
    let d = open();
    let mut cache = ops::KvCache::new(&d, 2, 1, 8, 4, DType::F32).unwrap();
    let q = iota(&d, &[2, 3, 1, 4]);
    assert!(ops::attention_cached(&q, &cache).run().is_err(), "nothing in the cache");
    assert!(cache.advance(usize::MAX).is_err());
    cache.advance(3).unwrap();
    assert!(ops::attention_cached(&q, &cache).run().is_err(), "nothing appended");
    assert!(cache.advance(1).is_err(), "nothing appended");
    let dense = iota(&d, &[2, 3, 1, 4]);
    let cut = iota(&d, &[2, 5, 1, 4]).slice(1, 0..3).unwrap();
    assert!(cache.append(&cut, &dense).is_err(), "two stretches of tokens are not one");
    cache.append(&dense, &dense).unwrap();
    assert!(ops::attention_cached(&q, &cache).run().is_ok());
    assert!(
        ops::attention_cached(&iota(&d, &[2, 4, 1, 4]), &cache).run().is_err(),
        "more queries than tokens"
    );
    assert_eq!(cache.len(), 3);
}

#[test]
fn vectors_beside_the_data_must_be_dense_and_as_long() {
    let d = open();
    let strided = iota(&d, &[2, 3]).transpose(0, 1).unwrap().slice(0, 0..2).unwrap().slice(1, 0..1).unwrap();
    let strided = Tensor::from_buffer(&d, strided.buffer().clone(), DType::F32, [2], [3]).unwrap();
    let q = iota(&d, &[1, 1, 2, 4]);
    assert!(ops::attention(&q, &q, &q).sinks(&strided).run().is_err());
    assert!(ops::attention(&q, &q, &q).sinks(&iota(&d, &[3])).run().is_err());
    assert!(ops::sample(&iota(&d, &[2, 9]), &strided, 1.0, None, None).is_err());
    let one = iota(&d, &[1]);
    let endless = Tensor::from_buffer(&d, one.buffer().clone(), DType::F32, [1 << 40, 1 << 40], [0, 0]);
    assert!(endless.is_err(), "elements that cannot be counted");
}

#[test]
fn a_panic_while_recording_ends_the_recording() {
    let d = open();
    let caught = catch_unwind(AssertUnwindSafe(|| {
        let _ = d.default_stream().capture(&mut |_| std::panic::resume_unwind(Box::new("on purpose")));
    }));
    assert!(caught.is_err());
    let x = iota(&d, &[4]);
    let sum = ops::add(&x, &x).unwrap().to_vec::<f32>().unwrap();
    assert_eq!(sum, [-16.0, -14.0, -12.0, -10.0]);
}

#[test]
fn a_format_of_the_same_name_is_another_format() {
    static FAKE: PackFormat =
        PackFormat { name: "panel8_f32", dtype: DType::F32, panel: 8, panel_bytes: |_| Some(4) };
    let d = open();
    let op = Op::from(MatMul::linear(4, 64, 64, DType::F32, DType::F32, DType::F32));
    let packed = d.kernels().iter().copied().find(|k| k.packs.iter().any(|p| p.name == FAKE.name)).unwrap();
    let choice = Choice { kernel: packed, config: 0, pack: Some(&FAKE) };
    // its operand would be 32 bytes, and the row would read 16 KiB
    assert!(matches!(d.prepare_choice(&op, choice), Err(Error::Refused { .. })));
}

#[test]
fn the_scratch_of_a_stream_is_no_operand() {
    let d = open();
    let op = MatMul::linear(8, 64, 64, DType::BF16, DType::BF16, DType::BF16);
    let sizes = Op::from(op).operands();
    for verdict in d.explain(&op.into()).unwrap().iter().filter(|v| v.outcome.is_ok()) {
        let plan = d.prepare_choice(&op.into(), verdict.choice).unwrap();
        if plan.scratch() == 0 {
            continue;
        }
        let mut stream = d.stream().unwrap();
        stream.reserve(plan.scratch().max(sizes[2].bytes)).unwrap();
        let scratch = stream.scratch(plan.scratch().max(sizes[2].bytes)).unwrap().unwrap();
        let (a, b) = (d.alloc(sizes[0].bytes).unwrap(), d.alloc(plan.operands()[1].bytes).unwrap());
        let result = plan.launch(&mut *stream, &mut [Arg::Buf(&a), Arg::Buf(&b), Arg::Buf(&scratch)]);
        assert!(matches!(result, Err(Error::Overlap { second: "scratch", .. })), "{plan:?}: {result:?}");
    }
}

#[test]
fn what_was_measured_goes_before_what_was_predicted() {
    let device = cpu::CpuDevice::open(&cpu::Options { threads: Some(1), ..Default::default() }).unwrap();
    let op = Op::from(RmsNorm::dense(4, 64, DType::F32));
    let verdicts = perjoule::kernels::select::explain(&device, &op).unwrap();
    let last = verdicts.iter().rfind(|v| v.outcome.is_ok()).unwrap().choice;
    let mut tuning = Tuning::new();
    // seconds that no prediction comes near
    tuning.insert(&op, last.kernel.name, last.kernel.configs[last.config].name, 1e6);
    device.set_tuning(Some(Arc::new(tuning)));
    assert_eq!(perjoule::kernels::select(&device, &op, &[]).unwrap().kernel.name, last.kernel.name);
}
