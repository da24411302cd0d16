//! Sources of energy, and the counters of perf events that stand in for one of them.

use perjoule_meter::{
    DRM_ROOT, Discovery, HWMON_ROOT, INA3221_IIO_ROOT, Kind, NEURON_ROOT, Options, POWER_SUPPLY_ROOT,
    POWERCAP_ROOT, PerfRoots, Source, Unavailable,
};
use perjoule_record::Environment;

use super::devices::{NEURON, NVIDIA, pci};
use super::finding::{Root, Section};
use crate::measure::energy::Meters;

/// What makes the counters of RAPL readable until the next boot, and for good.
const POWERCAP: &str = "sudo chgrp -f \"$(id -g)\" /sys/class/powercap/intel-rapl:*/energy_uj && sudo chmod g+r /sys/class/powercap/intel-rapl:*/energy_uj\n\
    echo \"SUBSYSTEM==\\\"powercap\\\", KERNEL==\\\"intel-rapl:*\\\", ACTION==\\\"add\\\", RUN+=\\\"/bin/chgrp $(id -g) /sys%p/energy_uj\\\", RUN+=\\\"/bin/chmod g+r /sys%p/energy_uj\\\"\" | sudo tee /etc/udev/rules.d/70-rapl.rules";

/// The meters of a tree of files; NVIDIA's library is asked on this machine only.
fn discover(root: &Root, environment: &Environment) -> Meters {
    let at = |path: &str| root.path(path.trim_start_matches('/'));
    let perf = PerfRoots::default();
    let under = |path: &std::path::Path| at(&path.to_string_lossy());
    let options = Options {
        powercap_root: at(POWERCAP_ROOT),
        perf: PerfRoots { pmu: under(&perf.pmu), cpus: under(&perf.cpus), cpuinfo: under(&perf.cpuinfo) },
        drm_root: at(DRM_ROOT),
        hwmon_root: at(HWMON_ROOT),
        ina3221_iio_root: at(INA3221_IIO_ROOT),
        power_supply_root: at(POWER_SUPPLY_ROOT),
        neuron_root: at(NEURON_ROOT),
        nvml: root.is_real(),
        ..Options::default()
    };
    let threads = environment.cpu_count.and_then(|n| usize::try_from(n).ok()).unwrap_or(1);
    Meters::discover_in(environment, threads, options)
}

/// Meters, and counters.
pub(super) fn look(root: &Root, environment: &Environment) -> [Section; 2] {
    let meters = discover(root, environment);
    judge(root, environment, meters.found())
}

fn judge(root: &Root, environment: &Environment, found: &Discovery) -> [Section; 2] {
    let (mut meters, mut counters) = (Section::new("meters"), Section::new("counters"));
    cpu(found, environment, &mut meters);
    for meter in &found.meters {
        let info = meter.info();
        let detail = format!("{}, boundary {}: {}", info.kind, info.boundary, info.name);
        match info.kind {
            Kind::Measured => meters.ok(info.source.as_str(), detail),
            Kind::Modelled => meters.note(info.source.as_str(), detail),
        }
    }
    for missing in found.unavailable.iter().filter(|missing| missing.origin != Source::RaplPerf) {
        unavailable(missing, root, environment, &mut meters);
    }
    if !found.meters.iter().any(|meter| meter.info().source == Source::External) {
        meters.note(
            "external",
            "no meter outside the machine is named: --meter PATH takes one, such as at the wall socket",
        );
    }
    paranoid(root, &mut counters);
    let perf = found.meters.iter().filter(|meter| meter.info().source == Source::RaplPerf).count();
    let refused: Vec<&Unavailable> =
        found.unavailable.iter().filter(|missing| missing.origin == Source::RaplPerf).collect();
    match (perf, refused.as_slice()) {
        (1.., _) => counters.ok(
            "rapl-perf",
            "perf events of RAPL can be opened, and are used where powercap is not readable",
        ),
        (0, []) => counters.ok("rapl-perf", "perf events of RAPL are not needed: powercap is read"),
        _ => {}
    }
    let measured = found.cpu().is_some_and(|meter| meter.info().kind == Kind::Measured);
    for missing in refused {
        match measured {
            // they would tell nothing new
            true => counters
                .note("rapl-perf", format!("{}: {}; powercap is read instead", missing.what, missing.reason)),
            false => unavailable(missing, root, environment, &mut counters),
        }
    }
    [meters, counters]
}

/// How the joules of the CPU come about.
fn cpu(found: &Discovery, environment: &Environment, meters: &mut Section) {
    match found.cpu().map(|meter| meter.info()) {
        Some(info) if info.kind == Kind::Measured => {
            meters.ok("CPU energy", format!("measured by {}, boundary {}", info.source, info.boundary));
        }
        Some(info) => {
            let (low, high) = (info.accuracy.low, info.accuracy.high);
            let detail = format!(
                "modelled, not measured: joules are right within {low:.2}..{high:.2} times what is shown"
            );
            // a virtual machine has no sensor that anybody could make readable
            match environment.virtualized {
                Some(true) => meters.note("CPU energy", detail),
                _ => meters.warn("CPU energy", detail),
            }
        }
        None => meters.missing("CPU energy", "unknown: neither a sensor nor a model"),
    }
}

/// A source that cannot be used: whether that is to be mended, and how.
fn unavailable(missing: &Unavailable, root: &Root, environment: &Environment, section: &mut Section) {
    let virtual_machine = environment.virtualized == Some(true);
    let refused = missing.reason.contains("permission") || missing.reason.contains("Permission");
    let there = match missing.origin {
        _ if refused => true,
        Source::RaplPowercap | Source::RaplPerf => {
            !virtual_machine && cfg!(any(target_arch = "x86_64", target_arch = "x86"))
        }
        Source::Nvml => !pci(root, NVIDIA).is_empty(),
        Source::ModelledNeuron => !pci(root, NEURON).is_empty(),
        Source::Ina3221 => root.text("proc/device-tree/model").is_some_and(|text| text.contains("Jetson")),
        // what such a source has is listed by itself; there is none, or something is wrong with it
        Source::Hwmon => !missing.reason.contains("has no energy or power sensor"),
        Source::Macmon => true,
        _ => false,
    };
    let reason = match (missing.origin, there) {
        (Source::RaplPowercap | Source::RaplPerf, false) if virtual_machine => {
            format!("{}: virtual machines have no RAPL counters", missing.reason)
        }
        _ => missing.reason.clone(),
    };
    let detail = format!("{}: {reason}", missing.what);
    let name = missing.origin.as_str();
    if !there {
        section.note(name, detail);
        return;
    }
    section.missing(name, detail);
    if let Some(fix) = commands(missing, root, refused) {
        section.fix(fix);
    }
}

/// Commands that make a source usable, ready to be pasted.
fn commands(missing: &Unavailable, root: &Root, refused: bool) -> Option<String> {
    match missing.origin {
        Source::RaplPowercap if refused => return Some(POWERCAP.into()),
        Source::RaplPerf if refused => {
            let program = std::env::current_exe().ok()?;
            let program = shlex::try_quote(&program.to_string_lossy()).ok()?.into_owned();
            return Some(format!(
                "sudo setcap cap_perfmon=ep {program}\nsudo sysctl kernel.perf_event_paranoid=0"
            ));
        }
        Source::Nvml => return Some(super::devices::driver_of_nvidia(root).into()),
        Source::ModelledNeuron if root.exists("sys/devices/virtual/neuron_device") => {
            return Some("perjoule run --neuron-watts WATTS".into());
        }
        Source::ModelledNeuron => return Some("sudo apt-get install aws-neuronx-dkms".into()),
        _ => {}
    }
    // other fixes name their commands between backticks
    let fix = missing.fix.as_deref()?;
    let command = fix.split('`').skip(1).step_by(2).find(|text| text.starts_with("sudo "));
    command.map(str::to_owned)
}

/// The kernel's limit on perf events.
fn paranoid(root: &Root, counters: &mut Section) {
    let Some(level) = root.number("proc/sys/kernel/perf_event_paranoid") else {
        counters.note("perf_event_paranoid", "not told: this is no Linux with perf events");
        return;
    };
    match level {
        ..=0.0 => counters
            .ok("perf_event_paranoid", format!("{level}: everybody may count events of whole processors")),
        _ => {
            let detail = format!(
                "{level}: only programs with CAP_PERFMON may count events of whole processors, such as RAPL's"
            );
            counters.note("perf_event_paranoid", detail);
            // where there is nothing to count, nothing is to be allowed
            if root.exists("sys/bus/event_source/devices/power") {
                counters.fix("sudo sysctl kernel.perf_event_paranoid=0");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Status;
    use super::super::finding::tests::{Tree, named};
    use super::*;

    fn unreadable(origin: Source, reason: &str, fix: &str) -> Discovery {
        let fix = (!fix.is_empty()).then(|| fix.to_owned());
        let missing = Unavailable { origin, what: "CPU package".into(), reason: reason.into(), fix };
        Discovery { meters: Vec::new(), unavailable: vec![missing] }
    }

    fn machine(virtualized: bool) -> Environment {
        Environment { virtualized: Some(virtualized), cpu_count: Some(64), ..Environment::default() }
    }

    #[test]
    fn a_server_without_permission_gets_the_commands() {
        let tree = Tree::new(&[("proc/sys/kernel/perf_event_paranoid", "4\n")]);
        let found = unreadable(
            Source::RaplPowercap,
            "no permission to read /sys/class/powercap/intel-rapl:0/energy_uj",
            "x",
        );
        let [meters, counters] = judge(&tree.root(), &machine(false), &found);
        let rapl = named(&meters.list, "rapl-powercap");
        assert_eq!(rapl.status, Status::Missing);
        let fix = rapl.fix.as_deref().unwrap();
        assert!(fix.lines().count() == 2 && fix.contains("energy_uj") && fix.contains("udev"), "{fix}");
        assert_eq!(named(&counters.list, "perf_event_paranoid").status, Status::Note);
        let refused = unreadable(Source::RaplPerf, "perf_event_open: Permission denied (os error 13)", "x");
        let [_, counters] = judge(&tree.root(), &machine(false), &refused);
        let fix = named(&counters.list, "rapl-perf").fix.clone().unwrap();
        assert!(fix.contains("sudo setcap cap_perfmon=ep /"), "{fix}");
    }

    #[cfg(unix)]
    #[test]
    fn the_udev_rule_is_what_a_shell_writes() {
        let line = POWERCAP.lines().nth(1).unwrap().split(" | ").next().unwrap();
        let output = std::process::Command::new("sh").args(["-c", line]).output().unwrap();
        let rule = String::from_utf8(output.stdout).unwrap();
        assert!(rule.starts_with(
            r#"SUBSYSTEM=="powercap", KERNEL=="intel-rapl:*", ACTION=="add", RUN+="/bin/chgrp "#
        ));
        assert!(rule.trim_end().ends_with(r#"RUN+="/bin/chmod g+r /sys%p/energy_uj""#), "{rule}");
    }

    #[test]
    fn what_a_machine_does_not_have_is_no_fault() {
        let tree = Tree::new(&[]);
        let fix = "on bare metal: `sudo modprobe intel_rapl_msr`; virtual machines have no RAPL counters";
        let absent = unreadable(Source::RaplPowercap, "/sys/class/powercap has no intel-rapl zones", fix);
        let [meters, _] = judge(&tree.root(), &machine(true), &absent);
        let rapl = named(&meters.list, "rapl-powercap");
        assert!(
            rapl.status == Status::Note && rapl.fix.is_none() && rapl.detail.contains("virtual"),
            "{rapl:?}"
        );
        let [meters, _] = judge(&tree.root(), &machine(false), &absent);
        if cfg!(target_arch = "x86_64") {
            assert_eq!(
                named(&meters.list, "rapl-powercap").fix.as_deref(),
                Some("sudo modprobe intel_rapl_msr")
            );
        }
        let nvml = unreadable(Source::Nvml, "libnvidia-ml.so.1 is not installed", "");
        let [meters, _] = judge(&tree.root(), &machine(false), &nvml);
        assert_eq!(named(&meters.list, "nvml").status, Status::Note);
        tree.put("sys/bus/pci/devices/0000:01:00.0/vendor", "0x10de\n");
        tree.put("sys/bus/pci/devices/0000:01:00.0/class", "0x030200\n");
        let [meters, _] = judge(&tree.root(), &machine(false), &nvml);
        let gpu = named(&meters.list, "nvml");
        assert!(gpu.status == Status::Missing && gpu.fix.is_some(), "{gpu:?}");
    }

    /// The whole way from files of a server with two readable packages.
    #[test]
    fn readable_counters_are_found_in_a_tree() {
        let tree = Tree::new(&[]);
        for socket in 0..2 {
            let zone = format!("sys/class/powercap/intel-rapl:{socket}");
            tree.put(&format!("{zone}/name"), &format!("package-{socket}\n"));
            tree.put(&format!("{zone}/energy_uj"), &format!("{}\n", 1_000_000 + 900_000_000 * socket));
            tree.put(&format!("{zone}/max_energy_range_uj"), "65532610987\n");
        }
        let [meters, counters] = look(&tree.root(), &machine(false));
        let cpu = named(&meters.list, "CPU energy");
        assert!(cpu.status == Status::Ok && cpu.detail.contains("rapl-powercap"), "{cpu:?}");
        assert_eq!(named(&meters.list, "rapl-powercap").status, Status::Ok);
        assert!(!counters.list.is_empty());
    }
}
