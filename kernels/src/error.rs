//! The one error enum of the workspace's kernels and backends: what was wrong, what was expected, what to do.

use std::borrow::Cow;

/// Result of everything that can be refused or can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a kernel row refuses an op: one clause, lower case, such as `needs avx512f, which this CPU lacks`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason {
    text: Cow<'static, str>,
    lacks_feature: bool,
}

impl Reason {
    /// A reason that lies in the op, from a literal or an owned string.
    pub fn new(text: impl Into<Cow<'static, str>>) -> Self {
        Reason { text: text.into(), lacks_feature: false }
    }

    /// A reason that lies in the device: a feature that it lacks, or that was masked.
    pub fn lacking(text: impl Into<Cow<'static, str>>) -> Self {
        Reason { text: text.into(), lacks_feature: true }
    }

    /// Whether the device lacks a feature, so that no op would be accepted. A suite then has nothing to hold against the row.
    pub fn lacks_feature(&self) -> bool {
        self.lacks_feature
    }
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

/// One row's refusal of one op.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Name of the row.
    pub kernel: &'static str,
    /// Why it does not run the op.
    pub reason: Reason,
}

/// What a caller can do wrong, and what can go wrong on a device.
///
/// A launch returns refusals at once; faults of a device arrive at the next [`crate::Pending`] as [`Error::Fault`];
/// [`Error::Lost`] stays until the device is opened again.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A field of a descriptor makes no sense.
    #[error("{op}: {field} is {got}; expected {expected}")]
    Invalid {
        /// Name of the op.
        op: &'static str,
        /// The field at fault.
        field: &'static str,
        /// Its value.
        got: String,
        /// What would have been accepted.
        expected: String,
    },
    /// A size does not fit in 64 bits (or in `isize` bytes on the host).
    #[error("{op}: {what} overflows; use smaller shapes or strides")]
    Overflow {
        /// Name of the op.
        op: &'static str,
        /// The quantity that overflows.
        what: &'static str,
    },
    /// No row of the device's table runs the op.
    #[error("{device} has no kernel for {op}{}", list(.refusals))]
    Refused {
        /// Device id, such as `cpu`.
        device: String,
        /// The op, with its dtypes and shape.
        op: String,
        /// Every row of that op and why it refuses; empty when there is no row at all.
        refusals: Vec<Refusal>,
    },
    /// A launch has the wrong number of arguments.
    #[error("{kernel}: {got} arguments given, {expected} expected: {names}")]
    Arity {
        /// Name of the row.
        kernel: &'static str,
        /// Arguments given.
        got: usize,
        /// Arguments the op has.
        expected: usize,
        /// Their names in order.
        names: String,
    },
    /// An argument is smaller than the op reads or writes.
    #[error("{kernel}: operand {operand} needs {need} bytes, the argument has {have}")]
    TooSmall {
        /// Name of the row.
        kernel: &'static str,
        /// Name of the operand.
        operand: &'static str,
        /// Bytes that the op touches.
        need: u64,
        /// Bytes that were given.
        have: u64,
    },
    /// An argument's address is not a multiple of what the element type or the row needs.
    #[error("{kernel}: operand {operand} must be aligned to {align} bytes")]
    Misaligned {
        /// Name of the row.
        kernel: &'static str,
        /// Name of the operand.
        operand: &'static str,
        /// The alignment that is needed.
        align: u32,
    },
    /// A written operand shares bytes with another operand of the same launch.
    #[error(
        "{kernel}: operands {first} and {second} overlap, and one of them is written; use separate buffers"
    )]
    Overlap {
        /// Name of the row.
        kernel: &'static str,
        /// One operand.
        first: &'static str,
        /// The other.
        second: &'static str,
    },
    /// Two operands lie in one block of memory, which is written, on a device that binds a block either to read or to write.
    #[error(
        "{kernel}: operands {first} and {second} lie in one buffer, and {first} is written; this device needs separate allocations"
    )]
    SharedBuffer {
        /// Name of the row.
        kernel: &'static str,
        /// The operand that is written.
        first: &'static str,
        /// The one that is only read.
        second: &'static str,
    },
    /// An argument lives on another device than the kernel.
    #[error("{kernel}: operand {operand} lives on another device; copy it first")]
    WrongDevice {
        /// Name of the row.
        kernel: &'static str,
        /// Name of the operand.
        operand: &'static str,
    },
    /// A graph was given to another stream than the one that recorded it, whose scratch it uses.
    #[error("the graph was recorded by another stream; replay it there, or record it again on this one")]
    WrongStream,
    /// A host slice was given where only device memory will do, or a read-only slice where the op writes.
    #[error("{kernel}: operand {operand}: {why}")]
    HostArgument {
        /// Name of the row.
        kernel: &'static str,
        /// Name of the operand.
        operand: &'static str,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A row was prepared by the description of another team of threads than the stream has.
    #[error(
        "{kernel} was prepared for {prepared} lanes, the stream's team has {team}; prepare it with the device of the stream"
    )]
    Lanes {
        /// Name of the row.
        kernel: &'static str,
        /// Lanes that the device's description spoke of.
        prepared: usize,
        /// Lanes of the team.
        team: usize,
    },
    /// The memory is being written by another stream right now (or read, where this call would write).
    #[error("the buffer is in use by another stream; synchronise that stream first")]
    InUse,
    /// A range outside a buffer.
    #[error("range {at}..{at}+{bytes} lies outside a buffer of {have} bytes")]
    OutOfRange {
        /// First byte.
        at: u64,
        /// Length in bytes.
        bytes: u64,
        /// Size of the buffer.
        have: u64,
    },
    /// The stream's scratch is smaller than the launch needs.
    #[error("{need} bytes of scratch are needed and {have} are reserved; call Stream::reserve first")]
    Scratch {
        /// Bytes needed.
        need: u64,
        /// Bytes reserved.
        have: u64,
    },
    /// The device has not enough memory.
    #[error("{device}: out of memory: {need} bytes asked for{}", free(.available))]
    OutOfMemory {
        /// Device id.
        device: String,
        /// Bytes asked for.
        need: u64,
        /// Bytes that were free, where that is known.
        available: Option<u64>,
    },
    /// A kernel failed on the device.
    #[error("{kernel} failed on the device: {detail}")]
    Fault {
        /// Name of the row.
        kernel: &'static str,
        /// What the driver said.
        detail: String,
    },
    /// The device is gone until it is opened again.
    #[error("{device} is lost: {detail}; open it again")]
    Lost {
        /// Device id.
        device: String,
        /// What the driver said.
        detail: String,
    },
    /// There is no such device, or its backend is not in this build.
    #[error("no device {id:?}: {why}")]
    NoDevice {
        /// What was asked for.
        id: String,
        /// Why it is not there, and what there is.
        why: String,
    },
    /// Something that this device or build cannot do.
    #[error("{what} is not supported: {why}")]
    Unsupported {
        /// What was asked for.
        what: &'static str,
        /// Why not, and what to do instead.
        why: String,
    },
    /// Bytes that are not what they should be (block formats, files, arguments of conversions).
    #[error("{what}: {why}")]
    Malformed {
        /// What was read.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
}

fn list(refusals: &[Refusal]) -> String {
    if refusals.is_empty() {
        return ": there is no row for this op".into();
    }
    refusals.iter().map(|r| format!("\n  {}: {}", r.kernel, r.reason)).collect()
}

fn free(available: &Option<u64>) -> String {
    available.map_or(String::new(), |have| format!(", {have} are available"))
}
