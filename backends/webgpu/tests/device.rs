//! Devices, memory, streams and their faults, on the first adapter that is there. Without one every test says so and passes, unless
//! `PERJOULE_REQUIRE` names webgpu.

use perjoule_kernels::op::Add;
use perjoule_kernels::{Arg, Buffer, DType, Device, Error, Op, Prepared, Result, Stream, prepare, select};
use perjoule_webgpu::WebGpuDevice;
use perjoule_webgpu::ceiling::{Arithmetic, Probes};
use perjoule_webgpu::memory::USAGES;
use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Condvar, Mutex};
use std::task::{Context, Poll, Wake, Waker};

fn open() -> Option<WebGpuDevice> {
    match WebGpuDevice::open(0) {
        Ok(device) => Some(device),
        Err(error) => {
            let required = std::env::var("PERJOULE_REQUIRE").unwrap_or_default();
            assert!(!required.split(',').any(|name| name.trim() == "webgpu"), "{error}");
            eprintln!("ignored: {error}");
            None
        }
    }
}

macro_rules! device {
    () => {
        match open() {
            Some(device) => device,
            None => return,
        }
    };
}

/// Bytes that tell their place.
fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i as u8).wrapping_mul(37).wrapping_add(seed)).collect()
}

fn filled(device: &dyn Device, stream: &mut dyn Stream, bytes: &[u8]) -> Buffer {
    let buffer = device.alloc(bytes.len() as u64).unwrap();
    stream.write(&buffer, bytes).unwrap();
    buffer
}

/// `out = a + b` of f32.
fn adding(device: &dyn Device, len: usize) -> Prepared {
    let op = Op::from(Add::dense(1, len, DType::F32));
    prepare(device, &op, select(device, &op, &[]).unwrap(), None).unwrap()
}

fn launch(prepared: &Prepared, stream: &mut dyn Stream, args: [&Buffer; 3]) -> Result<()> {
    prepared.launch(stream, &mut args.map(Arg::Buf))
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

#[test]
fn bytes_go_anywhere_and_leave_their_neighbours() {
    let device = device!();
    let mut stream = device.stream().unwrap();
    let places = [(0, 0, 64), (1, 0, 7), (0, 3, 5), (5, 2, 1), (3, 7, 30), (64, 4, 8), (7, 7, 0), (2, 1, 61)];
    for (to, from, bytes) in places {
        let (old, new) = (pattern(101, 1), pattern(97, 200));
        let target = filled(&device, &mut *stream, &old);
        let source = filled(&device, &mut *stream, &new);
        let view = target.view(to, bytes).unwrap();
        stream.copy(&view, &source.view(from, bytes).unwrap()).unwrap();
        let mut expected = old.clone();
        let (t, f, n) = (to as usize, from as usize, bytes as usize);
        expected[t..t + n].copy_from_slice(&new[f..f + n]);
        assert_eq!(stream.read(&target).wait().unwrap(), expected, "copy of {bytes} from {from} to {to}");
        stream.write(&view, &old[..n]).unwrap();
        expected[t..t + n].copy_from_slice(&old[..n]);
        assert_eq!(stream.read(&target).wait().unwrap(), expected, "write of {bytes} to {to}");
        assert_eq!(stream.read(&view).wait().unwrap(), &expected[t..t + n], "read of {bytes} from {to}");
        // within one buffer
        let place = target.view(40, bytes.min(30)).unwrap();
        stream.copy(&place, &target.view(from, place.bytes()).unwrap()).unwrap();
        let moved = expected[f..f + place.bytes() as usize].to_vec();
        expected[40..40 + moved.len()].copy_from_slice(&moved);
        assert_eq!(stream.read(&target).wait().unwrap(), expected, "move of {} from {from}", moved.len());
    }
    let more = device.alloc(8).unwrap();
    assert!(matches!(stream.write(&more, &[0; 9]), Err(Error::OutOfRange { .. })));
}

#[test]
fn fresh_memory_is_zero_and_streams_keep_their_order() {
    let device = device!();
    let mut stream = device.stream().unwrap();
    let add = adding(&device, 1000);
    let ones = filled(&device, &mut *stream, &1f32.to_le_bytes().repeat(1000));
    let (mut a, mut b) = (device.alloc(4000).unwrap(), device.alloc(4000).unwrap());
    assert_eq!(stream.read(&a).wait().unwrap(), vec![0; 4000]);
    // more launches than a stream keeps back, each on what the one before it wrote
    for _ in 0..300 {
        launch(&add, &mut *stream, [&a, &ones, &b]).unwrap();
        std::mem::swap(&mut a, &mut b);
    }
    let early = stream.read(&a);
    launch(&add, &mut *stream, [&b, &ones, &a]).unwrap();
    assert_eq!(floats(&early.wait().unwrap()), vec![300.0; 1000], "what was read does not change any more");
    assert_eq!(floats(&stream.read(&a).wait().unwrap()), vec![300.0; 1000], "b was 299");
    // another stream behind an event
    let mut other = device.stream().unwrap();
    launch(&add, &mut *stream, [&a, &ones, &b]).unwrap();
    other.follow(&mut *stream).unwrap();
    assert_eq!(floats(&other.read(&b).wait().unwrap()), vec![301.0; 1000]);
    // a stream may go, and its work is done
    launch(&add, &mut *other, [&b, &ones, &a]).unwrap();
    drop(other);
    assert_eq!(floats(&stream.read(&a).wait().unwrap()), vec![302.0; 1000]);
}

#[test]
fn recorded_sequences_replay_on_their_stream_alone() {
    let device = device!();
    let mut stream = device.stream().unwrap();
    let add = adding(&device, 100);
    let ones = filled(&device, &mut *stream, &1f32.to_le_bytes().repeat(100));
    let (a, b) = (device.alloc(400).unwrap(), device.alloc(400).unwrap());
    let graph = stream
        .capture(&mut |stream| {
            launch(&add, stream, [&a, &ones, &b])?;
            launch(&add, stream, [&b, &ones, &a])
        })
        .unwrap();
    assert_eq!(graph.launches(), 2);
    assert_eq!(floats(&stream.read(&a).wait().unwrap()), vec![0.0; 100], "nothing ran while it was recorded");
    for _ in 0..5 {
        stream.replay(&graph).unwrap();
    }
    assert_eq!(floats(&stream.read(&a).wait().unwrap()), vec![10.0; 100]);
    let mut other = device.stream().unwrap();
    assert!(matches!(other.replay(&graph), Err(Error::WrongStream)));
    // it keeps what it works on
    drop((a, b, ones, add));
    stream.replay(&graph).unwrap();
    stream.sync().wait().unwrap();
    let refused = stream.capture(&mut |stream| stream.sync().wait());
    assert!(matches!(refused, Err(Error::Unsupported { .. })));
    stream.sync().wait().expect("the recording has ended");
}

#[test]
fn events_have_times_where_the_device_has_a_clock() {
    let device = device!();
    let mut stream = device.stream().unwrap();
    let add = adding(&device, 1 << 20);
    let [a, b, out] = [(); 3].map(|()| device.alloc(4 << 20).unwrap());
    let begin = stream.record().unwrap();
    for _ in 0..20 {
        launch(&add, &mut *stream, [&a, &b, &out]).unwrap();
    }
    let end = stream.record().unwrap();
    let time = end.since(&*begin).wait().unwrap();
    assert_eq!(time.is_some(), device.caps().has(wgpu::Features::TIMESTAMP_QUERY));
    assert!(time.is_none_or(|time| !time.is_zero() && time.as_secs() < 60), "{time:?}");
    assert_eq!(end.since(&*begin).wait().unwrap(), time, "it can be asked again");
}

#[test]
fn results_can_be_awaited() {
    struct Flag(Mutex<bool>, Condvar);
    impl Wake for Flag {
        fn wake(self: Arc<Self>) {
            *self.0.lock().unwrap() = true;
            self.1.notify_all();
        }
    }
    let device = device!();
    let mut stream = device.stream().unwrap();
    let buffer = filled(&device, &mut *stream, &pattern(1000, 3));
    let mut read = pin!(stream.read(&buffer));
    let flag = Arc::new(Flag(Default::default(), Default::default()));
    let waker = Waker::from(flag.clone());
    let bytes = loop {
        if let Poll::Ready(bytes) = read.as_mut().poll(&mut Context::from_waker(&waker)) {
            break bytes.unwrap();
        }
        let woken = flag.0.lock().unwrap();
        *flag.1.wait_while(woken, |woken| !*woken).unwrap() = false;
    };
    assert_eq!(bytes, pattern(1000, 3));
}

#[test]
fn callers_bring_their_own_devices_and_buffers() {
    let theirs = device!();
    let ours = WebGpuDevice::of_device(theirs.device().clone(), theirs.queue().clone());
    let buffer = |usage| {
        let desc = wgpu::BufferDescriptor { label: None, size: 40, usage, mapped_at_creation: false };
        ours.device().create_buffer(&desc)
    };
    let own = buffer(USAGES);
    ours.queue().write_buffer(&own, 0, &3f32.to_le_bytes().repeat(10));
    let wrapped = ours.wrap(own).unwrap();
    let mut stream = ours.stream().unwrap();
    let (add, out) = (adding(&ours, 10), ours.alloc(40).unwrap());
    launch(&add, &mut *stream, [&wrapped, &wrapped, &out]).unwrap();
    assert_eq!(floats(&stream.read(&out).wait().unwrap()), vec![6.0; 10]);
    assert!(matches!(ours.wrap(buffer(wgpu::BufferUsages::STORAGE)), Err(Error::Unsupported { .. })));
    // devices are strangers to each other, but for copies
    let stranger = theirs.alloc(40).unwrap();
    let refused = launch(&add, &mut *stream, [&stranger, &wrapped, &out]);
    assert!(matches!(refused, Err(Error::WrongDevice { .. })));
    stream.copy(&stranger, &out).unwrap();
    let read = theirs.stream().unwrap().read(&stranger).wait().unwrap();
    assert_eq!(floats(&read), vec![6.0; 10]);
}

#[test]
fn ceilings_are_driven() {
    let device = device!();
    let probes = Probes::new(&device, 8 << 20).unwrap();
    let done = |(amount, end): (u64, perjoule_kernels::Pending<()>)| end.wait().map(|()| amount).unwrap();
    assert_eq!(done(probes.read().unwrap()), 8 << 20);
    assert_eq!(done(probes.copy().unwrap()), 16 << 20);
    let all: Vec<Arithmetic> = probes.arithmetic().collect();
    let f16 = device.caps().has(wgpu::Features::SHADER_F16);
    assert_eq!(all.contains(&Arithmetic::MultiplyAddF16), f16);
    for which in all {
        assert!(done(probes.compute(which).unwrap()) > 0);
    }
}

#[test]
fn what_is_too_large_is_refused() {
    let device = device!();
    let most = device.caps().limits.max_buffer_size;
    for bytes in [most + 1, u64::MAX / 2] {
        let Err(error) = device.alloc(bytes) else { panic!("{bytes} bytes were given") };
        assert!(matches!(error, Error::Unsupported { .. } | Error::OutOfMemory { .. }), "{error}");
    }
    let mut stream = device.stream().unwrap();
    assert!(stream.reserve(most + 1).is_err());
    stream.sync().wait().expect("the device goes on");
    let op = Op::from(Add::dense(1, 1 << 40, DType::F32));
    assert!(matches!(select(&device, &op, &[]), Err(Error::Refused { .. })));
}

#[test]
fn a_lost_device_says_so_and_another_can_be_opened() {
    let device = device!();
    let mut stream = device.stream().unwrap();
    let add = adding(&device, 1 << 16);
    let [a, b, out] = [(); 3].map(|()| device.alloc(4 << 16).unwrap());
    let graph = stream.capture(&mut |stream| launch(&add, stream, [&a, &b, &out])).unwrap();
    launch(&add, &mut *stream, [&a, &b, &out]).unwrap();
    let event = stream.record().unwrap();
    device.device().destroy();
    let lost = |result: Result<()>| match result {
        Err(Error::Lost { device, .. }) => assert_eq!(device, "webgpu:0"),
        other => panic!("{other:?}"),
    };
    // at the latest where somebody waits
    lost(stream.sync().wait());
    lost(launch(&add, &mut *stream, [&a, &b, &out]));
    lost(stream.replay(&graph));
    lost(stream.write(&a, &[0; 4]));
    lost(stream.copy(&a, &b));
    lost(stream.read(&a).wait().map(drop));
    lost(stream.record().map(drop));
    lost(device.alloc(4).map(drop));
    lost(device.stream().map(drop));
    let _ = event.since(&*event).wait();
    drop((stream, graph, a, b, out, add, event));
    let again = open().expect("it was there before");
    let mut stream = again.stream().unwrap();
    let buffer = filled(&again, &mut *stream, &pattern(64, 9));
    assert_eq!(stream.read(&buffer).wait().unwrap(), pattern(64, 9));
}
