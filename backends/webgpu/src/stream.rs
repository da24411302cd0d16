//! Streams: launches collected into one compute pass, submitted when somebody waits, or often enough to keep the device busy.
//!
//! WebGPU has one queue a device, and what is submitted to it runs in order. A stream's order is therefore that of its launches, and
//! what another stream waits for has been submitted once it holds the event. A recorded sequence is a list of pipelines and bind groups
//! that a replay encodes into one submission: command buffers are used once.

use crate::copy;
use crate::inner::{Inner, locked};
use crate::memory::{WebGpuMemory, memory_of};
use crate::wait::{Later, Signal};
use perjoule_kernels::device::{Scratch, ready};
use perjoule_kernels::{Buffer, DeviceId, Error, Event, Graph, Memory, Pending, Result, Stream};
use std::any::Any;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Launches after which a stream submits what it has collected, so that the device works while the host goes on.
const BATCH: usize = 128;

/// One kernel's start.
#[derive(Clone)]
pub(crate) struct Dispatch {
    pub(crate) pipeline: wgpu::ComputePipeline,
    pub(crate) group: wgpu::BindGroup,
    pub(crate) grid: [u32; 3],
}

/// Work that is not submitted yet.
struct Open {
    // ended before the encoder is finished
    pass: Option<wgpu::ComputePass<'static>>,
    encoder: wgpu::CommandEncoder,
    dispatches: usize,
}

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
    open: Option<Open>,
    recording: Option<Recording>,
    /// The kernel that was launched last, for the reports of faults.
    last: &'static str,
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
        WebGpuStream { inner, id, scratch: Scratch::default(), open: None, recording: None, last: "nothing" }
    }

    pub(crate) fn inner(&self) -> &Arc<Inner> {
        &self.inner
    }

    /// Before a launch of that name.
    pub(crate) fn begin(&mut self, kernel: &'static str) -> Result<()> {
        self.inner.alive()?;
        self.last = kernel;
        if let Some(recording) = &mut self.recording {
            recording.launches += 1;
        }
        Ok(())
    }

    /// The memory of an argument, kept by what is recorded.
    pub(crate) fn touch<'a>(&mut self, buffer: &'a Buffer) -> Result<&'a WebGpuMemory, ()> {
        let memory = memory_of(buffer).ok_or(())?;
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
        self.encode(&dispatch);
        if self.open.as_ref().is_some_and(|open| open.dispatches >= BATCH) {
            self.submit();
        }
    }

    fn encode(&mut self, dispatch: &Dispatch) {
        let open = self.open();
        let encoder = &mut open.encoder;
        let pass = open
            .pass
            .get_or_insert_with(|| encoder.begin_compute_pass(&Default::default()).forget_lifetime());
        pass.set_pipeline(&dispatch.pipeline);
        pass.set_bind_group(0, &dispatch.group, &[]);
        let [x, y, z] = dispatch.grid;
        pass.dispatch_workgroups(x, y, z);
        open.dispatches += 1;
    }

    fn open(&mut self) -> &mut Open {
        let device = &self.inner.device;
        self.open.get_or_insert_with(|| Open {
            pass: None,
            encoder: device.create_command_encoder(&Default::default()),
            dispatches: 0,
        })
    }

    /// The encoder, outside of passes: for copies.
    pub(crate) fn encoder(&mut self) -> &mut wgpu::CommandEncoder {
        let open = self.open();
        open.pass = None;
        &mut open.encoder
    }

    /// Submits what was collected.
    pub(crate) fn submit(&mut self) {
        if let Some(Open { pass, encoder, .. }) = self.open.take() {
            drop(pass);
            self.inner.queue.submit([encoder.finish()]);
        }
    }

    fn own<'a>(&self, buffer: &'a Buffer) -> Result<&'a WebGpuMemory> {
        let wrong = Error::WrongDevice { kernel: "copy", operand: "buffer" };
        memory_of(buffer).filter(|_| buffer.device() == self.inner.id).ok_or(wrong)
    }

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
            return Ok(ready(self.inner.fault(self.last).map(|()| Vec::new())));
        }
        // whole words, cut to the bytes that were asked for on the host
        let first = from.offset() / 4 * 4;
        let skip = (from.offset() - first) as usize;
        let size = (from.offset() + bytes).next_multiple_of(4) - first;
        let landing = self.inner.landing(size)?;
        self.encoder().copy_buffer_to_buffer(memory.buffer(), first, &landing, 0, size);
        self.submit();
        let signal = Signal::mapped(&landing);
        let finish = move || {
            let view = landing.get_mapped_range(..).map_err(|e| e.to_string())?;
            let read = view[skip..skip + bytes as usize].to_vec();
            drop(view);
            landing.unmap();
            Ok(read)
        };
        Ok(Later::pending(&self.inner, self.last, vec![signal], finish))
    }
}

impl Drop for WebGpuStream {
    fn drop(&mut self) {
        if self.inner.alive().is_ok() {
            self.submit();
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
        if to.bytes() < from.len() as u64 {
            return Err(Error::OutOfRange { at: 0, bytes: from.len() as u64, have: to.bytes() });
        }
        let memory = self.own(to)?;
        if from.is_empty() {
            return Ok(());
        }
        if to.offset().is_multiple_of(4) && from.len().is_multiple_of(4) {
            // it takes place before what is submitted next, and behind what was
            self.submit();
            self.inner.queue.write_buffer(memory.buffer(), to.offset(), from);
            return Ok(());
        }
        let padded = from.len().next_multiple_of(4) as u64;
        let staging = self.inner.alloc(padded)?;
        let mut whole = from.to_vec();
        whole.resize(padded as usize, 0);
        self.inner.queue.write_buffer(self.own(&staging)?.buffer(), 0, &whole);
        copy::bytes(self, to, &staging.view(0, from.len() as u64)?)
    }

    fn copy(&mut self, to: &Buffer, from: &Buffer) -> Result<()> {
        self.not_recording("copying")?;
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
        let whole = to.offset().is_multiple_of(4)
            && from.offset().is_multiple_of(4)
            && from.bytes().is_multiple_of(4);
        let apart = !std::ptr::eq(target, source);
        if whole && apart {
            let (at, bytes) = ((from.offset(), to.offset()), from.bytes());
            self.encoder().copy_buffer_to_buffer(source.buffer(), at.0, target.buffer(), at.1, bytes);
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
        self.encoder().copy_buffer_to_buffer(source.buffer(), first, &middle, 0, size);
        let moved = between.view(from.offset() - first, from.bytes())?;
        if whole {
            let (at, bytes) = (to.offset(), from.bytes());
            self.encoder().copy_buffer_to_buffer(&middle, 0, target.buffer(), at, bytes);
            return Ok(());
        }
        copy::bytes(self, to, &moved)
    }

    fn read(&mut self, from: &Buffer) -> Pending<Vec<u8>> {
        self.try_read(from).unwrap_or_else(|error| ready(Err(error)))
    }

    fn record(&mut self) -> Result<Arc<dyn Event>> {
        self.not_recording("an event")?;
        let inner = self.inner.clone();
        let time = match inner.caps.has(wgpu::Features::TIMESTAMP_QUERY) {
            true => Some(self.timestamp()?),
            false => None,
        };
        self.submit();
        let time = Arc::new(Clock(Mutex::new(time.map(Time::OnDevice))));
        Ok(Arc::new(Mark { inner, last: self.last, time }))
    }

    fn wait_for(&mut self, event: &dyn Event) -> Result<()> {
        self.not_recording("waiting for an event")?;
        let event: &dyn Any = event;
        let wrong = Error::WrongDevice { kernel: "wait_for", operand: "event" };
        let mark = event.downcast_ref::<Mark>().ok_or(wrong)?;
        if mark.inner.id == self.inner.id {
            return Ok(()); // it was submitted, and the queue is in order
        }
        copy::finish(&mark.inner)
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
        let graph: &dyn Any = &**graph;
        let graph = graph
            .downcast_ref::<WebGpuGraph>()
            .filter(|graph| graph.device == self.inner.id)
            .ok_or(Error::WrongDevice { kernel: "replay", operand: "graph" })?;
        if graph.stream != self.id {
            return Err(Error::WrongStream);
        }
        self.last = "a recorded sequence";
        for dispatch in &graph.kept.dispatches {
            self.encode(dispatch);
        }
        self.submit();
        Ok(())
    }

    fn sync(&mut self) -> Pending<()> {
        if let Err(error) = self.not_recording("synchronising") {
            return ready(Err(error));
        }
        self.submit();
        Later::pending(&self.inner, self.last, vec![Signal::submitted(&self.inner.queue)], || Ok(()))
    }
}

impl WebGpuStream {
    /// Writes the device's clock, behind all that was launched, into a buffer that can be mapped.
    fn timestamp(&mut self) -> Result<wgpu::Buffer> {
        const BYTES: u64 = wgpu::QUERY_SIZE as u64;
        let device = self.inner.device.clone();
        let buffer = |usage| {
            let desc =
                wgpu::BufferDescriptor { label: Some("time"), size: BYTES, usage, mapped_at_creation: false };
            device.create_buffer(&desc)
        };
        let resolved = buffer(wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC);
        let landing = buffer(wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST);
        let queries = device.create_query_set(&wgpu::QuerySetDescriptor {
            label: Some("time"),
            ty: wgpu::QueryType::Timestamp,
            count: 1,
        });
        let encoder = self.encoder();
        // a pass of its own: what browsers have, too
        drop(encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
            label: Some("time"),
            timestamp_writes: Some(wgpu::ComputePassTimestampWrites {
                query_set: &queries,
                beginning_of_pass_write_index: None,
                end_of_pass_write_index: Some(0),
            }),
        }));
        encoder.resolve_query_set(&queries, 0..1, &resolved, 0);
        encoder.copy_buffer_to_buffer(&resolved, 0, &landing, 0, BYTES);
        Ok(landing)
    }
}

/// A point in a stream's work.
struct Mark {
    inner: Arc<Inner>,
    last: &'static str,
    time: Arc<Clock>,
}

/// When it was, by the device's clock; nothing where it has none.
struct Clock(Mutex<Option<Time>>);

enum Time {
    /// In a buffer that is not mapped yet.
    OnDevice(wgpu::Buffer),
    /// Read.
    Ticks(u64),
    /// Being read: somebody else waits for it.
    Mapping(wgpu::Buffer, Arc<Signal>),
}

impl Clock {
    /// What to wait for before [`Clock::ticks`].
    fn signal(&self) -> Option<Arc<Signal>> {
        let mut time = locked(&self.0);
        match time.take() {
            Some(Time::OnDevice(buffer)) => {
                let signal = Signal::mapped(&buffer);
                *time = Some(Time::Mapping(buffer, signal.clone()));
                Some(signal)
            }
            Some(Time::Mapping(buffer, signal)) => {
                *time = Some(Time::Mapping(buffer, signal.clone()));
                Some(signal)
            }
            other => {
                *time = other;
                None
            }
        }
    }

    fn ticks(&self) -> Option<u64> {
        let mut time = locked(&self.0);
        if let Some(Time::Mapping(buffer, _)) = &*time {
            let view = buffer.get_mapped_range(..).ok()?;
            let ticks = u64::from_le_bytes(view[..8].try_into().ok()?);
            *time = Some(Time::Ticks(ticks));
        }
        match &*time {
            Some(Time::Ticks(ticks)) => Some(*ticks),
            _ => None,
        }
    }
}

impl Event for Mark {
    fn since(&self, earlier: &dyn Event) -> Pending<Option<Duration>> {
        let earlier: &dyn Any = earlier;
        let Some(earlier) = earlier.downcast_ref::<Mark>().filter(|e| e.inner.id == self.inner.id) else {
            return ready(Ok(None));
        };
        let signals: Vec<_> = [self.time.signal(), earlier.time.signal()].into_iter().flatten().collect();
        let period = f64::from(self.inner.queue.get_timestamp_period());
        // the times are read when they are there; marks may be gone by then
        let times = [self.time.clone(), earlier.time.clone()];
        Later::pending(&self.inner, self.last, signals, move || {
            let [end, begin] = times.map(|time| time.ticks());
            Ok(match (begin, end) {
                (Some(begin), Some(end)) => {
                    Some(Duration::from_secs_f64(end.saturating_sub(begin) as f64 * period / 1e9))
                }
                _ => None,
            })
        })
    }
}
