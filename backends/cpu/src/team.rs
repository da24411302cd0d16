//! A team of threads for SPMD regions: the caller is lane 0, the others spin briefly for the next region and then sleep.
//!
//! rayon's fork-join costs microseconds, a spinning barrier a fraction of one: a decode step has hundreds of launches. The time a
//! lane spins before it sleeps ([`SPIN`]) burns energy, so it is short and part of every record.

use crate::placement::Placement;
use perjoule_kernels::Error;
use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

/// How long a lane without work spins before it sleeps.
pub const SPIN: Duration = Duration::from_micros(50);

/// Short launches that come within [`SPIN`] of one another before it pays to wake the lanes for the next ones.
const STREAK: u32 = 16;

/// One of the team's threads inside a region.
///
/// Every lane must make the same calls of [`Lane::barrier`]: that is the SPMD contract. A region that breaks it ends as
/// [`Panicked`] before any lane has passed the barrier in question.
pub struct Lane<'a> {
    index: usize,
    count: usize,
    shared: &'a Shared,
    phase: Cell<usize>,
    /// Operands of this body of which the lane has been lent its share, a bit each. (A `Cell`, so that no other thread can use the lane.)
    lent: Cell<u32>,
}

const _: () = assert!(perjoule_kernels::op::MAX_OPERANDS <= u32::BITS as usize);

/// A lane left a region by panicking; the others follow at their next barrier.
struct Abandoned;

/// What an arrival adds to `arrived` at a barrier of a body, and at the end of one. All arrivals of a phase must be of one kind: a
/// lane that skipped a barrier must not run ahead into the next body of a sequence.
const AT_BARRIER: usize = 1;
const AT_END: usize = 1 << (usize::BITS / 2);

thread_local! {
    /// Whether this thread is a lane inside a region.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

#[repr(align(128))]
struct Padded<T>(T);

struct Shared {
    lanes: usize,
    epoch: Padded<AtomicU32>,
    job: UnsafeCell<Option<Job>>,
    running: Padded<AtomicUsize>,
    arrived: Padded<AtomicUsize>,
    generation: Padded<AtomicU32>,
    /// Work claimed in even and odd phases.
    claimed: [Padded<AtomicUsize>; 2],
    /// The same of the part of each lane, and whether a region claimed any.
    near: Vec<Padded<[AtomicUsize; 2]>>,
    used_near: AtomicBool,
    abandoned: AtomicBool,
    /// What the first lane to panic said. Touched only on that path.
    said: Mutex<Option<String>>,
    stop: AtomicBool,
    /// Lanes without work sleep at once.
    rest: AtomicBool,
    asleep: Vec<AtomicBool>,
    /// When the team was made, nanoseconds from then to the last launch that asked for it, and how many have come quickly one after another.
    made: Instant,
    last: AtomicU64,
    streak: AtomicU32,
}

#[derive(Clone, Copy)]
struct Job(*const (dyn Fn(&Lane<'_>) + Sync));

// SAFETY: `job` is written only by the thread that holds the region lock, before it releases a new epoch, and read by the workers
// after they have acquired that epoch; it is not written again before all of them have left the region. The closure is `Sync`.
unsafe impl Sync for Shared {}
// SAFETY: as above; the raw pointer inside is only dereferenced within the region that keeps its target alive.
unsafe impl Send for Shared {}

/// A region that could not be finished: a lane panicked. Carries the message.
#[derive(Debug, Clone)]
pub struct Panicked(pub String);

/// The threads of a device.
pub struct Team {
    shared: Arc<Shared>,
    threads: Vec<Thread>,
    handles: Vec<JoinHandle<()>>,
    region: Arc<Region>,
}

/// Identity of a team that lives.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct TeamId(usize);

/// The use of one device, its team and its memory, which one thread has at a time. Memory holds on to it, so that it can be copied
/// between devices, and after its device has gone.
pub(crate) struct Region {
    held: Mutex<()>,
    pid: u32,
}

impl Region {
    /// Refused in a fork, where the lock may be held for ever by a thread that is not there.
    pub(crate) fn alive(&self) -> Result<(), Error> {
        if std::process::id() == self.pid {
            return Ok(());
        }
        Err(Error::Lost {
            device: "cpu".into(),
            detail: "this process was forked from the one that opened it".into(),
        })
    }

    /// Waits for other users and keeps them out. Behind [`Region::alive`].
    fn enter(&self) -> MutexGuard<'_, ()> {
        assert!(!INSIDE.get(), "a body must not launch, read or write: it would wait for itself");
        // a panic inside a region is caught there, so a poisoned lock protects nothing that could be broken
        self.held.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Enters both, or the one that both are; in one order everywhere, so that nobody waits for who waits for him.
    pub(crate) fn enter_both<'a>(
        one: &'a Region,
        other: &'a Region,
    ) -> Result<(MutexGuard<'a, ()>, Option<MutexGuard<'a, ()>>), Error> {
        one.alive()?;
        other.alive()?;
        let (first, second) = if std::ptr::from_ref(one) <= other { (one, other) } else { (other, one) };
        let guard = first.enter();
        Ok((guard, (!std::ptr::eq(first, second)).then(|| second.enter())))
    }
}

/// Exclusive use of a team: what holds it may touch the device's memory.
pub struct Exclusive<'a> {
    team: &'a Team,
    _guard: MutexGuard<'a, ()>,
}

impl Team {
    /// A team of `lanes` lanes, at least one; the calling thread of each region is one of them.
    pub fn new(lanes: usize) -> std::io::Result<Self> {
        Self::placed(lanes, &Placement::default())
    }

    /// The same, whose threads run where `placement` says.
    pub fn placed(lanes: usize, placement: &Placement) -> std::io::Result<Self> {
        let lanes = lanes.max(1);
        let shared = Arc::new(Shared {
            lanes,
            epoch: Padded(AtomicU32::new(0)),
            job: UnsafeCell::new(None),
            running: Padded(AtomicUsize::new(0)),
            arrived: Padded(AtomicUsize::new(0)),
            generation: Padded(AtomicU32::new(0)),
            claimed: [Padded(AtomicUsize::new(0)), Padded(AtomicUsize::new(0))],
            near: (0..lanes).map(|_| Padded([AtomicUsize::new(0), AtomicUsize::new(0)])).collect(),
            used_near: AtomicBool::new(false),
            abandoned: AtomicBool::new(false),
            said: Mutex::new(None),
            stop: AtomicBool::new(false),
            rest: AtomicBool::new(false),
            asleep: (0..lanes).map(|_| AtomicBool::new(false)).collect(),
            made: Instant::now(),
            last: AtomicU64::new(0),
            streak: AtomicU32::new(0),
        });
        let mut team = Team {
            shared: shared.clone(),
            threads: Vec::new(),
            handles: Vec::new(),
            region: Arc::new(Region { held: Mutex::new(()), pid: std::process::id() }),
        };
        for index in 1..lanes {
            let (shared, placement) = (shared.clone(), placement.clone());
            let handle =
                std::thread::Builder::new().name(format!("perjoule-lane-{index}")).spawn(move || {
                    // where the system refuses, the lane runs wherever it is put
                    let _ = placement.confine();
                    work(&shared, index)
                })?;
            team.threads.push(handle.thread().clone());
            team.handles.push(handle);
        }
        Ok(team)
    }

    /// Number of lanes.
    pub fn lanes(&self) -> usize {
        self.shared.lanes
    }

    /// Whether this process is a fork of the one that made the team, and so has none of its threads.
    pub fn is_forked(&self) -> bool {
        self.region.alive().is_err()
    }

    /// Waits for other users of the device and keeps them out.
    ///
    /// # Errors
    /// [`Error::Lost`] in a fork: the lock may be held, and regions would be waited for, by threads that are not there.
    ///
    /// # Panics
    /// Inside a region, where it would wait for itself: a body must not launch, read or write. Nor may threads that a body starts and
    /// waits for, which nothing tells from others: they wait for the region's end, and it for theirs, for ever.
    pub fn lock(&self) -> Result<Exclusive<'_>, Error> {
        self.region.alive()?;
        Ok(Exclusive { team: self, _guard: self.region.enter() })
    }

    pub(crate) fn id(&self) -> TeamId {
        TeamId(Arc::as_ptr(&self.shared).addr())
    }

    /// What is held while the team runs.
    pub(crate) fn region(&self) -> &Arc<Region> {
        &self.region
    }
}

impl Exclusive<'_> {
    /// Runs `job` on every lane and returns when all have left it. `&mut`, so that no lane can start another region inside.
    ///
    /// # Errors
    /// [`Panicked`] with what the first lane to panic said, whichever lane it was.
    pub fn run(&mut self, job: &(dyn Fn(&Lane<'_>) + Sync)) -> Result<(), Panicked> {
        let shared = &*self.team.shared;
        if shared.lanes > 1 {
            // SAFETY: only the lifetime is erased; all lanes have left the job before this function returns.
            let erased = unsafe {
                std::mem::transmute::<
                    *const (dyn Fn(&Lane<'_>) + Sync),
                    *const (dyn Fn(&Lane<'_>) + Sync + 'static),
                >(job as *const _)
            };
            // SAFETY: no worker reads `job` now: all of them wait for the next epoch (see `Sync for Shared`).
            unsafe { *shared.job.get() = Some(Job(erased)) };
            shared.running.0.store(shared.lanes - 1, Ordering::Relaxed);
            shared.epoch.0.fetch_add(1, Ordering::SeqCst);
            for (thread, asleep) in self.team.threads.iter().zip(&shared.asleep[1..]) {
                if asleep.swap(false, Ordering::SeqCst) {
                    thread.unpark();
                }
            }
        }
        shared.enter(0, shared.lanes, job);
        let mut spins = 0u32;
        while shared.running.0.load(Ordering::Acquire) != 0 {
            relax(&mut spins);
        }
        shared.forget_claims();
        shared.arrived.0.store(0, Ordering::Relaxed);
        shared.outcome()
    }

    /// Whether all lanes should run what one could do by itself in microseconds: they are awake, or would stay so once woken, since
    /// such launches follow one another quickly.
    pub(crate) fn at_hand(&self) -> bool {
        let shared = &*self.team.shared;
        let now = shared.made.elapsed().as_nanos() as u64;
        let quick =
            u128::from(now.saturating_sub(shared.last.swap(now, Ordering::Relaxed))) < SPIN.as_nanos();
        let streak = if quick { shared.streak.load(Ordering::Relaxed).saturating_add(1) } else { 0 };
        shared.streak.store(streak, Ordering::Relaxed);
        streak >= STREAK || !shared.asleep.iter().any(|asleep| asleep.load(Ordering::Relaxed))
    }

    /// Runs `job` on the calling thread as the only lane, with the others asleep: for code that brings threads of its own.
    ///
    /// # Errors
    /// As [`Exclusive::run`].
    pub fn alone(&mut self, job: &(dyn Fn(&Lane<'_>) + Sync)) -> Result<(), Panicked> {
        let shared = &*self.team.shared;
        shared.rest.store(true, Ordering::Relaxed);
        let mut spins = 0u32;
        while !shared.asleep[1..].iter().all(|asleep| asleep.load(Ordering::Acquire)) {
            relax(&mut spins);
        }
        let result = self.single(job);
        self.team.shared.rest.store(false, Ordering::Relaxed);
        result
    }

    /// Runs `job` on the calling thread as the only lane, whatever the others do: for work that is over before they would have come.
    ///
    /// # Errors
    /// As [`Exclusive::run`].
    pub fn single(&mut self, job: &(dyn Fn(&Lane<'_>) + Sync)) -> Result<(), Panicked> {
        let shared = &*self.team.shared;
        shared.enter(0, 1, job);
        shared.forget_claims();
        shared.outcome()
    }
}

impl Shared {
    /// Makes the counters ready for the next region. All lanes have left the last one.
    fn forget_claims(&self) {
        for claimed in &self.claimed {
            claimed.0.store(0, Ordering::Relaxed);
        }
        // as many lines as lanes, most of them in caches of other cores
        if self.used_near.swap(false, Ordering::Relaxed) {
            for claimed in self.near.iter().flat_map(|lane| &lane.0) {
                claimed.store(0, Ordering::Relaxed);
            }
        }
    }

    /// What became of the region that all lanes have left.
    fn outcome(&self) -> Result<(), Panicked> {
        let shared = self;
        if shared.abandoned.swap(false, Ordering::Relaxed) {
            let said = shared.said.lock().unwrap_or_else(|e| e.into_inner()).take();
            return Err(Panicked(said.unwrap_or_else(|| "a thread of the team panicked".into())));
        }
        Ok(())
    }

    fn enter(&self, index: usize, lanes: usize, job: &(dyn Fn(&Lane<'_>) + Sync)) {
        let lane = Lane { index, count: lanes, shared: self, phase: Cell::new(0), lent: Cell::new(0) };
        let outer = INSIDE.replace(true);
        let result = catch_unwind(AssertUnwindSafe(|| {
            job(&lane);
            lane.leave();
        }));
        INSIDE.set(outer);
        if let Err(payload) = result {
            // lanes that merely followed another one out of the region have nothing to say
            if let Some(text) = message(&*payload) {
                self.said.lock().unwrap_or_else(|e| e.into_inner()).get_or_insert(text);
            }
            self.abandoned.store(true, Ordering::Release);
            // no unwinding may leave a region before all lanes have: not even out of the payload's destructor
            if let Err(second) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
                std::mem::forget(second);
            }
        }
    }

    /// Counts an arrival; true for the last one of a phase. Panics in the last when the lanes have not all come to the same place.
    fn arrive(&self, place: usize) -> bool {
        let arrived = self.arrived.0.fetch_add(place, Ordering::AcqRel) + place;
        if arrived % AT_END + arrived / AT_END < self.lanes {
            return false;
        }
        if arrived != self.lanes * place {
            self.abandoned.store(true, Ordering::Release);
            std::panic::resume_unwind(Box::new("the lanes do not make the same calls of Lane::barrier"));
        }
        true
    }
}

fn message(payload: &(dyn Any + Send)) -> Option<String> {
    if payload.is::<Abandoned>() {
        return None;
    }
    let text = payload.downcast_ref::<&str>().map(|s| s.to_string());
    Some(text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_else(|| "panicked".into()))
}

fn work(shared: &Shared, index: usize) {
    let mut seen = 0;
    loop {
        let mut spins = 0u32;
        let mut since = None;
        while shared.epoch.0.load(Ordering::Acquire) == seen {
            if spins < 64 {
                spins += 1;
                std::hint::spin_loop();
                continue;
            }
            spins = 0;
            let rests = shared.rest.load(Ordering::Relaxed);
            if !rests && since.get_or_insert_with(Instant::now).elapsed() < SPIN {
                continue;
            }
            // announce, look again, sleep: the region's caller stores the epoch first and looks at the announcement second
            shared.asleep[index].store(true, Ordering::SeqCst);
            if shared.epoch.0.load(Ordering::SeqCst) == seen {
                std::thread::park();
            }
            shared.asleep[index].store(false, Ordering::SeqCst);
        }
        seen = seen.wrapping_add(1);
        if shared.stop.load(Ordering::Acquire) {
            return;
        }
        // SAFETY: the epoch was acquired, so the job of this region is visible; it is not written before `running` reaches 0.
        let job = unsafe { *shared.job.get() };
        if let Some(Job(job)) = job {
            // SAFETY: the caller of the region keeps the closure alive until `running` is 0.
            shared.enter(index, shared.lanes, unsafe { &*job });
        }
        shared.running.0.fetch_sub(1, Ordering::Release);
    }
}

/// Spins, and gives the core away after a while: with more lanes than idle cores the one waited for needs it.
fn relax(spins: &mut u32) {
    *spins = spins.wrapping_add(1);
    if spins.is_multiple_of(1024) {
        std::thread::yield_now();
    } else {
        std::hint::spin_loop();
    }
}

impl Lane<'_> {
    /// This lane, from 0.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Number of lanes.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Waits for all lanes; what they wrote before is visible after it. Starts a new phase of [`Lane::claim`].
    pub fn barrier(&self) {
        self.meet(AT_BARRIER);
    }

    /// The barrier between two bodies of a sequence.
    pub(crate) fn end_of_body(&self) {
        self.meet(AT_END);
        self.lent.set(0);
    }

    /// Notes that its share of an operand is lent for the rest of the body; false when it is already.
    pub(crate) fn lend(&self, operand: usize) -> bool {
        let before = self.lent.get();
        self.lent.set(before | 1 << operand);
        before & 1 << operand == 0
    }

    /// Whether it is one of the team's.
    pub(crate) fn is_of(&self, team: TeamId) -> bool {
        TeamId(std::ptr::from_ref(self.shared).addr()) == team
    }

    fn meet(&self, place: usize) {
        let phase = self.phase.get();
        self.phase.set(phase + 1);
        let shared = self.shared;
        // of the phase before this one, which nobody is in any more, and of the one after
        shared.near[self.index].0[(phase + 1) % 2].store(0, Ordering::Relaxed);
        if self.count == 1 {
            shared.claimed[phase % 2].0.store(0, Ordering::Relaxed);
            return;
        }
        let generation = shared.generation.0.load(Ordering::Acquire);
        if shared.arrive(place) {
            // the last to arrive: nobody claims in this phase any more, so its counter can serve the phase after the next
            shared.claimed[phase % 2].0.store(0, Ordering::Relaxed);
            shared.arrived.0.store(0, Ordering::Relaxed);
            shared.generation.0.fetch_add(1, Ordering::Release);
            return;
        }
        let mut spins = 0u32;
        while shared.generation.0.load(Ordering::Acquire) == generation {
            if shared.abandoned.load(Ordering::Acquire) {
                std::panic::resume_unwind(Box::new(Abandoned));
            }
            relax(&mut spins);
        }
    }

    /// Counts as arrived at the end of the region, without waiting: lanes that wait at a barrier learn that it is in vain.
    fn leave(&self) {
        if self.count > 1 {
            self.shared.arrive(AT_END);
        }
    }

    /// The next of `tasks` tasks that no lane has claimed in this phase; a phase ends at a barrier. Which lane gets which task
    /// varies, so results must not depend on it.
    pub fn claim(&self, tasks: usize) -> Option<usize> {
        let counter = &self.shared.claimed[self.phase.get() % 2].0;
        let task = counter.fetch_add(1, Ordering::Relaxed);
        (task < tasks).then_some(task)
    }

    /// As [`Lane::claim`], but a lane first gets those of [`Lane::split`], one after the other, and then what others have left. Where
    /// neighbouring tasks touch the same memory it stays in the caches of one core, launch after launch: to read what another one
    /// has just written takes several times as long between clusters of cores, and more between sockets. A phase has either kind of
    /// claims.
    pub(crate) fn claim_near(&self, tasks: usize) -> Option<usize> {
        let (shared, parity) = (self.shared, self.phase.get() % 2);
        if !shared.used_near.load(Ordering::Relaxed) {
            shared.used_near.store(true, Ordering::Relaxed);
        }
        (self.index..self.count).chain(0..self.index).find_map(|index| {
            let part = part(tasks, index, self.count);
            let counter = &shared.near[index].0[parity];
            if counter.load(Ordering::Relaxed) >= part.len() {
                return None;
            }
            let task = counter.fetch_add(1, Ordering::Relaxed);
            (task < part.len()).then(|| part.start + task)
        })
    }

    /// The items of `0..items` that this lane is to do: claimed near one another where there are many for each lane, since lanes are
    /// not equally fast, and split beforehand where there are few. Takes the place of claims in a phase.
    pub(crate) fn share(&self, items: usize) -> Share<'_, '_> {
        let claims = self.count > 1 && items >= 4 * self.count;
        Share { lane: self, items, own: self.split(items, 1), claims }
    }

    /// This lane's share of `0..n`, in whole multiples of `granule` (but for the end).
    pub fn split(&self, n: usize, granule: usize) -> std::ops::Range<usize> {
        let granule = granule.max(1);
        let pieces = part(n.div_ceil(granule), self.index, self.count);
        (pieces.start * granule).min(n)..(pieces.end * granule).min(n)
    }
}

/// The part of lane `index` of `count` in `0..n`.
fn part(n: usize, index: usize, count: usize) -> Range<usize> {
    let (share, more) = (n / count, n % count);
    let first = index * share + index.min(more);
    first..first + share + usize::from(index < more)
}

/// The items of a lane: see [`Lane::share`].
pub(crate) struct Share<'l, 'a> {
    lane: &'l Lane<'a>,
    items: usize,
    /// Those that are this lane's from the outset.
    own: Range<usize>,
    claims: bool,
}

impl Iterator for Share<'_, '_> {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        if self.claims { self.lane.claim_near(self.items) } else { self.own.next() }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        if self.is_forked() {
            return; // the threads are the parent's
        }
        self.shared.stop.store(true, Ordering::Release);
        self.shared.epoch.0.fetch_add(1, Ordering::SeqCst);
        for thread in &self.threads {
            thread.unpark();
        }
        for handle in self.handles.drain(..) {
            let _ = handle.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_is_claimed_once_near_or_not() {
        for lanes in [1, 2, 5] {
            let team = Team::new(lanes).unwrap();
            for tasks in [0, 1, 3, 4, 5, 17, 100] {
                // phases differ in their tasks, and regions in their phases
                for phases in 1..=3 {
                    let claims: Vec<Vec<AtomicUsize>> =
                        (0..phases).map(|p| (0..tasks + p).map(|_| AtomicUsize::new(0)).collect()).collect();
                    team.lock()
                        .unwrap()
                        .run(&|lane| {
                            for (phase, claims) in claims.iter().enumerate() {
                                if phase > 0 {
                                    lane.barrier();
                                }
                                // one of the lanes is slow: the others do its part
                                if lane.index() == 1 && phase == 1 {
                                    std::thread::sleep(Duration::from_millis(1));
                                }
                                while let Some(task) = lane.claim_near(tasks + phase) {
                                    claims[task].fetch_add(1, Ordering::Relaxed);
                                }
                            }
                        })
                        .unwrap();
                    let once =
                        |claims: &Vec<AtomicUsize>| claims.iter().all(|n| n.load(Ordering::Relaxed) == 1);
                    assert!(claims.iter().all(once), "{lanes} lanes, {tasks} tasks: {claims:?}");
                }
            }
        }
    }

    #[test]
    fn alone_a_lane_claims_its_own_tasks_in_their_order() {
        let team = Team::new(1).unwrap();
        let order = Mutex::new(Vec::new());
        let job = |lane: &Lane<'_>| {
            while let Some(task) = lane.claim_near(9) {
                order.lock().unwrap().push(task);
            }
        };
        team.lock().unwrap().run(&job).unwrap();
        assert_eq!(order.into_inner().unwrap(), (0..9).collect::<Vec<_>>());
    }

    #[test]
    fn every_lane_runs_and_barriers_separate_phases() {
        for lanes in [1, 2, 5] {
            let team = Team::new(lanes).unwrap();
            for round in 0..200 {
                let sum = AtomicUsize::new(0);
                let wrong = AtomicUsize::new(0);
                team.lock()
                    .unwrap()
                    .run(&|lane| {
                        for step in 1..=3 {
                            while let Some(task) = lane.claim(7) {
                                sum.fetch_add(task, Ordering::Relaxed);
                            }
                            lane.barrier();
                            if sum.load(Ordering::Relaxed) != 21 * step {
                                wrong.fetch_add(1, Ordering::Relaxed);
                            }
                            lane.barrier();
                        }
                    })
                    .unwrap();
                assert_eq!((sum.into_inner(), wrong.into_inner()), (63, 0), "round {round} of {lanes} lanes");
            }
        }
    }

    #[test]
    fn split_covers_everything_once() {
        let team = Team::new(3).unwrap();
        for (n, granule) in [(0, 4), (1, 4), (10, 4), (100, 7), (5, 1)] {
            let seen: Vec<AtomicUsize> = (0..n).map(|_| AtomicUsize::new(0)).collect();
            team.lock()
                .unwrap()
                .run(&|lane| {
                    for i in lane.split(n, granule) {
                        seen[i].fetch_add(1, Ordering::Relaxed);
                    }
                })
                .unwrap();
            assert!(seen.iter().all(|s| s.load(Ordering::Relaxed) == 1));
        }
    }

    #[test]
    fn a_panic_in_any_lane_is_an_error_and_the_team_survives() {
        let team = Team::new(3).unwrap();
        for culprit in 0..3 {
            let result = team.lock().unwrap().run(&|lane| {
                if lane.index() == culprit {
                    std::panic::resume_unwind(Box::new("on purpose"));
                }
                lane.barrier();
            });
            assert_eq!(result.unwrap_err().0, "on purpose", "lane {culprit}");
            let ran = AtomicUsize::new(0);
            team.lock()
                .unwrap()
                .run(&|lane| {
                    lane.barrier();
                    ran.fetch_add(1, Ordering::Relaxed);
                })
                .unwrap();
            assert_eq!(ran.into_inner(), 3);
        }
    }

    #[test]
    fn lanes_that_disagree_on_barriers_end_the_region() {
        for lanes in [2, 3] {
            let team = Team::new(lanes).unwrap();
            for (at_end, culprit) in [(false, 0), (true, 0), (false, 1), (true, 1)] {
                let behind = AtomicUsize::new(0);
                let result = team.lock().unwrap().run(&|lane| {
                    if lane.index() != culprit {
                        lane.barrier();
                    }
                    if at_end {
                        // as between two launches of a recorded sequence: nobody may reach the second
                        lane.end_of_body();
                        behind.fetch_add(1, Ordering::Relaxed);
                    }
                });
                assert!(result.is_err(), "{lanes} lanes, {at_end}, {culprit}");
                assert_eq!(behind.into_inner(), 0);
                team.lock().unwrap().run(&|lane| lane.barrier()).unwrap();
            }
        }
    }

    #[test]
    fn a_region_inside_a_region_is_refused() {
        let team = Team::new(2).unwrap();
        let error = team.lock().unwrap().run(&|_| drop(team.lock().unwrap())).unwrap_err();
        assert!(error.0.contains("must not launch"), "{error:?}");
        drop(team.lock().unwrap());
    }

    #[test]
    fn a_panic_out_of_a_panics_payload_stays_inside() {
        struct Bomb;
        impl Drop for Bomb {
            fn drop(&mut self) {
                // of no size: the team forgets it, which a check for leaks would report
                std::panic::resume_unwind(Box::new(()));
            }
        }
        let team = Team::new(2).unwrap();
        for culprit in 0..2 {
            let result = team.lock().unwrap().run(&|lane| {
                if lane.index() == culprit {
                    std::panic::resume_unwind(Box::new(Bomb));
                }
            });
            assert!(result.is_err());
        }
        team.lock().unwrap().run(&|lane| lane.barrier()).unwrap();
    }

    #[test]
    fn one_lane_works_alone_while_the_others_sleep() {
        let team = Team::new(3).unwrap();
        for _ in 0..20 {
            team.lock().unwrap().run(&|lane| lane.barrier()).unwrap();
            let alone = |lane: &Lane<'_>| {
                assert_eq!((lane.index(), lane.count(), lane.split(10, 3)), (0, 1, 0..10));
                lane.barrier();
                let asleep = team.shared.asleep[1..].iter().filter(|a| a.load(Ordering::SeqCst)).count();
                assert_eq!(asleep, 2);
            };
            team.lock().unwrap().alone(&alone).unwrap();
        }
        let error = team.lock().unwrap().alone(&|_| panic!("on purpose")).unwrap_err();
        assert_eq!(error.0, "on purpose");
        team.lock().unwrap().run(&|lane| lane.barrier()).unwrap();
    }

    #[test]
    fn one_lane_works_whatever_the_others_do() {
        let team = Team::new(3).unwrap();
        for round in 0..20 {
            team.lock().unwrap().run(&|lane| lane.barrier()).unwrap();
            let single = |lane: &Lane<'_>| {
                assert_eq!((lane.index(), lane.count(), lane.split(10, 3)), (0, 1, 0..10));
                lane.barrier();
                assert_eq!(
                    [lane.claim(2), lane.claim(2), lane.claim(2)],
                    [Some(0), Some(1), None],
                    "{round}"
                );
            };
            team.lock().unwrap().single(&single).unwrap();
            team.lock().unwrap().single(&single).unwrap();
        }
        let error = team.lock().unwrap().single(&|_| panic!("on purpose")).unwrap_err();
        assert_eq!(error.0, "on purpose");
        team.lock().unwrap().run(&|lane| lane.barrier()).unwrap();
    }

    #[test]
    fn sleeping_lanes_wake_up() {
        let team = Team::new(2).unwrap();
        for _ in 0..5 {
            std::thread::sleep(SPIN * 4);
            let ran = AtomicUsize::new(0);
            let job = |_: &Lane<'_>| {
                ran.fetch_add(1, Ordering::Relaxed);
            };
            team.lock().unwrap().run(&job).unwrap();
            assert_eq!(ran.into_inner(), 2);
        }
    }
}
