//! Host memory: zeroed, or used before by the same device.

use crate::team::Region;
use perjoule_kernels::{DeviceId, Error, Memory, Result};
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex};

/// Alignment of every allocation: a cache line, and the widest vector.
pub const ALIGN: usize = 64;

/// From this size on, memory comes straight from the system: zeroed lazily, in huge pages where it gives them. Under a sanitizer
/// it never does: only what the allocator gave is watched.
const MAPPED: usize = if cfg!(any(sanitized, miri)) { usize::MAX } else { 1 << 20 };

/// Most bytes that a device keeps of its freed blocks.
const KEPT: usize = 64 << 20;
/// Most freed blocks that a device keeps, among which one of the very size is looked for.
const BLOCKS: usize = 64;
/// The smallest block that is kept: smaller ones are zeroed faster than they are found.
const WORTH: usize = 1 << 16;

/// Plain memory from the system, initialised.
struct Block {
    pointer: NonNull<u8>,
    bytes: usize,
}

// SAFETY: plain memory, owned by one block; who may touch it when is said at `HostMemory`.
unsafe impl Send for Block {}

/// Where the blocks of one device come from: the system, and those that it has freed, for results that are written anyway: fresh pages
/// cost more than most launches that fill them.
#[derive(Default)]
pub(crate) struct Heap {
    freed: Mutex<Vec<Block>>,
    /// Memory nodes over which large blocks are spread, where there are several.
    nodes: Vec<usize>,
}

impl Heap {
    pub(crate) fn new(nodes: Vec<usize>) -> Self {
        Heap { freed: Mutex::default(), nodes }
    }

    /// Calls that find the list in use go without: it may be held for ever by a thread that a fork has left behind.
    fn take(&self, bytes: usize) -> Option<Block> {
        if !(WORTH..=KEPT).contains(&bytes) {
            return None;
        }
        let mut list = self.freed.try_lock().ok()?;
        let at = list.iter().rposition(|block| block.bytes == bytes)?;
        Some(list.remove(at))
    }

    /// Keeps the block. Gives back what there is no room for, for the caller to free outside the lock.
    fn give(&self, block: Block) -> Vec<Block> {
        if !(WORTH..=KEPT).contains(&block.bytes) {
            return vec![block];
        }
        let Ok(mut list) = self.freed.try_lock() else { return vec![block] };
        list.push(block);
        let mut kept: usize = list.iter().map(|block| block.bytes).sum();
        let mut first = 0;
        while list.len() - first > BLOCKS || kept > KEPT {
            kept -= list[first].bytes;
            first += 1;
        }
        list.drain(..first).collect()
    }

    #[cfg(test)]
    pub(crate) fn blocks(&self) -> usize {
        self.freed.lock().map_or(0, |list| list.len())
    }

    /// Gives everything back to the system.
    fn clear(&self) {
        if let Ok(mut list) = self.freed.try_lock() {
            list.clear();
        }
    }
}

/// A block of the host's memory that belongs to one CPU device.
pub struct HostMemory {
    device: DeviceId,
    /// Held by whoever touches the bytes.
    region: Arc<Region>,
    heap: Arc<Heap>,
    /// There until it is dropped.
    block: Option<Block>,
    pointer: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the block is plain memory. It is reached only by who holds its region, one user at a time (see
// `team::Region`), and through `&mut` or `&` slices that callers lend to a single launch.
unsafe impl Send for HostMemory {}
// SAFETY: as above.
unsafe impl Sync for HostMemory {}

impl HostMemory {
    /// `bytes` zeroed bytes. An allocation larger than what the machine has available is refused before it is made.
    pub(crate) fn zeroed(
        device: DeviceId,
        region: &Arc<Region>,
        heap: &Arc<Heap>,
        bytes: u64,
    ) -> Result<Self> {
        let refused = |available| Error::OutOfMemory { device: "cpu".into(), need: bytes, available };
        let size = usize::try_from(bytes).ok().filter(|&b| b <= isize::MAX as usize - 4096);
        let size = size.ok_or_else(|| refused(None))?;
        if bytes >= 64 << 20 {
            // with overcommit the kernel would grant it and kill the process later
            let mut available = available_bytes();
            if available.is_some_and(|have| bytes > have) {
                heap.clear();
                available = available_bytes();
            }
            if available.is_some_and(|have| bytes > have) {
                return Err(refused(available));
            }
        }
        let pointer =
            if size == 0 { Some(NonNull::<Line>::dangling().cast()) } else { allocate(size, &heap.nodes) };
        let pointer = pointer.ok_or_else(|| refused(available_bytes()))?;
        Ok(Self::of(device, region, heap, Block { pointer, bytes: size }))
    }

    /// `bytes` bytes of any content: what an earlier block of this device held, or zeroes.
    pub(crate) fn any(device: DeviceId, region: &Arc<Region>, heap: &Arc<Heap>, bytes: u64) -> Result<Self> {
        match usize::try_from(bytes).ok().and_then(|size| heap.take(size)) {
            Some(block) => Ok(Self::of(device, region, heap, block)),
            None => Self::zeroed(device, region, heap, bytes),
        }
    }

    fn of(device: DeviceId, region: &Arc<Region>, heap: &Arc<Heap>, block: Block) -> Self {
        let (pointer, bytes) = (block.pointer, block.bytes);
        HostMemory { device, region: region.clone(), heap: heap.clone(), block: Some(block), pointer, bytes }
    }

    /// What its device's users hold while they touch its bytes.
    pub(crate) fn region(&self) -> &Region {
        &self.region
    }

    /// First byte.
    pub fn pointer(&self) -> *mut u8 {
        self.pointer.as_ptr()
    }

    /// All of it, while nobody else has it: memory that has not been made a buffer.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: the block is this large and initialised; `&mut` keeps others away.
        unsafe { std::slice::from_raw_parts_mut(self.pointer.as_ptr(), self.bytes) }
    }
}

#[repr(align(64))]
struct Line(#[allow(dead_code, reason = "only its alignment is used")] [u8; ALIGN]);

fn layout(size: usize) -> Option<Layout> {
    Layout::from_size_align(size, ALIGN).ok()
}

#[cfg(unix)]
fn allocate(size: usize, nodes: &[usize]) -> Option<NonNull<u8>> {
    if size < MAPPED {
        // SAFETY: the size is not 0.
        return layout(size).and_then(|l| NonNull::new(unsafe { alloc_zeroed(l) }));
    }
    let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: a new anonymous mapping touches no existing memory.
    let pointer = unsafe { libc::mmap(std::ptr::null_mut(), size, protection, flags, -1, 0) };
    if pointer == libc::MAP_FAILED {
        return None;
    }
    #[cfg(target_os = "linux")]
    // SAFETY: advice on the mapping just made; failure is harmless.
    unsafe {
        libc::madvise(pointer, size, libc::MADV_HUGEPAGE);
        if !nodes.is_empty() {
            crate::placement::interleave(pointer, size, nodes);
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = nodes;
    NonNull::new(pointer.cast())
}

#[cfg(not(unix))]
fn allocate(size: usize, _: &[usize]) -> Option<NonNull<u8>> {
    // SAFETY: the size is not 0.
    layout(size).and_then(|l| NonNull::new(unsafe { alloc_zeroed(l) }))
}

impl Drop for HostMemory {
    fn drop(&mut self) {
        if let Some(block) = self.block.take().filter(|block| block.bytes > 0) {
            drop(self.heap.give(block));
        }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        #[cfg(unix)]
        if self.bytes >= MAPPED {
            // SAFETY: exactly the mapping that `allocate` made; the memory that it was part of has gone.
            unsafe { libc::munmap(self.pointer.as_ptr().cast(), self.bytes) };
            return;
        }
        if let Some(layout) = layout(self.bytes).filter(|l| l.size() > 0) {
            // SAFETY: allocated by `allocate` with this layout.
            unsafe { dealloc(self.pointer.as_ptr(), layout) };
        }
    }
}

impl Memory for HostMemory {
    fn device(&self) -> DeviceId {
        self.device
    }

    fn base(&self) -> u64 {
        self.pointer.as_ptr() as u64
    }

    fn bytes(&self) -> u64 {
        self.bytes as u64
    }
}

/// Memory that can still be used without swapping: the smaller of what the system and the control group allow; `None` where neither
/// says.
pub fn available_bytes() -> Option<u64> {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let system = read("/proc/meminfo").and_then(|text| {
        let line = text.lines().find(|l| l.starts_with("MemAvailable:"))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()?.checked_mul(1024)
    });
    let number = |path: &str| read(path)?.trim().parse::<u64>().ok();
    let group = number("/sys/fs/cgroup/memory.max").map(|limit| {
        let used = number("/sys/fs/cgroup/memory.current").unwrap_or(0);
        // the page cache counts as used and can be dropped
        let cache = read("/sys/fs/cgroup/memory.stat")
            .and_then(|s| s.lines().find_map(|l| l.strip_prefix("inactive_file ")?.parse::<u64>().ok()))
            .unwrap_or(0);
        limit.saturating_sub(used.saturating_sub(cache))
    });
    match (system, group) {
        (Some(s), Some(g)) => Some(s.min(g)),
        (s, g) => s.or(g),
    }
}

/// Memory of the machine in bytes; `None` where it does not say.
pub fn total_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|l| l.starts_with("MemTotal:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use crate::{CpuDevice, Options};
    use perjoule_kernels::{Buffer, Device};

    #[test]
    fn freed_blocks_serve_what_may_hold_anything_on_the_same_device() {
        let open = || CpuDevice::open(&Options { threads: Some(1), ..Options::default() }).unwrap();
        let (device, other) = (open(), open());
        let mut stream = device.stream().unwrap();
        for bytes in [super::WORTH, (1 << 20) + 3] {
            let bytes = bytes as u64;
            let used = device.alloc(bytes).unwrap();
            let address = used.address();
            stream.write(&used, &vec![7; bytes as usize]).unwrap();
            let view = used.view(1, 2).unwrap();
            drop(used);
            assert_ne!(device.alloc_any(bytes).unwrap().address(), address, "a view is alive");
            drop(view);
            let zeroed = |buffer: &Buffer, device: &CpuDevice| {
                let read = device.stream().unwrap().read(buffer).wait().unwrap();
                read.iter().all(|&byte| byte == 0)
            };
            assert!(zeroed(&device.alloc(bytes).unwrap(), &device));
            assert!(zeroed(&other.alloc_any(bytes).unwrap(), &other), "another device's bytes stay there");
            let first: Vec<Buffer> = (0..3).map(|_| device.alloc_any(bytes).unwrap()).collect();
            assert!(first.iter().any(|buffer| buffer.address() == address));
        }
        // bounded in number
        drop(
            (0..3 * super::BLOCKS as u64)
                .map(|i| device.alloc_any((1 << 16) + i).unwrap())
                .collect::<Vec<_>>(),
        );
        assert_eq!(device.inner.heap.blocks(), super::BLOCKS);
    }
}
