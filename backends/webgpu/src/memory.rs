//! Memory of a device: one `wgpu` buffer a block.

use crate::inner::{Inner, locked};
use crate::work::Work;
use perjoule_kernels::{Buffer, DeviceId, Memory};
use std::any::Any;
use std::sync::{Arc, Mutex, Weak};

/// Usages that a buffer needs for this backend to work with it.
pub const USAGES: wgpu::BufferUsages =
    wgpu::BufferUsages::STORAGE.union(wgpu::BufferUsages::COPY_SRC).union(wgpu::BufferUsages::COPY_DST);

/// Most bytes that a device keeps of its freed blocks.
const KEPT: u64 = 256 << 20;
/// Most freed blocks that a device keeps, among which one of the very size is looked for.
const BLOCKS: usize = 256;

/// A buffer, and the address by which overlaps and bind groups are found.
pub(crate) struct Block {
    buffer: wgpu::Buffer,
    base: u64,
    /// Whose work used it last; `None` where it is never given again.
    ///
    /// Work of streams is in the order in which it is submitted. A block that one stream has read may be given to another one, whose
    /// writes would come first if it submitted first. So no two streams have collected work on such a block: who uses it submits what
    /// the other one has collected. Work of the same stream stays in order, submitted or not.
    user: Option<Mutex<Weak<Mutex<Work>>>>,
}

impl Block {
    /// A buffer that goes when its memory does.
    pub(crate) fn once(inner: &Inner, buffer: wgpu::Buffer) -> Arc<Self> {
        let base = inner.address(buffer.size());
        Arc::new(Block { buffer, base, user: None })
    }

    /// A buffer that is given again.
    pub(crate) fn often(inner: &Inner, buffer: wgpu::Buffer) -> Arc<Self> {
        let base = inner.address(buffer.size());
        Arc::new(Block { buffer, base, user: Some(Mutex::default()) })
    }
}

/// Freed blocks of a device, for results that are written anyway: a launch on them finds the bind groups of earlier ones.
#[derive(Default)]
pub(crate) struct Freed(Mutex<Vec<Arc<Block>>>);

impl Freed {
    /// The size that a block of so many bytes is made with: a quarter more at most, so that alike results share blocks.
    pub(crate) fn size(bytes: u64) -> Option<u64> {
        let step = (bytes.checked_next_power_of_two()? / 8).max(256);
        bytes.max(1).checked_next_multiple_of(step)
    }

    /// The block of that size which was freed last.
    pub(crate) fn take(&self, size: u64) -> Option<Arc<Block>> {
        let mut list = locked(&self.0);
        let at = list.iter().rposition(|block| block.buffer.size() == size)?;
        Some(list.remove(at))
    }

    /// Keeps the block. Gives back what there is no room for.
    fn give(&self, block: Arc<Block>) -> Vec<Arc<Block>> {
        let mut list = locked(&self.0);
        list.push(block);
        let mut kept: u64 = list.iter().map(|block| block.buffer.size()).sum();
        let mut first = 0;
        while list.len() - first > BLOCKS || kept > KEPT {
            kept -= list[first].buffer.size();
            first += 1;
        }
        list.drain(..first).collect()
    }

    /// Gives everything back to the driver, and says whether there was anything.
    pub(crate) fn clear(&self, inner: &Inner) -> bool {
        let blocks = std::mem::take(&mut *locked(&self.0));
        blocks.iter().for_each(|block| inner.groups.forget(block.base));
        !blocks.is_empty()
    }
}

/// A block of memory, of ours or of a caller's.
pub struct WebGpuMemory {
    inner: Arc<Inner>,
    block: Arc<Block>,
    bytes: u64,
}

impl WebGpuMemory {
    /// The first `bytes` of a block, which is at least that long, padded to whole words.
    pub(crate) fn new(inner: Arc<Inner>, block: Arc<Block>, bytes: u64) -> Self {
        WebGpuMemory { inner, block, bytes }
    }

    /// The buffer, for code beside ours, while the memory is there: later ones may be given it again.
    pub fn buffer(&self) -> &wgpu::Buffer {
        &self.block.buffer
    }

    #[cfg(not(target_arch = "wasm32"))]
    pub(crate) fn inner(&self) -> &Arc<Inner> {
        &self.inner
    }

    /// A stream is about to collect work on it.
    pub(crate) fn used_by(&self, work: &Arc<Mutex<Work>>) {
        let Some(user) = &self.block.user else { return };
        let mut user = locked(user);
        if std::ptr::eq(user.as_ptr(), Arc::as_ptr(work)) {
            return;
        }
        if let Some(before) = user.upgrade() {
            locked(&before).submit(&self.inner);
        }
        *user = Arc::downgrade(work);
    }
}

impl Memory for WebGpuMemory {
    fn device(&self) -> DeviceId {
        self.inner.id
    }

    fn base(&self) -> u64 {
        self.block.base
    }

    fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for WebGpuMemory {
    fn drop(&mut self) {
        let forget = |block: &Block| {
            // bind groups that are kept for later launches would keep the buffer; those of submitted work are wgpu's own to keep
            self.inner.groups.forget(block.base);
        };
        match self.block.user {
            Some(_) => self.inner.freed.give(self.block.clone()).iter().for_each(|block| forget(block)),
            None => {
                self.inner.release(&self.block.buffer);
                forget(&self.block);
            }
        }
    }
}

/// The memory of a buffer, if it is this backend's.
pub(crate) fn memory_of(buffer: &Buffer) -> Option<&WebGpuMemory> {
    let memory: &dyn Any = &**buffer.memory();
    memory.downcast_ref()
}
