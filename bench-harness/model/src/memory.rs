//! Whether a model fits, said before anything is allocated.

use std::path::Path;

use perjoule_kernels::dtype::DType;

use crate::config::Geometry;
use crate::error::{Error, Result};
use crate::weights::{Role, WeightShape};

/// Bytes that a model takes, activations apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryNeed {
    /// Weights: matrices in the chosen dtype, vectors in f32.
    pub weights: u64,
    /// Keys and values of every layer.
    pub kv_cache: u64,
}

impl MemoryNeed {
    /// Both together.
    pub fn total(self) -> u64 {
        self.weights.saturating_add(self.kv_cache)
    }

    /// Refuses when more is needed than `available` bytes.
    ///
    /// # Errors
    /// [`Error::Memory`] with both numbers.
    pub fn check(self, available: u64) -> Result<()> {
        if self.total() > available {
            return Err(Error::Memory { weights: self.weights, kv_cache: self.kv_cache, available });
        }
        Ok(())
    }
}

/// Bytes for `geometry` with matrices in `weights` and a KV cache in `kv` of `batch` sequences of `tokens` each.
///
/// A tied head counts twice: it is packed for the product, and kept plain for looking up. Experts that are published as MXFP4 stay so. A matrix that does not divide into `weights`' blocks counts rounded up. A sliding window
/// saves nothing here: the cache holds all `tokens` in each layer. Saturates rather than overflows.
pub fn memory_needed(
    geometry: &Geometry,
    weights: DType,
    kv: DType,
    tokens: usize,
    batch: usize,
) -> MemoryNeed {
    let of_weight = |w: &WeightShape| w.role.stored_as(weights, geometry.mxfp4_experts);
    need(geometry, of_weight, kv, tokens, batch)
}

/// The same, with a type for each weight.
pub(crate) fn need(
    geometry: &Geometry,
    dtype_of: impl Fn(&WeightShape) -> DType,
    kv: DType,
    tokens: usize,
    batch: usize,
) -> MemoryNeed {
    let bytes = |dtype: DType, elements: u64| {
        elements.div_ceil(dtype.block_len() as u64).saturating_mul(dtype.block_bytes() as u64)
    };
    let of_weight = |w: &WeightShape| bytes(dtype_of(w), w.elements());
    let cached = geometry.kv_elements_per_token().saturating_mul(tokens as u64).saturating_mul(batch as u64);
    let all = geometry.weights();
    let head = all.iter().filter(|w| geometry.tied_head && w.role == Role::Embed);
    MemoryNeed {
        weights: all.iter().chain(head).map(of_weight).fold(0, u64::saturating_add),
        kv_cache: bytes(kv, cached),
    }
}

/// Bytes that this process can still allocate: the least of the system's `MemAvailable` and what the limits of its control groups leave.
/// `None` where the system does not say (anything but Linux).
pub fn available_memory() -> Option<u64> {
    available_under(Path::new("/"))
}

/// As [`available_memory`], with `/proc` and `/sys` looked for below `root`.
fn available_under(root: &Path) -> Option<u64> {
    let read = |path: &str| std::fs::read_to_string(root.join(path)).ok();
    let meminfo = read("proc/meminfo")?;
    let kib: u64 = meminfo.lines().find_map(|line| {
        line.strip_prefix("MemAvailable:")?.trim().strip_suffix("kB")?.trim().parse().ok()
    })?;
    let mut available = kib.saturating_mul(1024);
    for line in read("proc/self/cgroup").unwrap_or_default().lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(group)) = (parts.next(), parts.next()) else { continue };
        // Version 2 has one hierarchy without controllers in its line, version 1 one for memory.
        let (base, limit, usage) = match controllers {
            "" => ("sys/fs/cgroup", "memory.max", "memory.current"),
            c if c.split(',').any(|c| c == "memory") => {
                ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes")
            }
            _ => continue,
        };
        // A limit binds everything below it. In a container the group's path may not exist: then the root stands for it.
        let mut group = group.trim_matches('/');
        loop {
            let file = |name: &str| read(&format!("{base}/{group}/{name}"));
            let number = |name: &str| file(name)?.trim().parse::<u64>().ok();
            if let (Some(limit), Some(used)) = (number(limit), number(usage)) {
                // Page cache that nobody touched lately is given back under pressure.
                let stat = file("memory.stat").unwrap_or_default();
                let reclaimable =
                    stat.lines().find_map(|l| l.strip_prefix("inactive_file ")?.trim().parse().ok());
                let held = used.saturating_sub(reclaimable.unwrap_or(0));
                available = available.min(limit.saturating_sub(held));
            }
            match group.rfind('/') {
                Some(parent) => group = &group[..parent],
                None if group.is_empty() => break,
                None => group = "",
            }
        }
    }
    Some(available)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn llama_1b_needs_what_its_sizes_say() {
        let g = crate::zoo::geometry("llama-3.2-1b").unwrap();
        let need = memory_needed(&g, DType::BF16, DType::F16, 1024, 2);
        let vectors = 2048 * (2 * 16 + 1);
        let head = 128_256 * 2048; // tied: there once plain and once packed
        assert_eq!(need.weights, 2 * (1_235_814_400 - vectors + head) + 4 * vectors);
        assert_eq!(need.kv_cache, 2 * 16 * 8 * 64 * 2 * 1024 * 2);
        assert!(need.check(need.total()).is_ok());
        let message = need.check(1 << 30).unwrap_err().to_string();
        assert!(message.contains("2.9 GiB") && message.contains("1.0 GiB are available"), "{message}");
    }

    #[test]
    fn mxfp4_experts_keep_their_format() {
        let g = crate::zoo::geometry("gpt-oss-20b").unwrap();
        let gib = memory_needed(&g, DType::BF16, DType::BF16, 0, 1).weights as f64 / 1e9;
        // The published files take 13.8 GB.
        assert!((13.7..13.9).contains(&gib), "{gib}");
    }

    #[test]
    fn absurd_requests_saturate() {
        let g = crate::zoo::geometry("llama-3.1-405b").unwrap();
        let need = memory_needed(&g, DType::F32, DType::F32, usize::MAX, usize::MAX);
        assert!(need.check(u64::MAX - 1).is_err());
    }

    #[test]
    fn the_tightest_limit_counts() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        assert_eq!(available_under(root.path()), None);
        write("proc/meminfo", "MemTotal:       200 kB\nMemAvailable:   100 kB\n");
        assert_eq!(available_under(root.path()), Some(100 * 1024));
        write("proc/self/cgroup", "0::/outer/inner\n");
        write("sys/fs/cgroup/outer/inner/memory.max", "max\n");
        write("sys/fs/cgroup/outer/inner/memory.current", "10\n");
        assert_eq!(available_under(root.path()), Some(100 * 1024));
        write("sys/fs/cgroup/outer/memory.max", "50000\n");
        write("sys/fs/cgroup/outer/memory.current", "20000\n");
        write("sys/fs/cgroup/outer/memory.stat", "anon 5000\ninactive_file 8000\n");
        assert_eq!(available_under(root.path()), Some(38_000));
        write("proc/self/cgroup", "4:cpu,cpuacct:/\n3:memory:/docker/abc\n");
        write("sys/fs/cgroup/memory/memory.limit_in_bytes", "3000\n");
        write("sys/fs/cgroup/memory/memory.usage_in_bytes", "4000\n");
        assert_eq!(available_under(root.path()), Some(0));
    }
}
