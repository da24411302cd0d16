//! The CPU as a device.

use crate::features::{Caches, Features, processor_name};
use crate::memory::{Heap, HostMemory, available_bytes, total_bytes};
use crate::placement::{Machine, Placement};
use crate::stream::CpuStream;
use crate::team::Team;
use perjoule_kernels::device::alone;
use perjoule_kernels::{
    Arena, Buffer, Comm, Device, DeviceClass, DeviceId, DeviceInfo, Error, Result, Stream, Table,
};
use std::sync::Arc;

/// How to open the CPU.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Lanes of the team; `None` takes one for each fast core that this process may use, as [`Machine::lanes`] says.
    pub threads: Option<usize>,
    /// Instruction sets to use, of which those that the processor lacks are left out; `None` takes what [`Features::detect`] finds.
    pub features: Option<Features>,
}

/// What rows know of the CPU beyond [`DeviceInfo`]: get it with `info.caps::<CpuCaps>()`.
#[derive(Debug, Clone)]
pub struct CpuCaps {
    /// Instruction sets that rows may use.
    pub features: Features,
    /// Cache sizes.
    pub caches: Caches,
    /// Lanes of the team.
    pub threads: usize,
    /// Where they run.
    pub placement: Placement,
}

/// Lanes of the team of the device that `info` describes.
pub(crate) fn lanes(info: &DeviceInfo) -> usize {
    info.caps::<CpuCaps>().map_or(1, |caps| caps.threads)
}

/// The CPU, with a team of threads of its own.
pub struct CpuDevice {
    info: DeviceInfo,
    table: Table,
    pub(crate) inner: Arc<Inner>,
}

/// What streams share with their device.
pub(crate) struct Inner {
    pub(crate) id: DeviceId,
    pub(crate) team: Team,
    pub(crate) heap: Arc<Heap>,
}

impl Inner {
    pub(crate) fn memory(&self, bytes: u64) -> Result<HostMemory> {
        HostMemory::zeroed(self.id, self.team.region(), &self.heap, bytes)
    }

    pub(crate) fn alloc(&self, bytes: u64) -> Result<Buffer> {
        Ok(Buffer::new(Arc::new(self.memory(bytes)?)))
    }
}

impl CpuDevice {
    /// Opens the CPU. Each call makes a team of its own.
    pub fn open(options: &Options) -> Result<Self> {
        let info = Self::describe(options)?;
        let threads = lanes(&info);
        let placement = info.caps::<CpuCaps>().map(|caps| caps.placement.clone()).unwrap_or_default();
        let team = Team::placed(threads, &placement).map_err(|e| {
            let why = format!("{threads} threads could not be started: {e}; ask for fewer");
            Error::NoDevice { id: "cpu".into(), why }
        })?;
        let id = info.id;
        Ok(CpuDevice {
            info,
            table: Table::new(crate::table::rows()),
            inner: Arc::new(Inner { id, team, heap: Arc::new(Heap::new(placement.nodes)) }),
        })
    }

    /// What [`CpuDevice::open`] would open, without starting a thread. The identity is that of no device.
    pub fn describe(options: &Options) -> Result<DeviceInfo> {
        let refuse = |why: String| Error::NoDevice { id: "cpu".into(), why };
        let features = match options.features {
            Some(features) => features.and(Features::of_processor()),
            None => Features::detect().map_err(|e| refuse(e.to_string()))?,
        };
        let machine = Machine::detect();
        let threads = options.threads.unwrap_or(machine.lanes());
        if threads == 0 || threads > 4096 {
            return Err(refuse(format!("{threads} threads asked for; 1 to 4096 are possible")));
        }
        let caches = Caches::detect();
        let caps = CpuCaps { features, caches, threads, placement: machine.place(threads) };
        let mut info = DeviceInfo::new("cpu", "cpu", processor_name(), DeviceClass::Cpu, Arc::new(caps));
        info.memory_bytes = total_bytes();
        info.cache_bytes = Some(caches.l3.max(caches.l2) as u64);
        info.threads = Some(threads);
        info.features = features.names();
        info.build = Some(env!("PERJOULE_CPU_BUILD"));
        info.synchronous = true;
        info.arena = Arena { pools: 1, align: 64, max_bytes: isize::MAX as u64 };
        Ok(info)
    }

    /// Lanes of its team.
    pub fn threads(&self) -> usize {
        self.inner.team.lanes()
    }
}

impl Device for CpuDevice {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn table(&self) -> &Table {
        &self.table
    }

    fn free_bytes(&self) -> Option<u64> {
        available_bytes()
    }

    fn alloc(&self, bytes: u64) -> Result<Buffer> {
        self.inner.alloc(bytes)
    }

    fn alloc_any(&self, bytes: u64) -> Result<Buffer> {
        let Inner { id, team, heap } = &*self.inner;
        Ok(Buffer::new(Arc::new(HostMemory::any(*id, team.region(), heap, bytes)?)))
    }

    fn stream(&self) -> Result<Box<dyn Stream>> {
        Ok(Box::new(CpuStream::new(self.inner.clone())))
    }

    fn join(&self, _id: &[u8], rank: u32, world: u32) -> Result<Arc<dyn Comm>> {
        alone(rank, world, "the CPU backend runs in one process")
    }
}
