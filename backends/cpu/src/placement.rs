//! Where lanes run: processors of different cores before those that share one, fast cores before slow ones, and one memory node before
//! several.
//!
//! A core's second hardware thread adds nothing to products, whose one thread fills the multipliers, and takes caches away; a slow core
//! holds up the fast ones at every barrier. So a team takes one processor of each fast core unless more lanes are asked for. Its threads
//! are confined to the set of these processors, not one to each: the system still moves a lane away from what else runs there.
//!
//! Memory of teams on several nodes is spread over them page by page, so that every lane has the bandwidth of all.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

/// Cores with less than this share of the fastest one's capacity count as slow.
const FAST: f64 = 0.75;

/// A processor: what the system schedules a thread on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Processor {
    id: usize,
    /// The least processor of its core.
    core: usize,
    node: usize,
    fast: bool,
}

/// The processors that this process may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// In the order in which lanes take them; empty where the system does not say what they are.
    processors: Vec<Processor>,
    /// How many threads may run at once.
    available: usize,
}

/// What a team of lanes runs on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Placement {
    /// Processors that its threads are confined to, in ascending order; empty: all that the process may use.
    pub processors: Vec<usize>,
    /// Memory nodes over which its memory is spread; empty: wherever the system puts it.
    pub nodes: Vec<usize>,
    /// Fast cores among those the process may use; 0 where the system does not say.
    pub cores: usize,
}

impl Machine {
    /// As the system describes it.
    pub fn detect() -> Self {
        let available = std::thread::available_parallelism().map_or(1, |n| n.get());
        #[cfg(target_os = "linux")]
        return Machine::read(Path::new("/sys/devices"), &allowed(), available);
        #[cfg(not(target_os = "linux"))]
        Machine { processors: Vec::new(), available: fast_cores().unwrap_or(available).min(available) }
    }

    /// As the tree below `root` describes it (Linux's `/sys/devices`), for a process that may use the processors `allowed`, and
    /// `available` of them at once.
    fn read(root: &Path, allowed: &[usize], available: usize) -> Self {
        let text = |path: String| std::fs::read_to_string(root.join(path)).ok();
        let list = |path: String| text(path).map(|text| parse_list(&text)).unwrap_or_default();
        let slow = list("cpu_atom/cpus".into());
        let mut nodes = BTreeMap::new();
        for node in list("system/node/online".into()) {
            nodes.extend(list(format!("system/node/node{node}/cpulist")).into_iter().map(|id| (id, node)));
        }
        let capacity = |id: usize| -> Option<f64> {
            text(format!("system/cpu/cpu{id}/cpu_capacity"))?.trim().parse().ok()
        };
        let most = allowed.iter().filter_map(|&id| capacity(id)).fold(0.0, f64::max);
        let mut processors = Vec::new();
        for &id in allowed {
            let siblings = list(format!("system/cpu/cpu{id}/topology/thread_siblings_list"));
            let Some(&core) = siblings.iter().min() else {
                // one that is not described: nothing is known of how they relate
                return Machine { processors: Vec::new(), available };
            };
            let fast = !slow.contains(&id) && capacity(id).is_none_or(|have| have >= FAST * most);
            processors.push(Processor { id, core, node: nodes.get(&id).copied().unwrap_or(0), fast });
        }
        // the first that may be used of each core comes before any second one
        let mut seen = BTreeMap::new();
        let mut keyed: Vec<_> = processors
            .into_iter()
            .map(|p| {
                let turn = seen.entry(p.core).or_insert(0usize);
                *turn += 1;
                ((*turn > 1, !p.fast, p.node, *turn, p.id), p)
            })
            .collect();
        keyed.sort_by_key(|(key, _)| *key);
        Machine { processors: keyed.into_iter().map(|(_, p)| p).collect(), available }
    }

    /// Fast cores, a core once however many hardware threads it has; 0 where the system does not say.
    fn cores(&self) -> usize {
        let mut cores: Vec<_> = self.processors.iter().filter(|p| p.fast).map(|p| p.core).collect();
        cores.sort_unstable();
        cores.dedup();
        cores.len()
    }

    /// Lanes of a team whose size nobody has asked for: one for each fast core, as far as the process may run as many at once.
    pub fn lanes(&self) -> usize {
        match self.cores() {
            0 => self.available,
            cores => cores.min(self.available),
        }
    }

    /// Where a team of `lanes` lanes runs.
    pub fn place(&self, lanes: usize) -> Placement {
        let cores = self.cores();
        let Some(chosen) = self.processors.get(..lanes) else {
            // more lanes than processors: all of them
            return Placement { nodes: spread(&self.processors), cores, ..Placement::default() };
        };
        // no more nodes than it takes: the first node, in the order of the list, that has cores enough
        let first = |p: &&Processor| p.fast && self.first_of_core(p);
        let on = |node: usize| self.processors.iter().filter(first).filter(move |p| p.node == node);
        let one = self.processors.iter().map(|p| p.node).find(|&node| on(node).count() >= lanes);
        let chosen: Vec<Processor> = match one {
            Some(node) => on(node).take(lanes).copied().collect(),
            None => chosen.to_vec(),
        };
        let nodes = spread(&chosen);
        let mut processors: Vec<_> = chosen.iter().map(|p| p.id).collect();
        processors.sort_unstable();
        if processors.len() == self.processors.len() {
            processors.clear();
        }
        Placement { processors, nodes, cores }
    }

    fn first_of_core(&self, processor: &Processor) -> bool {
        self.processors.iter().find(|p| p.core == processor.core).is_some_and(|p| p.id == processor.id)
    }
}

/// The nodes of these processors, where there are several.
fn spread(processors: &[Processor]) -> Vec<usize> {
    let mut nodes: Vec<_> = processors.iter().map(|p| p.node).collect();
    nodes.sort_unstable();
    nodes.dedup();
    if nodes.len() > 1 { nodes } else { Vec::new() }
}

impl Placement {
    /// Confines the calling thread, and those that it starts from then on, to the team's processors.
    ///
    /// A team does this to its own threads. Lane 0 is whoever launches: a program that has no other use for its thread may call this
    /// there, too.
    ///
    /// # Errors
    /// What the system says, where it refuses. Systems that know no such call say nothing.
    pub fn confine(&self) -> io::Result<()> {
        if self.processors.is_empty() {
            return Ok(());
        }
        #[cfg(target_os = "linux")]
        {
            // SAFETY: the set is plain bits, all of them zero.
            let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
            for &id in self.processors.iter().filter(|&&id| id < libc::CPU_SETSIZE as usize) {
                // SAFETY: the bit lies in the set, as just checked.
                unsafe { libc::CPU_SET(id, &mut set) };
            }
            // SAFETY: 0 is the calling thread; the set lives through the call.
            if unsafe { libc::sched_setaffinity(0, size_of_val(&set), &set) } != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    }

    /// What is worth saying of it to a user; nothing where the system schedules the lanes wherever it likes.
    pub fn describe(&self) -> Option<String> {
        let mut parts = Vec::new();
        if !self.processors.is_empty() {
            parts.push(format!(
                "lanes run on processors {} ({} fast cores)",
                show_list(&self.processors),
                self.cores
            ));
        }
        if !self.nodes.is_empty() {
            parts.push(format!("memory is spread over nodes {}", show_list(&self.nodes)));
        }
        (!parts.is_empty()).then(|| parts.join("; "))
    }
}

/// Spreads the pages of a fresh mapping over memory nodes. Advice: where the system refuses, pages lie where they are touched first.
///
/// # Safety
/// It is a mapping of the caller's, page-aligned, none of which has been touched.
#[cfg(target_os = "linux")]
pub(crate) unsafe fn interleave(pointer: *mut libc::c_void, bytes: usize, nodes: &[usize]) {
    const MPOL_INTERLEAVE: libc::c_ulong = 3;
    let mut mask = [0 as libc::c_ulong; 16];
    let bits = libc::c_ulong::BITS as usize;
    for &node in nodes {
        if let Some(word) = mask.get_mut(node / bits) {
            *word |= 1 << (node % bits);
        }
    }
    // SAFETY: the system reads as many bits of the mask as it has (one less than what it is told, by its own convention).
    unsafe {
        libc::syscall(
            libc::SYS_mbind,
            pointer,
            bytes,
            MPOL_INTERLEAVE,
            mask.as_ptr(),
            mask.len() * bits + 1,
            0,
        );
    }
}

/// The processors that this thread may use.
#[cfg(target_os = "linux")]
fn allowed() -> Vec<usize> {
    // SAFETY: the set is plain bits, all of them zero.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: 0 is the calling thread; the set is as large as is said. It fails on machines of more processors, of which nothing is
    // known then.
    if unsafe { libc::sched_getaffinity(0, size_of_val(&set), &mut set) } != 0 {
        return Vec::new();
    }
    // SAFETY: the bits lie in the set.
    (0..libc::CPU_SETSIZE as usize).filter(|&id| unsafe { libc::CPU_ISSET(id, &set) }).collect()
}

/// Cores of the fastest kind of an Apple processor, and all cores of others.
#[cfg(target_vendor = "apple")]
fn fast_cores() -> Option<usize> {
    [c"hw.perflevel0.physicalcpu", c"hw.physicalcpu"].iter().find_map(|name| {
        let (mut value, mut size) = (0 as libc::c_int, size_of::<libc::c_int>());
        // SAFETY: the name ends in a zero; value and its size live through the call.
        let answer = unsafe {
            let value = (&raw mut value).cast();
            libc::sysctlbyname(name.as_ptr(), value, &mut size, std::ptr::null_mut(), 0)
        };
        usize::try_from(value).ok().filter(|&cores| answer == 0 && cores > 0)
    })
}

#[cfg(not(any(target_os = "linux", target_vendor = "apple")))]
fn fast_cores() -> Option<usize> {
    None
}

/// Numbers and ranges as Linux lists them: `0-3,8`. What is no number is left out.
fn parse_list(text: &str) -> Vec<usize> {
    let mut list = Vec::new();
    for part in text.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.parse::<usize>(), last.parse::<usize>()) {
            // no machine has more: a line that says so is damaged
            list.extend(first..=last.min(first.saturating_add(1 << 16)));
        }
    }
    list
}

/// The reverse, for an ascending list.
fn show_list(list: &[usize]) -> String {
    let runs = list.chunk_by(|a, b| a + 1 == *b).map(|run| match run {
        [one] => one.to_string(),
        _ => format!("{}-{}", run[0], run[run.len() - 1]),
    });
    runs.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tree of processors: siblings, capacity and node of each.
    struct Tree(std::path::PathBuf);

    impl Tree {
        fn new(name: &str, processors: &[(&str, Option<u32>, usize)]) -> Self {
            let root = std::env::temp_dir().join(format!("perjoule-placement-{name}-{}", std::process::id()));
            let write = |path: String, text: String| {
                let path = root.join(path);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, text + "\n").unwrap();
            };
            let mut nodes = BTreeMap::<usize, Vec<usize>>::new();
            for (id, (siblings, capacity, node)) in processors.iter().enumerate() {
                let cpu = format!("system/cpu/cpu{id}");
                write(format!("{cpu}/topology/thread_siblings_list"), siblings.to_string());
                if let Some(capacity) = capacity {
                    write(format!("{cpu}/cpu_capacity"), capacity.to_string());
                }
                nodes.entry(*node).or_default().push(id);
            }
            write("system/node/online".into(), show_list(&nodes.keys().copied().collect::<Vec<_>>()));
            for (node, ids) in nodes {
                write(format!("system/node/node{node}/cpulist"), show_list(&ids));
            }
            Tree(root)
        }

        fn machine(&self, allowed: &[usize], available: usize) -> Machine {
            Machine::read(&self.0, allowed, available)
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn placed(machine: &Machine, lanes: usize) -> (Vec<usize>, Vec<usize>) {
        let Placement { processors, nodes, .. } = machine.place(lanes);
        (processors, nodes)
    }

    #[test]
    fn lists_are_read_and_written() {
        for list in ["0", "0-3", "0-3,8,10-11"] {
            assert_eq!(show_list(&parse_list(list)), list);
        }
        for nothing in ["", "\n", "a-b", "-", "3-1"] {
            assert_eq!(parse_list(nothing), [0usize; 0], "{nothing:?}");
        }
    }

    #[test]
    fn cores_come_before_their_second_threads() {
        // numbered as most firmware does it: 0..4 are the first threads of four cores
        let siblings = ["0,4", "1,5", "2,6", "3,7", "0,4", "1,5", "2,6", "3,7"];
        let tree = Tree::new("smt", &siblings.map(|s| (s, None, 0)));
        let machine = tree.machine(&[0, 1, 2, 3, 4, 5, 6, 7], 8);
        assert_eq!(machine.lanes(), 4);
        assert_eq!(placed(&machine, 4), (vec![0, 1, 2, 3], vec![]));
        assert_eq!(placed(&machine, 2), (vec![0, 1], vec![]));
        assert_eq!(placed(&machine, 5), (vec![0, 1, 2, 3, 4], vec![]));
        assert_eq!(placed(&machine, 8), (vec![], vec![]), "all of them: nothing to confine");
        assert_eq!(placed(&machine, 99), (vec![], vec![]));
        // a container that has both threads of one core and the second of another
        let machine = tree.machine(&[1, 5, 6], 3);
        assert_eq!((machine.lanes(), placed(&machine, 2)), (2, (vec![1, 6], vec![])));
        // and one whose share of time is less than its processors
        assert_eq!(tree.machine(&[0, 1, 2, 3, 4, 5, 6, 7], 3).lanes(), 3);
    }

    #[test]
    fn fast_cores_come_before_slow_ones() {
        // two fast cores of two threads each, four slow ones of one
        let processors = [
            ("0-1", Some(1024), 0),
            ("0-1", Some(1024), 0),
            ("2-3", Some(1000), 0),
            ("2-3", Some(1000), 0),
            ("4", Some(600), 0),
            ("5", Some(600), 0),
            ("6", Some(600), 0),
            ("7", Some(600), 0),
        ];
        let machine = Tree::new("hybrid", &processors).machine(&[0, 1, 2, 3, 4, 5, 6, 7], 8);
        assert_eq!((machine.lanes(), placed(&machine, 2)), (2, (vec![0, 2], vec![])));
        assert_eq!(placed(&machine, 4), (vec![0, 2, 4, 5], vec![]));
        assert_eq!(placed(&machine, 7), (vec![0, 1, 2, 4, 5, 6, 7], vec![]));

        // Intel's kernels list the slow ones where they give no capacities
        let tree = Tree::new("atom", &processors.map(|(siblings, _, node)| (siblings, None, node)));
        std::fs::create_dir_all(tree.0.join("cpu_atom")).unwrap();
        std::fs::write(tree.0.join("cpu_atom/cpus"), "4-7\n").unwrap();
        let listed = tree.machine(&[0, 1, 2, 3, 4, 5, 6, 7], 8);
        assert_eq!(listed.processors.iter().map(|p| p.id).collect::<Vec<_>>(), [0, 2, 4, 5, 6, 7, 1, 3]);
        assert_eq!(listed.lanes(), 2);
    }

    #[test]
    fn one_node_is_taken_before_several_and_memory_is_spread_over_those_taken() {
        let siblings = ["0,4", "1,5", "2,6", "3,7", "0,4", "1,5", "2,6", "3,7"];
        let mut processors = siblings.map(|s| (s, None, 0));
        for odd in [2, 3, 6, 7] {
            processors[odd].2 = 1;
        }
        let tree = Tree::new("numa", &processors);
        let machine = tree.machine(&[0, 1, 2, 3, 4, 5, 6, 7], 8);
        assert_eq!(machine.lanes(), 4);
        assert_eq!(placed(&machine, 2), (vec![0, 1], vec![]));
        assert_eq!(placed(&machine, 4), (vec![0, 1, 2, 3], vec![0, 1]));
        assert_eq!(placed(&machine, 8), (vec![], vec![0, 1]));
        // where the first node is short of cores, the other one is taken
        assert_eq!(placed(&tree.machine(&[0, 2, 3, 6, 7], 5), 2), (vec![2, 3], vec![]));
        let said = machine.place(4).describe().unwrap();
        assert_eq!(said, "lanes run on processors 0-3 (4 fast cores); memory is spread over nodes 0-1");
    }

    #[test]
    fn where_nothing_is_said_nothing_is_confined() {
        let tree = Tree::new("none", &[]);
        let machine = tree.machine(&[0, 1], 2);
        assert_eq!((machine.lanes(), machine.place(2)), (2, Placement::default()));
        assert_eq!(machine.place(2).describe(), None);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_thread_is_confined_where_the_system_allows() {
        let before = allowed();
        let one = Placement { processors: vec![before[0]], ..Placement::default() };
        std::thread::spawn(move || {
            one.confine().unwrap();
            assert_eq!(allowed(), one.processors);
        })
        .join()
        .unwrap();
        assert_eq!(allowed(), before);
        let machine = Machine::detect();
        assert!(machine.lanes() >= 1 && machine.lanes() <= machine.available);
    }
}
