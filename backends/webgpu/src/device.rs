//! [`WebGpuDevice`]: an adapter of `wgpu`, or a device of the caller's.

use crate::faults::Faults;
use crate::inner::Inner;
use crate::memory::USAGES;
use crate::pipeline::Pipelines;
use crate::stream::WebGpuStream;
use perjoule_kernels::device::alone;
use perjoule_kernels::{Arena, Buffer, Comm, Device, DeviceClass, DeviceInfo, Error, Result, Stream, Table};
use std::sync::Arc;

/// Environment variable: features that are left out, by the names that listings give, such as `subgroup,f16`.
pub const WITHOUT: &str = "PERJOULE_WEBGPU_WITHOUT";

/// What rows look at.
#[derive(Debug, Clone)]
pub struct WebGpuCaps {
    /// Limits of the device; a binding holds no more than kernels address, however much larger the device would allow.
    pub limits: wgpu::Limits,
    /// Features of the device.
    pub features: wgpu::Features,
    /// Smallest and largest number of invocations of a subgroup; equal where it is fixed.
    pub subgroup: (u32, u32),
    /// Sizes that products of matrices in a subgroup's registers come in.
    pub cooperative: Vec<wgpu::CooperativeMatrixProperties>,
    /// Whether it runs on the CPU, where workgroup memory is no faster than any other.
    pub software: bool,
}

impl WebGpuCaps {
    /// Whether kernels may use that feature.
    pub fn has(&self, feature: wgpu::Features) -> bool {
        self.features.contains(feature)
    }
}

/// A device of WebGPU.
pub struct WebGpuDevice {
    info: DeviceInfo,
    table: Table,
    inner: Arc<Inner>,
}

/// Features that kernels or the stream use where an adapter has them, and their names in listings.
const WANTED: [(wgpu::Features, &str); 7] = [
    (wgpu::Features::TIMESTAMP_QUERY, "timestamp"),
    (wgpu::Features::SHADER_F16, "f16"),
    (wgpu::Features::SUBGROUP, "subgroup"),
    (wgpu::Features::PIPELINE_CACHE, "pipeline-cache"),
    (wgpu::Features::IMMEDIATES, "immediates"),
    (wgpu::Features::PASSTHROUGH_SHADERS, "passthrough"),
    (wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX, "cooperative-matrix"),
];

fn absent(id: &str, why: impl Into<String>) -> Error {
    Error::NoDevice { id: id.into(), why: why.into() }
}

/// Features of an adapter that a device is opened with.
fn wanted(adapter: &wgpu::Adapter) -> wgpu::Features {
    #[cfg(not(target_arch = "wasm32"))]
    let without = std::env::var(WITHOUT).unwrap_or_default();
    #[cfg(target_arch = "wasm32")]
    let without = String::new();
    let left_out = |name: &str| without.split(',').any(|other| other.trim() == name);
    let all = WANTED.iter().filter(|(_, name)| !left_out(name));
    all.fold(wgpu::Features::empty(), |all, &(feature, _)| all | feature) & adapter.features()
}

/// What an adapter is, as device `index`.
fn describe(index: usize, adapter: &wgpu::AdapterInfo, caps: Arc<WebGpuCaps>) -> DeviceInfo {
    let class = match adapter.device_type {
        wgpu::DeviceType::DiscreteGpu => DeviceClass::DiscreteGpu,
        wgpu::DeviceType::IntegratedGpu => DeviceClass::IntegratedGpu,
        wgpu::DeviceType::VirtualGpu => DeviceClass::VirtualGpu,
        wgpu::DeviceType::Cpu => DeviceClass::Cpu,
        wgpu::DeviceType::Other => DeviceClass::Other,
    };
    let name = if adapter.name.is_empty() { "an adapter without a name" } else { &adapter.name };
    let mut info = DeviceInfo::new(format!("webgpu:{index}"), "webgpu", name, class, caps.clone());
    info.software = caps.software;
    info.pci = Some(adapter.device_pci_bus_id.to_lowercase()).filter(|id| !id.is_empty());
    let driver = [&adapter.backend.to_string(), &adapter.driver, &adapter.driver_info];
    let driver: Vec<&str> =
        driver.into_iter().map(|part| part.trim()).filter(|part| !part.is_empty()).collect();
    info.driver = Some(driver.join(" "));
    let names = WANTED.iter().filter(|(feature, _)| caps.has(*feature)).map(|(_, name)| name.to_string());
    info.features = names.collect();
    info.build = Some(env!("PERJOULE_WEBGPU_BUILD"));
    let limits = &caps.limits;
    let max_bytes = limits.max_buffer_size.min(limits.max_storage_buffer_binding_size);
    info.arena = Arena { pools: 3, align: 256, max_bytes };
    info
}

/// Most bytes of a binding: kernels count bytes by 32 bits, and the last step of their loops goes beyond. Metal has larger ones.
const MOST_BOUND: u64 = (u32::MAX as u64 - 512) / 256 * 256;

/// Invocations and bytes of workgroup memory that kernels rely on: what WebGPU has everywhere, and old OpenGL does not.
pub(crate) const WORKGROUP: (u32, u32) = (256, 16_384);

/// Whether workgroups are as large as kernels need them.
pub(crate) fn computes(limits: &wgpu::Limits) -> bool {
    let (invocations, bytes) = WORKGROUP;
    limits.max_compute_invocations_per_workgroup >= invocations
        && limits.max_compute_workgroup_size_x >= invocations
        && limits.max_compute_workgroup_storage_size >= bytes
}

fn caps_of(
    info: &wgpu::AdapterInfo,
    adapter: Option<&wgpu::Adapter>,
    device: (wgpu::Limits, wgpu::Features),
) -> WebGpuCaps {
    let (mut limits, features) = device;
    limits.max_storage_buffer_binding_size = limits.max_storage_buffer_binding_size.min(MOST_BOUND);
    let cooperative = match (adapter, features.contains(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX)) {
        (Some(adapter), true) => adapter.cooperative_matrix_properties(),
        _ => Vec::new(),
    };
    WebGpuCaps {
        limits,
        features,
        subgroup: (info.subgroup_min_size, info.subgroup_max_size),
        cooperative,
        software: info.device_type == wgpu::DeviceType::Cpu,
    }
}

/// Adapters that can compute, real ones first, and among them those of Vulkan, Metal and DX12.
#[cfg(not(target_arch = "wasm32"))]
fn adapters() -> Vec<wgpu::Adapter> {
    let find = |backends: wgpu::Backends| {
        let mut desc = wgpu::InstanceDescriptor::new_without_display_handle_from_env();
        desc.backends &= backends;
        let instance = wgpu::Instance::new(desc);
        let mut list = pollster::block_on(instance.enumerate_adapters(backends));
        list.retain(|adapter| {
            adapter.get_downlevel_capabilities().flags.contains(wgpu::DownlevelFlags::COMPUTE_SHADERS)
                && adapter.limits().max_storage_buffers_per_shader_stage >= 8
                && computes(&adapter.limits())
        });
        list
    };
    // the same GPUs again and slower: OpenGL is only asked where nothing else answers
    let mut list = find(wgpu::Backends::PRIMARY);
    if list.is_empty() {
        list = find(wgpu::Backends::GL);
    }
    let rank = |adapter: &wgpu::Adapter| match adapter.get_info().device_type {
        wgpu::DeviceType::DiscreteGpu => 0,
        wgpu::DeviceType::IntegratedGpu => 1,
        wgpu::DeviceType::VirtualGpu => 2,
        wgpu::DeviceType::Other => 3,
        wgpu::DeviceType::Cpu => 4,
    };
    list.sort_by_key(rank);
    list
}

impl WebGpuDevice {
    /// What can be opened, without opening it. The identities are those of no device.
    ///
    /// # Errors
    /// [`Error::NoDevice`]: without an adapter that computes.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn enumerate() -> Result<Vec<DeviceInfo>> {
        let list = adapters();
        if list.is_empty() {
            let why = "no driver for Vulkan, Metal, DX12 or OpenGL offers an adapter that computes";
            return Err(absent("webgpu:0", why));
        }
        Ok(list
            .iter()
            .enumerate()
            .map(|(index, adapter)| {
                let info = adapter.get_info();
                let caps = caps_of(&info, Some(adapter), (adapter.limits(), wanted(adapter)));
                describe(index, &info, Arc::new(caps))
            })
            .collect())
    }

    /// Opens an adapter by its number.
    ///
    /// # Errors
    /// [`Error::NoDevice`]: there is no such adapter, or it gives no device.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn open(index: usize) -> Result<Self> {
        let id = format!("webgpu:{index}");
        let list = adapters();
        let Some(adapter) = list.get(index) else {
            let why = match list.len() {
                0 => "no driver for Vulkan, Metal, DX12 or OpenGL offers an adapter that computes".into(),
                1 => "there is one adapter: webgpu:0".into(),
                count => format!("there are {count} adapters: webgpu:0 to webgpu:{}", count - 1),
            };
            return Err(absent(&id, why));
        };
        pollster::block_on(Self::of_adapter(index, adapter))
    }

    /// Opens the adapter that a browser prefers.
    ///
    /// # Errors
    /// [`Error::NoDevice`]: the browser has no WebGPU, or no adapter.
    #[cfg(target_arch = "wasm32")]
    pub async fn open_preferred() -> Result<Self> {
        let mut desc = wgpu::InstanceDescriptor::new_without_display_handle();
        desc.backends = wgpu::Backends::BROWSER_WEBGPU;
        let instance = wgpu::Instance::new(desc);
        let options = wgpu::RequestAdapterOptions {
            power_preference: wgpu::PowerPreference::HighPerformance,
            ..Default::default()
        };
        let adapter =
            instance.request_adapter(&options).await.map_err(|e| absent("webgpu:0", e.to_string()))?;
        Self::of_adapter(0, &adapter).await
    }

    /// Opens an adapter, with all that it can do.
    ///
    /// # Errors
    /// [`Error::NoDevice`]: it gives no device.
    pub async fn of_adapter(index: usize, adapter: &wgpu::Adapter) -> Result<Self> {
        let desc = wgpu::DeviceDescriptor {
            label: Some("perjoule"),
            required_features: wanted(adapter),
            required_limits: adapter.limits(),
            // SAFETY: what is experimental may be unsound in wgpu; kernels that need it are rows of their own, refused elsewhere.
            experimental_features: unsafe { wgpu::ExperimentalFeatures::enabled() },
            memory_hints: wgpu::MemoryHints::Performance,
            trace: wgpu::Trace::Off,
        };
        let id = format!("webgpu:{index}");
        let (device, queue) = adapter.request_device(&desc).await.map_err(|e| absent(&id, e.to_string()))?;
        let info = adapter.get_info();
        let caps = caps_of(&info, Some(adapter), (device.limits(), device.features()));
        let faults = Arc::<Faults>::default();
        faults.listen(&device);
        Ok(Self::new(index, &info, caps, (device, queue), faults))
    }

    /// A device of the caller's. Memory, streams and launches are that device's; kernels use the features that it was opened with.
    ///
    /// Its handlers of uncaptured errors and of its loss stay the caller's. Natively errors of launches are told all the same, since they
    /// arise within calls, and its loss is noticed at the latest where somebody waits; a browser tells the caller's handlers alone.
    pub fn of_device(device: wgpu::Device, queue: wgpu::Queue) -> Self {
        let info = device.adapter_info();
        let caps = caps_of(&info, None, (device.limits(), device.features()));
        Self::new(0, &info, caps, (device, queue), Arc::default())
    }

    fn new(
        index: usize,
        adapter: &wgpu::AdapterInfo,
        caps: WebGpuCaps,
        device: (wgpu::Device, wgpu::Queue),
        faults: Arc<Faults>,
    ) -> Self {
        let caps = Arc::new(caps);
        let info = describe(index, adapter, caps.clone());
        #[cfg(not(target_arch = "wasm32"))]
        let pipelines = Pipelines::with_cache(crate::cache::DiskCache::open(&device.0, adapter));
        #[cfg(target_arch = "wasm32")]
        let pipelines = Pipelines::default();
        let inner = Inner::new(info.id, info.label.clone(), device, caps, pipelines, faults);
        WebGpuDevice { info, table: Table::new(crate::table::rows()), inner: Arc::new(inner) }
    }

    /// What its rows know of it.
    pub fn caps(&self) -> &WebGpuCaps {
        &self.inner.caps
    }

    /// `wgpu`'s device, for code beside ours.
    pub fn device(&self) -> &wgpu::Device {
        &self.inner.device
    }

    /// `wgpu`'s queue, for code beside ours. Work of streams is in it behind [`Stream::sync`], [`Stream::record`] or a read.
    pub fn queue(&self) -> &wgpu::Queue {
        &self.inner.queue
    }

    /// Waits until every kernel that was prepared so far is compiled. Without this, a launch waits for its own; all are compiled side by
    /// side from when they are prepared.
    ///
    /// # Errors
    /// [`Error::Fault`], with the kernel's name, where one does not compile; [`Error::Lost`] when the device is gone.
    pub fn compiled(&self) -> Result<()> {
        self.inner.pipelines.compiled(&self.inner)
    }

    /// A buffer of the caller's, of this device. Its size in bytes is a multiple of 4. Wrapped again it is the same memory, so that operands
    /// which overlap are seen.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when it was made without the usages that kernels and copies need ([`USAGES`]).
    pub fn wrap(&self, buffer: wgpu::Buffer) -> Result<Buffer> {
        if !buffer.usage().contains(USAGES) || !buffer.size().is_multiple_of(4) {
            return Err(Error::Unsupported {
                what: "this buffer",
                why: format!("it needs the usages {USAGES:?} and a size in whole words of 4 bytes"),
            });
        }
        Ok(Buffer::new(self.inner.wrapped(buffer)))
    }

    pub(crate) fn inner(&self) -> &Arc<Inner> {
        &self.inner
    }
}

impl Device for WebGpuDevice {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn table(&self) -> &Table {
        &self.table
    }

    fn alloc(&self, bytes: u64) -> Result<Buffer> {
        self.inner.alloc(bytes)
    }

    fn alloc_any(&self, bytes: u64) -> Result<Buffer> {
        self.inner.alloc_any(bytes)
    }

    fn stream(&self) -> Result<Box<dyn Stream>> {
        self.inner.alive()?;
        Ok(Box::new(WebGpuStream::new(self.inner.clone())))
    }

    fn join(&self, _id: &[u8], rank: u32, world: u32) -> Result<Arc<dyn Comm>> {
        alone(rank, world, "WebGPU moves nothing between devices")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bindings_stay_below_what_32_bits_count() {
        let (device, _) = wgpu::Device::noop(&Default::default());
        let adapter = device.adapter_info();
        // as Metal has it
        let large = 32 << 30;
        let limits = wgpu::Limits {
            max_buffer_size: large,
            max_storage_buffer_binding_size: large,
            ..Default::default()
        };
        let caps = caps_of(&adapter, None, (limits, wgpu::Features::empty()));
        let most = describe(0, &adapter, Arc::new(caps)).arena.max_bytes;
        assert!(((4 << 30) - 1024..(4 << 30) - 256).contains(&most) && most.is_multiple_of(256), "{most}");
    }
}
