//! The backends of this process: those that were built in, and those registered from outside.

use crate::device::Device;
use perjoule_kernels::{Device as Opened, DeviceInfo, Error, Result};
use std::sync::{Arc, PoisonError, RwLock};

/// How to open a device.
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct OpenOptions {
    /// Host threads: the lanes of the CPU's team; backends without threads of their own refuse a number.
    pub threads: Option<usize>,
}

/// A backend: what a label such as `cuda:0` begins with, and how its devices are found and opened.
#[derive(Debug, Clone, Copy)]
pub struct Backend {
    /// The first part of its devices' labels, without a colon.
    pub name: &'static str,
    /// What its devices are, in the order of their indices, without opening one: no threads, no contexts. Their identities are those
    /// of no open device. The error says why there is none.
    pub enumerate: fn() -> Result<Vec<DeviceInfo>>,
    /// Opens device `index`. It need not be one that `enumerate` gives.
    pub open: fn(index: usize, options: &OpenOptions) -> Result<Arc<dyn Opened>>,
}

/// A backend that has no device here, and why.
#[derive(Debug, Clone)]
pub struct Absent {
    /// Such as `cpu`, `webgpu` or `cuda`.
    pub backend: &'static str,
    /// Why there is none.
    pub reason: String,
}

/// Backends of this workspace, whether they are built in or not.
const KNOWN: [&str; 3] = ["cpu", "webgpu", "cuda"];

const NOT_BUILT: &str = "this build has no such backend";

const BUILT_IN: &[Backend] = &[
    #[cfg(all(feature = "cpu", not(target_arch = "wasm32")))]
    CPU,
    #[cfg(all(feature = "webgpu", not(target_arch = "wasm32")))]
    WEBGPU,
    #[cfg(all(feature = "cuda", not(target_arch = "wasm32")))]
    CUDA,
];

#[cfg(all(feature = "cpu", not(target_arch = "wasm32")))]
const CPU: Backend = Backend {
    name: "cpu",
    enumerate: || Ok(vec![perjoule_cpu::CpuDevice::describe(&Default::default())?]),
    open: |index, options| {
        if index > 0 {
            let why = "there is one CPU device: cpu".into();
            return Err(Error::NoDevice { id: format!("cpu:{index}"), why });
        }
        let options = perjoule_cpu::Options { threads: options.threads, ..Default::default() };
        Ok(Arc::new(perjoule_cpu::CpuDevice::open(&options)?))
    },
};

#[cfg(all(feature = "webgpu", not(target_arch = "wasm32")))]
const WEBGPU: Backend = Backend {
    name: "webgpu",
    enumerate: perjoule_webgpu::WebGpuDevice::enumerate,
    open: |index, options| {
        if options.threads.is_some() {
            let why = "it has no host threads; leave their number out".into();
            return Err(Error::NoDevice { id: format!("webgpu:{index}"), why });
        }
        Ok(Arc::new(perjoule_webgpu::WebGpuDevice::open(index)?))
    },
};

#[cfg(all(feature = "cuda", not(target_arch = "wasm32")))]
const CUDA: Backend = Backend {
    name: "cuda",
    enumerate: perjoule_cuda::CudaDevice::enumerate,
    open: |index, options| {
        if options.threads.is_some() {
            let why = "it has no host threads; leave their number out".into();
            return Err(Error::NoDevice { id: format!("cuda:{index}"), why });
        }
        Ok(Arc::new(perjoule_cuda::CudaDevice::open(index)?))
    },
};

static REGISTERED: RwLock<Vec<Backend>> = RwLock::new(Vec::new());

/// Every backend of this process, built in or registered.
pub fn backends() -> Vec<Backend> {
    let registered = REGISTERED.read().unwrap_or_else(PoisonError::into_inner);
    BUILT_IN.iter().chain(registered.iter()).copied().collect()
}

/// Adds a backend from outside: from now on [`open`] and [`devices`] know it.
///
/// # Errors
/// [`Error::Unsupported`] when there is one of that name, or the name holds a colon.
pub fn register_backend(backend: Backend) -> Result<()> {
    let refuse = |why| Err(Error::Unsupported { what: "this backend", why });
    if backend.name.is_empty() || backend.name.contains(':') {
        return refuse(format!("its name {:?} must be the part of labels before the colon", backend.name));
    }
    let mut registered = REGISTERED.write().unwrap_or_else(PoisonError::into_inner);
    if BUILT_IN.iter().chain(registered.iter()).any(|known| known.name == backend.name) {
        return refuse(format!("there is a backend {:?} already", backend.name));
    }
    registered.push(backend);
    Ok(())
}

/// Every device that can be opened, and the backends that have none. Opens none of them: the identities are those of no open device.
pub fn devices() -> (Vec<DeviceInfo>, Vec<Absent>) {
    let (mut found, mut absent) = (Vec::new(), Vec::new());
    let backends = backends();
    for backend in &backends {
        match (backend.enumerate)() {
            Ok(list) if list.is_empty() => {
                absent.push(Absent { backend: backend.name, reason: "no device was found".into() });
            }
            Ok(list) => found.extend(list),
            // no device of that backend is asked for: only why there is none
            Err(Error::NoDevice { why, .. }) => absent.push(Absent { backend: backend.name, reason: why }),
            Err(error) => absent.push(Absent { backend: backend.name, reason: error.to_string() }),
        }
    }
    for name in KNOWN.into_iter().filter(|name| backends.iter().all(|b| b.name != *name)) {
        absent.push(Absent { backend: name, reason: NOT_BUILT.into() });
    }
    (found, absent)
}

/// Opens the device of that label: a backend's name, and the index of its device where that is not the first, as in `cpu` or `cuda:1`.
pub fn open(label: &str) -> Result<Device> {
    open_with(label, &OpenOptions::default())
}

/// Opens a device with a number of host threads: the lanes of the CPU's team; other backends refuse one.
pub fn open_with_threads(label: &str, threads: Option<usize>) -> Result<Device> {
    open_with(label, &OpenOptions { threads })
}

fn open_with(label: &str, options: &OpenOptions) -> Result<Device> {
    let refuse = |why: String| Err(Error::NoDevice { id: label.to_string(), why });
    let (name, index) = label.split_once(':').map_or((label, "0"), |(name, index)| (name, index));
    let backends = backends();
    let Some(backend) = backends.iter().find(|backend| backend.name == name) else {
        let names: Vec<&str> = backends.iter().map(|backend| backend.name).collect();
        let why = if KNOWN.contains(&name) { NOT_BUILT } else { "no backend of that name" };
        return refuse(format!("{why}; the backends here are: {}", names.join(", ")));
    };
    match index.parse() {
        Ok(index) => Device::new((backend.open)(index, options)?),
        Err(_) => refuse(format!("labels look like {name} or {name}:0")),
    }
}
