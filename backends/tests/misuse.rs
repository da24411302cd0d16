//! Views and calls that once looked right and computed something else, or could break memory safety.

mod common;

use common::refused;
use perjoule::kernels::op::{MatMul, RmsNorm};
use perjoule::kernels::tune::Tuning;
use perjoule::kernels::{Choice, PackFormat, Query};
use perjoule::ops::{GatedKind, Granularity, RopeOptions, RopeScaling, RouteOrder, Routing, Weight};
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
    struct Nothing;
    impl cpu::spmd::Spmd for Nothing {
        fn run(&self, _: &cpu::team::Lane<'_>, _: &cpu::spmd::Args) {}
    }
    static ROW: Kernel = Kernel::new(
        "rms_norm_cpu_late",
        "rms_norm",
        |_| 0.0,
        |request| Ok(cpu::spmd::launch(request, Nothing)),
    );
    let d = open();
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
    tuning.insert(&op, &slow, 1.0);
    d.set_tuning(Some(Arc::new(tuning))).unwrap();
    assert_eq!(name(), slow.kernel.name);
    d.set_tuning(None).unwrap();
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
    let choice = Choice::new(packed, 0, Some(&FAKE));
    // its operand would be 32 bytes, and the row would read 16 KiB
    assert!(matches!(d.prepare_choice(&op, choice), Err(Error::Refused { .. })));
}

#[test]
fn the_scratch_of_a_stream_is_no_operand() {
    let d = open();
    let op = Op::from(MatMul::linear(8, 64, 64, DType::BF16, DType::BF16, DType::BF16));
    let sizes = op.operands();
    for verdict in d.explain(&op).unwrap().iter().filter(|v| v.outcome.is_ok()) {
        let plan = d.prepare_choice(&op, verdict.choice).unwrap();
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
    tuning.insert(&op, &last, 1e6);
    perjoule::kernels::Device::set_tuning(&device, Some(Arc::new(tuning))).unwrap();
    assert_eq!(perjoule::kernels::select(&device, &op, &[]).unwrap().kernel.name, last.kernel.name);
}

#[test]
fn calls_refuse_what_they_cannot_mean() {
    let d = open();
    let f32s = |shape: &[usize]| iota(&d, shape);
    let i32s = |n: usize| Tensor::from_slice(&d, &vec![0i32; n], [n]).unwrap();
    let x = f32s(&[3, 2, 8]);

    refused(ops::rope(&f32s(&[8]), &i32s(1), 1e4), &["rope", "x is"]);
    refused(ops::rope(&x, &i32s(2), 1e4), &["positions", "3 elements"]);
    refused(ops::rope(&x, &f32s(&[3]), 1e4), &["positions", "i32"]);
    refused(ops::rope(&x, &i32s(3), RopeOptions::new(1e4).rotary_dim(10)), &["rotary_dim", "10"]);
    refused(ops::rope(&x, &i32s(3), RopeOptions::new(1e4).rotary_dim(3)), &["rotary_dim", "even"]);
    refused(ops::rope(&x, &i32s(3), 0.5), &["theta"]);
    let zero = RopeScaling::Linear { factor: 0.0 };
    refused(ops::rope(&x, &i32s(3), RopeOptions::new(1e4).scaling(zero)), &["factor"]);
    refused(ops::rope(&x.transpose(1, 2).unwrap(), &i32s(3), 1e4), &["contiguous"]);

    let order = RouteOrder::TopKThenSoftmax;
    let logits = f32s(&[3, 4]);
    refused(ops::route(&f32s(&[4]), 2, order), &["[tokens, experts]"]);
    refused(ops::route(&logits, 5, order), &["top_k", "5"]);
    refused(ops::route(&logits, 0, order), &["top_k"]);
    refused(ops::route(&logits.transpose(0, 1).unwrap(), 2, order), &["contiguous"]);
    refused(ops::route(&i32s(4).reshape([1, 4]).unwrap(), 2, order), &["logits", "i32"]);

    let routing = ops::route(&logits, 2, order).unwrap();
    let (input, b) = (f32s(&[3, 8]), f32s(&[4, 8, 6]));
    let call = ops::grouped_matmul(&input, &b, &routing);
    refused(call.bias(&f32s(&[6])).run(), &["bias", "[4, 6]"]);
    refused(call.out_dtype(DType::I32).run(), &["i32"]);
    refused(ops::grouped_matmul(&f32s(&[3, 7]), &b, &routing).run(), &["[3, 8]", "[3, 2, 8]"]);
    refused(ops::grouped_matmul(&f32s(&[6, 8]), &b, &routing).run(), &["[3, 2, 8]"]);
    refused(ops::grouped_matmul(&input, &f32s(&[8, 6]), &routing).run(), &["[experts, k, n]"]);
    refused(ops::grouped_matmul(&input, &f32s(&[5, 8, 6]), &routing).run(), &["offsets", "6 elements"]);
    let single = Weight::pack(&f32s(&[6, 8]), DType::F32, &[1]).unwrap();
    refused(ops::grouped_linear(&input, &single, &routing).run(), &["ops::linear"]);
    let experts = Weight::pack(&f32s(&[4, 6, 8]), DType::F32, &[6]).unwrap();
    refused(ops::linear(&input, &experts).run(), &["ops::grouped_linear"]);
    refused(Weight::pack(&f32s(&[6]), DType::F32, &[1]), &["[experts, n, k]"]);
    refused(Weight::pack(&f32s(&[6, 8]).transpose(0, 1).unwrap(), DType::F32, &[1]), &["contiguous"]);
    let odd = Routing { order: f32s(&[6]), ..routing.clone() };
    refused(ops::grouped_matmul(&input, &b, &odd).run(), &["order", "i32"]);
    // slots of a router of one's own may hold anything
    let wild = Routing {
        order: Tensor::from_slice(&d, &[9, -1, i32::MAX, 0, 0, 5], [6]).unwrap(),
        offsets: Tensor::from_slice(&d, &[3, -2, 99, 1, i32::MIN], [5]).unwrap(),
        ..routing.clone()
    };
    assert!(ops::grouped_matmul(&input, &b, &wild).run().is_ok());

    let pairs = f32s(&[3, 2, 6]);
    refused(ops::combine(&f32s(&[3, 6]), &routing.weights, None), &["[tokens, top_k, len]"]);
    refused(ops::combine(&pairs, &f32s(&[2, 3]), None), &["weights", "[3, 2]"]);
    refused(ops::combine(&pairs, &routing.weights, Some(&f32s(&[3, 5]))), &["residual", "[3, 6]"]);
    refused(ops::combine(&pairs, &routing.experts, None), &["weights", "f32"]);

    let (m, w) = (f32s(&[2, 8]), f32s(&[8, 4]));
    refused(ops::gated_matmul(&m, &w, &f32s(&[8, 5]), GatedKind::SwiGlu).run(), &["up", "[8, 4]"]);
    refused(ops::gated_matmul(&m, &f32s(&[7, 4]), &w, GatedKind::SwiGlu).run(), &["gate", "[8, n]"]);
    refused(ops::gated_matmul(&m, &w, &w, GatedKind::SwiGlu).up_bias(&m).run(), &["up_bias", "[4]"]);
    let endless = GatedKind::GptOss { alpha: f32::NAN, limit: 7.0 };
    refused(ops::gated_matmul(&m, &w, &w, endless).run(), &["alpha"]);

    refused(ops::layer_norm_residual(&m, &f32s(&[2, 7]), &f32s(&[8]), None, 1e-5), &["residual"]);
    refused(ops::layer_norm(&m, &f32s(&[7]), None, 1e-5), &["weight", "[8]"]);
    refused(ops::rms_norm_with(&m, &f32s(&[8]), -1.0).run(), &["eps"]);
    refused(ops::rms_norm_with(&m, &f32s(&[8]), 0.0).out_dtype(DType::I8).run(), &["i8"]);
    refused(ops::softmax_scaled(&m, f32::INFINITY), &["scale"]);

    let vector = Granularity::Vector;
    refused(ops::quantise_scaled(&m, DType::F16, vector), &["i8 or f8e4m3"]);
    refused(ops::quantise_scaled(&m, DType::I8, Granularity::Group(0)), &["scale"]);
    refused(ops::quantise_scaled(&m.transpose(0, 1).unwrap(), DType::I8, vector), &["contiguous"]);
    refused(ops::quantise(&m, DType::F16), &["f16", "block format"]);
    refused(ops::cast(&m, DType::Q8_0), &["ops::quantise"]);
    refused(ops::matmul_with(&m, &w).a_scale(&f32s(&[3]), vector).run(), &["a_scale", "2 elements"]);
    refused(ops::matmul_with(&m, &w).b_scale(&i32s(4), vector).run(), &["b_scale", "f32"]);
    refused(ops::matmul_with(&m, &w).bias(&f32s(&[3])).run(), &["bias", "[4]"]);
    refused(ops::matmul_with(&m, &w).residual(&m).run(), &["residual", "[2, 4]"]);
    refused(ops::embed(&w, &f32s(&[2]), DType::F32), &["ids", "i32"]);
    refused(ops::embed(&w.transpose(0, 1).unwrap(), &i32s(1), DType::F32), &["table", "contiguous"]);

    // everything on one device
    let e = open();
    let there = Tensor::from_slice(&e, &[1i32; 3], [3]).unwrap();
    assert!(matches!(ops::rope(&x, &there, 1e4), Err(Error::WrongDevice { operand: "positions", .. })));
    let there = iota(&e, &[3, 2]);
    assert!(matches!(ops::combine(&pairs, &there, None), Err(Error::WrongDevice { .. })));
    let there = iota(&e, &[4, 8, 6]);
    let wrong = ops::grouped_matmul(&input, &there, &routing).run();
    assert!(matches!(wrong, Err(Error::WrongDevice { operand: "b", .. })));
}

/// Plans are kept by alignment only for ops of which a row asks for some.
#[test]
fn views_share_plans_unless_a_row_minds_where_they_lie() {
    static ROW: Kernel = Kernel::new(
        "add_f32_cpu_16",
        "add",
        |_| 0.0,
        |request| {
            struct Nothing;
            impl cpu::spmd::Spmd for Nothing {
                fn run(&self, _: &cpu::team::Lane<'_>, _: &cpu::spmd::Args) {}
            }
            Ok(cpu::spmd::launch(request, Nothing))
        },
    )
    .with_align(|_, _| 16);
    let d = open();
    let op = Op::from(perjoule::kernels::op::Add::dense(1, 4, DType::F32));
    let memory = d.alloc(256).unwrap();
    let plan = |at| {
        let view = memory.view(at, 16).unwrap();
        let alignment = d.alignment(&[&view, &view, &view]);
        d.prepare_packed(Query { op: &op, alignment }, None).unwrap()
    };
    assert!(Arc::ptr_eq(&plan(0), &plan(4)));
    d.register(&ROW).unwrap();
    let (aligned, not) = (plan(16), plan(4));
    assert_eq!(aligned.choice().kernel.name, ROW.name);
    assert_ne!(not.choice().kernel.name, ROW.name);
    assert!(Arc::ptr_eq(&aligned, &plan(48)) && Arc::ptr_eq(&not, &plan(8)), "kept, in few levels");
    // a slice that begins elsewhere is computed by another row
    let x = iota(&d, &[9]);
    let sum = ops::add(&x.slice(0, 1..5).unwrap(), &x.slice(0, 5..).unwrap()).unwrap();
    assert_eq!(sum.to_vec::<f32>().unwrap(), [-10.0, -8.0, -6.0, -4.0]);
}
