//! One case on one device: prepare, launch, judge.

use crate::case::Case;
use crate::inputs::inputs;
use crate::judge::Tolerance;
use crate::place::{Buffers, Place, Trouble};
use crate::verify::verify_within;
use perjoule_kernels::select::select;
use perjoule_kernels::{Access, Arg, Choice, Device, Op, Stream, prepare};

/// Elements of a large output that are compared.
const SAMPLED: usize = 4096;

/// What became of a case.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// Everything is right.
    Passed {
        /// Largest error as a share of what is allowed, at most 1.
        worst: f64,
    },
    /// Something is wrong.
    Failed(Failure),
    /// It could not be run, and that is no fault of the row.
    Skipped {
        /// Why.
        reason: String,
    },
}

/// What is wrong, and how to see it again. `Display` prints all of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Failure {
    /// Label of the device.
    pub device: String,
    /// Row.
    pub kernel: &'static str,
    /// Its configuration.
    pub config: &'static str,
    /// Format of the constant operands.
    pub pack: Option<&'static str>,
    /// Id of the case.
    pub case: String,
    /// The op, with dtypes and shape.
    pub op: String,
    /// Seed of the inputs.
    pub seed: u64,
    /// What was being done: where the operands lay, or `repeated`.
    pub stage: String,
    /// What was found, a line each.
    pub lines: Vec<String>,
    /// Whether the row is one that the program `perjoule` has too.
    pub repeatable_by_command: bool,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "{} on {}: {} ({})", self.kernel, self.device, self.op, self.stage)?;
        for line in &self.lines {
            writeln!(f, "  {line}")?;
        }
        if !self.repeatable_by_command {
            return write!(f, "  seed {:#x}, case {}", self.seed, self.case);
        }
        writeln!(f, "  seed {:#x}; run it again with:", self.seed)?;
        write!(f, "  perjoule check --device {} --kernel {}", self.device, self.kernel)?;
        write!(f, " --full --case {}", self.case)
    }
}

/// What a stage found wrong.
struct Wrong {
    stage: String,
    lines: Vec<String>,
}

impl Wrong {
    fn new(stage: impl Into<String>, line: impl ToString) -> Self {
        Wrong { stage: stage.into(), lines: vec![line.to_string()] }
    }
}

/// Runs `case` with the row, configuration and pack format of `choice`, with operands in each of `places`, then recorded and
/// replayed. Every launch is judged: values, gaps, memory around the operands, inputs unchanged; and all give the same bits where the
/// row's numerics say so.
#[cfg(not(target_arch = "wasm32"))]
pub fn run(device: &dyn Device, choice: Choice, case: &Case, places: &[&dyn Place]) -> Outcome {
    let mut worst = 0.0;
    match attempt(device, choice, case, places, &mut worst) {
        Ok(None) => Outcome::Passed { worst },
        Ok(Some(reason)) => Outcome::Skipped { reason },
        Err(wrong) => Outcome::Failed(Failure {
            device: device.info().label.clone(),
            kernel: choice.kernel.name,
            config: choice.config().name,
            repeatable_by_command: device.built_in(choice.kernel),
            pack: choice.pack.map(|p| p.name),
            case: case.id.clone(),
            op: case.op.to_string(),
            seed: case.seed,
            stage: wrong.stage,
            lines: wrong.lines,
        }),
    }
}

#[cfg(not(target_arch = "wasm32"))]
fn attempt(
    device: &dyn Device,
    choice: Choice,
    case: &Case,
    places: &[&dyn Place],
    worst: &mut f64,
) -> Result<Option<String>, Wrong> {
    let inputs = inputs(case).map_err(|e| Wrong::new("inputs", e))?;
    let comm = match &case.op {
        Op::Collective(_) => match device.join(b"perjoule conformance", 0, 1) {
            Ok(comm) => Some(comm),
            Err(error) => return Ok(Some(error.to_string())),
        },
        _ => None,
    };
    let prepared = prepare(device, &case.op, choice, comm.as_ref()).map_err(|e| Wrong::new("prepare", e))?;
    let mut stream = device.stream().map_err(|e| Wrong::new("stream", e))?;
    let mut before = inputs.clone();
    for constant in case.op.constants() {
        let Some(format) = choice.pack else { break };
        let pack = constant.pack(format).into();
        before[constant.operand] = packed(device, &mut *stream, &pack, &inputs[constant.operand])
            .map_err(|e| Wrong::new("pack", e))?;
    }
    let operands = prepared.operands();
    let plain: Vec<&[u8]> = inputs.iter().map(Vec::as_slice).collect();
    let numerics = prepared.numerics();
    let tolerance = Tolerance::new(&case.op, numerics).for_fill(&case.op, case.fill);
    let mut first: Option<Vec<Vec<u8>>> = None;
    let replay = Buffers { replay: true };
    let stages = places.iter().copied().chain(std::iter::once(&replay as &dyn Place));
    for place in stages {
        let stage = place.name();
        let mut after = before.clone();
        place
            .launch(device, &mut *stream, &prepared, &mut after)
            .map_err(|trouble: Trouble| Wrong::new(stage, trouble))?;
        for ((operand, after), before) in operands.iter().zip(&after).zip(&before) {
            if operand.access == Access::Read && after != before {
                return Err(Wrong::new(stage, format!("input {} was changed", operand.name)));
            }
        }
        if let Some(first) = &first {
            if first == &after {
                continue;
            }
            if numerics.repeatable {
                return Err(Wrong {
                    stage: format!("{stage}, repeated"),
                    lines: differences(operands, first, &after),
                });
            }
        }
        let written: Vec<&[u8]> = operands
            .iter()
            .zip(&after)
            .filter(|(o, _)| o.access.writes())
            .map(|(_, bytes)| bytes.as_slice())
            .collect();
        if !matches!(case.op, Op::Pack(_)) {
            let found = verify_within(&case.op, &plain, &written, &tolerance, SAMPLED, case.seed)
                .map_err(|e| Wrong::new("reference", e))?;
            *worst = worst.max(found.worst);
            if !found.passed {
                return Err(Wrong { stage: stage.into(), lines: found.report });
            }
        }
        first.get_or_insert(after);
    }
    Ok(None)
}

/// A constant operand in the format of a row, packed on the device.
#[cfg(not(target_arch = "wasm32"))]
fn packed(
    device: &dyn Device,
    stream: &mut dyn Stream,
    pack: &Op,
    plain: &[u8],
) -> perjoule_kernels::Result<Vec<u8>> {
    let prepared = prepare(device, pack, select(device, pack, &[])?, None)?;
    let (from, to) = (device.alloc(plain.len() as u64)?, device.alloc(prepared.operands()[1].bytes)?);
    stream.write(&from, plain)?;
    stream.write(&to, &vec![crate::inputs::POISON; to.bytes() as usize])?;
    stream.reserve(prepared.scratch())?;
    prepared.launch(stream, &mut [Arg::Buf(&from), Arg::Buf(&to)])?;
    stream.read(&to).wait()
}

/// Where two launches on the same inputs gave different bits.
fn differences(operands: &[perjoule_kernels::Operand], first: &[Vec<u8>], second: &[Vec<u8>]) -> Vec<String> {
    let mut lines = Vec::new();
    for ((operand, first), second) in operands.iter().zip(first).zip(second) {
        let different = first.iter().zip(second).enumerate().filter(|(_, (a, b))| a != b);
        let places: Vec<usize> = different.map(|(at, _)| at / operand.dtype.block_bytes()).collect();
        if let Some(at) = places.first() {
            lines.push(format!(
                "{}: two launches on the same inputs differ in {} bytes, first in element {at}; the row is said to be repeatable",
                operand.name,
                places.len()
            ));
        }
    }
    lines
}
