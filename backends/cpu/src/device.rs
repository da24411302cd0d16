//! The CPU as a device.

use crate::features::{Caches, Features, processor_name};
use crate::memory::{Freed, HostMemory, available_bytes, total_bytes};
use crate::stream::CpuStream;
use crate::team::Team;
use perjoule_kernels::tune::Tuning;
use perjoule_kernels::{
    Arena, Buffer, Comm, Device, DeviceClass, DeviceId, DeviceInfo, Error, Kernel, Result, Stream,
};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock};

/// How to open the CPU.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Lanes of the team; `None` takes one for each processor that this process may use.
    pub threads: Option<usize>,
    /// Instruction sets to use; `None` takes what [`Features::detect`] finds.
    pub features: Option<Features>,
}

/// What rows know of the CPU beyond [`DeviceInfo`]: get it with `info.caps::<CpuCaps>()`.
#[derive(Debug, Clone, Copy)]
pub struct CpuCaps {
    /// Instruction sets that rows may use.
    pub features: Features,
    /// Cache sizes.
    pub caches: Caches,
    /// Lanes of the team.
    pub threads: usize,
}

/// Lanes of the team of the device that `info` describes.
pub(crate) fn lanes(info: &DeviceInfo) -> usize {
    info.caps::<CpuCaps>().map_or(1, |caps| caps.threads)
}

/// The CPU, with a team of threads of its own.
pub struct CpuDevice {
    info: DeviceInfo,
    rows: RwLock<Arc<[&'static Kernel]>>,
    tuning: RwLock<Option<Arc<Tuning>>>,
    revision: AtomicU64,
    pub(crate) inner: Arc<Inner>,
}

/// What streams share with their device.
pub(crate) struct Inner {
    pub(crate) id: DeviceId,
    pub(crate) team: Team,
    pub(crate) freed: Arc<Freed>,
}

impl Inner {
    pub(crate) fn memory(&self, bytes: u64) -> Result<HostMemory> {
        HostMemory::zeroed(self.id, self.team.region(), &self.freed, bytes)
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
        let team = Team::new(threads).map_err(|e| {
            let why = format!("{threads} threads could not be started: {e}; ask for fewer");
            Error::NoDevice { id: "cpu".into(), why }
        })?;
        let id = info.id;
        let rows: Vec<&'static Kernel> = crate::table::rows().collect();
        Ok(CpuDevice {
            info,
            rows: RwLock::new(rows.into()),
            tuning: RwLock::new(None),
            revision: AtomicU64::new(0),
            inner: Arc::new(Inner { id, team, freed: Arc::default() }),
        })
    }

    /// What [`CpuDevice::open`] would open, without starting a thread. The identity is that of no device.
    pub fn describe(options: &Options) -> Result<DeviceInfo> {
        let refuse = |why: String| Error::NoDevice { id: "cpu".into(), why };
        let features = match options.features {
            Some(features) => features,
            None => Features::detect().map_err(|e| refuse(e.to_string()))?,
        };
        let available = std::thread::available_parallelism().map_or(1, |n| n.get());
        let threads = options.threads.unwrap_or(available);
        if threads == 0 || threads > 4096 {
            return Err(refuse(format!("{threads} threads asked for; 1 to 4096 are possible")));
        }
        let caches = Caches::detect();
        let caps = CpuCaps { features, caches, threads };
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

    /// After the change: who reads the new revision sees it.
    fn revised(&self) {
        self.revision.fetch_add(1, Ordering::Release);
    }
}

impl Device for CpuDevice {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn kernels(&self) -> Arc<[&'static Kernel]> {
        self.rows.read().unwrap_or_else(|e| e.into_inner()).clone()
    }

    fn register(&self, row: &'static Kernel) -> Result<()> {
        let mut rows = self.rows.write().unwrap_or_else(|e| e.into_inner());
        if rows.iter().any(|r| r.name == row.name) {
            return Err(Error::Unsupported {
                what: "a second row of the same name",
                why: format!("{} is in the table", row.name),
            });
        }
        // in front: of equal costs the row from outside wins, and the reference row stays last
        *rows = std::iter::once(row).chain(rows.iter().copied()).collect();
        self.revised();
        Ok(())
    }

    fn built_in(&self, row: &'static Kernel) -> bool {
        crate::table::rows().any(|own| std::ptr::eq(own, row))
    }

    fn tuning(&self) -> Option<Arc<Tuning>> {
        self.tuning.read().unwrap_or_else(|e| e.into_inner()).clone()
    }

    fn set_tuning(&self, tuning: Option<Arc<Tuning>>) -> Result<()> {
        *self.tuning.write().unwrap_or_else(|e| e.into_inner()) = tuning;
        self.revised();
        Ok(())
    }

    fn free_bytes(&self) -> Option<u64> {
        available_bytes()
    }

    fn revision(&self) -> u64 {
        self.revision.load(Ordering::Acquire)
    }

    fn alloc(&self, bytes: u64) -> Result<Buffer> {
        self.inner.alloc(bytes)
    }

    fn alloc_any(&self, bytes: u64) -> Result<Buffer> {
        let Inner { id, team, freed } = &*self.inner;
        Ok(Buffer::new(Arc::new(HostMemory::any(*id, team.region(), freed, bytes)?)))
    }

    fn stream(&self) -> Result<Box<dyn Stream>> {
        Ok(Box::new(CpuStream::new(self.inner.clone())))
    }

    fn join(&self, _id: &[u8], rank: u32, world: u32) -> Result<Arc<dyn Comm>> {
        match (rank, world) {
            (0, 1) => Ok(Arc::new(Alone)),
            (_, 0 | 1) => Err(Error::Invalid {
                op: "join",
                field: "rank and world",
                got: format!("{rank} of {world}"),
                expected: "rank 0 of 1".into(),
            }),
            _ => Err(Error::Unsupported {
                what: "a group of several ranks",
                why: format!("the CPU backend runs in one process; join a world of 1, not {world}"),
            }),
        }
    }
}

/// The group of one that a process is by itself.
struct Alone;

impl Comm for Alone {
    fn rank(&self) -> u32 {
        0
    }

    fn world(&self) -> u32 {
        1
    }
}
