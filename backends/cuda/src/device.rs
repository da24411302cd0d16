//! NVIDIA GPUs as devices.

use crate::compile::Modules;
use crate::driver::{Refused, absent, check, initialise, sticky};
use crate::memory::{ALIGN, CudaMemory, PinnedPool};
use crate::stream::{CudaStream, Handle};
use cudarc::driver::CudaContext;
use cudarc::driver::sys::{self, CUdevice_attribute as Attribute, CUresult};
use perjoule_kernels::device::alone;
use perjoule_kernels::{
    Arena, Buffer, Comm, Device, DeviceClass, DeviceId, DeviceInfo, Error, Result, Stream, Table,
};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// What rows know of a GPU beyond [`DeviceInfo`]: get it with `info.caps::<CudaCaps>()`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CudaCaps {
    /// Compute capability times ten: 90 for Hopper.
    pub sm: u32,
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Most shared memory of a block, in bytes, where the kernel asks for it.
    pub shared: u32,
    /// Shared memory of a multiprocessor, in bytes.
    pub shared_of_multiprocessor: u32,
    /// Most threads of a multiprocessor.
    pub threads: u32,
    /// Second-level cache, in bytes.
    pub l2: u64,
    /// Clock of the multiprocessors, in kHz.
    pub clock_khz: u32,
    /// Rate of the memory, in bytes a second, by its clock and width: a guess for costs, not for roofs.
    pub memory_rate: u64,
}

/// A GPU, with the primary context that it shares with CUDA code of this process.
pub struct CudaDevice {
    info: DeviceInfo,
    table: Table,
    pub(crate) inner: Arc<Inner>,
}

/// What streams, memory and prepared rows share with their device.
pub(crate) struct Inner {
    pub(crate) id: DeviceId,
    pub(crate) label: String,
    pub(crate) context: Arc<CudaContext>,
    pub(crate) caps: CudaCaps,
    pub(crate) modules: Modules,
    pub(crate) pinned: PinnedPool,
    /// Where memory comes from; a device without pools allocates and frees the slow way.
    pool: Option<sys::CUmemoryPool>,
    /// Allocates and fills.
    allocating: sys::CUstream,
    /// Frees.
    freeing: sys::CUstream,
    /// Recorded on `allocating` behind every allocation.
    allocated: Mutex<sys::CUevent>,
    /// Allocations so far.
    epoch: AtomicU64,
    /// Launches so far.
    launches: AtomicU64,
    streams: Mutex<Streams>,
    /// What the driver said when the device was lost.
    lost: OnceLock<String>,
}

// SAFETY: handles of the driver, which takes calls from all threads; what must be done in one piece is done under a mutex.
unsafe impl Send for Inner {}
// SAFETY: as above.
unsafe impl Sync for Inner {}

#[derive(Default)]
struct Streams {
    /// Living streams by the bit that memory remembers them by; several share the last one.
    list: Vec<Arc<Handle>>,
    /// Memory that went while a stream that used it was recording: freed behind the recording.
    waiting: Vec<(sys::CUdeviceptr, u64)>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Inner {
    /// Makes the context current on this thread. Every call of the driver follows one of this.
    pub(crate) fn bind(&self) -> Result<()> {
        self.alive()?;
        self.context.bind_to_thread().map_err(|e| self.refuse("cuCtxSetCurrent", Refused(e.0)))
    }

    pub(crate) fn alive(&self) -> Result<()> {
        match self.lost.get() {
            None => Ok(()),
            Some(detail) => Err(Error::Lost { device: self.label.clone(), detail: detail.clone() }),
        }
    }

    /// The error of a call that the driver refused. Errors that stay make the device lost.
    pub(crate) fn refuse(&self, call: &'static str, refused: Refused) -> Error {
        if sticky(refused) {
            let detail = self.lost.get_or_init(|| format!("{call}: {refused}")).clone();
            return Error::Lost { device: self.label.clone(), detail };
        }
        Error::Unsupported { what: call, why: format!("the driver of {} says: {refused}", self.label) }
    }

    /// The error of work that failed on the device; the device is lost by it.
    pub(crate) fn fault(&self, kernel: &'static str, refused: Refused) -> Error {
        let first = self.lost.get().is_none();
        let detail = format!("{refused}, told after {kernel} was launched");
        let detail = self.lost.get_or_init(|| detail).clone();
        match first {
            true => Error::Fault { kernel, detail },
            false => Error::Lost { device: self.label.clone(), detail },
        }
    }

    /// Memory of any content.
    pub(crate) fn alloc(self: &Arc<Self>, bytes: u64, zeroed: bool) -> Result<Arc<CudaMemory>> {
        if bytes == 0 {
            self.alive()?;
            return Ok(Arc::new(CudaMemory::new(self.clone(), 0, 0, true)));
        }
        self.bind()?;
        let event = locked(&self.allocated);
        let pointer = self.take(bytes)?;
        // from here on it is freed where something fails
        let memory = CudaMemory::new(self.clone(), pointer, bytes, true);
        if zeroed {
            // SAFETY: memory of that size, allocated on this stream.
            check(unsafe { sys::cuMemsetD8Async(pointer, 0, bytes as usize, self.allocating) })
                .map_err(|e| self.refuse("cuMemsetD8Async", e))?;
        }
        // SAFETY: an event and a stream of this context.
        check(unsafe { sys::cuEventRecord(*event, self.allocating) })
            .map_err(|e| self.refuse("cuEventRecord", e))?;
        self.epoch.fetch_add(1, Ordering::Release);
        Ok(Arc::new(memory))
    }

    fn take(&self, bytes: u64) -> Result<sys::CUdeviceptr> {
        let try_it = || {
            let mut pointer = 0;
            // SAFETY: writes a pointer; stream and pool are this context's.
            check(unsafe {
                match self.pool {
                    Some(pool) => {
                        sys::cuMemAllocFromPoolAsync(&mut pointer, bytes as usize, pool, self.allocating)
                    }
                    None => sys::cuMemAlloc_v2(&mut pointer, bytes as usize),
                }
            })
            .map(|()| pointer)
        };
        let short = |e: &Refused| e.0 == CUresult::CUDA_ERROR_OUT_OF_MEMORY;
        match try_it() {
            Err(e) if short(&e) => {
                // what was freed may still wait for work, and the pool keeps what it has
                // SAFETY: stream and pool are this context's.
                unsafe {
                    let _ = sys::cuStreamSynchronize(self.freeing);
                    let _ = sys::cuStreamSynchronize(self.allocating);
                    if let Some(pool) = self.pool {
                        let _ = sys::cuMemPoolTrimTo(pool, 0);
                    }
                }
                try_it().map_err(|e| match short(&e) {
                    true => Error::OutOfMemory {
                        device: self.label.clone(),
                        need: bytes,
                        available: self.free_bytes(),
                    },
                    false => self.refuse("cuMemAllocFromPoolAsync", e),
                })
            }
            other => other.map_err(|e| self.refuse("cuMemAllocFromPoolAsync", e)),
        }
    }

    /// Frees memory behind all that the streams of `used` were given so far.
    pub(crate) fn free(&self, pointer: sys::CUdeviceptr, used: u64) {
        if self.bind().is_err() {
            return; // it went with the device
        }
        let mut streams = locked(&self.streams);
        let users = || streams.list.iter().filter(|stream| used & stream.bit != 0);
        if users().any(|stream| stream.recording()) {
            streams.waiting.push((pointer, used));
            return;
        }
        users().for_each(|stream| stream.before(self.freeing));
        drop(streams);
        self.release(pointer);
    }

    fn release(&self, pointer: sys::CUdeviceptr) {
        // SAFETY: memory of this context that is freed once; who used it is behind us in the stream. What it answers helps nobody.
        unsafe {
            match self.pool {
                Some(_) => {
                    let _ = sys::cuMemFreeAsync(pointer, self.freeing);
                }
                None => {
                    let _ = sys::cuStreamSynchronize(self.freeing);
                    let _ = sys::cuMemFree_v2(pointer);
                }
            }
        }
    }

    /// Frees what waited for the end of a recording.
    pub(crate) fn recorded(&self) {
        let waiting = std::mem::take(&mut locked(&self.streams).waiting);
        for (pointer, used) in waiting {
            self.free(pointer, used);
        }
    }

    /// Number of allocations so far: see [`Inner::follow_allocations`].
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// The number of the last launch, of whichever stream.
    pub(crate) fn launches(&self) -> u64 {
        self.launches.load(Ordering::Relaxed)
    }

    /// The number of the next launch, of whichever stream.
    pub(crate) fn next_launch(&self) -> u64 {
        self.launches.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Lets later work of the stream wait for every allocation so far. Gives their number.
    pub(crate) fn follow_allocations(&self, stream: sys::CUstream) -> Result<u64> {
        let event = locked(&self.allocated);
        let epoch = self.epoch();
        // SAFETY: an event that was recorded, and a stream of a context of this process.
        check(unsafe { sys::cuStreamWaitEvent(stream, *event, 0) })
            .map_err(|e| self.refuse("cuStreamWaitEvent", e))?;
        Ok(epoch)
    }

    /// Takes up a stream, which is made with the number of a bit by which memory remembers it.
    pub(crate) fn enter(&self, make: impl FnOnce(u32) -> Handle) -> Arc<Handle> {
        let mut streams = locked(&self.streams);
        let free = |bit: &u32| streams.list.iter().all(|stream| stream.bit != 1 << bit);
        let stream = Arc::new(make((0..63).find(free).unwrap_or(63)));
        streams.list.push(stream.clone());
        stream
    }

    /// A stream goes: all later frees wait for what it was given.
    pub(crate) fn leave(&self, stream: &Arc<Handle>) {
        let mut streams = locked(&self.streams);
        stream.before(self.freeing);
        streams.list.retain(|other| !Arc::ptr_eq(other, stream));
    }

    pub(crate) fn free_bytes(&self) -> Option<u64> {
        self.bind().ok()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: writes two numbers.
        check(unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) }).ok()?;
        let unused = self.pool.map_or(0, |pool| {
            use sys::CUmemPool_attribute::{
                CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT as RESERVED, CU_MEMPOOL_ATTR_USED_MEM_CURRENT as USED,
            };
            let get = |attribute| {
                let mut value = 0u64;
                // SAFETY: these attributes are 64-bit numbers.
                let answer = unsafe { sys::cuMemPoolGetAttribute(pool, attribute, (&raw mut value).cast()) };
                check(answer).map_or(0, |()| value)
            };
            get(RESERVED).saturating_sub(get(USED))
        });
        Some(free as u64 + unused)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        crate::vendor::forget(self.id);
        if self.context.bind_to_thread().is_err() {
            return;
        }
        self.pinned.clear();
        // SAFETY: made by this device and used by nothing that is left; the driver finishes what is under way. What it answers helps
        // nobody.
        unsafe {
            let _ = sys::cuStreamSynchronize(self.freeing);
            let _ = sys::cuStreamSynchronize(self.allocating);
            let _ = sys::cuEventDestroy_v2(*locked(&self.allocated));
            let _ = sys::cuStreamDestroy_v2(self.freeing);
            let _ = sys::cuStreamDestroy_v2(self.allocating);
            if let Some(pool) = self.pool {
                let _ = sys::cuMemPoolDestroy(pool);
            }
        }
    }
}

/// The driver's number of a GPU, and how many there are.
fn ordinal(index: usize) -> Result<sys::CUdevice> {
    let id = format!("cuda:{index}");
    initialise().map_err(|why| absent(&id, why))?;
    let count = count().map_err(|why| absent(&id, why))?;
    if index >= count {
        let why = match count {
            0 => "the NVIDIA driver sees no GPU".into(),
            1 => "there is one GPU: cuda:0".into(),
            _ => format!("there are {count} GPUs: cuda:0 to cuda:{}", count - 1),
        };
        return Err(absent(&id, why));
    }
    let mut device = 0;
    // SAFETY: writes a number.
    check(unsafe { sys::cuDeviceGet(&mut device, index as i32) })
        .map_err(|e| absent(&id, format!("cuDeviceGet: {e}")))?;
    Ok(device)
}

fn count() -> Result<usize, String> {
    let mut count = 0;
    // SAFETY: writes a number.
    check(unsafe { sys::cuDeviceGetCount(&mut count) }).map_err(|e| format!("cuDeviceGetCount: {e}"))?;
    Ok(count.max(0) as usize)
}

fn attribute(device: sys::CUdevice, attribute: Attribute) -> Result<u32, Refused> {
    let mut value = 0;
    // SAFETY: writes a number.
    check(unsafe { sys::cuDeviceGetAttribute(&mut value, attribute, device) })?;
    Ok(value.max(0) as u32)
}

fn text(bytes: &[std::ffi::c_char]) -> String {
    let bytes: Vec<u8> = bytes.iter().take_while(|&&c| c != 0).map(|&c| c as u8).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn describe(device: sys::CUdevice, index: usize) -> Result<(DeviceInfo, CudaCaps), Refused> {
    use Attribute::*;
    let get = |a| attribute(device, a);
    let sm = get(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)? * 10
        + get(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    let memory_khz = u64::from(get(CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE)?);
    let width = u64::from(get(CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH)?);
    let rate = memory_khz * 1000 * 2 * width / 8;
    let caps = CudaCaps {
        sm,
        multiprocessors: get(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?.max(1),
        shared: get(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        shared_of_multiprocessor: get(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR)?,
        threads: get(CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR)?,
        l2: u64::from(get(CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?),
        clock_khz: get(CU_DEVICE_ATTRIBUTE_CLOCK_RATE)?,
        memory_rate: if rate == 0 { 500_000_000_000 } else { rate },
    };
    let mut name = [0; 256];
    // SAFETY: writes at most 256 bytes, terminated.
    check(unsafe { sys::cuDeviceGetName(name.as_mut_ptr(), 256, device) })?;
    let class = match get(CU_DEVICE_ATTRIBUTE_INTEGRATED)? {
        0 => DeviceClass::DiscreteGpu,
        _ => DeviceClass::IntegratedGpu,
    };
    let mut info = DeviceInfo::new(format!("cuda:{index}"), "cuda", text(&name), class, Arc::new(caps));
    let mut bytes = 0;
    // SAFETY: writes a number.
    check(unsafe { sys::cuDeviceTotalMem_v2(&mut bytes, device) })?;
    info.memory_bytes = Some(bytes as u64);
    info.cache_bytes = Some(caps.l2);
    let mut bus = [0; 32];
    // SAFETY: writes at most 32 bytes, terminated.
    if check(unsafe { sys::cuDeviceGetPCIBusId(bus.as_mut_ptr(), 32, device) }).is_ok() {
        info.pci = Some(text(&bus).to_lowercase());
    }
    let mut uuid = sys::CUuuid { bytes: [0; 16] };
    // SAFETY: writes 16 bytes.
    if check(unsafe { sys::cuDeviceGetUuid_v2(&mut uuid, device) }).is_ok() {
        let b: Vec<String> = uuid.bytes.iter().map(|&b| format!("{:02x}", b as u8)).collect();
        let part = |r: std::ops::Range<usize>| b[r].concat();
        // as nvidia-smi and NVML write it
        info.uuid = Some(format!(
            "GPU-{}-{}-{}-{}-{}",
            part(0..4),
            part(4..6),
            part(6..8),
            part(8..10),
            part(10..16)
        ));
    }
    let mut version = 0;
    // SAFETY: writes a number.
    check(unsafe { sys::cuDriverGetVersion(&mut version) })?;
    let cuda = format!("CUDA {}.{}", version / 1000, version % 1000 / 10);
    let module = std::fs::read_to_string("/sys/module/nvidia/version").ok();
    info.driver = Some(match module {
        Some(module) => format!("NVIDIA {}, {cuda}", module.trim()),
        None => cuda,
    });
    info.features = vec![format!("sm_{sm}")];
    info.build = Some(env!("PERJOULE_CUDA_BUILD"));
    info.arena = Arena { pools: 1, align: ALIGN, max_bytes: isize::MAX as u64 };
    Ok((info, caps))
}

impl CudaDevice {
    /// What can be opened, without opening it: no contexts. The identities are those of no device.
    ///
    /// # Errors
    /// [`Error::NoDevice`]: without a driver, or when it refuses to work.
    pub fn enumerate() -> Result<Vec<DeviceInfo>> {
        initialise().map_err(|why| absent("cuda:0", why))?;
        let count = count().map_err(|why| absent("cuda:0", why))?;
        (0..count)
            .map(|index| {
                let (info, _) = describe(ordinal(index)?, index)
                    .map_err(|e| absent(&format!("cuda:{index}"), format!("asking what it is: {e}")))?;
                Ok(info)
            })
            .collect()
    }

    /// Opens a GPU by its number, in the primary context, which it shares with other CUDA code of this process.
    ///
    /// # Errors
    /// [`Error::NoDevice`]: without a driver, without such a GPU, or when it cannot be used.
    pub fn open(index: usize) -> Result<Self> {
        let id = format!("cuda:{index}");
        ordinal(index)?;
        let context = CudaContext::new(index)
            .map_err(|e| absent(&id, format!("its context could not be made: {}", Refused(e.0))))?;
        Self::of_context(context)
    }

    /// The GPU of a context of the caller's. Memory, streams and launches of the device are that context's.
    ///
    /// # Errors
    /// As [`CudaDevice::open`].
    pub fn of_context(context: Arc<CudaContext>) -> Result<Self> {
        let index = context.ordinal();
        let id = format!("cuda:{index}");
        let device = ordinal(index)?;
        let refuse = |what: &'static str| {
            let id = id.clone();
            move |e: Refused| absent(&id, format!("{what}: {e}"))
        };
        let (info, caps) = describe(device, index).map_err(refuse("asking what it is"))?;
        context.bind_to_thread().map_err(|e| refuse("cuCtxSetCurrent")(Refused(e.0)))?;
        let stream = || {
            let mut stream = std::ptr::null_mut();
            let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
            // SAFETY: writes a handle; the context is current.
            check(unsafe { sys::cuStreamCreate(&mut stream, flags) }).map_err(refuse("cuStreamCreate"))?;
            Ok::<_, Error>(stream)
        };
        let (allocating, freeing) = (stream()?, stream()?);
        let mut event = std::ptr::null_mut();
        let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32;
        // SAFETY: writes a handle; the context is current. Recorded once, so that it can be waited for.
        check(unsafe { sys::cuEventCreate(&mut event, flags) })
            // SAFETY: both were just made.
            .and_then(|()| check(unsafe { sys::cuEventRecord(event, allocating) }))
            .map_err(refuse("cuEventCreate"))?;
        let pool = match context.has_async_alloc() {
            true => Some(pool(index as i32).map_err(refuse("cuMemPoolCreate"))?),
            false => None,
        };
        let inner = Inner {
            id: info.id,
            label: info.label.clone(),
            context,
            caps,
            modules: Modules::new(caps.sm),
            pinned: PinnedPool::default(),
            pool,
            allocating,
            freeing,
            allocated: Mutex::new(event),
            epoch: AtomicU64::new(0),
            launches: AtomicU64::new(0),
            streams: Mutex::default(),
            lost: OnceLock::new(),
        };
        Ok(CudaDevice { info, table: Table::new(crate::table::rows()), inner: Arc::new(inner) })
    }

    /// What its rows know of it.
    pub fn caps(&self) -> CudaCaps {
        self.inner.caps
    }

    /// The context, for CUDA code beside ours.
    pub fn context(&self) -> &Arc<CudaContext> {
        &self.inner.context
    }

    /// Memory of the caller's as a buffer. It is not freed by it.
    ///
    /// # Safety
    /// `pointer` is memory of this device of at least so many bytes, initialised, that stays valid and is not written by others while
    /// the buffer or work on it lives. What wrote it has been waited for, or is ordered before by the caller's own events.
    pub unsafe fn wrap(&self, pointer: u64, bytes: u64) -> Buffer {
        Buffer::new(Arc::new(CudaMemory::new(self.inner.clone(), pointer, bytes, false)))
    }

    /// A stream of the caller's, which stays the caller's. Its work and ours run in one order.
    ///
    /// # Errors
    /// When the stream belongs to another context.
    pub fn wrap_stream(&self, stream: Arc<cudarc::driver::CudaStream>) -> Result<CudaStream> {
        CudaStream::of_caller(self.inner.clone(), stream)
    }
}

/// A pool that keeps what is freed, for later allocations.
fn pool(device: i32) -> Result<sys::CUmemoryPool, Refused> {
    // SAFETY: plain numbers and null pointers, of which 0 is a value.
    let mut properties: sys::CUmemPoolProps = unsafe { std::mem::zeroed() };
    properties.allocType = sys::CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED;
    properties.location.type_ = sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE;
    properties.location.id = device;
    let mut pool = std::ptr::null_mut();
    // SAFETY: reads the properties, writes a handle.
    check(unsafe { sys::cuMemPoolCreate(&mut pool, &properties) })?;
    let mut threshold = u64::MAX;
    let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    // SAFETY: this attribute is a 64-bit number.
    check(unsafe { sys::cuMemPoolSetAttribute(pool, attribute, (&raw mut threshold).cast()) })?;
    Ok(pool)
}

impl Device for CudaDevice {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn table(&self) -> &Table {
        &self.table
    }

    fn free_bytes(&self) -> Option<u64> {
        self.inner.free_bytes()
    }

    fn alloc(&self, bytes: u64) -> Result<Buffer> {
        Ok(Buffer::new(self.inner.alloc(bytes, true)?))
    }

    fn alloc_any(&self, bytes: u64) -> Result<Buffer> {
        // the pool is this process's own, and the driver clears what it takes from others
        Ok(Buffer::new(self.inner.alloc(bytes, false)?))
    }

    fn stream(&self) -> Result<Box<dyn Stream>> {
        Ok(Box::new(CudaStream::new(self.inner.clone())?))
    }

    fn join(&self, _id: &[u8], rank: u32, world: u32) -> Result<Arc<dyn Comm>> {
        alone(rank, world, "the CUDA backend has no NCCL yet")
    }
}
