//! An open device, its plans and its default stream.

use perjoule_kernels::op::Constant;
use perjoule_kernels::select::{explain, select_named};
use perjoule_kernels::tune::Tuning;
use perjoule_kernels::{
    Alignment, Arg, Buffer, Choice, Device as Backend, DeviceInfo, Error, Kernel, Op, PackFormat, Prepared,
    Query, Result, Stream, Verdict,
};
use std::collections::HashMap;
use std::fmt::Write;
use std::hash::{DefaultHasher, Hasher};
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::ThreadId;

/// Plans kept before the cache starts afresh: far more than a model has shapes, little enough to bound memory.
const PLANS: usize = 4096;

/// An open device. Cloning shares it.
#[derive(Clone)]
pub struct Device(Arc<Opened>);

struct Opened {
    backend: Arc<dyn Backend>,
    /// The process that opened it.
    #[cfg(not(target_arch = "wasm32"))]
    process: u32,
    plans: Mutex<Plans>,
    stream: Mutex<Box<dyn Stream>>,
    /// The thread that holds `stream`.
    holder: Mutex<Option<ThreadId>>,
}

/// Plans by the fingerprints of their ops, all made at one revision of the device's rows and tuning.
#[derive(Default)]
struct Plans {
    revision: Option<u64>,
    by_op: HashMap<u64, Vec<Arc<Prepared>>>,
    /// Ops of which some row needs more alignment than its elements have: of others, plans do not depend on it.
    aligned: Vec<&'static str>,
}

/// The default stream, for as long as the guard lives: see [`Device::default_stream`].
pub struct StreamGuard<'a> {
    stream: MutexGuard<'a, Box<dyn Stream>>,
    holder: &'a Mutex<Option<ThreadId>>,
}

impl Deref for StreamGuard<'_> {
    type Target = dyn Stream;

    fn deref(&self) -> &(dyn Stream + 'static) {
        &**self.stream
    }
}

impl DerefMut for StreamGuard<'_> {
    fn deref_mut(&mut self) -> &mut (dyn Stream + 'static) {
        &mut **self.stream
    }
}

impl Drop for StreamGuard<'_> {
    fn drop(&mut self) {
        *unpoisoned(self.holder) = None; // before the stream is free for others
    }
}

/// The lock, also after a panic elsewhere: what these protect is never left half done.
fn unpoisoned<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

impl Device {
    /// Wraps a backend's device: one opened with options of its own, or a backend from outside.
    pub fn new(backend: Arc<dyn Backend>) -> Result<Self> {
        let stream = Mutex::new(backend.stream()?);
        let holder = Mutex::new(None);
        Ok(Device(Arc::new(Opened {
            backend,
            #[cfg(not(target_arch = "wasm32"))]
            process: std::process::id(),
            plans: Mutex::default(),
            stream,
            holder,
        })))
    }

    /// Refused in a fork, where a lock may be held for ever by a thread that is not there; no backend's device survives one either.
    fn alive(&self) -> Result<()> {
        #[cfg(not(target_arch = "wasm32"))]
        if std::process::id() != self.0.process {
            return Err(Error::Lost {
                device: self.info().label.clone(),
                detail: "this process was forked from the one that opened it".into(),
            });
        }
        Ok(())
    }

    /// What it is.
    pub fn info(&self) -> &DeviceInfo {
        self.0.backend.info()
    }

    /// The backend's own object.
    pub fn backend(&self) -> &Arc<dyn Backend> {
        &self.0.backend
    }

    /// The rows of its table.
    pub fn kernels(&self) -> Arc<[&'static Kernel]> {
        self.0.backend.kernels()
    }

    /// Adds a row of your own. Plans that you hold keep their rows; the next call with the same shapes chooses anew.
    pub fn register(&self, row: &'static Kernel) -> Result<()> {
        self.0.backend.register(row)
    }

    /// Zeroed memory.
    pub fn alloc(&self, bytes: u64) -> Result<Buffer> {
        self.0.backend.alloc(bytes)
    }

    /// Memory of any content, for what is written before it is read: see [`perjoule_kernels::Device::alloc_any`].
    pub fn alloc_any(&self, bytes: u64) -> Result<Buffer> {
        self.0.backend.alloc_any(bytes)
    }

    /// A new stream. Nothing orders it behind the default stream: see [`Stream::follow`].
    pub fn stream(&self) -> Result<Box<dyn Stream>> {
        self.0.backend.stream()
    }

    /// The stream on which [`crate::ops`] runs, and [`crate::Tensor::from_slice`] and [`crate::Tensor::to_vec`] copy. Other threads wait
    /// for it while the guard lives; drop it before the next such call of this thread.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when this thread holds it already: it would wait for itself. [`Error::Lost`] in a fork of the process.
    pub fn default_stream(&self) -> Result<StreamGuard<'_>> {
        self.alive()?;
        // only this thread writes its own id, so that nobody can make the answer wrong meanwhile
        let this = std::thread::current().id();
        if *unpoisoned(&self.0.holder) == Some(this) {
            return Err(Error::Unsupported {
                what: "the default stream twice on one thread",
                why: "this thread holds it; drop what Device::default_stream gave before the next call"
                    .into(),
            });
        }
        let stream = unpoisoned(&self.0.stream);
        *unpoisoned(&self.0.holder) = Some(this);
        Ok(StreamGuard { stream, holder: &self.0.holder })
    }

    /// Replaces what a tuner measured. Plans that you hold keep their rows.
    pub fn set_tuning(&self, tuning: Option<Arc<Tuning>>) -> Result<()> {
        self.0.backend.set_tuning(tuning)
    }

    /// The alignment that a launch on these arguments may vouch for.
    pub fn alignment(&self, args: &[&Buffer]) -> Alignment {
        let most = self.info().arena.align;
        let each = args.iter().enumerate();
        each.fold(Alignment::default(), |all, (i, buffer)| all.with(i, buffer.address(), most))
    }

    /// Every row for an op and what became of it: costs or reasons.
    pub fn explain<'a>(&self, query: impl Into<Query<'a>>) -> Result<Vec<Verdict>> {
        explain(&*self.0.backend, query)
    }

    /// The cheapest row for an op, and for all of `also` that share its constant operands.
    pub fn select<'a>(&self, query: impl Into<Query<'a>>, also: &[Op]) -> Result<Choice> {
        perjoule_kernels::select(&*self.0.backend, query, also)
    }

    /// The row of that name for an op.
    pub fn select_named<'a>(&self, query: impl Into<Query<'a>>, name: &str) -> Result<Choice> {
        select_named(&*self.0.backend, query, name)
    }

    /// Prepares a choice of your own; not cached.
    pub fn prepare_choice(&self, op: &Op, choice: Choice) -> Result<Prepared> {
        perjoule_kernels::prepare(&*self.0.backend, op, choice, None)
    }

    /// The plan for `op` with its constant operands plain: the cheapest row, prepared once and kept.
    pub fn prepare(&self, op: impl Into<Op>) -> Result<Arc<Prepared>> {
        self.prepare_packed(&op.into(), None)
    }

    /// The plan for an op with its constant operands packed as `pack`.
    pub fn prepare_packed<'a>(
        &self,
        query: impl Into<Query<'a>>,
        pack: Option<&'static PackFormat>,
    ) -> Result<Arc<Prepared>> {
        self.alive()?;
        let Query { op, alignment } = query.into();
        let key = fingerprint(op, pack);
        let settle = |plans: &Plans| match plans.aligned.contains(&op.name()) {
            true => alignment,
            false => Alignment::default(),
        };
        let find = |plans: &Plans| {
            let alignment = settle(plans);
            let same = |p: &&Arc<Prepared>| {
                let choice = p.choice();
                p.op() == op && choice.pack == pack && choice.alignment == alignment
            };
            plans.by_op.get(&key)?.iter().find(same).cloned()
        };
        // looked at before the rows are: a plan that is older than a change is never taken for a newer one
        let revision = self.0.backend.revision();
        let lock = || {
            let mut plans = unpoisoned(&self.0.plans);
            if plans.revision != Some(revision) {
                let rows = self.kernels();
                let aligned = rows.iter().filter(|row| row.align.is_some()).map(|row| row.op).collect();
                *plans = Plans { revision: Some(revision), aligned, ..Plans::default() };
            }
            plans
        };
        let alignment = {
            let plans = lock();
            if let Some(plan) = find(&plans) {
                return Ok(plan);
            }
            settle(&plans)
        };
        // prepared outside the lock: it may compile for a while
        let query = Query { op, alignment };
        let choice = perjoule_kernels::select_packed(&*self.0.backend, query, pack)?;
        let plan = Arc::new(self.prepare_choice(op, choice)?);
        let mut plans = lock();
        if let Some(plan) = find(&plans) {
            return Ok(plan); // another thread was faster
        }
        if plans.by_op.len() >= PLANS {
            plans.by_op.clear();
        }
        plans.by_op.entry(key).or_default().push(plan.clone());
        Ok(plan)
    }
}

/// Constant operands.
impl Device {
    /// Packs a constant operand on the default stream; `plain` holds it as the op lays it out.
    pub fn pack_constant(
        &self,
        constant: &Constant,
        format: &'static PackFormat,
        plain: &Buffer,
    ) -> Result<Buffer> {
        let bytes = constant.pack(format).packed_bytes();
        let packed = self.alloc(bytes.ok_or(Error::Overflow { op: "pack", what: "the packed operand" })?)?;
        self.pack_constant_into(&mut *self.default_stream()?, constant, format, Arg::Buf(plain), &packed)?;
        Ok(packed)
    }

    /// The same on a stream of your own and into memory of your own, such as the part of a matrix that was read so far.
    pub fn pack_constant_into(
        &self,
        stream: &mut dyn Stream,
        constant: &Constant,
        format: &'static PackFormat,
        plain: Arg<'_>,
        packed: &Buffer,
    ) -> Result<()> {
        let most = self.info().arena.align;
        let alignment = Alignment::default().with(0, plain.address(), most).with(1, packed.address(), most);
        let op = constant.pack(format).into();
        let plan = self.prepare_packed(Query { op: &op, alignment }, None)?;
        stream.reserve(plan.scratch())?;
        plan.launch(stream, &mut [plain, Arg::Buf(packed)])
    }
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Device({})", self.info().label)
    }
}

/// A hash of an op by its printed form: ops hold floats, which hash by no other way.
fn fingerprint(op: &Op, pack: Option<&PackFormat>) -> u64 {
    struct Sink(DefaultHasher);
    impl Write for Sink {
        fn write_str(&mut self, text: &str) -> std::fmt::Result {
            self.0.write(text.as_bytes());
            Ok(())
        }
    }
    let mut sink = Sink(DefaultHasher::new());
    // writing into a hasher cannot fail
    let _ = write!(sink, "{op:?} {pack:?}");
    sink.0.finish()
}
