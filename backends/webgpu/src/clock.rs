//! Events, and when they were by the device's clock.

use crate::faults::checked;
use crate::inner::{Inner, locked};
use crate::wait::{Later, Signal};
use crate::work::Work;
use perjoule_kernels::device::ready;
use perjoule_kernels::{Event, Pending};
use std::any::Any;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Slots of the set: more than streams have collected stamps at once.
const SLOTS: u32 = 256;
const BYTES: u64 = wgpu::QUERY_SIZE as u64;
/// Bytes between times in the buffer that they are resolved to.
const APART: u64 = wgpu::QUERY_RESOLVE_BUFFER_ALIGNMENT;

/// The clock of a device: one set of slots for all events, since Metal has few sets.
pub(crate) struct Stamps {
    set: wgpu::QuerySet,
    resolved: wgpu::Buffer,
    free: Mutex<VecDeque<u32>>,
    /// A kernel that does nothing, where a pass without one has no time.
    nothing: Option<wgpu::ComputePipeline>,
}

impl Stamps {
    /// `None` where the device has no clock.
    pub(crate) fn new(device: &wgpu::Device) -> Option<Self> {
        let backend = device.adapter_info().backend;
        let empty = !matches!(backend, wgpu::Backend::Metal | wgpu::Backend::BrowserWebGpu);
        Self::of_passes(device, empty)
    }

    /// `empty`: whether passes that do nothing have a time.
    fn of_passes(device: &wgpu::Device, empty: bool) -> Option<Self> {
        if !device.features().contains(wgpu::Features::TIMESTAMP_QUERY) {
            return None;
        }
        let make = || Stamps {
            set: device.create_query_set(&wgpu::QuerySetDescriptor {
                label: Some("time"),
                ty: wgpu::QueryType::Timestamp,
                count: SLOTS,
            }),
            resolved: device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("time"),
                size: u64::from(SLOTS) * APART,
                usage: wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC,
                mapped_at_creation: false,
            }),
            free: Mutex::new((0..SLOTS).collect()),
            nothing: (!empty).then(|| nothing(device)),
        };
        checked(device, make).ok()
    }

    /// Lets the device leave the time, behind what it was given before. Gives the slot, for [`Stamps::resolve`].
    pub(crate) fn write(&self, encoder: &mut wgpu::CommandEncoder) -> Option<u32> {
        let slot = locked(&self.free).pop_front()?;
        // a pass of its own: what browsers have, too
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
            label: Some("time"),
            timestamp_writes: Some(wgpu::ComputePassTimestampWrites {
                query_set: &self.set,
                beginning_of_pass_write_index: None,
                end_of_pass_write_index: Some(slot),
            }),
        });
        if let Some(nothing) = &self.nothing {
            pass.set_pipeline(nothing);
            pass.dispatch_workgroups(1, 1, 1);
        }
        Some(slot)
    }

    /// Copies times to where the host reads them, and frees their slots: later submissions may write them again, since those are in order.
    pub(crate) fn resolve(
        &self,
        inner: &Inner,
        encoder: &mut wgpu::CommandEncoder,
        stamps: Vec<(u32, Arc<Clock>)>,
    ) -> Vec<(Arc<Clock>, wgpu::Buffer)> {
        let mut landings = Vec::with_capacity(stamps.len());
        for (slot, clock) in stamps {
            if let Ok(landing) = inner.landing(BYTES) {
                let at = u64::from(slot) * APART;
                encoder.resolve_query_set(&self.set, slot..slot + 1, &self.resolved, at);
                encoder.copy_buffer_to_buffer(&self.resolved, at, &landing, 0, BYTES);
                landings.push((clock, landing));
            }
            locked(&self.free).push_back(slot);
        }
        landings
    }
}

/// A kernel that does nothing.
fn nothing(device: &wgpu::Device) -> wgpu::ComputePipeline {
    let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
        label: Some("time"),
        source: wgpu::ShaderSource::Wgsl("@compute @workgroup_size(1) fn nothing() {}".into()),
    });
    device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label: Some("time"),
        layout: None,
        module: &module,
        entry_point: Some("nothing"),
        compilation_options: Default::default(),
        cache: None,
    })
}

/// When an event was, by the device's clock. Shared by the event, who waits for it, and the work that it is a part of.
#[derive(Default)]
pub(crate) struct Clock(Mutex<Time>);

#[derive(Default)]
enum Time {
    /// Its work is not submitted, or the device tells no time.
    #[default]
    Unknown,
    /// In a buffer that is not mapped yet, behind a submission.
    OnDevice(wgpu::Buffer, wgpu::SubmissionIndex),
    /// Being read: somebody waits for it.
    Mapping(wgpu::Buffer, Arc<Signal>),
    /// Read.
    Ticks(u64),
}

impl Clock {
    /// It was submitted, and the time will be in that buffer.
    pub(crate) fn arrives(&self, landing: wgpu::Buffer, submission: wgpu::SubmissionIndex) {
        *locked(&self.0) = Time::OnDevice(landing, submission);
    }

    /// What to wait for before [`Clock::ticks`].
    fn signal(&self, inner: &Inner) -> Option<Arc<Signal>> {
        let mut time = locked(&self.0);
        if let Time::OnDevice(landing, submission) = &*time {
            let signal = Signal::mapped(inner, landing, Some(submission.clone()));
            *time = Time::Mapping(landing.clone(), signal);
        }
        match &*time {
            Time::Mapping(_, signal) => Some(signal.clone()),
            _ => None,
        }
    }

    /// `None` where the device left none: a time is not 0.
    fn ticks(&self) -> Option<u64> {
        let mut time = locked(&self.0);
        if let Time::Mapping(landing, _) = &*time {
            let view = landing.get_mapped_range(..).ok()?;
            let ticks = u64::from_le_bytes(view[..8].try_into().ok()?);
            drop(view);
            *time = Time::Ticks(ticks);
        }
        match *time {
            Time::Ticks(ticks) if ticks > 0 => Some(ticks),
            _ => None,
        }
    }
}

/// A point in a stream's work.
pub(crate) struct Mark {
    pub(crate) inner: Arc<Inner>,
    pub(crate) work: Arc<Mutex<Work>>,
    pub(crate) clock: Arc<Clock>,
}

impl Mark {
    /// What to wait for before its time is known.
    fn signal(&self) -> Option<Arc<Signal>> {
        if matches!(*locked(&self.clock.0), Time::Unknown) {
            locked(&self.work).submit(&self.inner);
        }
        self.clock.signal(&self.inner)
    }
}

impl Event for Mark {
    fn since(&self, earlier: &dyn Event) -> Pending<Option<Duration>> {
        let earlier: &dyn Any = earlier;
        let Some(earlier) = earlier.downcast_ref::<Mark>().filter(|e| e.inner.id == self.inner.id) else {
            return ready(Ok(None));
        };
        let signals: Vec<_> = [earlier.signal(), self.signal()].into_iter().flatten().collect();
        let period = f64::from(self.inner.queue.get_timestamp_period());
        // the times are read when they are there; marks may be gone by then
        let times = [earlier.clock.clone(), self.clock.clone()];
        let last = locked(&self.work).last;
        Later::pending(&self.inner, last, signals, move || {
            let [begin, end] = times.map(|time| time.ticks());
            // a clock that stands still or turned over tells nothing
            let ticks = begin.zip(end).and_then(|(begin, end)| end.checked_sub(begin)).filter(|&n| n > 0);
            Ok(ticks.map(|ticks| Duration::from_secs_f64(ticks as f64 * period / 1e9)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::WebGpuDevice;

    #[test]
    fn passes_have_times_with_and_without_work() {
        let Ok(device) = WebGpuDevice::open(0) else { return eprintln!("ignored: no adapter") };
        let inner = device.inner();
        for empty in [true, false] {
            let Some(stamps) = Stamps::of_passes(&inner.device, empty) else { return };
            // every slot, and each of them again
            for _ in 0..2 {
                let mut encoder = inner.device.create_command_encoder(&Default::default());
                let written: Vec<_> = std::iter::from_fn(|| stamps.write(&mut encoder))
                    .map(|slot| (slot, Arc::<Clock>::default()))
                    .collect();
                assert_eq!(written.len(), SLOTS as usize);
                let landings = stamps.resolve(inner, &mut encoder, written);
                let submission = inner.submit(Some(encoder)).unwrap();
                let clocks: Vec<_> = landings
                    .into_iter()
                    .map(|(clock, landing)| {
                        clock.arrives(landing, submission.clone());
                        assert!(clock.signal(inner).is_some());
                        clock
                    })
                    .collect();
                inner.finished(&submission).unwrap();
                let ticks: Vec<_> = clocks.iter().map(|clock| clock.ticks().unwrap()).collect();
                assert!(ticks.is_sorted(), "{ticks:?}");
            }
        }
    }
}
