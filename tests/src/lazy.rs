//! A device that does everything as late as it may: what a GPU leaves open, without a GPU.
//!
//! Submitted work waits in its stream's queue until somebody waits for it: a sync, a read, an event that another stream or the host
//! waits for. What depends on nothing else than the order of the calls is therefore computed from zeroes, every time. Memory that
//! may have any content is full of NaN, activations need three pools, and a launch that binds one buffer read-only and read-write is
//! refused, as WebGPU does (the core refuses it where there are several pools). Kernels are the ops' f64 references; products also read a packed weight.
#![forbid(unsafe_code)]

use perjoule::{Backend, OpenOptions};
use perjoule_kernels::device::{Scratch, Wait, alone, ready};
use perjoule_kernels::kernel::Request;
use perjoule_kernels::op::{Pack, Tensor2, Values};
use perjoule_kernels::{
    Access, Arena, Arg, Buffer, Candidate, Checked, Comm, Config, DType, Device, DeviceClass, DeviceId,
    DeviceInfo, Error, Event, Graph, Kernel, Launch, Matrix, Memory, Op, Operand, PackFormat, Pending,
    Reason, Result, Stream, Table, block,
};
use std::any::Any;
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};
use std::time::Duration;

/// The backend, to be registered: `lazy:0`.
pub const BACKEND: Backend = Backend {
    name: "lazy",
    enumerate: || Ok(vec![describe()]),
    open: |index, options| {
        let refuse = |why: &str| Err(Error::NoDevice { id: format!("lazy:{index}"), why: why.into() });
        match (index, options) {
            (0, OpenOptions { threads: None, .. }) => Ok(Arc::new(LazyDevice::open())),
            (0, _) => refuse("it has no threads"),
            _ => refuse("there is one: lazy:0"),
        }
    },
};

fn describe() -> DeviceInfo {
    let name = "references, as late as possible";
    let mut info = DeviceInfo::new("lazy:0", "lazy", name, DeviceClass::Other, Arc::new(()));
    info.software = true;
    info.synchronous = false;
    info.arena = Arena { pools: 3, align: 256, max_bytes: 128 << 20 };
    info
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

struct LazyMemory {
    device: DeviceId,
    base: u64,
    bytes: u64,
    /// Padded to whole words.
    content: Mutex<Vec<u8>>,
}

impl Memory for LazyMemory {
    fn device(&self) -> DeviceId {
        self.device
    }
    fn base(&self) -> u64 {
        self.base
    }
    fn bytes(&self) -> u64 {
        self.bytes
    }
}

fn content(buffer: &Buffer) -> Result<MutexGuard<'_, Vec<u8>>> {
    let memory = (&**buffer.memory() as &dyn Any).downcast_ref::<LazyMemory>();
    let wrong = Error::WrongDevice { kernel: "copy", operand: "buffer" };
    memory.map(|memory| locked(&memory.content)).ok_or(wrong)
}

fn get(buffer: &Buffer, bytes: u64) -> Result<Vec<u8>> {
    let at = buffer.offset() as usize;
    Ok(content(buffer)?[at..at + bytes as usize].to_vec())
}

fn put(buffer: &Buffer, bytes: &[u8]) -> Result<()> {
    let at = buffer.offset() as usize;
    content(buffer)?[at..at + bytes.len()].copy_from_slice(bytes);
    Ok(())
}

#[derive(Clone)]
enum Work {
    Write(Buffer, Vec<u8>),
    Copy(Buffer, Buffer),
    Read(Buffer, Arc<Mutex<Vec<u8>>>),
    Wait(Arc<Queue>, u64),
    Launch(&'static Kernel, Arc<Op>, Vec<Buffer>, Vec<Operand>),
}

/// The work of a stream. Events hold on to it when the stream has gone.
#[derive(Default)]
struct Queue {
    waiting: Mutex<VecDeque<Work>>,
    submitted: AtomicU64,
    done: AtomicU64,
    fault: Mutex<Option<Error>>,
}

/// Held while work runs: one at a time, whatever the thread.
static RUNNING: Mutex<()> = Mutex::new(());

impl Queue {
    fn push(&self, work: Work) {
        locked(&self.waiting).push_back(work);
        self.submitted.fetch_add(1, Ordering::SeqCst);
    }

    fn submitted(&self) -> u64 {
        self.submitted.load(Ordering::SeqCst)
    }

    /// Runs the first `until` pieces of work that were ever submitted, unless they have run. An event is older than what waits for
    /// it, so that this ends.
    fn run(&self, until: u64) {
        while self.done.load(Ordering::SeqCst) < until {
            let Some(work) = locked(&self.waiting).pop_front() else { return };
            if let Err(error) = work.run() {
                locked(&self.fault).get_or_insert(error);
            }
            self.done.fetch_add(1, Ordering::SeqCst);
        }
    }
}

impl Work {
    fn run(&self) -> Result<()> {
        match self {
            Work::Write(to, bytes) => put(to, bytes),
            Work::Copy(to, from) => put(to, &get(from, from.bytes())?),
            Work::Read(from, to) => {
                *locked(to) = get(from, from.bytes())?;
                Ok(())
            }
            Work::Wait(queue, until) => {
                queue.run(*until);
                Ok(())
            }
            Work::Launch(kernel, op, args, operands) => compute(op, args, operands)
                .map_err(|e| Error::Fault { kernel: kernel.name, detail: e.to_string() }),
        }
    }
}

/// Marks elements that the reference does not set.
const UNSET: u64 = 0x7ff8_0bad_0bad_0bad;

/// The reference on the operands' bytes. What it does not set keeps its bytes.
fn compute(op: &Op, args: &[Buffer], operands: &[Operand]) -> Result<()> {
    if let Op::Pack(op) = op {
        return pack(op, args, operands);
    }
    let mut values = Vec::new();
    for (buffer, operand) in args.iter().zip(operands) {
        let mut value = vec![f64::from_bits(UNSET); operand.elements as usize];
        if operand.access != Access::Write {
            block::decode_f64(operand.dtype, &get(buffer, operand.bytes)?, &mut value)?;
        }
        values.push(Values::new(value));
    }
    let before = values.clone();
    op.reference(&mut values);
    for (i, (buffer, operand)) in
        args.iter().zip(operands).enumerate().filter(|(_, (_, o))| o.access.writes())
    {
        let mut bytes = get(buffer, operand.bytes)?;
        let is_set = |at: &usize| {
            let magnitude = values[i].magnitude.get(*at).copied().unwrap_or(0.0);
            values[i].value[*at].to_bits() != before[i].value[*at].to_bits() || magnitude != 0.0
        };
        let (len, size) = (operand.dtype.block_len(), operand.dtype.block_bytes());
        for (index, bytes) in bytes.chunks_exact_mut(size).enumerate() {
            let block = index * len..(index + 1) * len;
            if block.clone().any(|at| is_set(&at)) {
                // what a format cannot hold is left out, as judgement leaves it out
                let _ = block::encode_f64(operand.dtype, &values[i].value[block], bytes);
            }
        }
        if let Op::Quantise(op) = op
            && op.to.is_block()
        {
            // codes cannot be recovered from what the reference gives
            block::encode_f64(op.to, &values[0].value, &mut bytes)?;
        }
        put(buffer, &bytes)?;
    }
    Ok(())
}

/// Columns one after the other, as f32.
static COLUMNS: PackFormat = PackFormat {
    name: "columns_f32",
    dtype: DType::F32,
    panel: 1,
    panel_bytes: |k| (k as u64).checked_mul(4),
};

fn pack(op: &Pack, args: &[Buffer], operands: &[Operand]) -> Result<()> {
    let mut plain = vec![0.0; operands[0].elements as usize];
    block::decode_f64(operands[0].dtype, &get(&args[0], operands[0].bytes)?, &mut plain)?;
    let mut packed = Vec::with_capacity(operands[1].bytes as usize);
    for matrix in 0..op.matrices {
        for (n, k) in (0..op.n).flat_map(|n| (0..op.k).map(move |k| (n, k))) {
            packed.extend((plain[op.b.strides.at(matrix, k, n)] as f32).to_le_bytes());
        }
    }
    put(&args[1], &packed)
}

/// The op that reads its constant operand as [`COLUMNS`].
fn packed(op: &Op) -> Op {
    let mut op = op.clone();
    let Some(b) = op.constants().first().copied() else { return op };
    let mut strides = Matrix::col_major(b.k, b.n);
    if b.matrices == 1 {
        strides.batch = 0;
    }
    let columns = Tensor2 { dtype: COLUMNS.dtype, strides };
    match &mut op {
        Op::MatMul(op) => op.b = columns,
        Op::GroupedMatMul(op) => op.b = columns,
        _ => {}
    }
    op
}

struct Reference(Arc<Op>);

impl Launch for Reference {
    fn scratch(&self) -> u64 {
        64 // so that who forgets to reserve it is told
    }

    fn launch(&self, stream: &mut dyn Stream, mut checked: Checked<'_, '_>) -> Result<()> {
        let (kernel, operands) = (checked.kernel(), checked.operands());
        let wrong = |operand| Error::WrongDevice { kernel: kernel.name, operand };
        let stream = (stream as &mut dyn Any).downcast_mut::<LazyStream>().ok_or(wrong("stream"))?;
        let mut args = Vec::new();
        for (arg, operand) in checked.args().iter().zip(operands) {
            let Arg::Buf(buffer) = arg else { return Err(wrong(operand.name)) };
            args.push((*buffer).clone());
        }
        stream.submit(Work::Launch(kernel, self.0.clone(), args, operands.to_vec()))
    }
}

fn prepare(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    let op = if request.pack.is_some() { packed(request.op) } else { request.op.clone() };
    Ok(Box::new(Reference(Arc::new(op))))
}

fn products_of_floats(candidate: &Candidate<'_>) -> Option<Reason> {
    let dtype = match candidate.op {
        Op::MatMul(op) => op.b.dtype,
        Op::GroupedMatMul(op) => op.b.dtype,
        _ => return None,
    };
    (dtype == DType::I8).then(|| Reason::new("i8 is not packed"))
}

macro_rules! row {
    ($op:literal, $suffix:literal, $packs:expr, $cost:literal, $reject:expr) => {
        &Kernel::new(concat!($op, $suffix), $op, |_| $cost, prepare)
            .with_configs(&[Config::tile("any", &[4, 4, 4])])
            .with_packs($packs)
            .with_reject($reject)
    };
}

macro_rules! rows {
    ($($op:literal)*) => {
        static ROWS: &[&Kernel] = &[
            row!("matmul", "_lazy_packed", &[&COLUMNS], 0.5, products_of_floats),
            row!("grouped_matmul", "_lazy_packed", &[&COLUMNS], 0.5, products_of_floats),
            $(row!($op, "_lazy", &[], 1.0, |_| None)),*
        ];
    };
}

rows! {
    "matmul" "attention" "grouped_matmul" "rms_norm" "layer_norm" "rope" "gated" "softmax" "embed" "add" "route" "combine" "kv_append"
    "advance" "argmax" "sample" "cast" "quantise" "pack" "collective" "qk_norm_rope_append" "gated_matmul"
}

/// What streams share with their device.
struct Inner {
    id: DeviceId,
    /// The next free address.
    next: AtomicU64,
    lost: AtomicBool,
}

impl Inner {
    fn alloc(&self, bytes: u64, fill: u8) -> Result<Buffer> {
        self.alive()?;
        let refused = Error::OutOfMemory { device: "lazy:0".into(), need: bytes, available: None };
        if bytes > 1 << 30 {
            return Err(refused);
        }
        let padded = bytes.next_multiple_of(4);
        // never two blocks side by side
        let base = self.next.fetch_add(padded.next_multiple_of(256) + 256, Ordering::Relaxed);
        let content = Mutex::new(vec![fill; padded as usize]);
        Ok(Buffer::new(Arc::new(LazyMemory { device: self.id, base, bytes, content })))
    }

    fn alive(&self) -> Result<()> {
        match self.lost.load(Ordering::SeqCst) {
            false => Ok(()),
            true => Err(Error::Lost { device: "lazy:0".into(), detail: "on purpose".into() }),
        }
    }
}

/// The device.
pub struct LazyDevice {
    info: DeviceInfo,
    inner: Arc<Inner>,
    table: Table,
}

impl LazyDevice {
    /// Opens it.
    pub fn open() -> Self {
        let info = describe();
        let inner = Arc::new(Inner { id: info.id, next: AtomicU64::new(4096), lost: AtomicBool::new(false) });
        LazyDevice { info, inner, table: Table::new(ROWS.iter().copied()) }
    }

    /// Loses it, as by a reset of the driver.
    pub fn lose(&self) {
        self.inner.lost.store(true, Ordering::SeqCst);
    }
}

impl Device for LazyDevice {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn table(&self) -> &Table {
        &self.table
    }

    fn built_in(&self, _: &'static Kernel) -> bool {
        false // no other program has this backend
    }

    fn alloc(&self, bytes: u64) -> Result<Buffer> {
        self.inner.alloc(bytes, 0)
    }

    fn alloc_any(&self, bytes: u64) -> Result<Buffer> {
        self.inner.alloc(bytes, 0xff) // NaN in every float type, -1 in a slot
    }

    fn stream(&self) -> Result<Box<dyn Stream>> {
        self.inner.alive()?;
        let queue = Arc::default();
        Ok(Box::new(LazyStream {
            inner: self.inner.clone(),
            queue,
            scratch: Scratch::default(),
            recording: None,
        }))
    }

    fn join(&self, _: &[u8], rank: u32, world: u32) -> Result<Arc<dyn Comm>> {
        alone(rank, world, "there is one")
    }
}

struct LazyStream {
    inner: Arc<Inner>,
    queue: Arc<Queue>,
    scratch: Scratch,
    recording: Option<Vec<Work>>,
}

struct LazyGraph {
    work: Vec<Work>,
    device: DeviceId,
    /// Of the stream that recorded it.
    queue: Arc<Queue>,
}

struct LazyEvent {
    queue: Arc<Queue>,
    until: u64,
}

impl LazyStream {
    fn submit(&mut self, work: Work) -> Result<()> {
        self.inner.alive()?;
        match (&mut self.recording, &work) {
            (None, _) => self.queue.push(work),
            (Some(list), Work::Launch(..)) => list.push(work),
            (Some(_), _) => {
                let why = "a sequence is being recorded; only launches can be recorded".into();
                return Err(Error::Unsupported { what: "a transfer", why });
            }
        }
        Ok(())
    }

    /// A copy of `bytes` bytes that ends within `to`.
    fn check(&self, to: &Buffer, bytes: u64) -> Result<()> {
        if to.device() != self.inner.id {
            return Err(Error::WrongDevice { kernel: "copy", operand: "buffer" });
        }
        match bytes <= to.bytes() {
            true => Ok(()),
            false => Err(Error::OutOfRange { at: 0, bytes, have: to.bytes() }),
        }
    }

    /// Runs all that was submitted so far, when it is waited for, and gives what `then` finds.
    fn later<T: Send + 'static>(&self, then: impl FnOnce() -> T + Send + 'static) -> Pending<T> {
        let (inner, queue, until) = (self.inner.clone(), self.queue.clone(), self.queue.submitted());
        Box::pin(Later(Some(Box::new(move || {
            inner.alive()?;
            let _running = locked(&RUNNING);
            queue.run(until);
            match locked(&queue.fault).take() {
                Some(fault) => Err(fault),
                None => Ok(then()),
            }
        }))))
    }
}

impl Stream for LazyStream {
    fn device(&self) -> DeviceId {
        self.inner.id
    }

    fn reserve(&mut self, bytes: u64) -> Result<()> {
        self.scratch.reserve(bytes, |bytes| self.inner.alloc(bytes, 0xff))
    }

    fn scratch(&self, bytes: u64) -> Result<Option<Buffer>> {
        self.scratch.get(bytes)
    }

    fn write(&mut self, to: &Buffer, from: &[u8]) -> Result<()> {
        self.check(to, from.len() as u64)?;
        self.submit(Work::Write(to.clone(), from.to_vec()))
    }

    fn copy(&mut self, to: &Buffer, from: &Buffer) -> Result<()> {
        self.check(to, from.bytes())?;
        drop(content(from)?); // of this backend
        self.submit(Work::Copy(to.clone(), from.clone()))
    }

    fn read(&mut self, from: &Buffer) -> Pending<Vec<u8>> {
        let bytes: Arc<Mutex<Vec<u8>>> = Arc::default();
        let read = self.check(from, 0).and_then(|()| self.submit(Work::Read(from.clone(), bytes.clone())));
        match read {
            Ok(()) => self.later(move || std::mem::take(&mut *locked(&bytes))),
            Err(error) => ready(Err(error)),
        }
    }

    fn record(&mut self) -> Result<Arc<dyn Event>> {
        self.inner.alive()?;
        Ok(Arc::new(LazyEvent { queue: self.queue.clone(), until: self.queue.submitted() }))
    }

    fn wait_for(&mut self, event: &dyn Event) -> Result<()> {
        let event = (event as &dyn Any).downcast_ref::<LazyEvent>();
        let event = event.ok_or(Error::WrongDevice { kernel: "wait_for", operand: "event" })?;
        self.submit(Work::Wait(event.queue.clone(), event.until))
    }

    fn capture(&mut self, body: &mut dyn FnMut(&mut dyn Stream) -> Result<()>) -> Result<Arc<dyn Graph>> {
        if self.recording.is_some() {
            let why = "a sequence is being recorded".into();
            return Err(Error::Unsupported { what: "recording twice", why });
        }
        self.recording = Some(Vec::new());
        let result = body(self);
        let work = self.recording.take().unwrap_or_default();
        result?;
        Ok(Arc::new(LazyGraph { work, device: self.inner.id, queue: self.queue.clone() }))
    }

    fn replay(&mut self, graph: &Arc<dyn Graph>) -> Result<()> {
        let graph = (&**graph as &dyn Any).downcast_ref::<LazyGraph>().filter(|g| g.device == self.inner.id);
        let graph = graph.ok_or(Error::WrongDevice { kernel: "replay", operand: "graph" })?;
        if !Arc::ptr_eq(&graph.queue, &self.queue) {
            return Err(Error::WrongStream);
        }
        graph.work.iter().try_for_each(|work| self.submit(work.clone()))
    }

    fn sync(&mut self) -> Pending<()> {
        self.later(|| ())
    }
}

impl Graph for LazyGraph {
    fn launches(&self) -> usize {
        self.work.len()
    }
}

impl Event for LazyEvent {
    fn since(&self, _: &dyn Event) -> Pending<Option<Duration>> {
        ready(Ok(None)) // no clock
    }
}

/// What runs when it is waited for.
struct Later<T>(Option<Box<dyn FnOnce() -> Result<T> + Send>>);

impl<T> Unpin for Later<T> {}

impl<T> Future for Later<T> {
    type Output = Result<T>;
    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<T>> {
        self.0.take().map_or(Poll::Pending, |run| Poll::Ready(run()))
    }
}

impl<T: Send> Wait<T> for Later<T> {
    fn wait(mut self: Pin<Box<Self>>) -> Result<T> {
        let twice = || Error::Unsupported { what: "waiting twice", why: "the result was taken".into() };
        self.0.take().map_or_else(|| Err(twice()), |run| run())
    }
}
