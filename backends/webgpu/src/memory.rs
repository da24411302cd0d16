//! Memory of a device: one `wgpu` buffer a block.

use crate::inner::Inner;
use perjoule_kernels::{Buffer, DeviceId, Memory};
use std::any::Any;
use std::sync::Arc;

/// Usages that a buffer needs for this backend to work with it.
pub const USAGES: wgpu::BufferUsages =
    wgpu::BufferUsages::STORAGE.union(wgpu::BufferUsages::COPY_SRC).union(wgpu::BufferUsages::COPY_DST);

/// A block of memory, of ours or of a caller's.
pub struct WebGpuMemory {
    inner: Arc<Inner>,
    buffer: wgpu::Buffer,
    base: u64,
    bytes: u64,
}

impl WebGpuMemory {
    /// The first `bytes` of a buffer, which is at least that long, padded to whole words.
    pub(crate) fn new(inner: Arc<Inner>, buffer: wgpu::Buffer, bytes: u64) -> Self {
        let base = inner.address(buffer.size());
        WebGpuMemory { inner, buffer, base, bytes }
    }

    /// The buffer, for code beside ours.
    pub fn buffer(&self) -> &wgpu::Buffer {
        &self.buffer
    }

    pub(crate) fn inner(&self) -> &Arc<Inner> {
        &self.inner
    }
}

impl Memory for WebGpuMemory {
    fn device(&self) -> DeviceId {
        self.inner.id
    }

    fn base(&self) -> u64 {
        self.base
    }

    fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for WebGpuMemory {
    fn drop(&mut self) {
        // bind groups that are kept for later launches would keep the buffer; those of submitted work are wgpu's own to keep
        self.inner.groups.forget(self.base);
        self.inner.release(&self.buffer);
    }
}

/// The memory of a buffer, if it is this backend's.
pub(crate) fn memory_of(buffer: &Buffer) -> Option<&WebGpuMemory> {
    let memory: &dyn Any = &**buffer.memory();
    memory.downcast_ref()
}
