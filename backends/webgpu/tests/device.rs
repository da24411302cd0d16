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
use std::time::Duration;

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
fn results_take_the_memory_of_earlier_ones_in_order() {
    let device = device!();
    let (mut stream, mut other) = (device.stream().unwrap(), device.stream().unwrap());
    let add = adding(&device, 1000);
    let ones = filled(&device, &mut *stream, &1f32.to_le_bytes().repeat(1000));
    let mut sum = device.alloc(4000).unwrap();
    for _ in 0..300 {
        let next = device.alloc_any(4000).unwrap();
        launch(&add, &mut *stream, [&sum, &ones, &next]).unwrap();
        sum = next;
    }
    assert_eq!(floats(&stream.read(&sum).wait().unwrap()), vec![300.0; 1000]);
    // a stream reads a block, collected and not submitted, and another one overwrites what takes its place
    let out = device.alloc(4000).unwrap();
    for way in 0..3 {
        let before = sum.address();
        launch(&add, &mut *stream, [&sum, &ones, &out]).unwrap();
        drop(sum);
        sum = device.alloc_any(4000).unwrap();
        assert_eq!(sum.address(), before, "freed last, given first");
        match way {
            0 => other.write(&sum, &7f32.to_le_bytes().repeat(1000)).unwrap(),
            1 => other.copy(&sum, &ones).unwrap(),
            _ => launch(&add, &mut *other, [&ones, &ones, &sum]).unwrap(),
        }
        other.sync().wait().unwrap();
        let expected = [301.0, 8.0, 2.0][way];
        assert_eq!(floats(&stream.read(&out).wait().unwrap()), vec![expected; 1000], "way {way}");
    }
    // who holds a part holds it all, and what is zeroed is fresh
    let part = sum.view(400, 8).unwrap();
    let address = sum.address();
    drop(sum);
    assert_ne!(device.alloc_any(4000).unwrap().address(), address);
    drop(part);
    let zeroed = device.alloc(4000).unwrap();
    assert_eq!(stream.read(&zeroed).wait().unwrap(), vec![0; 4000]);
    assert_eq!(device.alloc_any(3999).unwrap().address(), address, "sizes that are alike share blocks");
    assert_eq!(device.alloc_any(0).unwrap().bytes(), 0);
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
fn what_the_host_does_between_events_is_not_in_their_time() {
    let device = device!();
    let mut stream = device.stream().unwrap();
    let add = adding(&device, 64);
    let [a, b, out] = [(); 3].map(|()| device.alloc(256).unwrap());
    let pause = Duration::from_millis(400);
    let begin = stream.record().unwrap();
    std::thread::sleep(pause);
    launch(&add, &mut *stream, [&a, &b, &out]).unwrap();
    let end = stream.record().unwrap();
    stream.sync().wait().unwrap();
    let time = end.since(&*begin).wait().unwrap();
    assert!(time.is_none_or(|time| time < pause), "{time:?}");
    // events whose work was not submitted, of a stream that is gone: more of them than Metal has sets of queries
    let events: Vec<_> = (0..100).map(|_| stream.record().unwrap()).collect();
    let last = stream.record().unwrap();
    drop(stream);
    for event in events {
        assert!(last.since(&*event).wait().unwrap().is_none_or(|time| time < Duration::from_secs(60)));
    }
    assert_eq!(last.since(&*last).wait().unwrap(), None, "no time has passed");
}

struct Flag(Mutex<bool>, Condvar);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        *self.0.lock().unwrap() = true;
        self.1.notify_all();
    }
}

/// Drives a future as an executor does.
fn awaited<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    let flag = Arc::new(Flag(Default::default(), Default::default()));
    let waker = Waker::from(flag.clone());
    loop {
        if let Poll::Ready(result) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return result;
        }
        let woken = flag.0.lock().unwrap();
        *flag.1.wait_while(woken, |woken| !*woken).unwrap() = false;
    }
}

#[test]
fn results_can_be_awaited() {
    let device = device!();
    let mut stream = device.stream().unwrap();
    let buffer = filled(&device, &mut *stream, &pattern(1000, 3));
    assert_eq!(awaited(stream.read(&buffer)).unwrap(), pattern(1000, 3));
    // many at once, the last one first
    let reads: Vec<_> = (0..50)
        .map(|seed| {
            stream.write(&buffer, &pattern(1000, seed)).unwrap();
            stream.read(&buffer)
        })
        .collect();
    for (seed, read) in reads.into_iter().enumerate().rev() {
        assert_eq!(awaited(read).unwrap(), pattern(1000, seed as u8));
    }
    awaited(stream.sync()).unwrap();
}

/// A buffer of a device, and the memory that it is for kernels.
fn bring(device: &WebGpuDevice, size: u64) -> (wgpu::Buffer, Buffer) {
    let desc = wgpu::BufferDescriptor { label: None, size, usage: USAGES, mapped_at_creation: false };
    let buffer = device.device().create_buffer(&desc);
    (buffer.clone(), device.wrap(buffer).unwrap())
}

#[test]
fn a_stream_tells_its_own_faults() {
    let device = device!();
    let (mut broken, mut other) = (device.stream().unwrap(), device.stream().unwrap());
    let add = adding(&device, 64);
    let [a, b] = [(); 2].map(|()| device.alloc(256).unwrap());
    let fault = |result: Result<()>| match result {
        Err(Error::Fault { kernel, .. }) => assert_eq!(kernel, add.choice().kernel.name),
        other => panic!("{other:?}"),
    };
    let lose = |stream: &mut dyn Stream| {
        let (theirs, memory) = bring(&device, 256);
        launch(&add, stream, [&memory, &a, &b]).unwrap();
        theirs.destroy();
    };
    lose(&mut *broken);
    let pending = [broken.read(&a), broken.read(&b)];
    other.sync().wait().expect("another stream's work is done");
    for read in pending {
        // whatever is in the buffers, it is not what the launches made
        fault(read.wait().map(drop));
    }
    broken.sync().wait().expect("it was told");
    // once is enough, wherever somebody hears it
    lose(&mut *broken);
    drop(broken.record().unwrap());
    fault(launch(&add, &mut *broken, [&a, &a, &b]));
    launch(&add, &mut *broken, [&a, &a, &b]).unwrap();
    broken.sync().wait().unwrap();
    // what was taken away before the launch is no operand of it
    let (theirs, memory) = bring(&device, 256);
    theirs.destroy();
    fault(launch(&add, &mut *broken, [&memory, &a, &b]));
    broken.sync().wait().unwrap();
}

#[test]
fn handlers_of_a_callers_device_stay() {
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle_from_env());
    let adapter = pollster::block_on(instance.request_adapter(&wgpu::RequestAdapterOptions::default()));
    let Ok(adapter) = adapter.inspect_err(|error| eprintln!("ignored: {error}")) else { return };
    let (theirs, queue) = pollster::block_on(adapter.request_device(&Default::default())).unwrap();
    let heard = Arc::new(Mutex::new(Vec::new()));
    let (errors, losses) = (heard.clone(), heard.clone());
    theirs.on_uncaptured_error(Arc::new(move |_| errors.lock().unwrap().push("error")));
    theirs.set_device_lost_callback(move |_, _| losses.lock().unwrap().push("loss"));
    let [first, second] = [(); 2].map(|()| WebGpuDevice::of_device(theirs.clone(), queue.clone()));
    for device in [&first, &second] {
        let (add, mut stream) = (adding(device, 64), device.stream().unwrap());
        let out = device.alloc(256).unwrap();
        let (buffer, memory) = bring(device, 256);
        launch(&add, &mut *stream, [&memory, &memory, &out]).unwrap();
        buffer.destroy();
        assert!(matches!(stream.read(&out).wait(), Err(Error::Fault { .. })));
    }
    assert!(heard.lock().unwrap().is_empty(), "what launches meet is ours to tell");
    // a usage that does not exist together with that one
    let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::STORAGE;
    let desc = wgpu::BufferDescriptor { label: None, size: 16, usage, mapped_at_creation: false };
    drop(theirs.create_buffer(&desc));
    let mut stream = first.stream().unwrap();
    stream.sync().wait().expect("the caller's error is the caller's");
    let buffers = [&first, &second].map(|device| device.alloc(256).unwrap());
    theirs.destroy();
    for (device, buffer) in [&first, &second].into_iter().zip(buffers) {
        let mut stream = device.stream().unwrap();
        let lost = stream.read(&buffer).wait().map(drop);
        assert!(matches!(lost, Err(Error::Lost { .. })), "{lost:?}");
        assert!(matches!(device.stream().map(drop), Err(Error::Lost { .. })));
    }
    assert_eq!(heard.lock().unwrap().iter().filter(|&&what| what == "error").count(), 1);
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
    // a buffer is one block of memory, however often it is wrapped
    let (theirs_too, first) = bring(&ours, 64);
    let second = ours.wrap(theirs_too.clone()).unwrap();
    assert_eq!(first.address(), second.address());
    let overlap = launch(&add, &mut *stream, [&wrapped, &first, &second]);
    assert!(matches!(overlap, Err(Error::Overlap { .. })), "{overlap:?}");
    stream.copy(&second.view(0, 8).unwrap(), &first.view(4, 8).unwrap()).unwrap();
    drop((first, second));
    ours.wrap(theirs_too).unwrap();
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
    for bytes in [most + 1, u64::MAX / 2, u64::MAX - 7, u64::MAX] {
        for result in [device.alloc(bytes), device.alloc_any(bytes)] {
            let Err(error) = result else { panic!("{bytes} bytes were given") };
            assert!(matches!(error, Error::Unsupported { .. } | Error::OutOfMemory { .. }), "{error}");
        }
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
