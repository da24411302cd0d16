//! Views and calls that once looked right and computed something else, or could break memory safety.

use perjoule::kernels::op::{MatMul, RmsNorm};
use perjoule::kernels::tune::Tuning;
use perjoule::kernels::{Choice, Config, Numerics, PackFormat, Prepare};
use perjoule::{Arg, DType, Device, Error, Kernel, Op, Tensor, cpu, ops};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, mpsc};
use std::time::Duration;

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
        let _ =
            d.default_stream().unwrap().capture(&mut |_| std::panic::resume_unwind(Box::new("on purpose")));
    }));
    assert!(caught.is_err());
    let x = iota(&d, &[4]);
    let sum = ops::add(&x, &x).unwrap().to_vec::<f32>().unwrap();
    assert_eq!(sum, [-16.0, -14.0, -12.0, -10.0]);
}

/// On a thread that is left behind when it hangs, so that the test fails.
#[test]
fn a_thread_that_holds_the_default_stream_is_told() {
    let (done, ended) = mpsc::channel();
    std::thread::spawn(move || {
        let d = open();
        let x = iota(&d, &[4]);
        let mut held = d.default_stream().unwrap();
        held.reserve(64).unwrap();
        let refusals = [
            ops::add(&x, &x).map(|_| ()),
            Tensor::from_slice(&d, &[1.0f32], [1]).map(|_| ()),
            x.to_vec::<f32>().map(|_| ()),
            d.default_stream().map(|_| ()),
            held.capture(&mut |_| ops::add(&x, &x).map(|_| ())).map(|_| ()),
        ];
        for refusal in refusals {
            let error = refusal.unwrap_err();
            assert!(error.to_string().contains("this thread holds it"), "{error}");
        }
        // another device's is another one, and another thread waits until this one lets go
        assert!(open().default_stream().is_ok());
        let (other, y) = (d.clone(), x.clone());
        let waiting = std::thread::spawn(move || {
            drop(other.default_stream().unwrap());
            ops::add(&y, &y).unwrap().to_vec::<f32>().unwrap()
        });
        std::thread::sleep(Duration::from_millis(20));
        assert!(!waiting.is_finished());
        drop(held);
        assert_eq!(waiting.join().unwrap(), [-16.0, -14.0, -12.0, -10.0]);
        assert!(ops::add(&x, &x).is_ok());
        done.send(()).unwrap();
    });
    assert_eq!(ended.recv_timeout(Duration::from_secs(60)), Ok(()));
}

#[test]
fn plans_follow_rows_and_tuning() {
    static ROW: Kernel = Kernel {
        name: "rms_norm_cpu_late",
        op: "rms_norm",
        configs: &[Config::tile("any", &[1])],
        packs: &[],
        vendor: false,
        numerics: Numerics::F32,
        reject: |_, _, _| None,
        cost: |_, _, _| 0.0,
        prepare: Prepare::new(|request| {
            struct Nothing;
            impl cpu::spmd::Spmd for Nothing {
                fn run(&self, _: &cpu::team::Lane<'_>, _: &cpu::spmd::Args) {}
            }
            Ok(cpu::spmd::launch(request, Nothing))
        }),
    };
    let backend = cpu::CpuDevice::open(&cpu::Options { threads: Some(1), ..Default::default() }).unwrap();
    let backend = Arc::new(backend);
    let d = Device::new(backend.clone()).unwrap();
    let op = Op::from(RmsNorm::dense(4, 64, DType::F32));
    let name = || d.prepare(op.clone()).unwrap().choice().kernel.name;
    let first = d.prepare(op.clone()).unwrap();
    assert!(Arc::ptr_eq(&first, &d.prepare(op.clone()).unwrap()), "kept");
    d.register(&ROW).unwrap();
    assert_eq!(name(), ROW.name);
    assert!(d.register(&ROW).is_err());
    let kept = d.prepare(op.clone()).unwrap();
    assert!(Arc::ptr_eq(&kept, &d.prepare(op.clone()).unwrap()), "a refused row changes nothing");
    let slow = d.explain(&op).unwrap().iter().rfind(|v| v.outcome.is_ok()).unwrap().choice;
    let mut tuning = Tuning::new();
    tuning.insert(&op, slow.kernel.name, slow.kernel.configs[slow.config].name, 1.0);
    backend.set_tuning(Some(Arc::new(tuning)));
    assert_eq!(name(), slow.kernel.name);
    backend.set_tuning(None);
    assert_eq!(name(), ROW.name);
    // who holds a plan keeps it
    assert_ne!(first.choice().kernel.name, ROW.name);
}

#[test]
fn a_process_is_a_group_of_one() {
    use perjoule::kernels::op::{Collective, CollectiveKind};
    let d = open();
    let alone = d.backend().join(b"id", 0, 1).unwrap();
    assert_eq!((alone.rank(), alone.world()), (0, 1));
    let refused = |rank, world| d.backend().join(b"id", rank, world).err().unwrap().to_string();
    assert!(refused(0, 2).contains("join a world of 1, not 2"));
    assert!(refused(1, 1).contains("expected rank 0 of 1") && refused(0, 0).contains("rank 0 of 1"));

    let op = Collective { kind: CollectiveKind::AllReduce, dtype: DType::F32, count: 4, world: 1 };
    let (x, out) = (iota(&d, &[4]), Tensor::zeros(&d, DType::F32, [4]).unwrap());
    let plan = d.prepare(op).unwrap();
    let mut args = [Arg::Buf(x.buffer()), Arg::Buf(out.buffer())];
    plan.launch(&mut *d.default_stream().unwrap(), &mut args).unwrap();
    assert_eq!(out.to_vec::<f32>().unwrap(), x.to_vec::<f32>().unwrap());
    assert!(d.prepare(Collective { world: 2, ..op }).is_err());
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
