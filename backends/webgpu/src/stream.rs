//! Streams: launches collected into one compute pass, submitted when somebody waits, or often enough to keep the device busy.
//!
//! WebGPU has one queue a device, and what is submitted to it runs in order. A stream's order is therefore that of its launches, and
//! what another stream waits for has been submitted once it holds the event. A recorded sequence is a list of pipelines and bind groups
//! that a replay encodes into one submission: command buffers are used once.

use crate::clock::{Clock, Mark};
use crate::copy;
use crate::faults::{Fault, Untold};
use crate::inner::{Inner, locked};
use crate::memory::{WebGpuMemory, memory_of};
use crate::wait::{Later, Signal};
use crate::work::{Dispatch, Work};
use perjoule_kernels::device::{Local, Scratch, ready};
use perjoule_kernels::{Buffer, DeviceId, Error, Event, Graph, Memory, Pending, Result, Stream};
use std::any::Any;
use std::sync::{Arc, Mutex, MutexGuard};

/// What a recorded sequence keeps.
#[derive(Default)]
struct Recording {
    launches: usize,
    dispatches: Vec<Dispatch>,
    memory: Vec<Arc<dyn Memory>>,
}

/// A stream of a [`crate::WebGpuDevice`].
pub struct WebGpuStream {
    inner: Arc<Inner>,
    /// What tells its graphs from those of others.
    id: u64,
    scratch: Scratch,
    work: Arc<Mutex<Work>>,
    untold: Arc<Untold>,
    recording: Option<Recording>,
}

struct WebGpuGraph {
    device: DeviceId,
    stream: u64,
    kept: Recording,
}

impl Graph for WebGpuGraph {
    fn launches(&self) -> usize {
        self.kept.launches
    }
}

impl WebGpuStream {
    pub(crate) fn new(inner: Arc<Inner>) -> Self {
        let id = inner.unique();
        let work = Work::default();
        let untold = work.untold.clone();
        let (scratch, work) = (Scratch::default(), Arc::new(Mutex::new(work)));
        WebGpuStream { inner, id, scratch, work, untold, recording: None }
    }

    pub(crate) fn inner(&self) -> &Arc<Inner> {
        &self.inner
    }

    /// Before a launch of that name.
    pub(crate) fn begin(&mut self, kernel: &'static str) -> Result<()> {
        self.inner.alive()?;
        self.untold.tell()?;
        self.work().last = kernel;
        if let Some(recording) = &mut self.recording {
            recording.launches += 1;
        }
        Ok(())
    }

    /// The memory of an argument, kept by what is recorded.
    pub(crate) fn touch<'a>(&mut self, buffer: &'a Buffer) -> Result<&'a WebGpuMemory, ()> {
        let memory = memory_of(buffer).ok_or(())?;
        memory.used_by(&self.work);
        if let Some(recording) = &mut self.recording {
            recording.memory.push(buffer.memory().clone());
        }
        Ok(memory)
    }

    /// Starts a kernel, or records that it is to be started.
    pub(crate) fn dispatch(&mut self, dispatch: Dispatch) {
        if let Some(recording) = &mut self.recording {
            recording.dispatches.push(dispatch);
            return;
        }
        let mut work = self.work();
        work.encode(&self.inner, &dispatch);
        work.submit_batch(&self.inner);
    }

    fn work(&self) -> MutexGuard<'_, Work> {
        locked(&self.work)
    }

    /// Adds the copy of a part of a buffer, in whole words, to another one.
    fn copy_words(&self, from: (&wgpu::Buffer, u64), to: (&wgpu::Buffer, u64), bytes: u64) {
        self.work().encoder(&self.inner).copy_buffer_to_buffer(from.0, from.1, to.0, to.1, bytes);
    }

    /// The memory of a buffer of this device, which is about to be used.
    fn own<'a>(&self, buffer: &'a Buffer) -> Result<&'a WebGpuMemory> {
        let wrong = Error::WrongDevice { kernel: "copy", operand: "buffer" };
        let memory = memory_of(buffer).filter(|_| buffer.device() == self.inner.id).ok_or(wrong)?;
        memory.used_by(&self.work);
        Ok(memory)
    }

    /// Refuses what is not recorded while a sequence is, and on a device that is lost.
    fn not_recording(&self, what: &'static str) -> Result<()> {
        self.inner.alive()?;
        match self.recording {
            None => Ok(()),
            Some(_) => Err(Error::Unsupported {
                what,
                why: "a sequence is being recorded; only launches can be recorded".into(),
            }),
        }
    }

    fn try_read(&mut self, from: &Buffer) -> Result<Pending<Vec<u8>>> {
        self.not_recording("reading")?;
        let memory = self.own(from)?;
        let bytes = from.bytes();
        if bytes == 0 {
            return Ok(self.later(Vec::new(), || Ok(Vec::new())));
        }
        // whole words, cut to the bytes that were asked for on the host
        let first = from.offset() / 4 * 4;
        let skip = (from.offset() - first) as usize;
        let size = (from.offset() + bytes).next_multiple_of(4) - first;
        let landing = self.inner.landing(size)?;
        self.copy_words((memory.buffer(), first), (&landing, 0), size);
        let submission = self.work().submit(&self.inner);
        if let Some(fault) = self.untold.get() {
            return Ok(self.tells(fault));
        }
        let signal = Signal::mapped(&self.inner, &landing, submission);
        let finish = move || {
            let view = landing.get_mapped_range(..).map_err(|e| e.to_string())?;
            let read = view[skip..skip + bytes as usize].to_vec();
            drop(view);
            landing.unmap();
            Ok(read)
        };
        Ok(self.later(vec![signal], finish))
    }

    /// A result that is there once some signals are. Behind a fault there is none: it is told instead.
    #[cfg(not(target_arch = "wasm32"))]
    fn later<T: Local + 'static>(
        &self,
        signals: Vec<Arc<Signal>>,
        finish: impl FnOnce() -> Result<T, String> + Send + 'static,
    ) -> Pending<T> {
        match self.untold.get() {
            None => Later::pending(&self.inner, self.work().last, signals, finish),
            Some(fault) => self.tells(fault),
        }
    }

    /// A result that is there once some signals are. Faults come with all others, once the browser tells them.
    #[cfg(target_arch = "wasm32")]
    fn later<T: Local + 'static>(
        &self,
        signals: Vec<Arc<Signal>>,
        finish: impl FnOnce() -> Result<T, String> + 'static,
    ) -> Pending<T> {
        Later::pending(&self.inner, self.work().last, signals, finish)
    }

    /// A result that tells a fault, which is told then.
    fn tells<T: Local + 'static>(&self, Fault { kernel, detail }: Fault) -> Pending<T> {
        let untold = self.untold.clone();
        let tell = move || {
            // somebody may have been told in the meantime
            let _ = untold.tell();
            Err(detail)
        };
        Later::pending(&self.inner, kernel, Vec::new(), tell)
    }
}

impl Drop for WebGpuStream {
    fn drop(&mut self) {
        if self.inner.alive().is_ok() {
            self.work().submit(&self.inner);
        }
    }
}

impl Stream for WebGpuStream {
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
        self.not_recording("writing")?;
        self.untold.tell()?;
        if to.bytes() < from.len() as u64 {
            return Err(Error::OutOfRange { at: 0, bytes: from.len() as u64, have: to.bytes() });
        }
        let memory = self.own(to)?;
        if from.is_empty() {
            return Ok(());
        }
        if to.offset().is_multiple_of(4) && from.len().is_multiple_of(4) {
            // it takes place before what is submitted next, and behind what was
            self.work().submit(&self.inner);
            return self.inner.upload(memory.buffer(), to.offset(), from);
        }
        let padded = from.len().next_multiple_of(4) as u64;
        let staging = self.inner.alloc(padded)?;
        let mut whole = from.to_vec();
        whole.resize(padded as usize, 0);
        self.inner.upload(self.own(&staging)?.buffer(), 0, &whole)?;
        copy::bytes(self, to, &staging.view(0, from.len() as u64)?)
    }

    fn copy(&mut self, to: &Buffer, from: &Buffer) -> Result<()> {
        self.not_recording("copying")?;
        self.untold.tell()?;
        let wrong = |operand| Error::WrongDevice { kernel: "copy", operand };
        if ![to.device(), from.device()].contains(&self.inner.id) {
            return Err(wrong("stream"));
        }
        if to.bytes() < from.bytes() {
            return Err(Error::OutOfRange { at: 0, bytes: from.bytes(), have: to.bytes() });
        }
        let (target, source) = (memory_of(to).ok_or(wrong("to"))?, memory_of(from).ok_or(wrong("from"))?);
        if from.bytes() == 0 {
            return Ok(());
        }
        if to.device() != from.device() {
            return copy::across(self, to, from);
        }
        target.used_by(&self.work);
        source.used_by(&self.work);
        let whole = to.offset().is_multiple_of(4)
            && from.offset().is_multiple_of(4)
            && from.bytes().is_multiple_of(4);
        let apart = !std::ptr::eq(target, source);
        if whole && apart {
            let (source, target) = ((source.buffer(), from.offset()), (target.buffer(), to.offset()));
            self.copy_words(source, target, from.bytes());
            return Ok(());
        }
        if apart {
            return copy::bytes(self, to, from);
        }
        // one buffer is never both ends of a copy
        let first = from.offset() / 4 * 4;
        let size = (from.offset() + from.bytes()).next_multiple_of(4) - first;
        let between = self.inner.alloc(size)?;
        let middle = self.own(&between)?.buffer().clone();
        self.copy_words((source.buffer(), first), (&middle, 0), size);
        let moved = between.view(from.offset() - first, from.bytes())?;
        if whole {
            self.copy_words((&middle, 0), (target.buffer(), to.offset()), from.bytes());
            return Ok(());
        }
        copy::bytes(self, to, &moved)
    }

    fn read(&mut self, from: &Buffer) -> Pending<Vec<u8>> {
        self.try_read(from).unwrap_or_else(|error| ready(Err(error)))
    }

    fn record(&mut self) -> Result<Arc<dyn Event>> {
        self.not_recording("an event")?;
        self.untold.tell()?;
        let clock = Arc::<Clock>::default();
        let mut work = self.work();
        let first = work.is_empty();
        work.stamp(&self.inner, &clock);
        // the beginning of what is timed goes with it: submitted alone, what the host takes to collect the rest would be in the time
        if !first {
            work.submit(&self.inner);
        }
        Ok(Arc::new(Mark { inner: self.inner.clone(), work: self.work.clone(), clock }))
    }

    fn wait_for(&mut self, event: &dyn Event) -> Result<()> {
        self.not_recording("waiting for an event")?;
        let event: &dyn Any = event;
        let wrong = Error::WrongDevice { kernel: "wait_for", operand: "event" };
        let mark = event.downcast_ref::<Mark>().ok_or(wrong)?;
        if mark.inner.id == self.inner.id {
            return Ok(()); // what it stands behind was submitted, and the queue is in order
        }
        copy::finish(&mark.inner)
    }

    fn follow(&mut self, other: &mut dyn Stream) -> Result<()> {
        self.not_recording("waiting for a stream")?;
        let stream: &dyn Any = other;
        match stream.downcast_ref::<WebGpuStream>().filter(|stream| stream.inner.id == self.inner.id) {
            Some(stream) => {
                stream.not_recording("an event")?;
                stream.untold.tell()?;
                stream.work().submit(&self.inner);
                Ok(())
            }
            None => {
                let event = other.record()?;
                self.wait_for(&*event)
            }
        }
    }

    fn capture(&mut self, body: &mut dyn FnMut(&mut dyn Stream) -> Result<()>) -> Result<Arc<dyn Graph>> {
        self.not_recording("recording")?;
        /// Ends the recording also where `body` fails or panics: a stream that went on recording would run nothing more.
        struct Recorder<'a>(&'a mut WebGpuStream);
        impl Drop for Recorder<'_> {
            fn drop(&mut self) {
                self.0.recording = None;
            }
        }
        self.recording = Some(Recording::default());
        let recorder = Recorder(self);
        body(recorder.0)?;
        let kept = recorder.0.recording.take().unwrap_or_default();
        drop(recorder);
        Ok(Arc::new(WebGpuGraph { device: self.inner.id, stream: self.id, kept }))
    }

    fn replay(&mut self, graph: &Arc<dyn Graph>) -> Result<()> {
        self.not_recording("replaying")?;
        self.untold.tell()?;
        let graph: &dyn Any = &**graph;
        let graph = graph
            .downcast_ref::<WebGpuGraph>()
            .filter(|graph| graph.device == self.inner.id)
            .ok_or(Error::WrongDevice { kernel: "replay", operand: "graph" })?;
        if graph.stream != self.id {
            return Err(Error::WrongStream);
        }
        let mut work = self.work();
        work.last = "a recorded sequence";
        for dispatch in &graph.kept.dispatches {
            work.encode(&self.inner, dispatch);
        }
        work.submit(&self.inner);
        Ok(())
    }

    fn sync(&mut self) -> Pending<()> {
        if let Err(error) = self.not_recording("synchronising") {
            return ready(Err(error));
        }
        let submission = self.work().submit(&self.inner);
        self.later(vec![Signal::submitted(&self.inner.queue, submission)], || Ok(()))
    }
}
