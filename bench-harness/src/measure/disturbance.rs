//! Who else used the machine while something was measured: other processes, and time that a hypervisor gave to other guests.
//!
//! From `/proc/stat` (time of all processors by use) and `/proc/self/stat` (time of this process), read before and after. Elsewhere
//! than on Linux nothing is observable.

use std::fs::read_to_string;

/// Share of the processors' time from which on others count as a disturbance.
const NOTED: f64 = 0.03;
/// Ticks of all processors below which a share would be noise: `/proc` counts in hundredths of a second.
const FEWEST: u64 = 20;

/// Time of the machine so far, in ticks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ticks {
    /// All processors, whatever they did.
    total: u64,
    /// Processes, the system and interrupts.
    busy: u64,
    /// Wanted, and given to other guests by the hypervisor.
    stolen: u64,
    /// This process, and those that it started and has waited for.
    own: u64,
}

/// Watches from its creation on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Watch(Option<Ticks>);

impl Watch {
    /// Begins to watch.
    pub(crate) fn start() -> Self {
        Watch(now())
    }

    /// What disturbed since then; `None` where that cannot be told, or not for so short a time.
    pub(crate) fn finish(self) -> Option<Vec<String>> {
        disturbances(self.0?, now()?)
    }
}

fn now() -> Option<Ticks> {
    parse(&read_to_string("/proc/stat").ok()?, &read_to_string("/proc/self/stat").ok()?)
}

fn parse(machine: &str, process: &str) -> Option<Ticks> {
    let line = machine.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let ticks: Vec<u64> = line.split_whitespace().map_while(|word| word.parse().ok()).collect();
    let [user, nice, system, idle, iowait, irq, softirq, stolen, ..] = ticks[..] else { return None };
    let busy = user + nice + system + irq + softirq;
    // the name stands in brackets and may hold anything; the state behind the name is field 3, and 14 to 17 are user and system time of
    // this process, then of the children that it has waited for, with theirs
    let fields = process[process.rfind(')')? + 1..].split_whitespace().skip(11).take(4);
    let times: Vec<u64> = fields.map_while(|word| word.parse().ok()).collect();
    let own = (times.len() == 4).then(|| times.iter().sum())?;
    Some(Ticks { total: busy + idle + iowait + stolen, busy, stolen, own })
}

fn disturbances(from: Ticks, to: Ticks) -> Option<Vec<String>> {
    let total = to.total.saturating_sub(from.total);
    if total < FEWEST {
        return None;
    }
    let share = |ticks: u64| ticks as f64 / total as f64;
    let own = to.own.saturating_sub(from.own);
    let others = share(to.busy.saturating_sub(from.busy).saturating_sub(own));
    let stolen = share(to.stolen.saturating_sub(from.stolen));
    let mut list = Vec::new();
    if others >= NOTED {
        list.push(format!("other processes used {:.0} % of the processors", 100.0 * others));
    }
    if stolen >= NOTED {
        list.push(format!("the hypervisor gave {:.0} % of the processors to others", 100.0 * stolen));
    }
    Some(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticks(total: u64, busy: u64, stolen: u64, own: u64) -> Ticks {
        Ticks { total, busy, stolen, own }
    }

    #[test]
    fn proc_files_are_read() {
        let machine = "cpu  100 20 30 9000 500 4 6 77 0 0\ncpu0 1 2 3\n";
        let process = "42 (a) b (c) R 1 2 3 4 5 6 7 8 9 10 70 5 8 2 20 0 3";
        assert_eq!(parse(machine, process), Some(ticks(9737, 160, 77, 85)), "with its children");
        for (machine, process) in
            [("", process), ("cpu  1 2\n", process), (machine, ""), (machine, "42 (a) R 1")]
        {
            assert_eq!(parse(machine, process), None);
        }
    }

    #[test]
    fn only_others_disturb() {
        let from = ticks(1000, 500, 10, 400);
        assert_eq!(disturbances(from, ticks(1200, 690, 10, 590)), Some(vec![]));
        let list = disturbances(from, ticks(1200, 690, 20, 490)).unwrap();
        assert_eq!(list.len(), 2);
        assert!(list[0].contains("50 %") && list[1].contains("5 %"), "{list:?}");
        assert_eq!(disturbances(from, ticks(1010, 510, 10, 400)), None, "too short to tell");
        // the process' own time is counted a little later than the machine's
        assert_eq!(disturbances(from, ticks(1200, 600, 10, 620)), Some(vec![]));
    }
}
