//! The power of a CPU whose sensors cannot be read, modelled from the thermal design power of its package.

use anyhow::{Result, ensure};
use perjoule_catalogue::Processors;
use perjoule_meter::{Band, PowerModel, Utilisation};

/// The machine as far as the model needs it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Machine<'a> {
    /// The CPU's own name.
    pub(crate) cpu: &'a str,
    /// Logical processors of this machine.
    pub(crate) processors: u32,
    /// Whether it is a virtual machine, which has a part of a package.
    pub(crate) virtualized: bool,
    /// Threads that work.
    pub(crate) threads: u32,
}

/// The power model of a machine's CPU: the share of a known package's TDP that its logical processors are, or an assumption per core
/// with a wide band.
pub(crate) fn cpu_power(machine: Machine<'_>) -> Result<PowerModel> {
    let list = Processors::builtin();
    ensure!(machine.processors > 0, "the number of processors is unknown");
    let busy = f64::from(machine.threads.clamp(1, machine.processors)) / f64::from(machine.processors);
    let mut model = match list.find(machine.cpu) {
        Some(p) => {
            // several packages, or a whole one whose second threads are switched off
            let packages = machine.processors.div_ceil(p.threads);
            let whole = if machine.virtualized { p.threads * packages } else { machine.processors };
            let per_package = if machine.virtualized || machine.processors >= p.cores {
                1.0
            } else {
                f64::from(machine.processors) / f64::from(p.cores)
            };
            PowerModel {
                share: (machine.processors, whole),
                band: band(p.band),
                ..PowerModel::new(p.name.clone(), p.tdp_w * f64::from(packages) * per_package)
            }
        }
        None => PowerModel {
            band: band(list.fallback.band),
            ..PowerModel::new(
                format!(
                    "{} (not in the catalogue: {} W per core assumed)",
                    machine.cpu, list.fallback.watts_per_core
                ),
                list.fallback.watts_per_core * f64::from(machine.processors),
            )
        },
    };
    model.utilisation = Utilisation::Fixed(busy);
    Ok(model)
}

fn band([low, high]: [f64; 2]) -> Band {
    Band { low, high }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(cpu: &str, processors: u32, virtualized: bool) -> PowerModel {
        cpu_power(Machine { cpu, processors, virtualized, threads: processors }).unwrap()
    }

    #[test]
    fn a_virtual_machine_has_its_share_of_the_package() {
        let exact = model("AMD EPYC 7763 64-Core Processor", 2, true);
        assert_eq!((exact.tdp_w, exact.share), (280.0, (2, 128)));
        assert!((exact.watts(1.0) - 280.0 * 2.0 / 128.0).abs() < 1e-9);
        let family = model("AMD EPYC", 2, true);
        assert_eq!((family.tdp_w, family.share), (225.0, (2, 128)));
        assert!(family.band.high > exact.band.high);
    }

    #[test]
    fn bare_metal_has_all_of_its_packages() {
        assert_eq!(model("AMD EPYC 7763 64-Core Processor", 256, false).watts(1.0), 560.0);
        assert_eq!(model("AMD EPYC 7763 64-Core Processor", 128, false).watts(1.0), 280.0);
        assert_eq!(model("AMD EPYC 7763 64-Core Processor", 64, false).watts(1.0), 280.0);
    }

    #[test]
    fn an_unknown_cpu_gets_a_wide_band_and_says_so() {
        let unknown = model("Loongson-3A6000", 8, false);
        assert_eq!(unknown.watts(1.0), 40.0);
        assert!(unknown.name.contains("not in the catalogue") && unknown.band.low <= 0.25);
    }

    #[test]
    fn idle_threads_use_less() {
        let all =
            cpu_power(Machine { cpu: "AMD EPYC", processors: 4, virtualized: true, threads: 4 }).unwrap();
        let one =
            cpu_power(Machine { cpu: "AMD EPYC", processors: 4, virtualized: true, threads: 1 }).unwrap();
        assert_eq!((all.utilisation, one.utilisation), (Utilisation::Fixed(1.0), Utilisation::Fixed(0.25)));
    }

    #[test]
    fn every_entry_makes_a_model() {
        for processor in &Processors::builtin().list {
            perjoule_meter::Modelled::new(model(&processor.pattern, 2, true)).unwrap();
        }
    }
}
