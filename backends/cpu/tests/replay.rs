//! A recorded sequence gives what eager launches give, and launching allocates nothing.

use perjoule_cpu::{CpuDevice, Options};
use perjoule_kernels::op::*;
use perjoule_kernels::{Arg, Buffer, DType, Device, KvLayout, Op, Prepared, Rows, Stream, prepare, select};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is left to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the same contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the same contract.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const DIM: usize = 16;
const HIDDEN: usize = HEADS * DIM;

/// One decode step of a toy layer: launches with the indices of their buffers, which hold so many bytes.
fn step() -> (Vec<(Op, Vec<usize>)>, Vec<usize>) {
    let f = DType::F32;
    let kv = KvLayout::contiguous(KV_HEADS, 600, DIM);
    let keys = Rows::grid(1, KV_HEADS, DIM);
    let append = KvAppend { src_k: keys, src_v: keys, ..KvAppend::dense(1, 1, kv, f) };
    let quantise =
        Quantise { x: Rows::dense(1, HIDDEN), from: f, to: DType::I8, scale: Some(Granularity::Tensor) };
    let sample =
        Sample { x: Rows::dense(1, HIDDEN), dtype: f, temperature: 0.7, top_k: None, top_p: Some(0.9) };
    let order = RouteOrder::TopKThenSoftmax;
    // 0 kv_len, 1 positions, 2 ids, 3 table, 4 x, 5 weight, 6 normalised, 7 k cache, 8 v cache, 9 attended, 10 sum, 11 gated,
    // 12 probabilities, 13 next, 14 scale, 15 i8, 16 uniform, 17 sampled, 18 weights, 19 experts, 20 offsets, 21 order
    let ops: Vec<(Op, Vec<usize>)> = vec![
        (Advance::uniform(1, 1).into(), vec![0, 1]),
        (Embed::dense(1, 10, HIDDEN, f, f).into(), vec![2, 3, 4]),
        (RmsNorm::dense(1, HIDDEN, f).into(), vec![4, 5, 6]),
        (Rope::dense(1, HEADS, DIM, f, 10_000.0).into(), vec![1, 6]),
        (append.into(), vec![6, 4, 0, 7, 8]),
        (Attention::causal(1, 1, HEADS, kv, f).into(), vec![6, 7, 8, 0, 9]),
        (Add::dense(1, HIDDEN, f).into(), vec![4, 9, 10]),
        (Gated::dense(1, HIDDEN, f, GatedKind::SwiGlu).into(), vec![10, 6, 11]),
        (Softmax::dense(1, HIDDEN, f).into(), vec![11, 12]),
        (Argmax { x: Rows::dense(1, HIDDEN), dtype: f }.into(), vec![12, 13]),
        (quantise.into(), vec![11, 14, 15]),
        (sample.into(), vec![11, 16, 17]),
        (Route { tokens: 1, experts: HIDDEN, top_k: 4, dtype: f, order }.into(), vec![11, 18, 19, 20, 21]),
    ];
    let cache = KV_HEADS * 600 * DIM;
    let counts = [
        1,
        1,
        1,
        10 * HIDDEN,
        HIDDEN,
        HIDDEN,
        HIDDEN,
        cache,
        cache,
        HIDDEN,
        HIDDEN,
        HIDDEN,
        HIDDEN,
        1,
        1,
        HIDDEN,
        1,
        1,
        4,
        4,
        HIDDEN + 1,
        4,
    ];
    (ops, counts.iter().map(|n| n * 4).collect())
}

struct Sequence {
    stream: Box<dyn Stream>,
    buffers: Vec<Buffer>,
    launches: Vec<(Prepared, Vec<usize>)>,
}

impl Sequence {
    fn new(device: &CpuDevice) -> Self {
        let (ops, sizes) = step();
        let mut stream = device.stream().unwrap();
        let buffers: Vec<Buffer> = sizes.iter().map(|&bytes| device.alloc(bytes as u64).unwrap()).collect();
        let floats = |n: usize| -> Vec<u8> {
            (0..n).flat_map(|i| ((i * 37 % 101) as f32 / 50.0 - 1.0).to_le_bytes()).collect()
        };
        stream.write(&buffers[2], &3i32.to_le_bytes()).unwrap();
        stream.write(&buffers[3], &floats(10 * HIDDEN)).unwrap();
        stream.write(&buffers[5], &floats(HIDDEN)).unwrap();
        stream.write(&buffers[16], &0.6f32.to_le_bytes()).unwrap();
        let mut launches = Vec::new();
        for (op, at) in ops {
            let prepared = prepare(device, &op, select(device, &op, &[]).unwrap(), None).unwrap();
            stream.reserve(prepared.scratch()).unwrap();
            launches.push((prepared, at));
        }
        Sequence { stream, buffers, launches }
    }

    fn contents(&mut self) -> Vec<Vec<u8>> {
        self.buffers.iter().map(|b| self.stream.read(b).wait().unwrap()).collect()
    }
}

/// At most five operands, without a vector of them.
fn launch(prepared: &Prepared, stream: &mut dyn Stream, buffers: &[Buffer], at: &[usize]) {
    let mut args: [Arg<'_>; 5] = std::array::from_fn(|i| Arg::Buf(&buffers[at[i.min(at.len() - 1)]]));
    prepared.launch(stream, &mut args[..at.len()]).unwrap();
}

// one test, since allocations of other tests would be counted
#[test]
fn replay_equals_launches_and_nothing_is_allocated() {
    for threads in [1, 2, 5] {
        let device = CpuDevice::open(&Options { threads: Some(threads), ..Options::default() }).unwrap();
        let (mut eager, mut recorded) = (Sequence::new(&device), Sequence::new(&device));
        let graph = {
            let (launches, buffers) = (&recorded.launches, &recorded.buffers);
            let mut body = |stream: &mut dyn Stream| {
                launches.iter().for_each(|(prepared, at)| launch(prepared, stream, buffers, at));
                Ok(())
            };
            recorded.stream.capture(&mut body).unwrap()
        };
        // threads allocate when they start
        for (prepared, at) in &eager.launches {
            launch(prepared, &mut *eager.stream, &eager.buffers, at);
        }
        recorded.stream.replay(&graph).unwrap();
        // a launch that allocates does so in every round; the thread of the test harness allocates now and then
        let mut round = || {
            let before = ALLOCATIONS.load(Ordering::Relaxed);
            for _ in 0..20 {
                for (prepared, at) in &eager.launches {
                    launch(prepared, &mut *eager.stream, &eager.buffers, at);
                }
                recorded.stream.replay(&graph).unwrap();
            }
            ALLOCATIONS.load(Ordering::Relaxed) - before
        };
        let allocations = (0..5).map(|_| round()).min();
        assert_eq!(allocations, Some(0), "of 520 launches on {threads} threads");
        let (eager, recorded) = (eager.contents(), recorded.contents());
        assert_eq!(eager[0], 101i32.to_le_bytes());
        assert!(eager[9].chunks(4).all(|x| f32::from_le_bytes(x.try_into().unwrap()).is_finite()));
        assert!(eager == recorded, "{threads} threads");
    }
}
