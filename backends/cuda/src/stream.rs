//! Streams of a GPU: launches, copies, events, and recorded graphs.

use crate::device::Inner;
use crate::driver::{Refused, check};
use crate::memory::{CudaMemory, Pinned};
use cudarc::driver::sys::{self, CUresult};
use perjoule_kernels::device::{Scratch, Wait, ready};
use perjoule_kernels::{Buffer, DeviceId, Error, Event, Graph, Memory, Pending, Result, Stream};
use std::any::Any;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

/// What the device knows of a living stream.
pub(crate) struct Handle {
    stream: sys::CUstream,
    /// Recorded where others must wait for all that was submitted; reused.
    mark: Mutex<sys::CUevent>,
    /// The bit by which memory remembers it.
    pub(crate) bit: u64,
    recording: AtomicBool,
}

// SAFETY: handles of the driver, which takes calls from all threads.
unsafe impl Send for Handle {}
// SAFETY: as above; `mark` is recorded and waited for under its mutex.
unsafe impl Sync for Handle {}

impl Handle {
    pub(crate) fn recording(&self) -> bool {
        self.recording.load(Ordering::Acquire)
    }

    /// Lets later work of `other` wait for all that this stream was given. What the driver answers helps nobody.
    pub(crate) fn before(&self, other: sys::CUstream) {
        let mark = self.mark.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: an event and streams of this context.
        unsafe {
            let _ = sys::cuEventRecord(*mark, self.stream);
            let _ = sys::cuStreamWaitEvent(other, *mark, 0);
        }
    }
}

/// A stream's handle, which events and graphs may keep longer than the stream.
struct Core {
    inner: Arc<Inner>,
    stream: sys::CUstream,
    /// Keeps a caller's stream alive; our own is destroyed with this.
    caller: Option<Arc<cudarc::driver::CudaStream>>,
    handle: Arc<Handle>,
}

// SAFETY: handles of the driver, which takes calls from all threads.
unsafe impl Send for Core {}
// SAFETY: as above.
unsafe impl Sync for Core {}

impl Drop for Core {
    fn drop(&mut self) {
        if self.inner.bind().is_err() {
            return;
        }
        self.inner.leave(&self.handle);
        let mark = self.handle.mark.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: made by us, used by nothing that is left; the driver finishes what was submitted. What it answers helps nobody.
        unsafe {
            let _ = sys::cuEventDestroy_v2(*mark);
            if self.caller.is_none() {
                let _ = sys::cuStreamDestroy_v2(self.stream);
            }
        }
    }
}

/// What a recorded graph keeps alive.
#[derive(Default)]
struct Recording {
    launches: usize,
    keeps: Vec<Arc<dyn Any + Send + Sync>>,
    memory: Vec<Arc<dyn Memory>>,
}

/// A stream of a [`crate::CudaDevice`].
pub struct CudaStream {
    core: Arc<Core>,
    scratch: Scratch,
    /// Numbers by which blocks of a kernel count each other: 0 before and behind every kernel.
    counters: Buffer,
    recording: Option<Recording>,
    /// Allocations that it waits for already.
    seen: u64,
    /// The kernel that was launched last, for the reports of faults.
    last: &'static str,
    /// Number of the launch in progress, or of the last one.
    launch: u64,
    /// Launches up to that number are over when a kernel starts that starts early: one after them did not.
    settled: u64,
}

struct CudaGraph {
    core: Arc<Core>,
    executable: sys::CUgraphExec,
    kept: Recording,
}

// SAFETY: a handle that only its stream replays, one call at a time (`&mut` of the stream).
unsafe impl Send for CudaGraph {}
// SAFETY: as above.
unsafe impl Sync for CudaGraph {}

impl Drop for CudaGraph {
    fn drop(&mut self) {
        if self.core.inner.bind().is_ok() {
            // SAFETY: made by us and destroyed once; the driver lets replays under way finish. What it answers helps nobody.
            let _ = unsafe { sys::cuGraphExecDestroy(self.executable) };
        }
    }
}

impl Graph for CudaGraph {
    fn launches(&self) -> usize {
        self.kept.launches
    }
}

/// An event with a time.
struct Mark {
    core: Arc<Core>,
    event: sys::CUevent,
    last: &'static str,
}

// SAFETY: a handle of the driver, which takes calls from all threads; it is recorded once, before it is shared.
unsafe impl Send for Mark {}
// SAFETY: as above.
unsafe impl Sync for Mark {}

impl Mark {
    fn new(core: &Arc<Core>, last: &'static str, timed: bool) -> Result<Self> {
        use sys::CUevent_flags::{CU_EVENT_DEFAULT, CU_EVENT_DISABLE_TIMING};
        // waits spin: microseconds shorter, and a token loop waits for every token
        let flags = match timed {
            true => CU_EVENT_DEFAULT as u32,
            false => CU_EVENT_DISABLE_TIMING as u32,
        };
        let mut event = std::ptr::null_mut();
        // SAFETY: writes a handle; the context is current.
        check(unsafe { sys::cuEventCreate(&mut event, flags) })
            .map_err(|e| core.inner.refuse("cuEventCreate", e))?;
        let mark = Mark { core: core.clone(), event, last };
        // SAFETY: an event and a stream of this context.
        check(unsafe { sys::cuEventRecord(event, core.stream) })
            .map_err(|e| core.inner.refuse("cuEventRecord", e))?;
        Ok(mark)
    }

    fn wait(&self) -> Result<()> {
        self.core.inner.bind()?;
        // SAFETY: a recorded event.
        check(unsafe { sys::cuEventSynchronize(self.event) }).map_err(|e| self.core.inner.fault(self.last, e))
    }

    fn is_over(&self) -> Result<bool> {
        self.core.inner.bind()?;
        // SAFETY: a recorded event.
        match check(unsafe { sys::cuEventQuery(self.event) }) {
            Ok(()) => Ok(true),
            Err(Refused(CUresult::CUDA_ERROR_NOT_READY)) => Ok(false),
            Err(e) => Err(self.core.inner.fault(self.last, e)),
        }
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        if self.core.inner.bind().is_ok() {
            // SAFETY: made by us and destroyed once; the driver lets it finish. What it answers helps nobody.
            let _ = unsafe { sys::cuEventDestroy_v2(self.event) };
        }
    }
}

/// A result that is there once some events are.
struct Later<T> {
    marks: Vec<Arc<Mark>>,
    finish: Option<Box<dyn FnOnce() -> Result<T> + Send>>,
    watched: bool,
}

impl<T> Unpin for Later<T> {}

impl<T: Send + 'static> Later<T> {
    fn pending(marks: Vec<Arc<Mark>>, finish: impl FnOnce() -> Result<T> + Send + 'static) -> Pending<T> {
        Box::pin(Later { marks, finish: Some(Box::new(finish)), watched: false })
    }

    fn taken() -> Error {
        Error::Unsupported { what: "waiting twice", why: "the result was already taken".into() }
    }
}

impl<T: Send + 'static> Future for Later<T> {
    type Output = Result<T>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<T>> {
        let over = self.marks.iter().try_fold(true, |all, mark| Ok::<_, Error>(all && mark.is_over()?));
        match over {
            Err(error) => Poll::Ready(Err(error)),
            Ok(true) => Poll::Ready(self.finish.take().map_or_else(|| Err(Self::taken()), |finish| finish())),
            Ok(false) => {
                if self.watched {
                    context.waker().wake_by_ref();
                    return Poll::Pending;
                }
                self.watched = true;
                let (marks, waker) = (self.marks.clone(), context.waker().clone());
                // the driver has no waker: a thread waits. An error wakes too, and is met again by the next poll
                std::thread::spawn(move || {
                    let _ = marks.iter().try_for_each(|mark| mark.wait());
                    waker.wake();
                });
                Poll::Pending
            }
        }
    }
}

impl<T: Send + 'static> Wait<T> for Later<T> {
    fn wait(mut self: Pin<Box<Self>>) -> Result<T> {
        for mark in &self.marks {
            mark.wait()?;
        }
        self.finish.take().map_or_else(|| Err(Self::taken()), |finish| finish())
    }
}

/// A pinned block that goes back to its pool, once nothing is under way into it.
struct Landing {
    block: Option<Pinned>,
    mark: Option<Arc<Mark>>,
    inner: Arc<Inner>,
}

impl Drop for Landing {
    fn drop(&mut self) {
        // the copy may be under way when a result that nobody waited for goes
        let over = self.mark.as_ref().is_none_or(|mark| mark.wait().is_ok());
        if let Some(block) = self.block.take()
            && over
        {
            self.inner.pinned.give(block);
        }
    }
}

/// Reads of more bytes than this go through pageable memory, and block: pinning that much takes longer than copying it.
const PINNED: u64 = 64 << 20;

/// Counters of a stream, of 32 bits.
pub(crate) const COUNTERS: usize = 4096;

/// The memory of a buffer, if it is this backend's.
fn memory_of(buffer: &Buffer) -> Option<&CudaMemory> {
    let memory: &dyn Any = &**buffer.memory();
    memory.downcast_ref()
}

impl CudaStream {
    pub(crate) fn new(inner: Arc<Inner>) -> Result<Self> {
        inner.bind()?;
        let mut stream = std::ptr::null_mut();
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: writes a handle; the context is current.
        check(unsafe { sys::cuStreamCreate(&mut stream, flags) })
            .map_err(|e| inner.refuse("cuStreamCreate", e))?;
        Self::of(inner, stream, None)
    }

    pub(crate) fn of_caller(inner: Arc<Inner>, stream: Arc<cudarc::driver::CudaStream>) -> Result<Self> {
        inner.bind()?;
        if stream.context().cu_ctx() != inner.context.cu_ctx() {
            return Err(Error::WrongDevice { kernel: "wrap_stream", operand: "stream" });
        }
        Self::of(inner, stream.cu_stream(), Some(stream))
    }

    fn of(
        inner: Arc<Inner>,
        stream: sys::CUstream,
        caller: Option<Arc<cudarc::driver::CudaStream>>,
    ) -> Result<Self> {
        let mut mark = std::ptr::null_mut();
        let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32;
        // SAFETY: writes a handle; the context is current.
        check(unsafe { sys::cuEventCreate(&mut mark, flags) })
            .map_err(|e| inner.refuse("cuEventCreate", e))?;
        let handle = inner.enter(|bit| {
            let mark = Mutex::new(mark);
            Handle { stream, mark, bit: 1 << bit, recording: AtomicBool::new(false) }
        });
        let core = Arc::new(Core { inner, stream, caller, handle });
        let counters = Buffer::new(core.inner.alloc(4 * COUNTERS as u64, true)?);
        Ok(CudaStream {
            core,
            scratch: Scratch::default(),
            counters,
            recording: None,
            seen: 0,
            last: "nothing",
            launch: 0,
            settled: 0,
        })
    }

    /// The driver's handle, for CUDA code beside ours.
    pub fn handle(&self) -> sys::CUstream {
        self.core.stream
    }

    pub(crate) fn inner(&self) -> &Arc<Inner> {
        &self.core.inner
    }

    /// Before anything is submitted: makes the context current, and waits for the allocations so far.
    fn enter(&mut self) -> Result<()> {
        let inner = &self.core.inner;
        inner.bind()?;
        // what a recording waits for is waited for by its replays
        if self.recording.is_none() && inner.epoch() != self.seen {
            self.seen = inner.follow_allocations(self.core.stream)?;
        }
        Ok(())
    }

    /// Before a launch of that name: as [`CudaStream::enter`].
    pub(crate) fn begin(&mut self, kernel: &'static str) -> Result<()> {
        self.enter()?;
        self.last = kernel;
        self.launch = self.core.inner.next_launch();
        if let Some(recording) = &mut self.recording {
            recording.launches += 1;
        }
        Ok(())
    }

    /// Notes that the launch in progress writes the buffer.
    pub(crate) fn write_by_launch(&self, buffer: &Buffer) {
        if let Some(memory) = memory_of(buffer) {
            memory.write_by(self.launch);
        }
    }

    /// Whether what launches wrote to the buffer's memory is there even for a kernel that starts before the one before it has ended.
    pub(crate) fn is_settled(&self, buffer: &Buffer) -> bool {
        memory_of(buffer).is_some_and(|memory| memory.written() <= self.settled)
    }

    /// A kernel of the launch in progress starts behind all before it.
    pub(crate) fn settle(&mut self) {
        self.settled = self.launch.saturating_sub(1);
    }

    /// The memory of an argument, noted as used by this stream, and kept by what is recorded.
    pub(crate) fn touch(&mut self, buffer: &Buffer) -> Result<u64, ()> {
        let memory = memory_of(buffer).ok_or(())?;
        memory.use_by(self.core.handle.bit);
        if let Some(recording) = &mut self.recording {
            recording.memory.push(buffer.memory().clone());
        }
        Ok(buffer.address())
    }

    /// The stream's counters: kernels find zeroes there, and leave zeroes.
    pub(crate) fn counters(&self) -> Buffer {
        self.counters.clone()
    }

    /// Whether a sequence is being recorded.
    pub(crate) fn is_recording(&self) -> bool {
        self.recording.is_some()
    }

    /// Keeps what a recorded launch needs.
    pub(crate) fn keep(&mut self, what: Arc<dyn Any + Send + Sync>) {
        if let Some(recording) = &mut self.recording {
            recording.keeps.push(what);
        }
    }

    fn own(&mut self, buffer: &Buffer) -> Result<u64> {
        if buffer.device() != self.core.inner.id {
            return Err(Error::WrongDevice { kernel: "copy", operand: "buffer" });
        }
        self.touch(buffer).map_err(|()| Error::WrongDevice { kernel: "copy", operand: "buffer" })
    }

    fn not_recording(&self, what: &'static str) -> Result<()> {
        if self.recording.is_none() {
            return Ok(());
        }
        Err(Error::Unsupported {
            what,
            why: "a sequence is being recorded; only launches can be recorded".into(),
        })
    }

    fn try_read(&mut self, from: &Buffer) -> Result<Pending<Vec<u8>>> {
        self.not_recording("reading")?;
        self.enter()?;
        let pointer = self.own(from)?;
        let bytes = from.bytes() as usize;
        let inner = self.core.inner.clone();
        if from.bytes() > PINNED {
            let mut to = vec![0u8; bytes];
            // SAFETY: both ranges have that size; from pageable memory the driver returns once the copy is done.
            check(unsafe {
                sys::cuMemcpyDtoHAsync_v2(to.as_mut_ptr().cast(), pointer, bytes, self.core.stream)
            })
            .map_err(|e| inner.fault(self.last, e))?;
            let mark = Arc::new(Mark::new(&self.core, self.last, false)?);
            return Ok(Later::pending(vec![mark], move || Ok(to)));
        }
        let block = inner.pinned.take(bytes).map_err(|e| inner.refuse("cuMemAllocHost", e))?;
        let target = block.pointer();
        let mut landing = Landing { block: Some(block), mark: None, inner: inner.clone() };
        if bytes > 0 {
            // SAFETY: both ranges have that size; the landing is given back only once the copy is over.
            check(unsafe { sys::cuMemcpyDtoHAsync_v2(target.cast(), pointer, bytes, self.core.stream) })
                .map_err(|e| inner.refuse("cuMemcpyDtoHAsync", e))?;
        }
        let mark = Arc::new(Mark::new(&self.core, self.last, false)?);
        landing.mark = Some(mark.clone());
        Ok(Later::pending(vec![mark], move || {
            Ok(landing.block.as_ref().map(|block| block.to_vec(bytes)).unwrap_or_default())
        }))
    }
}

impl Stream for CudaStream {
    fn device(&self) -> DeviceId {
        self.core.inner.id
    }

    fn reserve(&mut self, bytes: u64) -> Result<()> {
        self.scratch.reserve(bytes, |bytes| Ok(Buffer::new(self.core.inner.alloc(bytes, true)?)))
    }

    fn scratch(&self, bytes: u64) -> Result<Option<Buffer>> {
        self.scratch.get(bytes)
    }

    fn write(&mut self, to: &Buffer, from: &[u8]) -> Result<()> {
        self.not_recording("writing")?;
        self.enter()?;
        if to.bytes() < from.len() as u64 {
            return Err(Error::OutOfRange { at: 0, bytes: from.len() as u64, have: to.bytes() });
        }
        let pointer = self.own(to)?;
        if from.is_empty() {
            return Ok(());
        }
        // SAFETY: within the buffer; of pageable memory the driver takes a copy before it returns.
        check(unsafe {
            sys::cuMemcpyHtoDAsync_v2(pointer, from.as_ptr().cast(), from.len(), self.core.stream)
        })
        .map_err(|e| self.core.inner.refuse("cuMemcpyHtoDAsync", e))
    }

    fn copy(&mut self, to: &Buffer, from: &Buffer) -> Result<()> {
        self.not_recording("copying")?;
        self.enter()?;
        let wrong = |operand| Error::WrongDevice { kernel: "copy", operand };
        if ![to.device(), from.device()].contains(&self.core.inner.id) {
            return Err(wrong("stream"));
        }
        if to.bytes() < from.bytes() {
            return Err(Error::OutOfRange { at: 0, bytes: from.bytes(), have: to.bytes() });
        }
        for (buffer, name) in [(to, "to"), (from, "from")] {
            let memory = memory_of(buffer).ok_or(wrong(name))?;
            if buffer.device() != self.core.inner.id {
                memory.inner().follow_allocations(self.core.stream)?;
            }
        }
        let (to, bytes) = (self.touch(to).map_err(|()| wrong("to"))?, from.bytes());
        let from = self.touch(from).map_err(|()| wrong("from"))?;
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: both ranges have that size; addresses are unified over the process's GPUs.
        check(unsafe { sys::cuMemcpyAsync(to, from, bytes as usize, self.core.stream) })
            .map_err(|e| self.core.inner.refuse("cuMemcpyAsync", e))
    }

    fn read(&mut self, from: &Buffer) -> Pending<Vec<u8>> {
        self.try_read(from).unwrap_or_else(|error| ready(Err(error)))
    }

    fn record(&mut self) -> Result<Arc<dyn Event>> {
        self.not_recording("an event")?;
        self.enter()?;
        Ok(Arc::new(Mark::new(&self.core, self.last, true)?))
    }

    fn wait_for(&mut self, event: &dyn Event) -> Result<()> {
        self.not_recording("waiting for an event")?;
        self.enter()?;
        let event: &dyn Any = event;
        let Some(mark) = event.downcast_ref::<Mark>() else {
            return Err(Error::WrongDevice { kernel: "wait_for", operand: "event" });
        };
        // SAFETY: a recorded event of a context of this process.
        check(unsafe { sys::cuStreamWaitEvent(self.core.stream, mark.event, 0) })
            .map_err(|e| self.core.inner.refuse("cuStreamWaitEvent", e))
    }

    fn capture(&mut self, body: &mut dyn FnMut(&mut dyn Stream) -> Result<()>) -> Result<Arc<dyn Graph>> {
        self.not_recording("recording")?;
        self.enter()?;
        /// Ends the recording also where `body` fails or panics: a stream that went on recording would run nothing more.
        struct Open<'a> {
            stream: &'a mut CudaStream,
            /// What was settled before. What is recorded has not run, whatever the numbers of its launches.
            settled: u64,
        }
        impl Open<'_> {
            fn end(&mut self) -> Result<sys::CUgraph> {
                self.stream.settled = self.settled;
                let core = &self.stream.core;
                let mut graph = std::ptr::null_mut();
                // SAFETY: writes a handle; this stream is recording.
                let ended = check(unsafe { sys::cuStreamEndCapture(core.stream, &mut graph) });
                core.handle.recording.store(false, Ordering::Release);
                core.inner.recorded();
                ended.map_err(|e| core.inner.refuse("cuStreamEndCapture", e)).map(|()| graph)
            }
        }
        impl Drop for Open<'_> {
            fn drop(&mut self) {
                if self.stream.recording.take().is_some()
                    && let Ok(graph) = self.end()
                    && !graph.is_null()
                {
                    // SAFETY: a graph of ours that nothing else knows. What the driver answers helps nobody.
                    let _ = unsafe { sys::cuGraphDestroy(graph) };
                }
            }
        }
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: a stream of the current context that is not recording.
        check(unsafe { sys::cuStreamBeginCapture_v2(self.core.stream, mode) })
            .map_err(|e| self.core.inner.refuse("cuStreamBeginCapture", e))?;
        self.core.handle.recording.store(true, Ordering::Release);
        self.recording = Some(Recording::default());
        let settled = self.settled;
        // a replay begins once all before it has ended
        self.settled = self.core.inner.launches();
        let mut open = Open { stream: self, settled };
        body(open.stream)?;
        let kept = open.stream.recording.take().unwrap_or_default();
        let graph = open.end()?;
        drop(open);
        let mut executable = std::ptr::null_mut();
        // SAFETY: reads a graph of ours, writes a handle.
        let made = check(unsafe { sys::cuGraphInstantiateWithFlags(&mut executable, graph, 0) });
        // SAFETY: a graph of ours that is used no more.
        let _ = unsafe { sys::cuGraphDestroy(graph) };
        made.map_err(|e| self.core.inner.refuse("cuGraphInstantiate", e))?;
        Ok(Arc::new(CudaGraph { core: self.core.clone(), executable, kept }))
    }

    fn replay(&mut self, graph: &Arc<dyn Graph>) -> Result<()> {
        self.not_recording("replaying")?;
        self.enter()?;
        let graph: &dyn Any = &**graph;
        let graph = graph
            .downcast_ref::<CudaGraph>()
            .filter(|graph| graph.core.inner.id == self.core.inner.id)
            .ok_or(Error::WrongDevice { kernel: "replay", operand: "graph" })?;
        if !Arc::ptr_eq(&graph.core, &self.core) {
            return Err(Error::WrongStream);
        }
        self.last = "a recorded sequence";
        // it may write anything that a launch ever wrote
        self.settled = 0;
        // SAFETY: what the graph works on is kept by it; this stream recorded it, and replays it one after the other.
        check(unsafe { sys::cuGraphLaunch(graph.executable, self.core.stream) })
            .map_err(|e| self.core.inner.refuse("cuGraphLaunch", e))
    }

    fn sync(&mut self) -> Pending<()> {
        let mut mark = || {
            self.not_recording("synchronising")?;
            self.enter()?;
            Ok(Arc::new(Mark::new(&self.core, self.last, false)?))
        };
        match mark() {
            Ok(mark) => Later::pending(vec![mark], || Ok(())),
            Err(error) => ready(Err(error)),
        }
    }
}

impl Event for Mark {
    fn since(&self, earlier: &dyn Event) -> Pending<Option<Duration>> {
        let earlier: &dyn Any = earlier;
        let Some(earlier) = earlier.downcast_ref::<Mark>().filter(|e| e.core.inner.id == self.core.inner.id)
        else {
            return ready(Ok(None));
        };
        let between = || {
            earlier.wait()?;
            self.wait()?;
            let mut ms = 0.0;
            // SAFETY: two events that are over, of one context.
            check(unsafe { sys::cuEventElapsedTime_v2(&mut ms, earlier.event, self.event) })
                .map_err(|e| self.core.inner.refuse("cuEventElapsedTime", e))?;
            Ok(Some(Duration::from_secs_f64(f64::from(ms.max(0.0)) / 1e3)))
        };
        ready(between())
    }
}
