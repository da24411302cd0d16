//! What memory, streams and prepared kernels of a device share: `wgpu`'s device and queue, its faults, pipelines and bind groups.

use crate::device::WebGpuCaps;
use crate::groups::Groups;
use crate::memory::{USAGES, WebGpuMemory};
use crate::pipeline::Pipelines;
use perjoule_kernels::{Buffer, DeviceId, Error, Result};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Where blocks of memory begin in the address space by which overlaps are found: buffers have no addresses of their own.
pub(crate) const ALIGN: u64 = 256;

/// What a device's objects hold on to.
pub(crate) struct Inner {
    pub(crate) id: DeviceId,
    pub(crate) label: String,
    pub(crate) device: wgpu::Device,
    pub(crate) queue: wgpu::Queue,
    pub(crate) caps: Arc<WebGpuCaps>,
    pub(crate) pipelines: Pipelines,
    pub(crate) groups: Groups,
    /// Offsets of operands that all begin where their binding does: what nearly every launch has.
    pub(crate) no_offsets: wgpu::Buffer,
    /// What is bound for empty operands, to be read and to be written: they may lie anywhere, and a binding is never empty.
    pub(crate) nothing: [wgpu::Buffer; 2],
    faults: Arc<Faults>,
    next: AtomicU64,
}

/// What went wrong behind a launch's back.
#[derive(Default)]
pub(crate) struct Faults {
    /// The first error that no call answered with, until somebody waits.
    first: Mutex<Option<String>>,
    /// What was said when the device was lost.
    lost: Mutex<Option<String>>,
}

pub(crate) fn locked<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Faults {
    /// Hears of errors of a device from now on.
    pub(crate) fn listen(device: &wgpu::Device) -> Arc<Self> {
        let faults: Arc<Faults> = Arc::default();
        let (uncaptured, lost) = (faults.clone(), faults.clone());
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            locked(&uncaptured.first).get_or_insert_with(|| error.to_string());
        }));
        device.set_device_lost_callback(move |reason, message| {
            let message = if message.is_empty() { format!("{reason:?}") } else { message };
            locked(&lost.lost).get_or_insert(message);
        });
        faults
    }
}

/// Bytes of the table of operands' offsets that kernels are given.
pub(crate) const OFFSETS_BYTES: usize = 4 * crate::shader::MAX_BINDINGS;

impl Inner {
    pub(crate) fn new(
        id: DeviceId,
        label: String,
        (device, queue): (wgpu::Device, wgpu::Queue),
        caps: Arc<WebGpuCaps>,
        pipelines: Pipelines,
    ) -> Self {
        let faults = Faults::listen(&device);
        let no_offsets = device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("no offsets"),
            size: OFFSETS_BYTES as u64,
            usage: wgpu::BufferUsages::UNIFORM,
            mapped_at_creation: false,
        });
        let nothing = [(); 2].map(|()| {
            let usage = wgpu::BufferUsages::STORAGE;
            device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("nothing"),
                size: 256,
                usage,
                mapped_at_creation: false,
            })
        });
        Inner {
            id,
            label,
            device,
            queue,
            caps,
            pipelines,
            groups: Groups::default(),
            no_offsets,
            nothing,
            faults,
            next: AtomicU64::new(1 << 16),
        }
    }

    /// An address for a block of so many bytes, with a gap behind it.
    pub(crate) fn address(&self, bytes: u64) -> u64 {
        self.next.fetch_add(bytes.next_multiple_of(ALIGN) + ALIGN, Ordering::Relaxed)
    }

    /// A number that nothing else of this device has.
    pub(crate) fn unique(&self) -> u64 {
        self.next.fetch_add(ALIGN, Ordering::Relaxed)
    }

    /// The error of a lost device.
    pub(crate) fn alive(&self) -> Result<()> {
        match &*locked(&self.faults.lost) {
            None => Ok(()),
            Some(detail) => Err(Error::Lost { device: self.label.clone(), detail: detail.clone() }),
        }
    }

    /// What went wrong since it was last asked, as the error of the kernel that was launched last.
    pub(crate) fn fault(&self, kernel: &'static str) -> Result<()> {
        self.alive()?;
        match locked(&self.faults.first).take() {
            None => Ok(()),
            Some(detail) => Err(Error::Fault { kernel, detail }),
        }
    }

    /// The device answers no more: it is taken for lost.
    pub(crate) fn give_up(&self, detail: String) -> Error {
        let detail = locked(&self.faults.lost).get_or_insert(detail).clone();
        Error::Lost { device: self.label.clone(), detail }
    }

    /// Zeroed memory.
    pub(crate) fn alloc(self: &Arc<Self>, bytes: u64) -> Result<Buffer> {
        self.alive()?;
        // a binding holds a vector at least
        let size = bytes.max(1).next_multiple_of(16);
        let most = self.caps.limits.max_buffer_size;
        if size > most {
            return Err(Error::Unsupported {
                what: "a buffer of this size",
                why: format!("{bytes} bytes are more than the {most} that a buffer of {} has", self.label),
            });
        }
        let make = || {
            let usage = USAGES;
            self.device.create_buffer(&wgpu::BufferDescriptor {
                label: None,
                size,
                usage,
                mapped_at_creation: false,
            })
        };
        let buffer = self.checked(make).map_err(|error| self.refused(bytes, error))?;
        Ok(Buffer::new(Arc::new(WebGpuMemory::new(self.clone(), buffer, bytes))))
    }

    /// Memory that holds these bytes.
    pub(crate) fn table(self: &Arc<Self>, bytes: &[u8]) -> Result<Buffer> {
        self.alive()?;
        // one element at least, of any type: bindings of arrays may not be smaller
        let size = bytes.len().max(16).next_multiple_of(4) as u64;
        let make = || {
            self.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("table"),
                size,
                usage: USAGES,
                mapped_at_creation: true,
            })
        };
        let buffer = self.checked(make).map_err(|error| self.refused(size, error))?;
        if let Ok(mut view) = buffer.get_mapped_range_mut(..) {
            view.slice(..bytes.len()).copy_from_slice(bytes);
        }
        buffer.unmap();
        Ok(Buffer::new(Arc::new(WebGpuMemory::new(self.clone(), buffer, size))))
    }

    /// A buffer that what is read back is copied into.
    pub(crate) fn landing(&self, size: u64) -> Result<wgpu::Buffer> {
        let make = || {
            self.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("read back"),
                size,
                usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            })
        };
        self.checked(make).map_err(|error| self.refused(size, error))
    }

    /// The error of an allocation.
    fn refused(&self, bytes: u64, error: wgpu::Error) -> Error {
        match error {
            wgpu::Error::OutOfMemory { .. } => {
                Error::OutOfMemory { device: self.label.clone(), need: bytes, available: None }
            }
            other => Error::Unsupported { what: "this allocation", why: other.to_string() },
        }
    }

    /// A buffer of constants for kernels.
    pub(crate) fn uniform(&self, label: &str, bytes: &[u8]) -> wgpu::Buffer {
        let size = bytes.len().max(16).next_multiple_of(16) as u64;
        let buffer = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some(label),
            size,
            usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: true,
        });
        if let Ok(mut view) = buffer.get_mapped_range_mut(..) {
            view.slice(..bytes.len()).copy_from_slice(bytes);
        }
        buffer.unmap();
        buffer
    }

    /// What `make` makes, or the error that it met. A browser answers later: there, errors arrive where somebody waits.
    #[cfg(not(target_arch = "wasm32"))]
    pub(crate) fn checked<T>(&self, make: impl FnOnce() -> T) -> Result<T, wgpu::Error> {
        let validation = self.device.push_error_scope(wgpu::ErrorFilter::Validation);
        let memory = self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let internal = self.device.push_error_scope(wgpu::ErrorFilter::Internal);
        let made = make();
        let errors = [internal.pop(), memory.pop(), validation.pop()].map(pollster::block_on);
        errors.into_iter().flatten().next().map_or(Ok(made), Err)
    }

    /// What `make` makes. A browser answers later: errors arrive where somebody waits.
    #[cfg(target_arch = "wasm32")]
    pub(crate) fn checked<T>(&self, make: impl FnOnce() -> T) -> Result<T, wgpu::Error> {
        Ok(make())
    }
}
