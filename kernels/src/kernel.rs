//! Rows of the kernel table, and what becomes of one when it is prepared for an op.

use crate::buffer::{Arg, Buffer};
use crate::device::{Comm, Device, DeviceId, DeviceInfo, Shared, Stream};
use crate::dtype::DType;
use crate::error::{Error, Reason, Result};
use crate::op::{Op, Operand, ensure};
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
pub struct Numerics {
    /// Unit roundoff of the coarsest rounding between inputs and output: 2^-24 for f32 accumulation.
    pub unit: f64,
    /// Multiple of the bound that the row may use; 1 unless the row says why not.
    pub slack: f64,
    /// Whether two launches on the same inputs with the same number of threads give the same bits.
    pub repeatable: bool,
}

impl Numerics {
    /// Products and sums in f32.
    pub const F32: Numerics = Numerics { unit: 5.960_464_477_539_063e-8, slack: 1.0, repeatable: true };
    /// Products and sums in f64.
    pub const F64: Numerics = Numerics { unit: 1.110_223_024_625_156_5e-16, slack: 1.0, repeatable: true };
    /// Values are moved, or integers added: every bit is determined.
    pub const EXACT: Numerics = Numerics { unit: 0.0, slack: 1.0, repeatable: true };

    /// The same with another slack.
    pub const fn with_slack(self, slack: f64) -> Self {
        Numerics { slack, ..self }
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

/// What a row is given when it is prepared.
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
    /// The group, for collectives; without one a process is a group of its own.
    pub comm: Option<&'a Arc<dyn Comm>>,
}

/// The function by which a row is prepared. Only [`prepare`] calls it, with an op that is valid and that the row does not reject; it can
/// neither be called nor taken out of its row elsewhere. So what a row relies on at a launch is what it saw when it was prepared.
pub struct Prepare(fn(&Request<'_>) -> Result<Box<dyn Launch>>);

impl Prepare {
    /// Wraps the function.
    pub const fn new(function: fn(&Request<'_>) -> Result<Box<dyn Launch>>) -> Self {
        Prepare(function)
    }
}

/// One row of a kernel table. The row alone decides support, cost, tests, benches and dispatch, so that these cannot drift apart.
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
    pub numerics: Numerics,
    /// Why it does not run this op on this device; `None` when it does. The op is valid.
    pub reject: fn(&Op, &Config, &DeviceInfo) -> Option<Reason>,
    /// Predicted seconds of a launch; only the order matters.
    pub cost: fn(&Op, &Config, &DeviceInfo) -> f32,
    /// Does once what is slow.
    pub prepare: Prepare,
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
    device: DeviceId,
    synchronous: bool,
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
    if let Some(reason) = crate::select::refusal(choice.kernel, choice.config, op, choice.pack, info) {
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
    let mut operands = op.operands();
    for b in op.constants() {
        let Some(pack) = choice.pack else { break };
        let bytes = pack
            .bytes(b.n, b.k)
            .and_then(|bytes| bytes.checked_mul(b.matrices as u64))
            .ok_or(Error::Overflow { op: op.name(), what: "the packed operand" })?;
        let operand = &mut operands[b.operand];
        operand.bytes = bytes;
        operand.dtype = pack.dtype;
        operand.elements =
            (bytes / pack.dtype.block_bytes() as u64).saturating_mul(pack.dtype.block_len() as u64);
        operand.align = operand.align.max(64);
    }
    let config = &choice.kernel.configs[choice.config];
    let launch = (choice.kernel.prepare.0)(&Request { device, info, op, config, pack: choice.pack, comm })?;
    Ok(Prepared { op: op.clone(), choice, operands, device: info.id, synchronous: info.synchronous, launch })
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

    /// What a launch takes, in order; packed operands have the size of their packed form.
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
