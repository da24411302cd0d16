//! The processor: what sets its clocks, what it shares, and who else uses it.

use perjoule_record::Environment;
use std::time::Duration;

use super::devices::container;
use super::finding::{Root, Section};

const CPU: &str = "sys/devices/system/cpu";

/// Share of the processors' time from which on others are a disturbance, as in records.
const NOTED: f64 = 0.03;
/// The same for time that a hypervisor gave away: it comes in pieces, and longer than a short sample.
const STOLEN: f64 = 0.005;
/// How long it is watched who uses the processors.
const WATCHED: Duration = Duration::from_secs(1);
/// Latency of leaving a sleep from which on it is to be seen in short samples, in microseconds.
const DEEP: f64 = 100.0;

/// Looks at everything; `watch` takes a second.
pub(super) fn look(root: &Root, environment: &Environment, watch: bool) -> Section {
    let mut section = Section::new("cpu");
    model(root, environment, &mut section);
    clocks(root, &mut section);
    topology(root, &mut section);
    sleep_states(root, &mut section);
    memory_of_nodes(root, &mut section);
    limits(root, environment, &mut section);
    shared(root, environment, watch, &mut section);
    section
}

/// The value of a line of `/proc/cpuinfo`.
pub(super) fn cpuinfo(root: &Root, key: &str) -> Option<String> {
    let text = root.text("proc/cpuinfo")?;
    let line = text.lines().find(|line| line.split(':').next().is_some_and(|name| name.trim() == key))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// Logical processors that are listed.
#[cfg(test)]
pub(super) fn count(root: &Root) -> Option<u64> {
    let text = root.text("proc/cpuinfo")?;
    let n = text
        .lines()
        .filter(|line| line.split(':').next().is_some_and(|name| name.trim() == "processor"))
        .count();
    (n > 0).then_some(n as u64)
}

fn model(root: &Root, environment: &Environment, section: &mut Section) {
    let name = environment.cpu_model.clone().unwrap_or_else(|| "unknown".into());
    let processors = environment.cpu_count.map_or(String::new(), |n| format!(", {n} logical processors"));
    section.ok("model", format!("{name}{processors}"));
    match cpuinfo(root, "microcode") {
        Some(version) => section.ok("microcode", version),
        None => section.note("microcode", "its version is not told"),
    }
    let product =
        root.text("sys/class/dmi/id/product_name").map_or(String::new(), |name| format!(", {name}"));
    match environment.virtualized {
        Some(true) => section.note(
            "virtual machine",
            format!("yes{product}: clocks, temperatures and joules of the host cannot be read"),
        ),
        Some(false) => section.ok("virtual machine", format!("no{product}")),
        None => section.note("virtual machine", format!("cannot be told{product}")),
    }
}

fn clocks(root: &Root, section: &mut Section) {
    let policy = format!("{CPU}/cpu0/cpufreq");
    let driver = root.text(&format!("{policy}/scaling_driver"));
    match (&driver, root.text(&format!("{policy}/scaling_governor"))) {
        (None, None) => section
            .note("clock driver", "none: clocks can neither be read nor set, as in most virtual machines"),
        (driver, governor) => {
            section.ok("clock driver", driver.clone().unwrap_or_else(|| "without a name".into()));
            match governor.as_deref() {
                Some("performance") => section.ok("governor", "performance"),
                Some(other) => {
                    section.warn(
                        "governor",
                        format!("{other}: clocks follow the load, and short runs begin at low ones"),
                    );
                    section.fix(format!("echo performance | sudo tee /{CPU}/cpu*/cpufreq/scaling_governor"));
                }
                None => section.note("governor", "not told"),
            }
        }
    }
    let mhz = |file: &str| root.number(&format!("{policy}/{file}")).map(|khz| khz / 1e3);
    if let Some((low, high)) = mhz("scaling_min_freq").zip(mhz("scaling_max_freq")) {
        let limit = mhz("cpuinfo_max_freq").filter(|hardware| high < 0.99 * hardware);
        match limit {
            Some(hardware) => {
                let detail =
                    format!("{low:.0} to {high:.0} MHz, though the processor can do {hardware:.0} MHz");
                section.warn("clocks", detail);
                let khz = format!("{:.0}", hardware * 1e3);
                section.fix(format!("echo {khz} | sudo tee /{CPU}/cpu*/cpufreq/scaling_max_freq"));
            }
            None => section.ok("clocks", format!("{low:.0} to {high:.0} MHz")),
        }
    }
    boost(root, section);
}

fn boost(root: &Root, section: &mut Section) {
    let intel = format!("{CPU}/intel_pstate/no_turbo");
    let other = format!("{CPU}/cpufreq/boost");
    let (on, off) = match (root.number(&intel), root.number(&other)) {
        (Some(none), _) => (none == 0.0, format!("echo 1 | sudo tee /{intel}")),
        (None, Some(boost)) => (boost == 1.0, format!("echo 0 | sudo tee /{other}")),
        (None, None) => return,
    };
    match on {
        true => {
            section.note(
                "boost",
                "on: clocks depend on temperature, and on how many cores work; off gives steadier numbers",
            );
            section.fix(off);
        }
        false => section.ok("boost", "off: steady clocks, below what the processor can do at most"),
    }
}

fn topology(root: &Root, section: &mut Section) {
    match root.number(&format!("{CPU}/smt/active")) {
        Some(1.0) => {
            section.note("SMT", "on: two threads share a core, and a neighbour on it halves its speed")
        }
        Some(_) => section.ok("SMT", "off, or one thread a core"),
        None => {}
    }
    let isolated = root.text(&format!("{CPU}/isolated")).filter(|list| list != "(null)");
    match isolated {
        Some(list) => {
            section
                .note("isolated CPUs", format!("{list}: the system runs nothing there unless it is told to"));
            section.fix(format!("taskset -c {list} perjoule run"));
        }
        None => section.ok("isolated CPUs", "none"),
    }
    let allowed = root.text("proc/self/status").and_then(|status| {
        status
            .lines()
            .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))
            .map(|list| list.trim().to_owned())
    });
    let online = root.text(&format!("{CPU}/online"));
    if let (Some(allowed), Some(online)) = (allowed, online) {
        match listed(&allowed) < listed(&online) {
            true => section
                .note("allowed CPUs", format!("{allowed} of {online}: this process may not use the others")),
            false => section.ok("allowed CPUs", allowed),
        }
    }
}

/// How many CPUs a list such as `0-3,8` names.
fn listed(list: &str) -> u64 {
    let part = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let ends = first.trim().parse::<u64>().ok().zip(last.trim().parse::<u64>().ok());
        ends.map_or(0, |(first, last)| last.saturating_sub(first).saturating_add(1))
    };
    list.split(',').map(part).fold(0, u64::saturating_add)
}

fn sleep_states(root: &Root, section: &mut Section) {
    let at = format!("{CPU}/cpu0/cpuidle");
    let states: Vec<(String, f64)> = root
        .names(&at)
        .into_iter()
        .filter(|name| root.number(&format!("{at}/{name}/disable")) != Some(1.0))
        .filter_map(|name| {
            Some((root.text(&format!("{at}/{name}/name"))?, root.number(&format!("{at}/{name}/latency"))?))
        })
        .collect();
    let Some((name, latency)) = states.iter().max_by(|a, b| a.1.total_cmp(&b.1)) else {
        section
            .note("C-states", "none are told: an idle processor sleeps as the host or the firmware has it");
        return;
    };
    if *latency < DEEP {
        section.ok("C-states", format!("down to {name}, left in {latency:.0} µs"));
        return;
    }
    section.note(
        "C-states",
        format!("down to {name}, left in {latency:.0} µs: samples shorter than some ms begin late"),
    );
    section.fix(format!("sudo cpupower idle-set -D {DEEP:.0}"));
}

fn memory_of_nodes(root: &Root, section: &mut Section) {
    match root.text("sys/devices/system/node/online") {
        Some(nodes) if listed(&nodes) > 1 => {
            let detail = format!(
                "nodes {nodes}: memory of another node is slower, and where it lies differs from run to run"
            );
            section.note("NUMA", detail);
            section.fix("numactl --cpunodebind=0 --membind=0 perjoule run");
        }
        Some(_) => section.ok("NUMA", "one node"),
        None => section.note("NUMA", "not told"),
    }
    let at = "sys/kernel/mm/transparent_hugepage/enabled";
    let chosen = root.text(at).and_then(|text| {
        text.split_whitespace().find_map(|word| word.strip_prefix('[')?.strip_suffix(']').map(str::to_owned))
    });
    match chosen.as_deref() {
        Some("never") => {
            section.note("huge pages", "never: large operands miss the TLB more often");
            section.fix(format!("echo madvise | sudo tee /{at}"));
        }
        Some(mode) => section.ok("huge pages", format!("transparent ones: {mode}")),
        None => section.note("huge pages", "not told"),
    }
}

/// What control groups and containers allow.
fn limits(root: &Root, environment: &Environment, section: &mut Section) {
    match container(root) {
        Some(kind) => {
            section.note("container", format!("{kind}: limits and files may be its own, not the machine's"))
        }
        None => section.ok("container", "none seen"),
    }
    let old = root.number("sys/fs/cgroup/cpu/cpu.cfs_quota_us").filter(|quota| *quota > 0.0);
    let old =
        old.zip(root.number("sys/fs/cgroup/cpu/cpu.cfs_period_us")).map(|(quota, period)| quota / period);
    let limit = environment.cpu_limit.or(old).filter(|limit| limit.is_finite() && *limit > 0.0);
    let processors = environment.cpu_count.unwrap_or(u64::MAX) as f64;
    match limit {
        Some(limit) if limit < processors => {
            section.warn(
                "CPU limit",
                format!("a control group allows the time of {limit} processors: all beyond is throttled, in steps of some 100 ms"),
            );
            section.fix(format!("perjoule run --threads {:.0}", limit.floor().max(1.0)));
        }
        Some(limit) => section.ok("CPU limit", format!("{limit} processors, as many as there are or more")),
        None => section.ok("CPU limit", "none found"),
    }
    let stat =
        ["sys/fs/cgroup/cpu.stat", "sys/fs/cgroup/cpu/cpu.stat"].iter().find_map(|path| root.text(path));
    let throttled = stat.and_then(|text| {
        text.lines()
            .find_map(|line| line.strip_prefix("nr_throttled "))
            .and_then(|n| n.trim().parse::<u64>().ok())
    });
    if let Some(n) = throttled.filter(|&n| n > 0) {
        section.warn(
            "throttled",
            format!("the control group was stopped {n} times for using more than its limit"),
        );
    }
}

/// Time of all processors by use, in ticks since the start of the machine.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Ticks {
    total: f64,
    busy: f64,
    stolen: f64,
}

impl Ticks {
    fn read(root: &Root) -> Option<Ticks> {
        let text = root.text("proc/stat")?;
        let line = text.lines().find_map(|line| line.strip_prefix("cpu "))?;
        let ticks: Vec<f64> = line.split_whitespace().map_while(|word| word.parse().ok()).collect();
        let [user, nice, system, idle, iowait, irq, softirq, stolen, ..] = ticks[..] else { return None };
        let busy = user + nice + system + irq + softirq;
        Some(Ticks { total: busy + idle + iowait + stolen, busy, stolen })
    }

    /// Shares of the time since `before`: stolen, and busy.
    fn since(self, before: Ticks) -> Option<(f64, f64)> {
        let total = self.total - before.total;
        (total > 0.0).then(|| ((self.stolen - before.stolen) / total, (self.busy - before.busy) / total))
    }
}

/// Who else uses the processors.
fn shared(root: &Root, environment: &Environment, watch: bool, section: &mut Section) {
    let start = Ticks { total: 0.0, busy: 0.0, stolen: 0.0 };
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    match Ticks::read(root) {
        Some(first) => {
            if let Some((stolen, _)) = first.since(start) {
                let detail = format!(
                    "the hypervisor gave {} of the processors' time to others since the start",
                    percent(stolen)
                );
                match stolen >= STOLEN {
                    true => section.warn("steal", format!("{detail}: numbers of this machine scatter")),
                    false => section.ok("steal", detail),
                }
            }
            if watch {
                std::thread::sleep(WATCHED);
                if let Some((stolen, busy)) = Ticks::read(root).and_then(|last| last.since(first)) {
                    now(stolen, busy, section);
                }
            }
        }
        None => section.note("steal", "not told: /proc/stat is not there"),
    }
    let load = root.text("proc/loadavg").and_then(|text| text.split(' ').next()?.parse::<f64>().ok());
    if let Some(load) = load {
        // a share of the machine, but one busy process is never nothing
        let quiet = (0.1 * environment.cpu_count.unwrap_or(1) as f64).max(0.5);
        match load > quiet {
            true => {
                section.warn(
                    "load",
                    format!(
                        "{load} processes wanted to run over the last minute: wait for them, or end them"
                    ),
                );
                section.fix("ps -eo pcpu,pid,args --sort=-pcpu | head");
            }
            false => section.ok("load", format!("{load} over the last minute")),
        }
    }
}

/// What was seen within the last second.
fn now(stolen: f64, busy: f64, section: &mut Section) {
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    match stolen >= STOLEN {
        true => section.warn(
            "steal now",
            format!("{} of the processors' time went to others within a second", percent(stolen)),
        ),
        false => section.ok("steal now", format!("{} within a second", percent(stolen))),
    }
    match busy >= NOTED {
        true => {
            section.warn(
                "use now",
                format!("other processes used {} of the processors within a second", percent(busy)),
            );
            section.fix("ps -eo pcpu,pid,args --sort=-pcpu | head");
        }
        false => section.ok("use now", format!("{} of the processors within a second", percent(busy))),
    }
}

#[cfg(test)]
mod tests {
    use super::super::environment_of;
    use super::super::finding::Status;
    use super::super::finding::tests::{Tree, named};
    use super::*;

    fn found(tree: &Tree) -> Section {
        let root = tree.root();
        look(&root, &environment_of(&root), false)
    }

    fn processors(n: usize, flags: &str) -> String {
        (0..n)
            .map(|i| {
                format!("processor\t: {i}\nmodel name\t: Test CPU\nmicrocode\t: 0x2a\nflags\t\t: {flags}\n\n")
            })
            .collect()
    }

    #[test]
    fn a_laptop_on_powersave_is_warned_of() {
        let tree = Tree::new(&[
            ("proc/cpuinfo", &processors(8, "fpu avx2")),
            ("proc/loadavg", "0.10 0.2 0.3 1/200 999\n"),
            ("sys/devices/system/cpu/cpu0/cpufreq/scaling_driver", "intel_pstate\n"),
            ("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "powersave\n"),
            ("sys/devices/system/cpu/cpu0/cpufreq/scaling_min_freq", "400000\n"),
            ("sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq", "3000000\n"),
            ("sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq", "4700000\n"),
            ("sys/devices/system/cpu/intel_pstate/no_turbo", "0\n"),
            ("sys/devices/system/cpu/smt/active", "1\n"),
            ("sys/devices/system/cpu/cpu0/cpuidle/state0/name", "POLL\n"),
            ("sys/devices/system/cpu/cpu0/cpuidle/state0/latency", "0\n"),
            ("sys/devices/system/cpu/cpu0/cpuidle/state1/name", "C10\n"),
            ("sys/devices/system/cpu/cpu0/cpuidle/state1/latency", "890\n"),
            ("sys/devices/system/node/online", "0\n"),
            ("sys/kernel/mm/transparent_hugepage/enabled", "always madvise [never]\n"),
        ]);
        let section = found(&tree);
        let governor = named(&section.list, "governor");
        assert_eq!(governor.status, Status::Warn);
        let tee = "echo performance | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor";
        assert_eq!(governor.fix.as_deref(), Some(tee));
        let clocks = named(&section.list, "clocks");
        assert!(clocks.status == Status::Warn && clocks.detail.contains("4700 MHz"), "{clocks:?}");
        assert!(clocks.fix.as_deref().unwrap().starts_with("echo 4700000 |"));
        assert!(named(&section.list, "boost").fix.as_deref().unwrap().contains("no_turbo"));
        assert!(named(&section.list, "C-states").detail.contains("C10"));
        assert_eq!(named(&section.list, "huge pages").status, Status::Note);
        for (name, status) in
            [("SMT", Status::Note), ("NUMA", Status::Ok), ("load", Status::Ok), ("microcode", Status::Ok)]
        {
            assert_eq!(named(&section.list, name).status, status, "{name}");
        }
        assert!(named(&section.list, "model").detail.contains("Test CPU, 8"));
        tree.put("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "performance\n");
        assert_eq!(named(&found(&tree).list, "governor").status, Status::Ok);
    }

    #[test]
    fn a_virtual_machine_with_steal_is_warned_of() {
        let tree = Tree::new(&[
            ("proc/cpuinfo", &processors(2, "fpu hypervisor")),
            ("proc/stat", "cpu  600 0 100 9000 0 0 0 300 0 0\ncpu0 1 2\n"),
            ("proc/loadavg", "3.5 2 1 1/1 1\n"),
        ]);
        let section = found(&tree);
        let steal = named(&section.list, "steal");
        assert!(steal.status == Status::Warn && steal.detail.contains("3.0 %"), "{steal:?}");
        assert_eq!(named(&section.list, "virtual machine").status, Status::Note);
        assert_eq!(named(&section.list, "load").status, Status::Warn);
        assert_eq!(named(&section.list, "clock driver").status, Status::Note);
        let mut section = Section::new("cpu");
        let (before, after) = (
            Ticks { total: 1000.0, busy: 500.0, stolen: 10.0 },
            Ticks { total: 1200.0, busy: 501.0, stolen: 12.0 },
        );
        let (stolen, busy) = after.since(before).unwrap();
        now(stolen, busy, &mut section);
        assert_eq!((section.list[0].status, section.list[1].status), (Status::Warn, Status::Ok));
        assert_eq!(before.since(before), None);
    }

    #[test]
    fn a_container_with_a_quota_is_throttled() {
        let tree = Tree::new(&[
            ("proc/cpuinfo", &processors(8, "fpu")),
            ("proc/self/cgroup", "0::/\n"),
            ("proc/self/status", "Name:\tx\nCpus_allowed_list:\t0-3\n"),
            ("sys/devices/system/cpu/online", "0-7\n"),
            ("sys/fs/cgroup/cpu.max", "150000 100000\n"),
            ("sys/fs/cgroup/cpu.stat", "usage_usec 1\nnr_throttled 42\n"),
            (".dockerenv", ""),
        ]);
        let section = found(&tree);
        let limit = named(&section.list, "CPU limit");
        assert!(limit.status == Status::Warn && limit.detail.contains("1.5 processors"), "{limit:?}");
        assert_eq!(limit.fix.as_deref(), Some("perjoule run --threads 1"));
        assert!(named(&section.list, "throttled").detail.contains("42"));
        assert!(named(&section.list, "container").detail.starts_with("Docker"));
        assert_eq!(named(&section.list, "allowed CPUs").status, Status::Note);
        tree.put("sys/fs/cgroup/cpu.max", "max 100000\n");
        assert_eq!(named(&found(&tree).list, "CPU limit").status, Status::Ok);
        // control groups of the older kind
        tree.put("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "50000\n");
        tree.put("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n");
        assert!(named(&found(&tree).list, "CPU limit").detail.contains("0.5 processors"));
    }

    #[test]
    fn garbage_is_no_panic() {
        let garbage = "\u{0}-,9999999999999999999999:\n[]";
        let files = [
            "proc/cpuinfo",
            "proc/stat",
            "proc/loadavg",
            "proc/self/status",
            "proc/self/cgroup",
            "sys/fs/cgroup/cpu.max",
            "sys/devices/system/cpu/online",
            "sys/devices/system/cpu/isolated",
            "sys/devices/system/node/online",
            "sys/kernel/mm/transparent_hugepage/enabled",
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor",
            "sys/devices/system/cpu/cpu0/cpuidle/state0/latency",
            "sys/fs/cgroup/cpu.stat",
        ];
        let tree = Tree::new(&files.map(|path| (path, garbage)));
        assert!(!found(&tree).list.is_empty());
        assert_eq!((listed("0-3,8"), listed("5-1"), listed("x")), (5, 1, 0));
        assert_eq!(listed("0-18446744073709551615"), u64::MAX);
    }
}
