//! Rows of the kernel table, and what becomes of one when it is prepared for an op.

use crate::align::Alignment;
use crate::buffer::{Arg, Buffer};
use crate::device::{Comm, Device, DeviceId, DeviceInfo, Shared, Stream};
use crate::dtype::DType;
use crate::error::{Error, Reason, Result};
use crate::op::{MAX_OPERANDS, Op, Operand, ensure};
use crate::select::Choice;
use std::any::Any;
use std::sync::Arc;

/// One way to run a row: its tile and whatever else the row wants to vary. Rows list theirs; a tuner picks among them.
#[derive(Debug, PartialEq, Eq)]
pub struct Config {
    /// Short name, unique within the row, for records and test ids.
    pub name: &'static str,
    /// The micro-tile in the op's own terms (`[m, n, k]`, `[q, kv, d]`, `[len]`): test shapes are made from it.
    pub tile: &'static [usize],
    /// Further parameters, which only the row understands.
    pub params: &'static [usize],
}

impl Config {
    /// A configuration without further parameters.
    pub const fn tile(name: &'static str, tile: &'static [usize]) -> Self {
        Config { name, tile, params: &[] }
    }
}

/// How a row rounds, from which its tolerance follows: an output may differ from the f64 reference by half a unit in the last
/// place of the output type plus `slack * unit * (4 + sqrt(reduction)) * magnitude`, where `magnitude` is the sum of the
/// absolute values of the terms (Higham & Mary 2019, doi:10.1137/18M1226312). Integer results are exact.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Numerics {
    /// Unit roundoff of the coarsest rounding between inputs and output: 2^-24 for f32 accumulation.
    pub unit: f64,
    /// Multiple of the bound that the row may use; 1 unless the row says why not.
    pub slack: f64,
    /// Whether two launches on the same inputs with the same number of threads give the same bits.
    pub repeatable: bool,
    /// Whether subnormal numbers may be taken for zero, on the way in and out: WGSL allows it, and fast modes of GPUs do it.
    pub flushes_subnormals: bool,
}

impl Numerics {
    /// Values are moved, or integers added: every bit is determined.
    pub const EXACT: Numerics =
        Numerics { unit: 0.0, slack: 1.0, repeatable: true, flushes_subnormals: false };
    /// Products and sums in f32.
    pub const F32: Numerics = Self::EXACT.with_unit(5.960_464_477_539_063e-8);
    /// Products and sums in f64.
    pub const F64: Numerics = Self::EXACT.with_unit(1.110_223_024_625_156_5e-16);

    /// The same with another unit roundoff.
    pub const fn with_unit(self, unit: f64) -> Self {
        Numerics { unit, ..self }
    }

    /// The same with another slack.
    pub const fn with_slack(self, slack: f64) -> Self {
        Numerics { slack, ..self }
    }

    /// The same where bits may differ from launch to launch: sums by atomics, or in the order of arrival.
    pub const fn unrepeatable(self) -> Self {
        Numerics { repeatable: false, ..self }
    }

    /// The same where subnormal numbers may be taken for zero.
    pub const fn flushing_subnormals(self) -> Self {
        Numerics { flushes_subnormals: true, ..self }
    }
}

/// A layout into which a row wants the constant operands of a matrix product packed, once.
///
/// Declare it as a `static`: two formats are the same when they are the same static. Their names cannot decide it, since the size of
/// a packed operand, on which a row relies, follows from the format that the caller gives.
///
/// Panels of `panel` columns (rows of the weight, which is stored n x k) are independent of each other, so that a file can be
/// packed piece by piece: panel `i` starts at `i * panel_bytes(k)`.
pub struct PackFormat {
    /// Name, shown in records.
    pub name: &'static str,
    /// Element type that the packed panels hold.
    pub dtype: DType,
    /// Columns of a panel.
    pub panel: usize,
    /// Bytes of one panel of depth `k`; `None` when that overflows.
    pub panel_bytes: fn(k: usize) -> Option<u64>,
}

impl PackFormat {
    /// Bytes of a packed `k x n` matrix; `None` when that overflows.
    pub fn bytes(&self, n: usize, k: usize) -> Option<u64> {
        (self.panel_bytes)(k)?.checked_mul(n.div_ceil(self.panel) as u64)
    }
}

impl PartialEq for PackFormat {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self, other)
    }
}

impl std::fmt::Debug for PackFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// What a row is asked about: an op with all that decides whether it can be run, how fast, and how exactly.
#[derive(Clone, Copy)]
#[non_exhaustive]
pub struct Candidate<'a> {
    /// The valid op.
    pub op: &'a Op,
    /// One of the row's configurations.
    pub config: &'static Config,
    /// The format of the constant operands, one of the row's `packs`; `None` when they are plain.
    pub pack: Option<&'static PackFormat>,
    /// The device.
    pub info: &'a DeviceInfo,
    /// What the caller knows of where the operands will lie.
    pub alignment: Alignment,
}

/// What a row is given when it is prepared.
#[non_exhaustive]
pub struct Request<'a> {
    /// The device it will run on.
    pub device: &'a dyn Device,
    /// What that device is: the very description by which the row was asked whether it runs the op.
    pub info: &'a DeviceInfo,
    /// The validated op.
    pub op: &'a Op,
    /// One of the row's configurations.
    pub config: &'static Config,
    /// The format of the constant operands, one of the row's `packs`; `None` when they are plain.
    pub pack: Option<&'static PackFormat>,
    /// What the caller knows of where the operands will lie: launches check what the row's `align` made of it, no more.
    pub alignment: Alignment,
    /// The group, for collectives; without one a process is a group of its own.
    pub comm: Option<&'a Arc<dyn Comm>>,
}

/// The function by which a row does once what is slow.
pub type Prepare = fn(&Request<'_>) -> Result<Box<dyn Launch>>;

/// One row of a kernel table. The row alone decides support, cost, exactness, tests, benches and dispatch, so that these cannot drift
/// apart. Made with [`Kernel::new`] and what follows it, in a `static`.
#[non_exhaustive]
pub struct Kernel {
    /// `{op}_{dtypes}_{tile}_{target}[_{variant}]`: an opaque string that nothing parses; the test id, the profiler's label and
    /// the record's `kernel` field.
    pub name: &'static str,
    /// Name of the op it runs, as [`Op::name`] gives it.
    pub op: &'static str,
    /// Ways to run it, at least one; the first is the default.
    pub configs: &'static [Config],
    /// Formats in which it reads constant B (all that the op has in the same one); empty when it reads B as the op lays it out.
    pub packs: &'static [&'static PackFormat],
    /// Whether the code belongs to a vendor's library: never picked by default, available by name.
    pub vendor: bool,
    /// How it rounds.
    pub numerics: fn(&Candidate<'_>) -> Numerics,
    /// Why it does not run this op on this device; `None` when it does.
    pub reject: fn(&Candidate<'_>) -> Option<Reason>,
    /// Predicted seconds of a launch; only the order matters.
    pub cost: fn(&Candidate<'_>) -> f32,
    /// Bytes to whose multiple it needs the operand of that index, where elements' own alignment is not enough.
    pub align: Option<fn(&Candidate<'_>, operand: usize) -> u32>,
    /// Private, so that it can neither be called nor taken out of its row: only [`prepare`] calls it, with an op that is valid and that
    /// the row does not reject. So what a row relies on at a launch is what it saw when it was prepared.
    prepare: Prepare,
}

/// Alignment of packed operands, in bytes, whatever the row.
pub(crate) const PACKED_ALIGN: u32 = 64;

static DEFAULT: &[Config] = &[Config::tile("default", &[1])];

impl Kernel {
    /// A row that runs every form of `op`, in one configuration with a tile of 1, on plain operands, with sums in f32.
    pub const fn new(
        name: &'static str,
        op: &'static str,
        cost: fn(&Candidate<'_>) -> f32,
        prepare: Prepare,
    ) -> Self {
        Kernel {
            name,
            op,
            configs: DEFAULT,
            packs: &[],
            vendor: false,
            numerics: |_| Numerics::F32,
            reject: |_| None,
            cost,
            align: None,
            prepare,
        }
    }

    /// The same under other configurations.
    pub const fn with_configs(mut self, configs: &'static [Config]) -> Self {
        self.configs = configs;
        self
    }

    /// The same for constant operands in one of these formats, and no other.
    pub const fn with_packs(mut self, packs: &'static [&'static PackFormat]) -> Self {
        self.packs = packs;
        self
    }

    /// The same with a say in what it runs.
    pub const fn with_reject(mut self, reject: fn(&Candidate<'_>) -> Option<Reason>) -> Self {
        self.reject = reject;
        self
    }

    /// The same with other roundings: by configuration (sums of parts), by the op's policy, by the device.
    pub const fn with_numerics(mut self, numerics: fn(&Candidate<'_>) -> Numerics) -> Self {
        self.numerics = numerics;
        self
    }

    /// The same for operands that lie at multiples of so many bytes, a power of two. Candidates of which less is known are refused once
    /// `reject` has accepted them, and launches check it. A row that has code for both looks at [`Candidate::alignment`] and asks for no
    /// more. Callers that keep plans only fill that in for ops of which some row states its needs here.
    pub const fn with_align(mut self, align: fn(&Candidate<'_>, operand: usize) -> u32) -> Self {
        self.align = Some(align);
        self
    }

    /// The same as a vendor's.
    pub const fn of_vendor(mut self) -> Self {
        self.vendor = true;
        self
    }
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// A row's own prepared state: a packing plan, a pipeline, a CUDA function with its tensor maps.
pub trait Launch: Any + Shared {
    /// Bytes of scratch that a launch needs.
    fn scratch(&self) -> u64;
    /// Submits it. Arguments have been checked; nothing may be allocated on CPU and CUDA.
    fn launch(&self, stream: &mut dyn Stream, args: Checked<'_, '_>) -> Result<()>;
}

/// Proof that arguments match the op: number, bytes, alignment, device, access and overlap. Only [`Prepared::launch`] makes one,
/// so that a row may rely on it.
pub struct Checked<'c, 'a> {
    kernel: &'static Kernel,
    args: &'c mut [Arg<'a>],
    operands: &'c [Operand],
    scratch: Option<Buffer>,
}

impl<'c, 'a> Checked<'c, 'a> {
    /// The row that was launched.
    pub fn kernel(&self) -> &'static Kernel {
        self.kernel
    }

    /// The arguments, in the order of [`Checked::operands`].
    pub fn args(&mut self) -> &mut [Arg<'a>] {
        self.args
    }

    /// What the arguments were checked against.
    pub fn operands(&self) -> &'c [Operand] {
        self.operands
    }

    /// The stream's scratch, at least as large as [`Launch::scratch`] asked for; `None` when that is 0.
    pub fn scratch(&self) -> Option<&Buffer> {
        self.scratch.as_ref()
    }
}

/// A row prepared for one op on one device: launch it as often as you like, on any of the device's streams.
pub struct Prepared {
    op: Op,
    choice: Choice,
    operands: Vec<Operand>,
    numerics: Numerics,
    device: DeviceId,
    synchronous: bool,
    /// Whether a launch may use a block of memory in one way only: see [`crate::Arena`].
    one_use: bool,
    launch: Box<dyn Launch>,
}

/// Prepares the chosen row for `op`: validates the op, asks the row whether it runs it, and lets it do once what is slow.
pub fn prepare(
    device: &dyn Device,
    op: &Op,
    choice: Choice,
    comm: Option<&Arc<dyn Comm>>,
) -> Result<Prepared> {
    op.validate()?;
    let info = device.info();
    if let Some(reason) = choice.refusal(op, info) {
        return Err(Error::Refused {
            device: info.label.clone(),
            op: op.to_string(),
            refusals: vec![crate::error::Refusal { kernel: choice.kernel.name, reason }],
        });
    }
    if let Op::Collective(collective) = op {
        // who is in no group is alone
        let world = comm.map_or(1, |comm| comm.world() as usize);
        let expected = format!("{world}, the ranks of the group it is prepared for");
        ensure(collective.world == world, op.name(), "world", collective.world, &expected)?;
    }
    let candidate = choice.candidate(op, info);
    let mut operands = op.operands();
    if operands.len() > MAX_OPERANDS {
        return Err(Error::Unsupported {
            what: "an op with that many operands",
            why: format!("{} are more than {MAX_OPERANDS}", operands.len()),
        });
    }
    for b in op.constants() {
        let Some(pack) = choice.pack else { break };
        let bytes = b.pack(pack).packed_bytes();
        let bytes = bytes.ok_or(Error::Overflow { op: op.name(), what: "the packed operand" })?;
        let operand = &mut operands[b.operand];
        operand.bytes = bytes;
        operand.dtype = pack.dtype;
        operand.elements =
            (bytes / pack.dtype.block_bytes() as u64).saturating_mul(pack.dtype.block_len() as u64);
        operand.align = operand.align.max(PACKED_ALIGN);
    }
    if let Some(align) = choice.kernel.align {
        for (index, operand) in operands.iter_mut().enumerate() {
            operand.align = operand.align.max(align(&candidate, index));
        }
    }
    let numerics = (choice.kernel.numerics)(&candidate);
    let (config, alignment) = (candidate.config, choice.alignment);
    let request = Request { device, info, op, config, pack: choice.pack, alignment, comm };
    let launch = (choice.kernel.prepare)(&request)?;
    Ok(Prepared {
        op: op.clone(),
        choice,
        operands,
        numerics,
        device: info.id,
        synchronous: info.synchronous,
        one_use: info.arena.pools > 1,
        launch,
    })
}

impl Prepared {
    /// The op it was prepared for.
    pub fn op(&self) -> &Op {
        &self.op
    }

    /// Row, configuration and pack format.
    pub fn choice(&self) -> Choice {
        self.choice
    }

    /// How it rounds.
    pub fn numerics(&self) -> Numerics {
        self.numerics
    }

    /// What a launch takes, in order; packed operands have the size of their packed form, and all the alignment that the row relies on.
    pub fn operands(&self) -> &[Operand] {
        &self.operands
    }

    /// Bytes of scratch that a launch needs on its stream: see [`Stream::reserve`].
    pub fn scratch(&self) -> u64 {
        self.launch.scratch()
    }

    /// Launches it on `stream`. Arguments are checked; nothing is allocated on the host.
    pub fn launch(&self, stream: &mut dyn Stream, args: &mut [Arg<'_>]) -> Result<()> {
        self.check(stream, args)?;
        let scratch = stream.scratch(self.launch.scratch())?;
        if let Some(scratch) = &scratch {
            // anyone can ask a stream for its scratch, and give it as an argument
            for (arg, operand) in args.iter().zip(&self.operands) {
                if overlap(arg.address(), operand.bytes, scratch.address(), scratch.bytes()) {
                    let (kernel, first) = (self.choice.kernel.name, operand.name);
                    return Err(Error::Overlap { kernel, first, second: "scratch" });
                }
                if self.one_use && operand.bytes > 0 && !operand.access.writes() && arg.lies_in(scratch) {
                    let (kernel, second) = (self.choice.kernel.name, operand.name);
                    return Err(Error::SharedBuffer { kernel, first: "scratch", second });
                }
            }
        }
        let checked = Checked { kernel: self.choice.kernel, args, operands: &self.operands, scratch };
        self.launch.launch(stream, checked)
    }

    fn check(&self, stream: &dyn Stream, args: &[Arg<'_>]) -> Result<()> {
        let kernel = self.choice.kernel.name;
        if args.len() != self.operands.len() {
            let names = self.operands.iter().map(|o| o.name).collect::<Vec<_>>().join(", ");
            return Err(Error::Arity { kernel, got: args.len(), expected: self.operands.len(), names });
        }
        if stream.device() != self.device {
            return Err(Error::WrongDevice { kernel, operand: "stream" });
        }
        for (arg, operand) in args.iter().zip(&self.operands) {
            let operand_name = operand.name;
            match arg {
                Arg::Buf(b) if b.device() != self.device => {
                    return Err(Error::WrongDevice { kernel, operand: operand_name });
                }
                Arg::Buf(_) => {}
                Arg::Host(_) | Arg::HostMut(_) if !self.synchronous => {
                    return Err(Error::HostArgument {
                        kernel,
                        operand: operand_name,
                        why: "this device needs a buffer",
                    });
                }
                Arg::Host(_) if operand.access.writes() => {
                    return Err(Error::HostArgument {
                        kernel,
                        operand: operand_name,
                        why: "it is written; give Arg::HostMut",
                    });
                }
                Arg::Host(_) | Arg::HostMut(_) => {}
            }
            if arg.bytes() < operand.bytes {
                return Err(Error::TooSmall {
                    kernel,
                    operand: operand_name,
                    need: operand.bytes,
                    have: arg.bytes(),
                });
            }
            if operand.bytes > 0 && arg.address() % u64::from(operand.align.max(1)) != 0 {
                return Err(Error::Misaligned { kernel, operand: operand_name, align: operand.align });
            }
        }
        for (i, written) in self.operands.iter().enumerate().filter(|(_, o)| o.access.writes()) {
            for (j, other) in self.operands.iter().enumerate() {
                // of two written operands the pair is looked at once
                if i == j || (other.access.writes() && j < i) {
                    continue;
                }
                let (a, b) = (args[i].address(), args[j].address());
                if overlap(a, written.bytes, b, other.bytes) {
                    return Err(Error::Overlap { kernel, first: written.name, second: other.name });
                }
                let read = !other.access.writes() && written.bytes > 0 && other.bytes > 0;
                if self.one_use && read && matches!(&args[i], Arg::Buf(b) if args[j].lies_in(b)) {
                    return Err(Error::SharedBuffer { kernel, first: written.name, second: other.name });
                }
            }
        }
        Ok(())
    }
}

/// Whether `n` bytes from `a` on and `m` bytes from `b` on share one.
fn overlap(a: u64, n: u64, b: u64, m: u64) -> bool {
    n > 0 && m > 0 && if a <= b { b - a < n } else { a - b < m }
}

impl std::fmt::Debug for Prepared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Prepared({} for {})", self.choice.kernel.name, self.op)
    }
}
