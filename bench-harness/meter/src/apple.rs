//! Apple silicon through the `macmon` crate, which reads IOReport and the SMC and needs no root.
//!
//! IOReport gives the mean power of each interval between two samples, without gaps: a thread takes them for as long
//! as somebody reads the meters, and the window integrates. Boundaries as for RAPL, so that the two compare:
//! `package` is CPU + GPU + neural engine, `core` the CPU's clusters, `uncore` the GPU, `dram` the memory, and
//! `platform` what the SMC reports for the whole system (its key `PSTR`).
//!
//! Apple says of the same figures in powermetrics(1) that they are estimates and not for comparisons between
//! devices: 10 % is assumed, and 20 % for the memory.

use std::fmt::{self, Debug};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use crate::discover::{Discovery, Unavailable};
use crate::error::{MeterError, Result};
use crate::feed::Feed;
use crate::meter::{Meter, MeterInfo, Sample, Subject};
use crate::quantity::{Band, Boundary, Source};

/// Length of one interval.
const INTERVAL: Duration = Duration::from_millis(100);

/// The thread ends when nobody has read for this long.
const LINGER: Duration = Duration::from_secs(5);

/// Mean power of one interval by part, W, in the order of [`PARTS`].
type Powers = [f64; 5];

const PARTS: [(Boundary, Subject, &str); 5] = [
    (Boundary::Platform, Subject::System, "Mac, whole system (SMC)"),
    (Boundary::Package, Subject::Cpu, "CPU, GPU and neural engine"),
    (Boundary::Core, Subject::Cpu, "CPU clusters"),
    (Boundary::Uncore, Subject::Cpu, "GPU"),
    (Boundary::Dram, Subject::Memory, "DRAM"),
];

/// Blocks for one interval and gives its powers.
type Sampler = Box<dyn FnMut() -> std::result::Result<Powers, String>>;

/// Makes a sampler on the thread that will use it.
type MakeSampler = fn() -> std::result::Result<Sampler, String>;

/// One part of an Apple chip.
#[derive(Debug)]
pub struct Apple {
    info: MeterInfo,
    part: usize,
    shared: Arc<Shared>,
}

struct Shared {
    make: MakeSampler,
    worker: Mutex<Worker>,
}

#[derive(Default)]
struct Worker {
    /// The stream of the running thread.
    feed: Option<Arc<Feed<Powers>>>,
    /// When somebody last read.
    read: Option<Instant>,
}

impl Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl Apple {
    /// The meters of this Mac.
    #[cfg(all(target_os = "macos", feature = "macmon"))]
    pub fn discover() -> Discovery {
        discover_with(make_sampler)
    }
}

fn discover_with(make: MakeSampler) -> Discovery {
    let shared = Arc::new(Shared { make, worker: Mutex::default() });
    let mut found = Discovery::default();
    let powers = match shared.powers() {
        Ok(powers) => powers,
        Err(reason) => {
            let what = "Apple silicon".to_owned();
            let fix =
                Some("macmon needs an Apple chip: a Mac with an Intel CPU or a virtual one has none".into());
            found.unavailable.push(Unavailable { origin: Source::Macmon, what, reason, fix });
            return found;
        }
    };
    for (part, (boundary, subject, name)) in PARTS.into_iter().enumerate() {
        // The chip reports a part that it does not measure as zero. A GPU at rest is not such a part.
        if powers[part] == 0.0 && boundary != Boundary::Uncore {
            found.unavailable.push(Unavailable {
                origin: Source::Macmon,
                what: name.into(),
                reason: "it reads zero on this Mac".into(),
                fix: None,
            });
            continue;
        }
        let mut info = MeterInfo::new(format!("macmon:{boundary}"), Source::Macmon, boundary, subject);
        info.name = name.into();
        info.update_period = INTERVAL;
        info.poll_every = Some(INTERVAL);
        info.accuracy = Band::within(if boundary == Boundary::Dram { 0.20 } else { 0.10 });
        info.notes.push("Integrated from sampled power, which Apple calls an estimate.".into());
        found.meters.push(Arc::new(Apple { info, part, shared: shared.clone() }));
    }
    found
}

impl Meter for Apple {
    fn info(&self) -> &MeterInfo {
        &self.info
    }

    fn read(&self) -> Result<Sample> {
        let powers = self.shared.powers();
        let powers = powers.map_err(|reason| MeterError::Library { origin: Source::Macmon, reason })?;
        Ok(Sample::Watts(powers[self.part]))
    }
}

impl Shared {
    /// The newest powers. Starts the thread and waits for its first interval where it does not run.
    fn powers(self: &Arc<Shared>) -> std::result::Result<Powers, String> {
        let feed = {
            let mut worker = self.worker.lock().unwrap_or_else(PoisonError::into_inner);
            worker.read = Some(Instant::now());
            match &worker.feed {
                Some(feed) => feed.clone(),
                None => {
                    let feed = Arc::new(Feed::new());
                    let (shared, stream) = (Arc::downgrade(self), feed.clone());
                    thread::Builder::new()
                        .name("macmon".into())
                        .spawn(move || work(&shared, &stream))
                        .map_err(|e| format!("cannot start the sampling thread: {e}"))?;
                    worker.feed.insert(feed).clone()
                }
            }
        };
        let state = feed.wait(20 * INTERVAL);
        match (&state.ended, state.latest) {
            (Some(reason), _) => Err(reason.clone()),
            (None, Some((at, powers))) if at.elapsed() < 20 * INTERVAL => Ok(powers),
            _ => Err("no sample came in time".into()),
        }
    }
}

/// Samples until the meters are gone, nobody reads any more, or sampling fails.
fn work(shared: &Weak<Shared>, feed: &Feed<Powers>) {
    let Some(make) = shared.upgrade().map(|shared| shared.make) else { return };
    let end = |reason: String| {
        feed.end(reason);
        // The next reading starts anew.
        if let Some(shared) = shared.upgrade() {
            shared.worker.lock().unwrap_or_else(PoisonError::into_inner).feed = None;
        }
    };
    let mut sample = match make() {
        Ok(sample) => sample,
        Err(reason) => return end(reason),
    };
    loop {
        match sample() {
            Ok(powers) => feed.put(Instant::now(), powers),
            Err(reason) => return end(reason),
        }
        let Some(shared) = shared.upgrade() else { return };
        let mut worker = shared.worker.lock().unwrap_or_else(PoisonError::into_inner);
        if worker.read.is_none_or(|read| read.elapsed() > LINGER) {
            worker.feed = None;
            return;
        }
    }
}

#[cfg(all(target_os = "macos", feature = "macmon"))]
fn make_sampler() -> std::result::Result<Sampler, String> {
    let mut sampler = macmon::Sampler::new().map_err(|e| e.to_string())?;
    let milliseconds = u32::try_from(INTERVAL.as_millis()).unwrap_or(u32::MAX);
    Ok(Box::new(move || {
        let metrics = sampler.get_metrics(milliseconds).map_err(|e| e.to_string())?;
        Ok([metrics.sys_power, metrics.all_power, metrics.cpu_power, metrics.gpu_power, metrics.ram_power]
            .map(f64::from))
    }))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::Window;

    static MADE: AtomicUsize = AtomicUsize::new(0);

    /// A Mac that draws 20 W, and whose memory is not measured.
    fn fake() -> std::result::Result<Sampler, String> {
        MADE.fetch_add(1, Ordering::Relaxed);
        Ok(Box::new(|| {
            thread::sleep(Duration::from_millis(10));
            Ok([20.0, 12.0, 9.0, 0.0, 0.0])
        }))
    }

    #[test]
    fn parts_are_read_from_one_sampler_and_kept_apart() {
        let found = discover_with(fake);
        let boundaries: Vec<Boundary> = found.meters.iter().map(|meter| meter.info().boundary).collect();
        assert_eq!(boundaries, [Boundary::Platform, Boundary::Package, Boundary::Core, Boundary::Uncore]);
        assert!(found.unavailable[0].reason.contains("zero"), "{found:?}");
        let windows: Vec<Window> =
            found.meters.iter().map(|meter| Window::start(meter.clone()).expect("start")).collect();
        thread::sleep(Duration::from_millis(350));
        for (window, watts) in windows.into_iter().zip([20.0, 12.0, 9.0, 0.0]) {
            let energy = window.finish().expect("energy");
            assert!((energy.watts() - watts).abs() < 1e-6, "{energy:?}");
        }
        assert_eq!(MADE.load(Ordering::Relaxed), 1, "one thread for all parts");
    }

    #[test]
    fn a_machine_without_an_apple_chip_is_explained() {
        let found = discover_with(|| Err("no SoC information".into()));
        assert!(found.meters.is_empty());
        assert!(found.unavailable[0].reason.contains("no SoC") && found.unavailable[0].fix.is_some());

        let failing =
            || -> std::result::Result<Sampler, String> { Ok(Box::new(|| Err("IOReport is gone".into()))) };
        assert!(discover_with(failing).unavailable[0].reason.contains("IOReport is gone"));
    }
}
