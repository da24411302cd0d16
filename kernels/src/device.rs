//! Devices, streams, graphs and events: the object-safe traits that a backend implements.
//!
//! # Order
//!
//! Callers rely on no more than this, and every backend keeps it. The CPU happens to do all work at once; `tests/src/lazy.rs` does it
//! as late as it may.
//!
//! * Work of one stream runs in order. Work of different streams is not ordered, not even by the order of the calls: a stream sees
//!   what another one wrote behind [`Stream::sync`] of that one (once it was waited for), or behind an event of it
//!   ([`Stream::record`], [`Stream::wait_for`]; both at once: [`Stream::follow`]).
//! * When work runs is open: at the latest for a [`Pending`] that is waited for, in its own stream or in one that waits for an event of
//!   it. Streams of different devices are ordered like those of one, by `sync`; a backend may take events of its other devices.
//! * A stream may be dropped at any time. What was submitted to it still runs, and events of it still come; its faults are told to
//!   nobody, so whoever needs to know them synchronises first.
//! * Memory is freed in stream order: the last [`Buffer`] of it may go while submitted work still uses it.
//! * The zeroes of [`Device::alloc`] are there for every stream, without an event.
//! * Offsets and sizes of [`Stream::write`], [`Stream::copy`] and [`Stream::read`] are any number of bytes. Where a device only moves
//!   whole words (WebGPU: 4 bytes), the backend rounds: it pads every allocation to whole words behind the bytes that were asked for,
//!   and leaves the caller's bytes beside the range as they are.
//! * A device may be lost (a driver reset, an unplugged GPU, a fork of the process). From then on whatever submits or waits gives
//!   [`crate::Error::Lost`], at the latest at the next [`Pending`]; dropping its objects stays harmless. Opening it again gives a new
//!   device with an identity of its own, on which buffers, streams and graphs of the old one are refused.

use crate::buffer::Buffer;
use crate::error::{Error, Result};
use crate::kernel::Kernel;
use crate::table::Table;
use std::any::Any;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

/// Bounds that natively mean `Send` and `Send + Sync` and are empty on wasm32, where wgpu's types are neither.
#[cfg(not(target_arch = "wasm32"))]
mod thread {
    /// May move to another thread (natively).
    pub trait Local: Send {}
    impl<T: Send + ?Sized> Local for T {}
    /// May be shared between threads (natively).
    pub trait Shared: Send + Sync {}
    impl<T: Send + Sync + ?Sized> Shared for T {}
}
#[cfg(target_arch = "wasm32")]
mod thread {
    /// May move to another thread (natively).
    pub trait Local {}
    impl<T: ?Sized> Local for T {}
    /// May be shared between threads (natively).
    pub trait Shared {}
    impl<T: ?Sized> Shared for T {}
}
pub use thread::{Local, Shared};

/// Identity of an opened device, unique in this process: opening a device again gives a new one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct DeviceId(u32);

impl DeviceId {
    /// The next unused identity.
    pub fn unique() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        DeviceId(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// What kind of hardware a device is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum DeviceClass {
    /// The host's processor.
    Cpu,
    /// A graphics processor with its own memory.
    DiscreteGpu,
    /// A graphics processor that shares the host's memory.
    IntegratedGpu,
    /// A graphics processor seen through virtualisation.
    VirtualGpu,
    /// Anything else, such as an adapter that does not say.
    Other,
}

impl DeviceClass {
    /// The name used in records and listings.
    pub fn name(self) -> &'static str {
        match self {
            DeviceClass::Cpu => "cpu",
            DeviceClass::DiscreteGpu => "discrete-gpu",
            DeviceClass::IntegratedGpu => "integrated-gpu",
            DeviceClass::VirtualGpu => "virtual-gpu",
            DeviceClass::Other => "other",
        }
    }
}

/// What activations need of a device's memory.
///
/// WebGPU forbids one buffer to be bound read-only and read-write in a dispatch: three pools there, one elsewhere. Two would do for a
/// chain of launches; a residual that is read beside what the chain reads needs the third in practice. With more than one, launches
/// refuse two operands in one block of memory of which one is written and the other only read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Arena {
    /// Number of separate blocks of memory among which activations rotate.
    pub pools: u8,
    /// Alignment of every placement, in bytes.
    pub align: u32,
    /// Largest block of memory, in bytes.
    pub max_bytes: u64,
}

/// The backend's own description of a device (CPUID bits, wgpu limits, SM version), which its rows get by downcasting.
pub trait Caps: Any + Shared {}
impl<T: Any + Shared> Caps for T {}

/// What is known about a device. A backend makes it with [`DeviceInfo::new`] and sets what it knows besides.
#[derive(Clone)]
#[non_exhaustive]
pub struct DeviceInfo {
    /// Identity of this opened device.
    pub id: DeviceId,
    /// What a user types, such as `cpu` or `cuda:0`.
    pub label: String,
    /// `cpu`, `webgpu` or `cuda`.
    pub backend: &'static str,
    /// The vendor's name for it.
    pub name: String,
    /// What kind of hardware it is.
    pub class: DeviceClass,
    /// Its memory, in bytes, where that is known.
    pub memory_bytes: Option<u64>,
    /// Its last-level cache, in bytes.
    pub cache_bytes: Option<u64>,
    /// Host threads that compute, where those do.
    pub threads: Option<usize>,
    /// Address on the PCI bus, such as `0000:65:00.0`: how meters and drivers name the same device.
    pub pci: Option<String>,
    /// The vendor's identity of this very piece of hardware.
    pub uuid: Option<String>,
    /// Name and version of the driver.
    pub driver: Option<String>,
    /// Whether it is a software implementation of a GPU interface.
    pub software: bool,
    /// Names of the features that kernels look at, such as `avx2`.
    pub features: Vec<String>,
    /// What its rows were built from: a hash of their sources, compiler and target. Measured times of another build say nothing.
    pub build: Option<&'static str>,
    /// Whether a launch is over when it returns, so that host slices can be arguments.
    pub synchronous: bool,
    /// Rules for placing activations.
    pub arena: Arena,
    /// The backend's own description.
    pub caps: Arc<dyn Caps>,
}

impl DeviceInfo {
    /// A device of a new identity of which nothing else is known: asynchronous, one pool of any size, aligned to 64 bytes.
    pub fn new(
        label: impl Into<String>,
        backend: &'static str,
        name: impl Into<String>,
        class: DeviceClass,
        caps: Arc<dyn Caps>,
    ) -> Self {
        DeviceInfo {
            id: DeviceId::unique(),
            label: label.into(),
            backend,
            name: name.into(),
            class,
            memory_bytes: None,
            cache_bytes: None,
            threads: None,
            pci: None,
            uuid: None,
            driver: None,
            software: false,
            features: Vec::new(),
            build: None,
            synchronous: false,
            arena: Arena { pools: 1, align: 64, max_bytes: isize::MAX as u64 },
            caps,
        }
    }

    /// The backend's own description, if it is a `T`.
    pub fn caps<T: Any>(&self) -> Option<&T> {
        (&*self.caps as &dyn Any).downcast_ref()
    }
}

/// An opened device: memory, streams and a table of kernel rows.
pub trait Device: Any + Shared {
    /// What it is.
    fn info(&self) -> &DeviceInfo;
    /// Its rows, and what was registered and tuned.
    fn table(&self) -> &Table;
    /// The rows of its table, in order; the last row of an op is a portable one that runs everything. A snapshot: rows may be registered later.
    fn kernels(&self) -> Arc<[&'static Kernel]> {
        self.table().rows()
    }
    /// Adds a row from outside. Refused when a row of that name exists.
    fn register(&self, row: &'static Kernel) -> Result<()> {
        self.table().register(row)
    }
    /// Whether the row is one of the backend's own, which every program that opens this device has, and none that was registered.
    fn built_in(&self, row: &'static Kernel) -> bool {
        self.table().is_built_in(row)
    }
    /// What a tuner measured on this device, if it was tuned.
    fn tuning(&self) -> Option<Arc<crate::tune::Tuning>> {
        self.table().tuning()
    }
    /// Replaces what a tuner measured, and forgets it with `None`. Devices may refuse.
    fn set_tuning(&self, tuning: Option<Arc<crate::tune::Tuning>>) -> Result<()> {
        self.table().set_tuning(tuning);
        Ok(())
    }
    /// A number that is another one after every change of [`Device::kernels`] or [`Device::tuning`], by which caches of choices notice
    /// it. Cheap.
    fn revision(&self) -> u64 {
        self.table().revision()
    }
    /// Bytes of its memory that are free right now, where that is known.
    fn free_bytes(&self) -> Option<u64> {
        None
    }
    /// Zeroed memory, aligned to [`Arena::align`] and to 64 bytes at least, freed in stream order when the last [`Buffer`] of it goes.
    /// Every stream sees the zeroes.
    fn alloc(&self, bytes: u64) -> Result<Buffer>;
    /// The same without a promise about its content, for what is written before it is read: zeroing costs as much as a launch. It is
    /// initialised memory and holds nothing of other processes or devices: zeroes, or what earlier buffers of this device held.
    fn alloc_any(&self, bytes: u64) -> Result<Buffer> {
        self.alloc(bytes)
    }
    /// A new stream.
    fn stream(&self) -> Result<Box<dyn Stream>>;
    /// A new name for a group, which one rank makes and gives to the others by any means; every rank then calls [`Device::join`] with
    /// it. Backends whose groups need none, such as those of one rank only, give an empty one.
    fn group_id(&self) -> Result<Vec<u8>> {
        Ok(Vec::new())
    }
    /// Joins a group of `world` ranks for collectives; `id` is one [`Device::group_id`], the same on every rank.
    ///
    /// It may block until all ranks have joined. Several devices of one process are as many ranks: each joins on a thread of its own,
    /// since the first of two calls in a row would wait for the second for ever.
    fn join(&self, id: &[u8], rank: u32, world: u32) -> Result<Arc<dyn Comm>>;
}

/// A rank's membership in a group of devices.
pub trait Comm: Any + Shared {
    /// This rank, from 0.
    fn rank(&self) -> u32;
    /// Number of ranks.
    fn world(&self) -> u32;
}

/// The group of one that a process is by itself: what [`Device::join`] gives where a backend moves nothing between devices.
///
/// # Errors
/// [`Error::Invalid`] for a rank that no group has, [`Error::Unsupported`] for several ranks, with `why` there is only one.
pub fn alone(rank: u32, world: u32, why: &str) -> Result<Arc<dyn Comm>> {
    struct Alone;
    impl Comm for Alone {
        fn rank(&self) -> u32 {
            0
        }
        fn world(&self) -> u32 {
            1
        }
    }
    match (rank, world) {
        (0, 1) => Ok(Arc::new(Alone)),
        (_, 0 | 1) => Err(Error::Invalid {
            op: "join",
            field: "rank and world",
            got: format!("{rank} of {world}"),
            expected: "rank 0 of 1".into(),
        }),
        _ => Err(Error::Unsupported {
            what: "a group of several ranks",
            why: format!("{why}; join a world of 1, not {world}"),
        }),
    }
}

/// A result that native code waits for and a browser awaits; no executor is needed.
pub trait Wait<T>: Future<Output = Result<T>> + Local {
    /// Blocks until the result is there.
    #[cfg(not(target_arch = "wasm32"))]
    fn wait(self: Pin<Box<Self>>) -> Result<T>;
}

/// A result on its way. Device faults of earlier launches arrive here, with the kernel's name.
pub type Pending<T> = Pin<Box<dyn Wait<T>>>;

/// What a [`Pending`] brings: natively this blocks until it is there, in a browser it is awaited. What waits through this alone
/// is written once for both: natively such a future is driven by `at_once`.
///
/// # Errors
/// That of the result.
pub async fn settled<T>(pending: Pending<T>) -> Result<T> {
    #[cfg(not(target_arch = "wasm32"))]
    return pending.wait();
    #[cfg(target_arch = "wasm32")]
    return pending.await;
}

/// What a future gives that waits through [`settled`] alone, and so never natively.
#[cfg(not(target_arch = "wasm32"))]
pub fn at_once<T>(future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    let mut context = Context::from_waker(std::task::Waker::noop());
    loop {
        if let Poll::Ready(result) = future.as_mut().poll(&mut context) {
            return result;
        }
        // somebody awaits something else: it comes when it comes
        std::thread::yield_now();
    }
}

/// A [`Pending`] that is already there: what synchronous backends return.
pub fn ready<T: Local + 'static>(result: Result<T>) -> Pending<T> {
    Box::pin(Ready(Some(result)))
}

struct Ready<T>(Option<Result<T>>);

impl<T> Unpin for Ready<T> {}

impl<T> Future for Ready<T> {
    type Output = Result<T>;
    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<T>> {
        match self.0.take() {
            Some(result) => Poll::Ready(result),
            None => Poll::Pending, // polled again after it was ready, which the Future contract leaves open
        }
    }
}

impl<T: Local> Wait<T> for Ready<T> {
    #[cfg(not(target_arch = "wasm32"))]
    fn wait(mut self: Pin<Box<Self>>) -> Result<T> {
        self.0.take().unwrap_or_else(|| {
            Err(crate::Error::Unsupported {
                what: "waiting twice",
                why: "the result was already taken".into(),
            })
        })
    }
}

/// A point in a stream's work: everything submitted before it. It outlives its stream.
pub trait Event: Any + Shared {
    /// Time between `earlier` and this event by the device's clock; `None` where it has none.
    fn since(&self, earlier: &dyn Event) -> Pending<Option<Duration>>;
}

/// A recorded sequence of launches that is replayed with one call. It keeps every buffer, kernel and scratch it names alive.
///
/// It belongs to the stream that recorded it, whose scratch it uses: other streams refuse it ([`Stream::replay`]). On two streams at
/// once its replays would race for that scratch and for what they write; an order of its own for each graph would hide the second.
pub trait Graph: Any + Shared {
    /// Number of launches in it.
    fn launches(&self) -> usize;
}

/// The scratch of a stream, as [`Stream::reserve`] and [`Stream::scratch`] promise it.
#[derive(Default)]
pub struct Scratch(Option<Buffer>);

impl Scratch {
    /// Makes it at least so large. What is recorded holds on to the one before.
    ///
    /// # Errors
    /// Those of `alloc`.
    pub fn reserve(&mut self, bytes: u64, alloc: impl FnOnce(u64) -> Result<Buffer>) -> Result<()> {
        if bytes > self.bytes() {
            self.0 = Some(alloc(bytes)?);
        }
        Ok(())
    }

    /// It, for a launch that needs `bytes`; `None` when that is 0.
    ///
    /// # Errors
    /// [`Error::Scratch`] when less is reserved.
    pub fn get(&self, bytes: u64) -> Result<Option<Buffer>> {
        match bytes {
            0 => Ok(None),
            _ if bytes > self.bytes() => Err(Error::Scratch { need: bytes, have: self.bytes() }),
            _ => Ok(self.0.clone()),
        }
    }

    fn bytes(&self) -> u64 {
        self.0.as_ref().map_or(0, Buffer::bytes)
    }
}

/// An ordered queue of work on a device. Streams are not ordered among each other: the [module](self) says what a caller may rely on.
///
/// [`crate::Prepared::launch`] is the way to launch kernels on it.
pub trait Stream: Any + Local {
    /// Identity of its device.
    fn device(&self) -> DeviceId;
    /// Makes sure that every later launch has `bytes` of scratch. One scratch a stream: the largest need of what runs on it. A
    /// [`Graph`] keeps the one that it was recorded with.
    fn reserve(&mut self, bytes: u64) -> Result<()>;
    /// The scratch for a launch that needs `bytes`: `None` when that is 0, an error when less is reserved. Never grows.
    fn scratch(&self, bytes: u64) -> Result<Option<Buffer>>;
    /// Copies host bytes into a buffer of at least that size; `from` is free again on return.
    fn write(&mut self, to: &Buffer, from: &[u8]) -> Result<()>;
    /// Copies `from` to a buffer of at least that size. One of them is of this stream's device; the other may be of another device of
    /// the same backend.
    fn copy(&mut self, to: &Buffer, from: &Buffer) -> Result<()>;
    /// Copies a buffer to the host, as it is behind all that was submitted so far: later work of this stream does not change it.
    fn read(&mut self, from: &Buffer) -> Pending<Vec<u8>>;
    /// Marks this point.
    fn record(&mut self) -> Result<Arc<dyn Event>>;
    /// Lets later work of this stream wait for an event of another one.
    fn wait_for(&mut self, event: &dyn Event) -> Result<()>;
    /// Lets later work of this stream wait for all that was submitted to `other` so far.
    fn follow(&mut self, other: &mut dyn Stream) -> Result<()> {
        let event = other.record()?;
        self.wait_for(&*event)
    }
    /// Records what `body` launches instead of running it. A closure, so that no recording is left half open.
    fn capture(&mut self, body: &mut dyn FnMut(&mut dyn Stream) -> Result<()>) -> Result<Arc<dyn Graph>>;
    /// Runs a sequence that this stream recorded. What changes from step to step lies in slots that captured ops advance on the device.
    ///
    /// # Errors
    /// [`crate::Error::WrongDevice`], [`crate::Error::WrongStream`] for a graph of another device or stream.
    fn replay(&mut self, graph: &Arc<dyn Graph>) -> Result<()>;
    /// Completes all work submitted so far.
    fn sync(&mut self) -> Pending<()>;
}
