//! Everything above a backend, on a device that does its work as late as it may: code that relies on the CPU's doing all at once
//! computes from zeroes here.

use perjoule::kernels::op::Add;
use perjoule::ops::{self, GatedKind, KvCache, RouteOrder, Weight};
use perjoule::{Arg, Buffer, DType, Device, Error, Tensor};
use perjoule_model::weights::Checkpoint;
use perjoule_model::{LoadOptions, Model, SessionOptions, Source};
use perjoule_tests::lazy::{BACKEND, LazyDevice};
use std::path::Path;
use std::sync::{Arc, Once};

#[allow(dead_code, reason = "the example's own main")]
#[path = "../../backends/examples/replay.rs"]
mod replay;

fn lazy() -> Device {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| perjoule::register_backend(BACKEND).unwrap());
    perjoule::open("lazy:0").unwrap()
}

fn cpu() -> Device {
    perjoule::open_with_threads("cpu", Some(2)).unwrap()
}

fn numbers(seed: u32, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2654435761).wrapping_add(12345);
    let mut next = || {
        state = state.wrapping_mul(1664525).wrapping_add(1013904223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

fn random(device: &Device, seed: u32, shape: &[usize]) -> Tensor {
    Tensor::from_slice(device, &numbers(seed, shape.iter().product()), shape).unwrap()
}

#[track_caller]
fn close(got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len());
    let worst = got.iter().zip(want).map(|(g, w)| if g == w { 0.0 } else { (g - w).abs() });
    // NaN compares with nothing: `max` would lose it
    let worst = worst.fold(0.0f32, |all, x| if x <= all { all } else { x });
    assert!(worst < 1e-4, "off by {worst}");
}

#[test]
fn a_backend_from_outside_is_found_and_opened() {
    let device = lazy();
    assert_eq!(device.info().label, "lazy:0");
    let (found, absent) = perjoule::devices();
    assert!(found.iter().any(|info| info.label == "lazy:0") && found.iter().any(|info| info.label == "cpu"));
    assert!(found.iter().all(|info| info.id != device.info().id), "listing opens nothing");
    let known = found.iter().map(|info| info.backend).chain(absent.iter().map(|absent| absent.backend));
    assert!(known.into_iter().any(|backend| backend == "cuda"), "there, or with a reason");
    assert!(perjoule::register_backend(BACKEND).is_err(), "twice");
    let taken = |name| perjoule::register_backend(perjoule::Backend { name, ..BACKEND });
    assert!(taken("cpu").is_err() && taken("a:b").is_err() && taken("").is_err());
    for label in ["lazy:1", "lazy:x", "lasy"] {
        assert!(matches!(perjoule::open(label), Err(Error::NoDevice { .. })), "{label}");
    }
    assert!(perjoule::open_with_threads("lazy", Some(2)).is_err());
}

#[test]
fn streams_have_no_order_but_that_of_events_and_syncs() {
    let device = lazy();
    let (mut one, mut other) = (device.stream().unwrap(), device.stream().unwrap());
    let buffer = device.alloc(6).unwrap();
    one.write(&buffer, &[1; 6]).unwrap();
    assert_eq!(other.read(&buffer).wait().unwrap(), [0; 6], "nothing orders them");
    let early = one.read(&buffer);
    one.write(&buffer.view(1, 3).unwrap(), &[2; 3]).unwrap();
    other.follow(&mut *one).unwrap();
    assert_eq!(other.read(&buffer).wait().unwrap(), [1, 2, 2, 2, 1, 1]);
    assert_eq!(early.wait().unwrap(), [1; 6], "later work does not change it");

    // a dropped stream's work comes with its event
    one.write(&buffer, &[3; 6]).unwrap();
    let event = one.record().unwrap();
    drop(one);
    assert_eq!(other.read(&buffer).wait().unwrap()[0], 1);
    other.wait_for(&*event).unwrap();
    assert_eq!(other.read(&buffer).wait().unwrap(), [3; 6]);
    assert_ne!(device.alloc_any(4).unwrap().bytes(), 0);
}

#[test]
fn a_graph_belongs_to_the_stream_that_recorded_it() {
    for device in [lazy(), cpu()] {
        let plan = device.prepare(Add::dense(1, 4, DType::F32)).unwrap();
        let buffers: Vec<Buffer> = (0..3).map(|_| device.alloc(16).unwrap()).collect();
        let (mut one, mut other) = (device.stream().unwrap(), device.stream().unwrap());
        one.write(&buffers[0], &1.0f32.to_le_bytes().repeat(4)).unwrap();
        one.reserve(plan.scratch()).unwrap();
        let mut args: Vec<Arg<'_>> = buffers.iter().map(Arg::Buf).collect();
        let graph = one.capture(&mut |stream| plan.launch(stream, &mut args)).unwrap();
        assert!(matches!(other.replay(&graph), Err(Error::WrongStream)));
        one.replay(&graph).unwrap();
        assert_eq!(one.read(&buffers[2]).wait().unwrap(), 1.0f32.to_le_bytes().repeat(4));
    }
}

#[test]
fn a_buffer_is_not_read_and_written_in_one_launch() {
    let device = lazy();
    let plan = device.prepare(Add::dense(1, 64, DType::F32)).unwrap();
    let arena = device.alloc(512).unwrap();
    let (from, to) = (arena.view(0, 256).unwrap(), arena.view(256, 256).unwrap());
    let mut stream = device.stream().unwrap();
    stream.reserve(plan.scratch()).unwrap();
    let refused = plan.launch(&mut *stream, &mut [Arg::Buf(&from), Arg::Buf(&from), Arg::Buf(&to)]);
    assert!(matches!(refused, Err(Error::SharedBuffer { .. })), "{refused:?}");
}

#[test]
fn a_lost_device_says_so() {
    let backend = Arc::new(LazyDevice::open());
    let device = Device::new(backend.clone()).unwrap();
    let x = random(&device, 1, &[4]);
    let pending = x.read().unwrap();
    backend.lose();
    assert!(matches!(pending.wait(), Err(Error::Lost { .. })));
    assert!(matches!(ops::add(&x, &x), Err(Error::Lost { .. })));
    assert!(matches!(x.to_vec::<f32>(), Err(Error::Lost { .. })));
    assert!(matches!(device.stream().map(drop), Err(Error::Lost { .. })));
}

/// One of each kind of call, as a list of results.
fn calls(d: &Device) -> Vec<Vec<f32>> {
    let vec = |t: Tensor| t.to_vec::<f32>().unwrap();
    let x = random(d, 1, &[3, 64]);
    let mut list = Vec::new();
    let weight = Weight::pack(&random(d, 2, &[48, 64]), DType::F32, &[1, 3]).unwrap();
    let projected = ops::linear(&x, &weight).bias(&random(d, 3, &[48])).run().unwrap();
    list.push(vec(ops::matmul(&x, &random(d, 4, &[64, 5])).unwrap()));
    list.push(vec(ops::softmax(&projected).unwrap()));
    list.push(vec(ops::rms_norm(&x.slice(1, 16..48).unwrap(), &random(d, 5, &[32]), 1e-5).unwrap()));
    list.push(vec(ops::layer_norm(&x, &random(d, 5, &[64]), None, 1e-5).unwrap()));
    list.push(vec(x.transpose(0, 1).unwrap().contiguous().unwrap()));
    list.push(vec(ops::add(&x, &x.copy().unwrap()).unwrap()));
    let (gate, up) = (x.slice(1, ..32).unwrap(), x.slice(1, 32..).unwrap());
    list.push(vec(ops::gated(&gate, &up, GatedKind::SwiGlu).unwrap()));
    list.push(vec(ops::cast(&ops::quantise(&x, DType::Q8_0).unwrap(), DType::F32).unwrap()));
    let scaled = ops::quantise_scaled(&x, DType::I8, ops::Granularity::Vector).unwrap();
    list.push(vec(ops::cast(&scaled.values, DType::F32).unwrap()));
    list.push(vec(scaled.scales));
    let ids = ops::argmax(&projected).unwrap();
    list.push(vec(ops::cast(&ids, DType::F32).unwrap()));
    list.push(vec(ops::embed(&random(d, 6, &[48, 8]), &ids, DType::F32).unwrap()));

    // a step of two sequences, and one of different lengths
    let qkv = |seed, lead: &[usize]| random(d, seed, &[lead, &[4, 16]].concat());
    let mut cache = KvCache::new(d, 2, 1, 8, 16, DType::F32).unwrap();
    for seed in [10, 11] {
        let step = qkv(seed, &[2, 3]);
        let (q, k, v) = (step.slice(2, ..2), step.slice(2, 2..3), step.slice(2, 3..));
        let (q, k, v) = (q.unwrap(), k.unwrap(), v.unwrap());
        cache.advance(3).unwrap();
        ops::rope(&q, cache.positions(), 1e4).unwrap();
        ops::rope(&k, cache.positions(), 1e4).unwrap();
        cache.append(&k, &v).unwrap();
        list.push(vec(ops::attention_cached(&q, &cache).run().unwrap()));
    }
    cache.truncate(1, 2).unwrap();
    cache.advance_ragged(&[2, 1]).unwrap();
    let step = qkv(12, &[3]);
    let (q, k) = (step.slice(1, ..2).unwrap(), step.slice(1, 2..3).unwrap());
    cache.append(&k, &step.slice(1, 3..).unwrap()).unwrap();
    list.push(vec(ops::attention_cached(&q, &cache).run().unwrap()));
    let (q, k, v) = (qkv(13, &[1, 3]), random(d, 14, &[1, 5, 2, 16]), random(d, 15, &[1, 5, 2, 16]));
    list.push(vec(ops::attention(&q, &k, &v).run().unwrap()));

    let order = RouteOrder::SoftmaxThenTopK { renormalise: true };
    let routing = ops::route(&random(d, 20, &[3, 4]), 2, order).unwrap();
    let experts = Weight::pack(&random(d, 21, &[4, 32, 64]), DType::F32, &[2]).unwrap();
    let h = ops::grouped_linear(&x, &experts, &routing).run().unwrap();
    list.push(vec(ops::combine(&h, &routing.weights, None).unwrap()));

    // what no pair of tokens and expert names stays zero
    let none = Tensor::from_slice(d, &[0i32; 5], [5]).unwrap();
    let routing = ops::Routing { offsets: none, ..routing };
    let h = ops::grouped_linear(&x, &experts, &routing).run().unwrap();
    assert!(vec(h).iter().all(|&value| value == 0.0));
    list
}

#[test]
fn calls_give_what_they_give_on_the_cpu() {
    for (i, (got, want)) in calls(&lazy()).iter().zip(&calls(&cpu())).enumerate() {
        eprintln!("result {i}");
        close(got, want);
    }
}

#[test]
fn reads_and_writes_of_odd_sizes() {
    let d = lazy();
    let x = Tensor::from_slice(&d, &[1i8, 2, 3, 4, 5], [5]).unwrap();
    let middle = x.slice(0, 1..4).unwrap();
    let before = middle.read().unwrap();
    middle.write(&[7i8, 8, 9]).unwrap();
    assert_eq!(x.to_vec::<i8>().unwrap(), [1, 7, 8, 9, 5]);
    assert_eq!(before.wait().unwrap(), [2, 3, 4]);
}

#[test]
fn recorded_steps_choose_the_same_tokens() {
    replay::run(&lazy()).unwrap();
}

/// Checkpoints against the logits that another framework computed, and its greedy continuation.
fn golden(name: &str) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("checkpoints").join(name);
    let file = Checkpoint::open_file(&dir.join("expected.safetensors")).unwrap();
    let ids =
        |name: &str| -> Vec<u32> { file.read_i32(name).unwrap().into_iter().map(|id| id as u32).collect() };
    let shape = file.tensor("logits").unwrap().shape.clone();
    let (prompt, want, greedy) = (ids("input_ids"), file.read_f32("logits").unwrap(), ids("greedy_ids"));
    let device = lazy();
    let source = Source::checkpoint(&dir).unwrap();
    let model = Model::load(&device, &source, &LoadOptions::new(DType::F32)).unwrap();
    let options = SessionOptions { parallel: shape[0], capacity: 40, chunk: 14 };
    let got = model.session(options).unwrap().prefill_all(&prompt).unwrap();
    let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|x| f64::from(x * x)).sum::<f64>().sqrt();
    let error = norm(&mut got.iter().zip(&want).map(|(g, w)| g - w)) / norm(&mut want.iter().copied());
    assert!(error < 1e-5, "{name}: off by {error:e}");

    // two sessions of one model side by side, their steps recorded and replayed
    let options = SessionOptions { parallel: 1, ..options };
    let mut sessions = [model.session(options).unwrap(), model.session(options).unwrap()];
    for session in &mut sessions {
        session.prefill(&greedy[..8]).unwrap();
    }
    for session in &mut sessions {
        let mut chosen = session.greedy().unwrap();
        session
            .decode_greedy(4, &mut |ids| {
                chosen.extend(ids);
                true
            })
            .unwrap();
        assert_eq!(chosen, greedy[8..13], "{name}");
    }
}

#[test]
fn a_dense_checkpoint() {
    golden("qwen3");
}

#[test]
fn a_checkpoint_with_experts() {
    golden("gpt-oss");
}
