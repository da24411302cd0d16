//! Streams of the CPU: synchronous, so that a launch is over when it returns.

use crate::device::Inner;
use crate::memory::HostMemory;
use crate::spmd::{Args, Recorded, Spmd};
use crate::team::{Exclusive, Lane, Panicked, Region, TeamId};
use perjoule_kernels::device::{Scratch, ready};
use perjoule_kernels::{Buffer, DeviceId, Error, Event, Graph, Pending, Result, Stream};
use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A stream of a [`crate::CpuDevice`].
pub struct CpuStream {
    inner: Arc<Inner>,
    /// Tells its graphs from those of other streams.
    id: Arc<()>,
    scratch: Scratch,
    recording: Option<Vec<Recorded>>,
}

/// A recorded sequence, replayed as one region of the team.
struct CpuGraph {
    launches: Vec<Recorded>,
    device: DeviceId,
    /// Of the stream that recorded it.
    stream: Arc<()>,
}

struct CpuEvent(Instant);

impl CpuStream {
    pub(crate) fn new(inner: Arc<Inner>) -> Self {
        CpuStream { inner, id: Arc::new(()), scratch: Scratch::default(), recording: None }
    }

    /// Lanes of the team that runs its launches.
    pub(crate) fn lanes(&self) -> usize {
        self.inner.team.lanes()
    }

    /// The team that runs its launches.
    pub(crate) fn team(&self) -> TeamId {
        self.inner.team.id()
    }

    pub(crate) fn is_capturing(&self) -> bool {
        self.recording.is_some()
    }

    pub(crate) fn record_launch(&mut self, launch: Recorded) {
        if let Some(list) = &mut self.recording {
            list.push(launch);
        }
    }

    pub(crate) fn run(&self, kernel: &'static str, body: &dyn Spmd, args: &Args) -> Result<()> {
        let mut exclusive = self.exclusive()?;
        let job = |lane: &Lane<'_>| body.run(lane, args);
        let result = match () {
            () if body.alone() => exclusive.alone(&job),
            () if body.short() && !(body.divides() && exclusive.at_hand()) => exclusive.single(&job),
            () => exclusive.run(&job),
        };
        result.map_err(|Panicked(detail)| Error::Fault { kernel, detail })
    }

    /// The bytes of a buffer of this device. Only while the team is held exclusively.
    fn host(&self, buffer: &Buffer) -> Result<(*mut u8, usize)> {
        match bytes_of(buffer) {
            Some((_, pointer, bytes)) if buffer.device() == self.inner.id => Ok((pointer, bytes)),
            _ => Err(Error::WrongDevice { kernel: "copy", operand: "buffer" }),
        }
    }

    /// Keeps all others from the device's memory.
    fn exclusive(&self) -> Result<Exclusive<'_>> {
        self.inner.team.lock()
    }

    fn not_capturing(&self, what: &'static str) -> Result<()> {
        if self.recording.is_none() {
            return Ok(());
        }
        Err(Error::Unsupported {
            what,
            why: "a sequence is being recorded; only launches can be recorded".into(),
        })
    }
}

/// Memory, first byte and size of a buffer of any CPU device. The bytes may be touched while the memory's region is held.
pub(crate) fn bytes_of(buffer: &Buffer) -> Option<(&HostMemory, *mut u8, usize)> {
    let memory: &dyn Any = &**buffer.memory();
    let memory = memory.downcast_ref::<HostMemory>()?;
    // SAFETY: a buffer lies within its memory.
    Some((memory, unsafe { memory.pointer().add(buffer.offset() as usize) }, buffer.bytes() as usize))
}

impl Stream for CpuStream {
    fn device(&self) -> DeviceId {
        self.inner.id
    }

    fn reserve(&mut self, bytes: u64) -> Result<()> {
        self.scratch.reserve(bytes, |bytes| self.inner.alloc(bytes))
    }

    fn scratch(&self, bytes: u64) -> Result<Option<Buffer>> {
        self.scratch.get(bytes)
    }

    fn write(&mut self, to: &Buffer, from: &[u8]) -> Result<()> {
        self.not_capturing("writing")?;
        let (pointer, bytes) = self.host(to)?;
        if bytes < from.len() {
            return Err(Error::OutOfRange { at: 0, bytes: from.len() as u64, have: to.bytes() });
        }
        let _exclusive = self.exclusive()?;
        // SAFETY: within the buffer; nobody else touches the device's memory now; `from` is a caller's slice, not device memory.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), pointer, from.len()) };
        Ok(())
    }

    fn copy(&mut self, to: &Buffer, from: &Buffer) -> Result<()> {
        self.not_capturing("copying")?;
        let wrong = |operand| Error::WrongDevice { kernel: "copy", operand };
        if ![to.device(), from.device()].contains(&self.inner.id) {
            return Err(wrong("stream"));
        }
        let (target, to, have) = bytes_of(to).ok_or(wrong("to"))?;
        let (source, from, bytes) = bytes_of(from).ok_or(wrong("from"))?;
        if have < bytes {
            return Err(Error::OutOfRange { at: 0, bytes: bytes as u64, have: have as u64 });
        }
        let _both = Region::enter_both(target.region(), source.region())?;
        // SAFETY: within both buffers, which may overlap; nobody else touches the memory of either device now.
        unsafe { std::ptr::copy(from, to, bytes) };
        Ok(())
    }

    fn read(&mut self, from: &Buffer) -> Pending<Vec<u8>> {
        let read = || {
            self.not_capturing("reading")?;
            let (pointer, bytes) = self.host(from)?;
            let _exclusive = self.exclusive()?;
            // SAFETY: within the buffer, initialised since allocation; nobody else touches the device's memory now.
            Ok(unsafe { std::slice::from_raw_parts(pointer, bytes) }.to_vec())
        };
        ready(read())
    }

    fn record(&mut self) -> Result<Arc<dyn Event>> {
        Ok(Arc::new(CpuEvent(Instant::now())))
    }

    fn wait_for(&mut self, _event: &dyn Event) -> Result<()> {
        Ok(()) // whatever an event stands for was over when it was recorded
    }

    fn capture(&mut self, body: &mut dyn FnMut(&mut dyn Stream) -> Result<()>) -> Result<Arc<dyn Graph>> {
        self.not_capturing("recording")?;
        /// Ends the recording also where `body` panics: a stream that went on recording would run nothing more.
        struct Recording<'a>(&'a mut CpuStream);
        impl Drop for Recording<'_> {
            fn drop(&mut self) {
                self.0.recording = None;
            }
        }
        self.recording = Some(Vec::new());
        let recording = Recording(self);
        body(recording.0)?;
        let launches = recording.0.recording.take().unwrap_or_default();
        drop(recording);
        Ok(Arc::new(CpuGraph { launches, device: self.inner.id, stream: self.id.clone() }))
    }

    fn replay(&mut self, graph: &Arc<dyn Graph>) -> Result<()> {
        self.not_capturing("replaying")?;
        let graph: &dyn Any = &**graph;
        let graph = graph
            .downcast_ref::<CpuGraph>()
            .filter(|g| g.device == self.inner.id)
            .ok_or(Error::WrongDevice { kernel: "replay", operand: "graph" })?;
        if !Arc::ptr_eq(&graph.stream, &self.id) {
            return Err(Error::WrongStream);
        }
        let mut exclusive = self.exclusive()?;
        let at = std::sync::atomic::AtomicUsize::new(0);
        let mut next = 0;
        let mut result = Ok(());
        while let (Some(first), Ok(())) = (graph.launches.get(next), &result) {
            if first.body.alone() {
                at.store(next, std::sync::atomic::Ordering::Relaxed);
                result = exclusive.alone(&|lane| first.body.run(lane, &first.args));
                next += 1;
                continue;
            }
            // one region up to the next that runs alone
            let together = graph.launches[next..].iter().take_while(|launch| !launch.body.alone());
            let end = next + together.clone().count();
            result = exclusive.run(&|lane| {
                for (index, launch) in together.clone().enumerate() {
                    if lane.index() == 0 {
                        at.store(next + index, std::sync::atomic::Ordering::Relaxed);
                    }
                    launch.body.run(lane, &launch.args);
                    lane.end_of_body();
                }
            });
            next = end;
        }
        result.map_err(|Panicked(detail)| {
            let kernel = graph.launches.get(at.into_inner()).map_or("replay", |l| l.kernel);
            Error::Fault { kernel, detail }
        })
    }

    fn sync(&mut self) -> Pending<()> {
        ready(Ok(()))
    }
}

impl Graph for CpuGraph {
    fn launches(&self) -> usize {
        self.launches.len()
    }
}

impl Event for CpuEvent {
    fn since(&self, earlier: &dyn Event) -> Pending<Option<Duration>> {
        let earlier: &dyn Any = earlier;
        let span = earlier.downcast_ref::<CpuEvent>().map(|e| self.0.saturating_duration_since(e.0));
        ready(Ok(span))
    }
}
