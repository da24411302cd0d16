//! What memory, streams and prepared kernels of a device share: `wgpu`'s device and queue, its faults, pipelines and bind groups.

use crate::clock::Stamps;
use crate::device::WebGpuCaps;
use crate::faults::{Faults, checked};
use crate::groups::Groups;
use crate::memory::{Block, Freed, USAGES, WebGpuMemory};
use crate::pipeline::Pipelines;
use crate::submissions::Staged;
use perjoule_kernels::{Buffer, DeviceId, Error, Result};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

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
    /// The device's clock, where it has one.
    pub(crate) stamps: Option<Stamps>,
    pub(crate) staged: Staged,
    #[cfg(not(target_arch = "wasm32"))]
    pub(crate) awaited: crate::wait::Awaited,
    pub(crate) freed: Freed,
    /// Callers' buffers.
    wrapped: Mutex<HashMap<wgpu::Buffer, Weak<WebGpuMemory>>>,
    faults: Arc<Faults>,
    next: AtomicU64,
}

pub(crate) fn locked<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
        faults: Arc<Faults>,
    ) -> Self {
        let stamps = Stamps::new(&device);
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
            stamps,
            staged: Staged::default(),
            #[cfg(not(target_arch = "wasm32"))]
            awaited: Default::default(),
            freed: Freed::default(),
            wrapped: Mutex::default(),
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
        match self.faults.lost() {
            None => Ok(()),
            Some(detail) => Err(Error::Lost { device: self.label.clone(), detail: detail.into() }),
        }
    }

    /// What went wrong and nobody was told, as the error of the kernel that was launched last.
    pub(crate) fn fault(&self, kernel: &'static str) -> Result<()> {
        self.alive()?;
        match self.faults.take() {
            None => Ok(()),
            Some(detail) => Err(Error::Fault { kernel, detail }),
        }
    }

    /// The device answers no more: it is taken for lost.
    #[cfg(not(target_arch = "wasm32"))]
    pub(crate) fn give_up(&self, detail: String) -> Error {
        Error::Lost { device: self.label.clone(), detail: self.faults.lose(detail).into() }
    }

    /// Zeroed memory.
    pub(crate) fn alloc(self: &Arc<Self>, bytes: u64) -> Result<Buffer> {
        // a binding holds a vector at least
        let buffer = self.buffer(bytes, bytes.max(1).checked_next_multiple_of(16))?;
        Ok(Buffer::new(Arc::new(WebGpuMemory::new(self.clone(), Block::once(self, buffer), bytes))))
    }

    /// Memory of any content: what an earlier block of this device held, or zeroes.
    pub(crate) fn alloc_any(self: &Arc<Self>, bytes: u64) -> Result<Buffer> {
        self.alive()?;
        let size = Freed::size(bytes);
        let block = match size.and_then(|size| self.freed.take(size)) {
            Some(block) => block,
            None => Block::often(self, self.buffer(bytes, size)?),
        };
        Ok(Buffer::new(Arc::new(WebGpuMemory::new(self.clone(), block, bytes))))
    }

    /// A buffer of that size for so many bytes.
    fn buffer(&self, bytes: u64, size: Option<u64>) -> Result<wgpu::Buffer> {
        self.alive()?;
        let most = self.caps.limits.max_buffer_size;
        let Some(size) = size.filter(|&size| size <= most) else {
            return Err(Error::Unsupported {
                what: "a buffer of this size",
                why: format!("{bytes} bytes are more than the {most} that a buffer of {} has", self.label),
            });
        };
        let make = || {
            let usage = USAGES;
            self.device.create_buffer(&wgpu::BufferDescriptor {
                label: None,
                size,
                usage,
                mapped_at_creation: false,
            })
        };
        match self.checked(make) {
            // what is kept for later may be what is missing now
            Err(wgpu::Error::OutOfMemory { .. }) if self.freed.clear(self) => self.checked(make),
            made => made,
        }
        .map_err(|error| self.refused(bytes, error))
    }

    /// The memory that a caller's buffer is: one for all who wrap it.
    pub(crate) fn wrapped(self: &Arc<Self>, buffer: wgpu::Buffer) -> Arc<WebGpuMemory> {
        let mut wrapped = locked(&self.wrapped);
        if let Some(memory) = wrapped.get(&buffer).and_then(Weak::upgrade) {
            return memory;
        }
        let bytes = buffer.size();
        let block = Block::once(self, buffer.clone());
        let memory = Arc::new(WebGpuMemory::new(self.clone(), block, bytes));
        wrapped.insert(buffer, Arc::downgrade(&memory));
        memory
    }

    /// Memory goes: if it is a caller's buffer, that is the caller's alone again.
    pub(crate) fn release(&self, buffer: &wgpu::Buffer) {
        let mut wrapped = locked(&self.wrapped);
        // somebody may have wrapped it again
        if wrapped.get(buffer).is_some_and(|memory| memory.strong_count() == 0) {
            wrapped.remove(buffer);
        }
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
        Ok(Buffer::new(Arc::new(WebGpuMemory::new(self.clone(), Block::once(self, buffer), size))))
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

    /// What `make` makes, or the error that it met: see [`checked`].
    pub(crate) fn checked<T>(&self, make: impl FnOnce() -> T) -> Result<T, wgpu::Error> {
        checked(&self.device, make)
    }
}
