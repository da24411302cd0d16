//! Where and with what a record was made. Host and user names are left out, so that results can be shared.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::schema::count;

/// The machine, the system and the build. Collected once a run; every record of the run carries it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Environment {
    /// Shared by all records of one run; sorts by time.
    pub run_id: Option<String>,
    /// Version of perjoule.
    pub perjoule_version: Option<String>,
    /// Commit that the program was built from, with `-dirty` if tracked sources differed from it then.
    pub build_commit: Option<String>,
    /// The compiler that built it, as `rustc --version` prints it.
    pub rustc: Option<String>,
    /// The command line, quoted for a POSIX shell, the program without its folder.
    pub command: Option<String>,
    /// Operating system, such as `linux`.
    pub os: Option<String>,
    /// Distribution or release of the operating system.
    pub os_version: Option<String>,
    /// Version of the kernel of the operating system.
    pub kernel_version: Option<String>,
    /// Instruction set architecture, such as `x86_64`.
    pub arch: Option<String>,
    /// The CPU's own name.
    pub cpu_model: Option<String>,
    /// Instruction set extensions found that kernels are chosen by.
    pub cpu_features: Option<Vec<String>>,
    /// Logical processors of the machine.
    #[serde(default, deserialize_with = "count")]
    pub cpu_count: Option<u64>,
    /// Processors' worth of time that the control groups allow this process (cgroup v2). Null: no limit found.
    pub cpu_limit: Option<f64>,
    /// Memory of the machine in bytes.
    #[serde(default, deserialize_with = "count")]
    pub memory_bytes: Option<u64>,
    /// Memory that the control groups allow this process (cgroup v2), in bytes. Null: no limit found.
    #[serde(default, deserialize_with = "count")]
    pub memory_limit_bytes: Option<u64>,
    /// Frequency governor of the first CPU. Null where there is none to read, as in most virtual machines.
    pub governor: Option<String>,
    /// Whether this ran in a virtual machine. Null: cannot tell.
    pub virtualized: Option<bool>,
}

impl Environment {
    /// What is known without asking the system: version and architecture. The program fills in its own commit and compiler; for wasm32
    /// the page fills in the rest.
    pub fn of_build() -> Self {
        Self {
            perjoule_version: Some(env!("CARGO_PKG_VERSION").into()),
            arch: Some(std::env::consts::ARCH.into()),
            ..Self::default()
        }
    }

    /// What Linux tells in files under `root` (`/`, or a copy of its files): governor, virtualization and the limits of control groups.
    /// Everything else is unknown.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn of_linux_files(root: &std::path::Path) -> Self {
        let mut environment = Self::default();
        native::read_linux(root, &mut environment);
        environment
    }

    /// Collects the environment of this process, with a fresh `run_id`. `cpu_features` are the extensions that the
    /// caller's kernels look at. What cannot be read is null; nothing fails.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn collect(cpu_features: Vec<String>) -> Self {
        let mut environment = Self {
            run_id: Some(native::run_id()),
            command: Some(native::command(std::env::args_os())),
            cpu_features: Some(cpu_features),
            ..Self::of_build()
        };
        native::ask_system(&mut environment);
        native::read_linux(std::path::Path::new("/"), &mut environment);
        environment
    }
}

#[cfg(not(target_arch = "wasm32"))]
mod native {
    use std::ffi::OsString;
    use std::hash::{BuildHasher, RandomState};
    use std::path::{Path, PathBuf};

    use sysinfo::{CpuRefreshKind, MemoryRefreshKind, RefreshKind, System};

    use super::Environment;

    /// The time, and 32 random bits: `RandomState` is seeded by the system for each process.
    pub(super) fn run_id() -> String {
        let unique = RandomState::new().hash_one(std::process::id()) as u32;
        let time = crate::time::now().unwrap_or_else(|| "unknown-time".into());
        format!("{}-{unique:08x}", time.replace([':', '-'], ""))
    }

    /// Arguments as a line that a POSIX shell would read back, the program without its folder.
    pub(super) fn command(mut arguments: impl Iterator<Item = OsString>) -> String {
        let program = arguments.next().map(PathBuf::from).unwrap_or_default();
        let program = program.file_name().unwrap_or_default().to_owned();
        let quoted: Vec<String> =
            std::iter::once(program).chain(arguments).map(|word| quote(&word.to_string_lossy())).collect();
        quoted.join(" ")
    }

    fn quote(word: &str) -> String {
        let plain = |c: char| c.is_ascii_alphanumeric() || "_-./:=,+@%".contains(c);
        if !word.is_empty() && word.chars().all(plain) {
            word.to_owned()
        } else {
            format!("'{}'", word.replace('\'', r"'\''"))
        }
    }

    pub(super) fn ask_system(environment: &mut Environment) {
        let known = |text: &str| Some(text.trim().to_owned()).filter(|text| !text.is_empty());
        environment.os = Some(std::env::consts::OS.into());
        environment.os_version = System::long_os_version().ok();
        environment.kernel_version = System::kernel_version().ok();
        let wanted = RefreshKind::nothing()
            .with_memory(MemoryRefreshKind::nothing().with_ram())
            .with_cpu(CpuRefreshKind::nothing());
        let Ok(system) = System::new_with_specifics(wanted) else { return };
        environment.cpu_model = system.cpus().first().and_then(|cpu| known(cpu.brand()));
        environment.cpu_count = Some(system.cpus().len() as u64).filter(|&count| count > 0);
        environment.memory_bytes = Some(system.total_memory()).filter(|&bytes| bytes > 0);
    }

    /// Reads what Linux tells in files under `root` (`/`, or a fixture).
    pub(super) fn read_linux(root: &Path, environment: &mut Environment) {
        let read = |path: &str| std::fs::read_to_string(root.join(path)).ok();
        environment.governor = read("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
            .map(|text| text.trim().to_owned())
            .filter(|governor| !governor.is_empty());
        // Only x86 names its features `flags`, and only there has the hypervisor's bit a meaning.
        environment.virtualized = read("proc/cpuinfo").as_deref().and_then(|cpuinfo| {
            let flags = cpuinfo.lines().find(|line| line.starts_with("flags"))?;
            Some(flags.split_whitespace().any(|flag| flag == "hypervisor"))
        });
        // `0::/a/b` names this process's group; the tightest limit on the way up to the root holds. Inside a container
        // the path may lie outside the mounted tree: its missing files are passed over.
        let own = read("proc/self/cgroup").unwrap_or_default();
        let Some(group) = own.lines().find_map(|line| line.strip_prefix("0::/")) else { return };
        for group in Path::new("sys/fs/cgroup").join(group).ancestors() {
            if !group.starts_with("sys/fs/cgroup") {
                break;
            }
            let limit = |file: &str| std::fs::read_to_string(root.join(group).join(file)).ok();
            environment.cpu_limit =
                tighter(environment.cpu_limit, limit("cpu.max").as_deref().and_then(processors));
            let memory = limit("memory.max").and_then(|text| text.trim().parse().ok());
            environment.memory_limit_bytes = tighter(environment.memory_limit_bytes, memory);
        }
    }

    /// `quota period` in microseconds of `cpu.max`, as processors; `max` is no limit.
    fn processors(cpu_max: &str) -> Option<f64> {
        let (quota, period) = cpu_max.trim().split_once(' ')?;
        let (quota, period): (f64, f64) = (quota.parse().ok()?, period.parse().ok()?);
        (quota > 0.0 && period > 0.0).then_some(quota / period)
    }

    fn tighter<T: PartialOrd>(a: Option<T>, b: Option<T>) -> Option<T> {
        match (a, b) {
            (Some(a), Some(b)) => Some(if b < a { b } else { a }),
            (a, b) => a.or(b),
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn command_lines_survive_a_shell() {
            let words = ["/home/someone/bin/perjoule", "run", "--shape", "m=1,n=2", "it's $HOME", ""];
            let line = command(words.iter().map(OsString::from));
            assert_eq!(line, r"perjoule run --shape m=1,n=2 'it'\''s $HOME' ''");
            #[cfg(unix)]
            {
                let script = format!(r#"perjoule() {{ printf '%s\n' "$@"; }}; {line}"#);
                let output = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
                assert_eq!(
                    String::from_utf8(output.stdout).unwrap(),
                    "run\n--shape\nm=1,n=2\nit's $HOME\n\n"
                );
            }
        }

        #[test]
        fn linux_files_are_read_from_the_tree() {
            let tree = tempfile::tempdir().unwrap();
            let put = |path: &str, text: &str| {
                let path = tree.path().join(path);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, text).unwrap();
            };
            put("proc/cpuinfo", "processor\t: 0\nflags\t\t: fpu avx2 hypervisor sse4a\n");
            put("proc/self/cgroup", "1:name=systemd:/x\n0::/user.slice/job\n");
            put("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "powersave\n");
            put("sys/fs/cgroup/user.slice/cpu.max", "150000 100000\n");
            put("sys/fs/cgroup/user.slice/job/cpu.max", "400000 100000\n");
            put("sys/fs/cgroup/user.slice/job/memory.max", "1073741824\n");
            put("sys/fs/cgroup/user.slice/memory.max", "max\n");
            // Outside the group: must not count.
            put("sys/fs/cpu.max", "1000 100000\n");

            let mut environment = Environment::default();
            read_linux(tree.path(), &mut environment);
            let expected = Environment {
                governor: Some("powersave".into()),
                virtualized: Some(true),
                cpu_limit: Some(1.5),
                memory_limit_bytes: Some(1 << 30),
                ..Environment::default()
            };
            assert_eq!(environment, expected);

            put("proc/cpuinfo", "flags : fpu hypervisors\n");
            put("sys/fs/cgroup/user.slice/cpu.max", "max 100000\n");
            let mut environment = Environment::default();
            read_linux(tree.path(), &mut environment);
            assert_eq!((environment.virtualized, environment.cpu_limit), (Some(false), Some(4.0)));
        }

        #[test]
        fn an_empty_tree_leaves_everything_unknown() {
            let tree = tempfile::tempdir().unwrap();
            let mut environment = Environment::default();
            read_linux(tree.path(), &mut environment);
            assert_eq!(environment, Environment::default());
        }

        #[test]
        fn this_machine_has_a_name_and_memory() {
            let environment = Environment::collect(vec!["avx2".into()]);
            assert!(environment.memory_bytes.is_some_and(|bytes| bytes > 1 << 20));
            assert!(environment.cpu_count.is_some_and(|count| count >= 1));
            assert_eq!(environment.cpu_features.as_deref(), Some(&["avx2".to_owned()][..]));
            assert_eq!(environment.os.as_deref(), Some(std::env::consts::OS));
            assert_eq!((environment.rustc, environment.build_commit), (None, None), "the program knows");
            assert_ne!(environment.run_id, Environment::collect(Vec::new()).run_id);
        }
    }
}
