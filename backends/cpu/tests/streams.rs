//! What streams promise beyond one launch: scratch that grows, copies between devices, and launches that fit the stream's team.

use perjoule_cpu::device::CpuCaps;
use perjoule_cpu::spmd::{Args, Spmd, launch};
use perjoule_cpu::team::Lane;
use perjoule_cpu::{CpuDevice, Options};
use perjoule_kernels::op::{Attention, GatedKind, GatedMatMul, MatMul, Op};
use perjoule_kernels::{
    Arg, Buffer, Choice, Comm, DType, Device, DeviceInfo, Error, Kernel, KvLayout, Matrix, PackFormat,
    Prepared, Result, Stream, Table, prepare, select,
};
use std::sync::mpsc;
use std::sync::{Arc, Barrier};
use std::time::Duration;

fn open(threads: usize) -> CpuDevice {
    CpuDevice::open(&Options { threads: Some(threads), ..Options::default() }).unwrap()
}

fn filled(device: &CpuDevice, stream: &mut dyn Stream, byte: u8, bytes: usize) -> Buffer {
    let buffer = device.alloc(bytes as u64).unwrap();
    stream.write(&buffer, &vec![byte; bytes]).unwrap();
    buffer
}

/// A product with scratch of its own, its operands, and what it gives: every element of A is 1, of B 2.
struct Product {
    prepared: Prepared,
    buffers: Vec<Buffer>,
    k: usize,
}

impl Product {
    fn new(device: &CpuDevice, stream: &mut dyn Stream, m: usize, k: usize) -> Self {
        let mut op = MatMul::nn(m, 40, k, DType::F32, DType::F32, DType::F32);
        // what is apart along k is packed into scratch
        op.a.strides = Matrix::col_major(m, k);
        let op = Op::from(op);
        let prepared = prepare(device, &op, select(device, &op, &[]).unwrap(), None).unwrap();
        assert!(prepared.scratch() > 0, "{prepared:?}");
        let mut buffers = Vec::new();
        for (operand, value) in prepared.operands().iter().zip([1.0f32, 2.0, 0.0]) {
            let buffer = device.alloc(operand.bytes).unwrap();
            let bytes: Vec<u8> = (0..operand.elements).flat_map(|_| value.to_le_bytes()).collect();
            stream.write(&buffer, &bytes).unwrap();
            buffers.push(buffer);
        }
        Product { prepared, buffers, k }
    }

    fn launch(&self, stream: &mut dyn Stream) -> Result<()> {
        self.prepared.launch(stream, &mut self.buffers.iter().map(Arg::Buf).collect::<Vec<_>>())
    }

    fn clear(&self, stream: &mut dyn Stream) {
        stream.write(&self.buffers[2], &vec![0xff; self.buffers[2].bytes() as usize]).unwrap();
    }

    fn is_right(&self, stream: &mut dyn Stream) -> bool {
        let bytes = stream.read(&self.buffers[2]).wait().unwrap();
        bytes.chunks(4).all(|x| f32::from_le_bytes(x.try_into().unwrap()) == 2.0 * self.k as f32)
    }
}

#[test]
fn scratch_grows_while_a_graph_lives() {
    let device = open(2);
    let mut stream = device.stream().unwrap();
    let small = Product::new(&device, &mut *stream, 3, 30);
    let large = Product::new(&device, &mut *stream, 150, 300);
    assert!(large.prepared.scratch() > small.prepared.scratch());
    stream.reserve(small.prepared.scratch()).unwrap();
    let graph = stream.capture(&mut |stream| small.launch(stream)).unwrap();
    assert!(matches!(large.launch(&mut *stream), Err(Error::Scratch { .. })));
    stream.reserve(large.prepared.scratch()).unwrap();
    // also between two launches of one recording
    let both = stream
        .capture(&mut |stream| {
            small.launch(stream)?;
            stream.reserve(2 * large.prepared.scratch())?;
            large.launch(stream)
        })
        .unwrap();
    for round in 0..3 {
        for (graph, products) in [(&graph, &[&small][..]), (&both, &[&small, &large])] {
            products.iter().for_each(|product| product.clear(&mut *stream));
            stream.replay(graph).unwrap();
            assert!(products.iter().all(|product| product.is_right(&mut *stream)), "round {round}");
        }
        large.clear(&mut *stream);
        large.launch(&mut *stream).unwrap();
        assert!(large.is_right(&mut *stream));
    }
    // the scratch is the stream's: no other one replays the graph
    let mut other = device.stream().unwrap();
    assert!(matches!(other.replay(&graph), Err(Error::WrongStream)));
    drop(stream);
    assert!(matches!(other.replay(&graph), Err(Error::WrongStream)));
}

#[test]
fn copies_between_devices() {
    let (one, other, third) = (open(2), open(1), open(1));
    let mut stream = one.stream().unwrap();
    let mut far = other.stream().unwrap();
    let here = filled(&one, &mut *stream, 1, 1000);
    let there = filled(&other, &mut *far, 2, 1000);
    stream.copy(&here.view(100, 50).unwrap(), &there.view(0, 50).unwrap()).unwrap();
    let mut want = vec![1; 1000];
    want[100..150].fill(2);
    assert_eq!(stream.read(&here).wait().unwrap(), want);
    // either stream will do, a device that has gone is no obstacle, and a third device's is refused
    far.copy(&there, &here).unwrap();
    assert_eq!(far.read(&there).wait().unwrap(), want);
    assert!(matches!(
        third.stream().unwrap().copy(&here, &there),
        Err(Error::WrongDevice { kernel: "copy", operand: "stream" })
    ));
    let orphan = filled(&third, &mut *third.stream().unwrap(), 9, 8);
    drop(third);
    stream.copy(&here, &orphan).unwrap();
    assert_eq!(stream.read(&here.view(0, 8).unwrap()).wait().unwrap(), [9; 8]);
    assert!(matches!(stream.copy(&orphan, &here), Err(Error::OutOfRange { .. })), "larger than its target");
}

/// Copies in both directions and launches beside them neither deadlock nor tear a buffer. On threads that are left behind when they
/// hang, so that the test fails.
#[test]
fn opposite_copies_end() {
    const BYTES: usize = 1 << 16;
    const ROUNDS: usize = 300;
    let devices = [Arc::new(open(2)), Arc::new(open(2))];
    let buffers = [0, 1].map(|i| filled(&devices[i], &mut *devices[i].stream().unwrap(), i as u8 + 1, BYTES));
    let begin = Arc::new(Barrier::new(4));
    let (done, ended) = mpsc::channel();
    for i in 0..4 {
        let (device, begin, done) = (devices[i % 2].clone(), begin.clone(), done.clone());
        let (from, to) = (buffers[i % 2].clone(), buffers[1 - i % 2].clone());
        std::thread::spawn(move || {
            let mut stream = device.stream().unwrap();
            let product = Product::new(&device, &mut *stream, 3, 30);
            stream.reserve(product.prepared.scratch()).unwrap();
            begin.wait();
            let whole = (0..ROUNDS).all(|_| {
                stream.copy(&to, &from).unwrap();
                product.launch(&mut *stream).unwrap();
                let bytes = stream.read(&from).wait().unwrap();
                bytes.iter().all(|&byte| byte == bytes[0])
            });
            done.send(whole && product.is_right(&mut *stream)).unwrap();
        });
    }
    for _ in 0..4 {
        assert_eq!(ended.recv_timeout(Duration::from_secs(60)), Ok(true));
    }
}

/// A device in safe code that bears another one's id but speaks of a team of its own size.
struct Fake {
    info: DeviceInfo,
    real: CpuDevice,
}

impl Fake {
    fn of(real: CpuDevice, lanes: Option<usize>) -> Self {
        let mut info = real.info().clone();
        match lanes {
            Some(threads) => {
                info.caps = Arc::new(CpuCaps { threads, ..info.caps::<CpuCaps>().unwrap().clone() });
            }
            None => info.caps = Arc::new(()),
        }
        Fake { info, real }
    }
}

impl Device for Fake {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }
    fn table(&self) -> &Table {
        self.real.table()
    }
    fn alloc(&self, bytes: u64) -> Result<Buffer> {
        self.real.alloc(bytes)
    }
    fn stream(&self) -> Result<Box<dyn Stream>> {
        self.real.stream()
    }
    fn join(&self, id: &[u8], rank: u32, world: u32) -> Result<Arc<dyn Comm>> {
        self.real.join(id, rank, world)
    }
}

#[test]
fn a_launch_on_a_team_of_another_size_is_refused() {
    let ops: [Op; 2] = [
        MatMul::nn(5, 40, 30, DType::F32, DType::F32, DType::F32).into(),
        // few units and a long cache: parts of the result lie behind what each lane has of its own
        Attention::causal(1, 1, 2, KvLayout::contiguous(1, 4000, 16), DType::F32).into(),
    ];
    for op in ops {
        for (lanes, runs) in [(Some(1), false), (Some(7), false), (Some(3), true), (None, false)] {
            let fake = Fake::of(open(3), lanes);
            let mut stream = fake.stream().unwrap();
            stream.reserve(1 << 24).unwrap();
            let accepted = perjoule_kernels::explain(&fake, &op).unwrap();
            let accepted = accepted.iter().filter(|v| v.outcome.is_ok() && v.choice.pack.is_none());
            for verdict in accepted {
                let prepared = prepare(&fake, &op, verdict.choice, None).unwrap();
                let operands = prepared.operands().iter();
                let buffers: Vec<Buffer> = operands.map(|o| fake.alloc(o.bytes).unwrap()).collect();
                let mut args: Vec<Arg<'_>> = buffers.iter().map(Arg::Buf).collect();
                let launched = prepared.launch(&mut *stream, &mut args);
                let recorded = stream.capture(&mut |stream| prepared.launch(stream, &mut args)).map(|_| ());
                for result in [launched, recorded] {
                    match result {
                        Ok(()) => assert!(runs, "{prepared:?} with {lanes:?} lanes"),
                        Err(error) => {
                            assert!(!runs && matches!(error, Error::Lanes { team: 3, .. }), "{error}");
                            assert!(error.to_string().contains("prepare it with the device"), "{error}");
                        }
                    }
                }
            }
        }
    }
}

static EIGHTS: PackFormat =
    PackFormat { name: "eights", dtype: DType::F32, panel: 8, panel_bytes: |k| (k as u64).checked_mul(32) };

struct Nothing;
impl Spmd for Nothing {
    fn run(&self, _: &Lane<'_>, _: &Args) {}
}

static PACKED_GATED: Kernel =
    Kernel::new("gated_matmul_f32_cpu_toy", "gated_matmul", |_| 0.0, |request| Ok(launch(request, Nothing)))
        .with_packs(&[&EIGHTS]);

#[test]
fn both_weights_of_a_gated_product_are_packed() {
    let device = open(1);
    device.register(&PACKED_GATED).unwrap();
    let gate = MatMul::linear(3, 20, 6, DType::F32, DType::F32, DType::F32);
    let gated = perjoule_kernels::op::Gated::dense(3, 20, DType::F32, GatedKind::SwiGlu);
    let op = Op::from(GatedMatMul { gate, up: gate, gated });
    let constants = op.constants();
    assert_eq!(constants.iter().map(|b| b.operand).collect::<Vec<_>>(), [1, 2]);
    assert!(constants.iter().all(|b| (b.matrices, b.n, b.k, b.plain) == (1, 20, 6, gate.b)));

    let choice = select(&device, &op, &[]).unwrap();
    assert_eq!((choice.kernel.name, choice.pack), (PACKED_GATED.name, Some(&EIGHTS)));
    let prepared = prepare(&device, &op, choice, None).unwrap();
    // 20 columns are 3 panels of 8, of 6 steps of 4 bytes
    let sizes: Vec<u64> = prepared.operands().iter().map(|o| o.bytes).collect();
    assert_eq!(sizes, [3 * 6 * 4, 3 * 8 * 6 * 4, 3 * 8 * 6 * 4, 3 * 20 * 4]);
    assert!(prepared.operands()[1..3].iter().all(|o| o.align == 64 && o.elements == 3 * 8 * 6));

    // B that changes from launch to launch is not packed
    let gate = MatMul { b_constant: false, ..gate };
    let op = Op::from(GatedMatMul { gate, up: gate, gated });
    assert!(op.constants().is_empty());
    let choice = Choice::new(&PACKED_GATED, 0, Some(&EIGHTS));
    assert!(matches!(prepare(&device, &op, choice, None), Err(Error::Refused { .. })));
}
