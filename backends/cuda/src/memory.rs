//! Memory of a GPU, allocated and freed in stream order, and pinned host memory for what is read back.
//!
//! Allocations and their zeroes are work of one stream of the device, frees of another. Every stream waits for the allocations made so
//! far before it runs what is submitted to it next (an event, looked at only when there is a newer one). A free waits for the streams
//! that were given the memory, and for no other: each block remembers which.

use crate::device::Inner;
use crate::driver::{Refused, check};
use cudarc::driver::sys;
use perjoule_kernels::{DeviceId, Memory, Result};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Alignment of every allocation, in bytes: what the driver promises.
pub const ALIGN: u32 = 256;

/// A block of a GPU's memory.
pub struct CudaMemory {
    inner: Arc<Inner>,
    pointer: sys::CUdeviceptr,
    bytes: u64,
    /// Whether it is freed when this goes, or is a caller's.
    owned: bool,
    /// One bit for each stream that was given it.
    used: AtomicU64,
    /// Number of the device's launch that was the last to be given it to write.
    written: AtomicU64,
}

impl CudaMemory {
    pub(crate) fn new(inner: Arc<Inner>, pointer: sys::CUdeviceptr, bytes: u64, owned: bool) -> Self {
        CudaMemory { inner, pointer, bytes, owned, used: AtomicU64::new(0), written: AtomicU64::new(0) }
    }

    /// Address of the first byte on the device.
    pub fn pointer(&self) -> u64 {
        self.pointer
    }

    pub(crate) fn inner(&self) -> &Arc<Inner> {
        &self.inner
    }

    /// Notes that the stream of that bit works on it.
    pub(crate) fn use_by(&self, bit: u64) {
        if self.used.load(Ordering::Relaxed) & bit == 0 {
            self.used.fetch_or(bit, Ordering::Relaxed);
        }
    }
}

impl CudaMemory {
    /// Notes that the device's launch of that number writes it.
    pub(crate) fn write_by(&self, launch: u64) {
        self.written.fetch_max(launch, Ordering::Relaxed);
    }

    /// Number of the last launch that was given it to write; 0 for none.
    pub(crate) fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }
}

impl Memory for CudaMemory {
    fn device(&self) -> DeviceId {
        self.inner.id
    }
    fn base(&self) -> u64 {
        self.pointer
    }
    fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for CudaMemory {
    fn drop(&mut self) {
        if self.owned && self.bytes > 0 {
            self.inner.free(self.pointer, *self.used.get_mut());
        }
    }
}

/// Largest pinned block that is kept for later reads.
const KEPT: usize = 1 << 24;
/// Most pinned blocks that are kept.
const BLOCKS: usize = 32;

/// Page-locked host memory, into which the device copies without the host's help.
pub(crate) struct Pinned {
    pointer: *mut u8,
    bytes: usize,
}

// SAFETY: plain memory with one owner.
unsafe impl Send for Pinned {}

impl Pinned {
    pub(crate) fn pointer(&self) -> *mut u8 {
        self.pointer
    }

    /// Its first bytes.
    pub(crate) fn to_vec(&self, bytes: usize) -> Vec<u8> {
        // SAFETY: within the block, which is initialised when it is made; nothing is under way into it when this is called.
        unsafe { std::slice::from_raw_parts(self.pointer, bytes.min(self.bytes)) }.to_vec()
    }
}

/// Pinned blocks that are not in use.
#[derive(Default)]
pub(crate) struct PinnedPool(Mutex<Vec<Pinned>>);

impl PinnedPool {
    /// A block of at least so many bytes. The context is current.
    pub(crate) fn take(&self, bytes: usize) -> Result<Pinned, Refused> {
        let size = bytes.max(256).next_power_of_two();
        let mut free = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = free.iter().position(|block| block.bytes == size) {
            return Ok(free.swap_remove(at));
        }
        drop(free);
        let mut pointer = std::ptr::null_mut();
        // SAFETY: writes a pointer.
        check(unsafe { sys::cuMemAllocHost_v2(&mut pointer, size) })?;
        let pointer: *mut u8 = pointer.cast();
        // SAFETY: memory of that size that was just allocated.
        unsafe { pointer.write_bytes(0, size) };
        Ok(Pinned { pointer, bytes: size })
    }

    /// Keeps the block, or frees it. Nothing is under way into it.
    pub(crate) fn give(&self, block: Pinned) {
        let mut free = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if block.bytes <= KEPT && free.len() < BLOCKS {
            free.push(block);
            return;
        }
        drop(free);
        release(block);
    }

    pub(crate) fn clear(&self) {
        let blocks = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        blocks.into_iter().for_each(release);
    }
}

fn release(block: Pinned) {
    // SAFETY: allocated by the function that belongs to it, and freed once. What it answers helps nobody.
    let _ = unsafe { sys::cuMemFreeHost(block.pointer.cast()) };
}
