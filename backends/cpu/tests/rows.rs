//! What a row may rely on, and what is refused in its stead: alignment, blocks of memory, shares of an output.

use perjoule_cpu::spmd::{Args, Spmd, launch};
use perjoule_cpu::team::Lane;
use perjoule_cpu::{CpuDevice, Options};
use perjoule_kernels::op::{Add, MatMul, Op, Residual, RmsNorm};
use perjoule_kernels::select::select_named;
use perjoule_kernels::tune::Tuning;
use perjoule_kernels::{
    Alignment, Arena, Arg, Buffer, Choice, Comm, DType, Device, DeviceInfo, Error, Kernel, PackFormat,
    Prepared, Query, Result, Stream, Table, prepare, select,
};
use std::sync::Arc;

fn open(threads: usize) -> CpuDevice {
    CpuDevice::open(&Options { threads: Some(threads), ..Options::default() }).unwrap()
}

fn launched(prepared: &Prepared, stream: &mut dyn Stream, buffers: &[&Buffer]) -> Result<()> {
    let mut args: Vec<Arg<'_>> = buffers.iter().map(|b| Arg::Buf(b)).collect();
    prepared.launch(stream, &mut args)
}

struct Body(fn(&Lane<'_>, &Args));

impl Spmd for Body {
    fn run(&self, lane: &Lane<'_>, args: &Args) {
        self.0(lane, args);
    }
}

static ALIGNED: Kernel =
    Kernel::new("add_f32_cpu_aligned", "add", |_| 0.0, |request| Ok(launch(request, Body(|_, _| {}))))
        // the second operand may lie anywhere
        .with_align(|_, operand| if operand == 1 { 1 } else { 16 });

/// A row that needs alignment is chosen where the caller vouches for it, and a launch holds the caller to it.
#[test]
fn alignment_is_asked_for_vouched_for_and_checked() {
    let device = open(1);
    device.register(&ALIGNED).unwrap();
    let op = Op::from(Add::dense(4, 8, DType::F32));
    let chosen = |alignment| select(&device, Query { op: &op, alignment }, &[]).unwrap();
    assert_ne!(select(&device, &op, &[]).unwrap().kernel.name, ALIGNED.name);
    let all = Alignment::uniform(64);
    assert_eq!(chosen(all).kernel.name, ALIGNED.name);
    assert_eq!(chosen(all.with(1, 4, 64)).kernel.name, ALIGNED.name);
    assert_ne!(chosen(all.with(2, 8, 64)).kernel.name, ALIGNED.name);
    let Err(Error::Refused { refusals, .. }) = select_named(&device, &op, ALIGNED.name) else { panic!() };
    assert_eq!(refusals[0].reason.to_string(), "needs a at a multiple of 16 bytes; 4 are known");
    assert!(!refusals[0].reason.lacks_feature());
    assert!(prepare(&device, &op, Choice::new(&ALIGNED, 0, None), None).is_err());

    let prepared = prepare(&device, &op, chosen(all), None).unwrap();
    let aligns: Vec<u32> = prepared.operands().iter().map(|o| o.align).collect();
    assert_eq!(aligns, [16, 4, 16]);
    let mut stream = device.stream().unwrap();
    let memory = device.alloc(1024).unwrap();
    let at = |offset| memory.view(offset, 128).unwrap();
    launched(&prepared, &mut *stream, &[&at(16), &at(204), &at(512)]).unwrap();
    let error = launched(&prepared, &mut *stream, &[&at(8), &at(204), &at(512)]).unwrap_err();
    assert!(matches!(error, Error::Misaligned { operand: "a", align: 16, .. }), "{error}");
}

static FOURS: PackFormat =
    PackFormat { name: "fours", dtype: DType::F32, panel: 4, panel_bytes: |k| (k as u64).checked_mul(16) };
static FIVES: PackFormat =
    PackFormat { name: "fives", dtype: DType::F32, panel: 5, panel_bytes: |k| (k as u64).checked_mul(20) };

static DEAR: Kernel =
    Kernel::new("matmul_f32_cpu_dear", "matmul", |_| 2e-12, |request| Ok(launch(request, Body(|_, _| {}))))
        .with_packs(&[&FOURS]);
static CHEAP: Kernel =
    Kernel::new("matmul_f32_cpu_cheap", "matmul", |_| 1e-12, |request| Ok(launch(request, Body(|_, _| {}))))
        .with_packs(&[&FIVES]);

/// A format that was measured for one of several shapes has nothing to say of the others.
#[test]
fn a_measurement_does_not_beat_predictions_of_another_shape() {
    let device = open(1);
    device.register(&DEAR).unwrap();
    device.register(&CHEAP).unwrap();
    let op = |m| Op::from(MatMul::linear(m, 64, 64, DType::F32, DType::F32, DType::F32));
    let chosen = |also: &[Op]| select(&device, &op(1), also).unwrap().kernel.name;
    let dear = Choice::new(&DEAR, 0, Some(&FOURS));
    let mut tuning = Tuning::new();
    assert_eq!((chosen(&[]), chosen(&[op(512)])), (CHEAP.name, CHEAP.name));
    tuning.insert(&op(1), &dear, 1e-3);
    device.set_tuning(Some(Arc::new(tuning.clone()))).unwrap();
    assert_eq!((chosen(&[]), chosen(&[op(512)])), (DEAR.name, CHEAP.name));
    // 500 rows share the bucket of 512
    tuning.insert(&op(500), &dear, 1e-3);
    device.set_tuning(Some(Arc::new(tuning))).unwrap();
    assert_eq!(chosen(&[op(512)]), DEAR.name);
}

/// A CPU that binds a block of memory either to read or to write.
struct Bound {
    real: CpuDevice,
    info: DeviceInfo,
}

impl Device for Bound {
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
fn one_block_of_memory_is_not_read_and_written_where_bindings_forbid_it() {
    let real = open(1);
    let mut info = real.info().clone();
    info.arena = Arena { pools: 3, ..info.arena };
    let bound = Bound { real, info };
    let op = Op::from(Add::dense(4, 8, DType::F32));
    let prepared = prepare(&bound, &op, select(&bound, &op, &[]).unwrap(), None).unwrap();
    let mut stream = bound.stream().unwrap();
    let (one, other) = (bound.alloc(1024).unwrap(), bound.alloc(1024).unwrap());
    let at = |memory: &Buffer, offset| memory.view(offset, 128).unwrap();
    launched(&prepared, &mut *stream, &[&at(&one, 0), &at(&one, 256), &at(&other, 0)]).unwrap();
    let error = launched(&prepared, &mut *stream, &[&at(&other, 0), &at(&one, 0), &at(&one, 512)]);
    let error = error.unwrap_err();
    assert!(matches!(error, Error::SharedBuffer { first: "out", second: "b", .. }), "{error}");
    assert!(error.to_string().contains("separate allocations"), "{error}");
    // the same on a device with one pool
    let plain = prepare(&bound.real, &op, prepared.choice(), None).unwrap();
    launched(&plain, &mut *stream, &[&at(&other, 0), &at(&one, 0), &at(&one, 512)]).unwrap();
    // what an operand of the device's own makes is no harm: two written ones in a block
    let norm = RmsNorm {
        residual: Some(Residual {
            rows: RmsNorm::dense(4, 8, DType::F32).x,
            sum: RmsNorm::dense(4, 8, DType::F32).x,
        }),
        ..RmsNorm::dense(4, 8, DType::F32)
    };
    let op = Op::from(norm);
    let prepared = prepare(&bound, &op, select(&bound, &op, &[]).unwrap(), None).unwrap();
    let reads = [at(&one, 0), at(&one, 256), at(&one, 512)];
    let written = [at(&other, 0), at(&other, 256)];
    launched(&prepared, &mut *stream, &[&reads[0], &reads[1], &reads[2], &written[0], &written[1]]).unwrap();
}

static TWICE: Kernel = Kernel::new(
    "add_f32_cpu_twice",
    "add",
    |_| 1.0,
    |request| {
        Ok(launch(
            request,
            Body(|lane, args| {
                let (_, first) = args.split_out::<f32>(lane, 2, 16);
                let (_, second) = args.split_out::<f32>(lane, 2, 16);
                first.fill(1.0);
                second.fill(2.0);
            }),
        ))
    },
);

static APART: Kernel = Kernel::new(
    "add_f32_cpu_apart",
    "add",
    |_| 1.0,
    |request| {
        Ok(launch(request, Body(|lane, args| args.split_out::<f32>(lane, 2, 1 + lane.index()).1.fill(1.0))))
    },
);

static FOREIGN: Kernel = Kernel::new(
    "add_f32_cpu_foreign",
    "add",
    |_| 1.0,
    |request| {
        Ok(launch(
            request,
            Body(|_, args| {
                let fault = std::thread::scope(|scope| {
                    let other = || {
                        let team = perjoule_cpu::team::Team::new(1).unwrap();
                        let run =
                            team.lock().unwrap().run(&|lane| args.split_out::<f32>(lane, 2, 16).1.fill(1.0));
                        run.unwrap_err().0
                    };
                    scope.spawn(other).join().unwrap()
                });
                panic!("{fault}");
            }),
        ))
    },
);

static RIGHT: Kernel = Kernel::new(
    "add_f32_cpu_right",
    "add",
    |_| 1.0,
    |request| {
        Ok(launch(
            request,
            Body(|lane, args| {
                // the same bytes in another type
                if lane.index() == 0 {
                    let (range, out) = args.split_out::<u32>(lane, 2, 8);
                    out.iter_mut().zip(range).for_each(|(out, i)| *out = (i as f32).to_bits());
                } else {
                    let (range, out) = args.split_out::<f32>(lane, 2, 8);
                    out.iter_mut().zip(range).for_each(|(out, i)| *out = i as f32);
                }
            }),
        ))
    },
);

static MIXED: Kernel = Kernel::new(
    "add_f8e4m3_cpu_mixed",
    "add",
    |_| 1.0,
    |request| {
        Ok(launch(
            request,
            Body(|lane, args| {
                // the same bytes a granule; their number is a multiple of the elements' size for one of the types only
                let (share, mark) = if lane.index() == 0 {
                    let (_, share) = args.split_out::<u8>(lane, 2, 64);
                    (share, 1)
                } else {
                    let (_, share) = args.split_out::<u32>(lane, 2, 16);
                    (bytemuck::cast_slice_mut(share), 2)
                };
                share.fill(mark);
                // all shares are alive: a byte of another lane's would be seen by both
                lane.barrier();
                share.iter_mut().for_each(|x| *x += 2 * mark);
            }),
        ))
    },
);

/// Shares of an operand that is no whole number of elements of the type in which a lane takes its own.
#[test]
fn shares_in_different_types_are_disjoint() {
    let op = Op::from(Add::dense(1, 129, DType::F8E4M3));
    // the first lane has whole granules and the rest, all of them granules of 64 bytes but the last
    let wanted = |first: usize, whole: usize| -> Vec<u8> {
        (0..129).map(|i| if i < first { 3 } else { 6 * u8::from(i < whole) }).collect()
    };
    for (threads, wanted) in [(1, wanted(129, 129)), (2, wanted(128, 128)), (3, wanted(64, 128))] {
        let device = open(threads);
        let prepared = prepare(&device, &op, Choice::new(&MIXED, 0, None), None).unwrap();
        let mut stream = device.stream().unwrap();
        let [a, b, out] = [0; 3].map(|_| device.alloc(129).unwrap());
        stream.write(&out, &[0; 129]).unwrap();
        launched(&prepared, &mut *stream, &[&a, &b, &out]).unwrap();
        assert_eq!(stream.read(&out).wait().unwrap(), wanted, "{threads}");
    }
}

/// Shares of an output are lent safely: whatever a body does without `unsafe`, no two slices of it overlap.
#[test]
fn shares_of_an_output_are_disjoint_or_refused() {
    let op = Op::from(Add::dense(5, 13, DType::F32));
    for threads in [1, 2, 3] {
        let device = open(threads);
        let mut stream = device.stream().unwrap();
        let [a, b, out] = [0; 3].map(|_| device.alloc(5 * 13 * 4).unwrap());
        let mut run = |kernel: &'static Kernel| {
            let prepared = prepare(&device, &op, Choice::new(kernel, 0, None), None).unwrap();
            launched(&prepared, &mut *stream, &[&a, &b, &out])?;
            // in a sequence each body has its own
            let graph = stream.capture(&mut |stream| {
                launched(&prepared, stream, &[&a, &b, &out])?;
                launched(&prepared, stream, &[&a, &b, &out])
            })?;
            stream.replay(&graph)?;
            stream.replay(&graph)?;
            stream.read(&out).wait()
        };
        let bytes = run(&RIGHT).unwrap();
        let want: Vec<u8> = (0..65).flat_map(|i| (i as f32).to_le_bytes()).collect();
        assert_eq!(bytes, want);
        let faults =
            [(&TWICE, "taken already"), (&FOREIGN, "of another team"), (&APART, "different granules")];
        for (kernel, says) in faults {
            if threads == 1 && kernel.name == APART.name {
                continue; // alone a lane cannot disagree
            }
            let error = run(kernel).unwrap_err().to_string();
            assert!(error.contains(says) || error.contains("another thread"), "{}: {error}", kernel.name);
        }
    }
}
