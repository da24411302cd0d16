//! Instruction sets and caches, found at run time.

use std::fmt;

/// Names that `PERJOULE_CPU_FEATURES` takes on this architecture: each level allows its own instruction set and those before it.
///
/// | on x86-64 | on Arm, 64 bits | allows |
/// |---|---|---|
/// | `portable` | `portable` | code for the baseline |
/// | `avx2` | `neon` | vectors of 256 bits with FMA and F16C; of 128 bits |
/// | `avx512` | | vectors of 512 bits |
/// | `avx512vnni` | `neondot` | dot products of four bytes |
/// | | `neoni8mm` | those of signed with unsigned bytes |
/// | `avx512bf16` | `neonbf16` | dot products of two bf16 |
/// | `amx` | | tiles |
pub const LEVELS: &str = if cfg!(target_arch = "x86_64") {
    "portable, avx2, avx512, avx512vnni, avx512bf16, amx"
} else if cfg!(target_arch = "aarch64") {
    "portable, neon, neondot, neoni8mm, neonbf16"
} else {
    "portable"
};

/// What the processor offers, as far as rows look at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Features {
    /// AVX2, FMA and F16C: 256-bit vectors.
    pub avx2: bool,
    /// AVX-512 F, BW, DQ and VL: 512-bit vectors.
    pub avx512: bool,
    /// AVX-512 VNNI beside it: dot products of four bytes.
    pub avx512_vnni: bool,
    /// AVX-512 BF16 beside that: dot products of two bf16.
    pub avx512_bf16: bool,
    /// AMX tiles of bf16 beside all of that, with the system's leave to use them.
    pub amx_bf16: bool,
    /// AMX tiles of bytes, likewise.
    pub amx_int8: bool,
    /// NEON (Advanced SIMD): 128-bit vectors.
    pub neon: bool,
    /// FEAT_DotProd beside it: dot products of four bytes of one signedness.
    pub neon_dot: bool,
    /// FEAT_I8MM beside that: dot products of four i8 with four u8.
    pub neon_i8mm: bool,
    /// FEAT_BF16 beside that: dot products of two bf16.
    pub neon_bf16: bool,
}

impl Features {
    /// What this processor has, less what the environment variable `PERJOULE_CPU_FEATURES` (one of [`LEVELS`]) masks.
    pub fn detect() -> Result<Self, UnknownLevel> {
        let mut features = Self::of_processor();
        if let Ok(level) = std::env::var("PERJOULE_CPU_FEATURES") {
            features = features.masked(&level)?;
        }
        Ok(features)
    }

    /// What this processor has.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn of_processor() -> Self {
        let avx2 = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        let avx512 = avx2
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl");
        let avx512_vnni = avx512 && is_x86_feature_detected!("avx512vnni");
        let avx512_bf16 = avx512_vnni && is_x86_feature_detected!("avx512bf16");
        let (amx_bf16, amx_int8) = if avx512_bf16 { amx() } else { (false, false) };
        Features { avx2, avx512, avx512_vnni, avx512_bf16, amx_bf16, amx_int8, ..Features::default() }
    }

    /// What this processor has.
    #[cfg(target_arch = "aarch64")]
    pub(crate) fn of_processor() -> Self {
        use std::arch::is_aarch64_feature_detected;
        let neon = is_aarch64_feature_detected!("neon");
        let neon_dot = neon && is_aarch64_feature_detected!("dotprod");
        let neon_i8mm = neon_dot && is_aarch64_feature_detected!("i8mm");
        let neon_bf16 = neon_i8mm && is_aarch64_feature_detected!("bf16");
        Features { neon, neon_dot, neon_i8mm, neon_bf16, ..Features::default() }
    }

    /// Nothing that rows look at.
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    pub(crate) fn of_processor() -> Self {
        Features::default()
    }

    /// The same without what lies above `level`, one of [`LEVELS`]; all of it for an empty one.
    ///
    /// # Errors
    /// [`UnknownLevel`], for levels of other architectures too.
    pub fn masked(self, level: &str) -> Result<Self, UnknownLevel> {
        if level.is_empty() {
            return Ok(self);
        }
        let rank = LEVELS.split(", ").position(|known| known == level);
        let rank = rank.ok_or_else(|| UnknownLevel(level.to_string()))?;
        let Features { avx2, avx512, avx512_vnni, avx512_bf16, amx_bf16, amx_int8, .. } = self;
        let Features { neon, neon_dot, neon_i8mm, neon_bf16, .. } = self;
        Ok(Features {
            avx2: avx2 && rank >= 1,
            avx512: avx512 && rank >= 2,
            avx512_vnni: avx512_vnni && rank >= 3,
            avx512_bf16: avx512_bf16 && rank >= 4,
            amx_bf16: amx_bf16 && rank >= 5,
            amx_int8: amx_int8 && rank >= 5,
            neon: neon && rank >= 1,
            neon_dot: neon_dot && rank >= 2,
            neon_i8mm: neon_i8mm && rank >= 3,
            neon_bf16: neon_bf16 && rank >= 4,
        })
    }

    /// What both have.
    pub(crate) fn and(self, other: Self) -> Self {
        Features {
            avx2: self.avx2 && other.avx2,
            avx512: self.avx512 && other.avx512,
            avx512_vnni: self.avx512_vnni && other.avx512_vnni,
            avx512_bf16: self.avx512_bf16 && other.avx512_bf16,
            amx_bf16: self.amx_bf16 && other.amx_bf16,
            amx_int8: self.amx_int8 && other.amx_int8,
            neon: self.neon && other.neon,
            neon_dot: self.neon_dot && other.neon_dot,
            neon_i8mm: self.neon_i8mm && other.neon_i8mm,
            neon_bf16: self.neon_bf16 && other.neon_bf16,
        }
    }

    /// Names, for listings.
    pub fn names(self) -> Vec<String> {
        let all = [
            ("avx2", self.avx2),
            ("fma", self.avx2),
            ("f16c", self.avx2),
            ("avx512", self.avx512),
            ("avx512vnni", self.avx512_vnni),
            ("avx512bf16", self.avx512_bf16),
            ("amx-bf16", self.amx_bf16),
            ("amx-int8", self.amx_int8),
            ("neon", self.neon),
            ("neondot", self.neon_dot),
            ("neoni8mm", self.neon_i8mm),
            ("neonbf16", self.neon_bf16),
        ];
        all.iter().filter(|(_, has)| *has).map(|(name, _)| name.to_string()).collect()
    }
}

/// Whether this process may use tiles of bf16 and of bytes: the processor has them and the system gives leave, for which it is asked once.
/// A thread's state then holds tiles.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn amx() -> (bool, bool) {
    static ASKED: std::sync::OnceLock<(bool, bool)> = std::sync::OnceLock::new();
    *ASKED.get_or_init(|| {
        // leaf 7: bits 22 (bf16), 24 (tiles) and 25 (int8) of EDX
        let leaf = std::arch::x86_64::__cpuid_count(7, 0).edx;
        let has = |bit: u32| leaf >> bit & 1 == 1;
        if has(24) && crate::simd::may_use_tiles() { (has(22), has(25)) } else { (false, false) }
    })
}

/// Only Linux is asked for leave.
#[cfg(all(target_arch = "x86_64", not(target_os = "linux")))]
fn amx() -> (bool, bool) {
    (false, false)
}

/// `PERJOULE_CPU_FEATURES` names no level.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownLevel(pub String);

impl fmt::Display for UnknownLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PERJOULE_CPU_FEATURES is {:?}; expected one of {LEVELS}", self.0)
    }
}

/// Sizes of the data caches a core sees, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caches {
    /// First level, of one core.
    pub l1d: usize,
    /// Second level, of one core.
    pub l2: usize,
    /// Last level, shared.
    pub l3: usize,
}

impl Caches {
    /// As the system reports them; common sizes where it does not.
    pub fn detect() -> Self {
        let mut caches = Caches { l1d: 32 << 10, l2: 512 << 10, l3: 8 << 20 };
        for index in 0..8 {
            let read = |file: &str| {
                let path = format!("/sys/devices/system/cpu/cpu0/cache/index{index}/{file}");
                std::fs::read_to_string(path).ok().map(|s| s.trim().to_string())
            };
            let (Some(level), Some(kind), Some(size)) = (read("level"), read("type"), read("size")) else {
                continue;
            };
            let Some(bytes) = size.strip_suffix('K').and_then(|s| s.parse::<usize>().ok()).map(|k| k << 10)
            else {
                continue;
            };
            match (level.as_str(), kind.as_str()) {
                ("1", "Data") => caches.l1d = bytes,
                ("2", "Unified" | "Data") => caches.l2 = bytes,
                ("3", "Unified" | "Data") => caches.l3 = bytes,
                _ => {}
            }
        }
        caches
    }
}

/// The processor's name, as it says itself.
pub fn processor_name() -> String {
    #[cfg(target_os = "linux")]
    if let Ok(text) = std::fs::read_to_string("/proc/cpuinfo") {
        let line = text.lines().find(|l| l.starts_with("model name"));
        if let Some((_, name)) = line.and_then(|l| l.split_once(':')) {
            return name.trim().to_string();
        }
    }
    format!("{} CPU", std::env::consts::ARCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_allow_ever_more_and_those_of_other_architectures_are_unknown() {
        let all = Features::of_processor();
        let mut before = 0;
        for level in LEVELS.split(", ") {
            let masked = all.masked(level).unwrap();
            let names = masked.names();
            assert!(names.len() >= before && names.iter().all(|name| all.names().contains(name)), "{level}");
            assert!(
                level == "portable"
                    || names.contains(&level.to_string())
                    || !all.names().contains(&level.to_string())
            );
            assert_eq!(masked.masked(level), Ok(masked));
            before = names.len();
        }
        assert_eq!(all.masked("portable"), Ok(Features::default()));
        assert_eq!(all.masked(""), Ok(all));
        let other = if cfg!(target_arch = "aarch64") { "avx2" } else { "neon" };
        for unknown in [other, "avx", "AVX2", "portable,", ", "] {
            let error = all.masked(unknown).unwrap_err().to_string();
            assert!(error.contains(unknown) && error.ends_with(LEVELS), "{error}");
        }
    }
}
