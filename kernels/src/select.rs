//! Choosing a row: the cheapest that does not refuse, with reasons for every refusal.

use crate::align::Alignment;
use crate::device::{Device, DeviceInfo};
use crate::error::{Error, Reason, Refusal, Result};
use crate::kernel::{Candidate, Config, Kernel, Numerics, PACKED_ALIGN, PackFormat};
use crate::op::Op;
use crate::tune::Tuning;
use std::sync::Arc;

/// An op to be looked up, and what the caller knows of where its operands will lie. A `&Op` is one of which nothing is known.
#[derive(Debug, Clone, Copy)]
pub struct Query<'a> {
    /// The op.
    pub op: &'a Op,
    /// What its operands are multiples of.
    pub alignment: Alignment,
}

impl<'a> From<&'a Op> for Query<'a> {
    fn from(op: &'a Op) -> Self {
        Query { op, alignment: Alignment::default() }
    }
}

/// A row, one of its configurations, the format of the constant operands, and the alignment for which it was chosen.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Choice {
    /// The row.
    pub kernel: &'static Kernel,
    /// Index into the row's `configs`.
    pub config: usize,
    /// Format into which every constant operand must be packed before the launch; `None` when they stay plain.
    pub pack: Option<&'static PackFormat>,
    /// What the caller vouched for. Launches check what the row relies on of it.
    pub alignment: Alignment,
}

static MISSING: Config = Config::tile("missing", &[]);

impl Choice {
    /// A choice of one's own, for operands of which no more is known than their elements' alignment.
    pub fn new(kernel: &'static Kernel, config: usize, pack: Option<&'static PackFormat>) -> Self {
        Choice { kernel, config, pack, alignment: Alignment::default() }
    }

    /// The same for operands at such places.
    pub fn with_alignment(self, alignment: Alignment) -> Self {
        Choice { alignment, ..self }
    }

    /// The configuration; one without a tile where the row has none of that index, which [`Choice::refusal`] says.
    pub fn config(&self) -> &'static Config {
        self.kernel.configs.get(self.config).unwrap_or(&MISSING)
    }

    /// What the row's functions are asked about.
    pub fn candidate<'a>(&self, op: &'a Op, info: &'a DeviceInfo) -> Candidate<'a> {
        Candidate { op, config: self.config(), pack: self.pack, info, alignment: self.alignment }
    }

    /// How the row rounds when it runs `op`.
    pub fn numerics(&self, op: &Op, info: &DeviceInfo) -> Numerics {
        (self.kernel.numerics)(&self.candidate(op, info))
    }

    /// Why the row does not run `op`, which is valid, in this way.
    pub fn refusal(&self, op: &Op, info: &DeviceInfo) -> Option<Reason> {
        let kernel = self.kernel;
        if kernel.op != op.name() {
            return Some(Reason::new(format!("runs {}, not {}", kernel.op, op.name())));
        }
        if self.config >= kernel.configs.len() {
            return Some(Reason::new(format!("has {} configurations", kernel.configs.len())));
        }
        match self.pack {
            None if !kernel.packs.is_empty() => {
                return Some(Reason::new(match op.constants()[..] {
                    [] => "needs a constant B, which is packed once",
                    [_] => "reads only a packed B",
                    _ => "reads only packed B",
                }));
            }
            Some(p) if !kernel.packs.contains(&p) => {
                return Some(Reason::new(format!("does not read B packed as {}", p.name)));
            }
            Some(_) if op.constants().is_empty() => {
                return Some(Reason::new("the op has no constant operand"));
            }
            _ => {}
        }
        let candidate = self.candidate(op, info);
        (kernel.reject)(&candidate).or_else(|| misaligned(kernel, &candidate))
    }
}

/// The first operand that is not known to lie where the row needs it.
fn misaligned(kernel: &Kernel, candidate: &Candidate<'_>) -> Option<Reason> {
    let align = kernel.align?;
    let constants = if candidate.pack.is_some() { candidate.op.constants() } else { Vec::new() };
    candidate.op.operands().iter().enumerate().find_map(|(index, operand)| {
        // of packed operands launches check as much anyway
        let packed = constants.iter().any(|c| c.operand == index);
        let certain = if packed { PACKED_ALIGN } else { operand.align };
        let (need, known) = (align(candidate, index), candidate.alignment.of(index).max(certain));
        let text = || format!("needs {} at a multiple of {need} bytes; {known} are known", operand.name);
        (need > known && operand.bytes > 0).then(|| Reason::new(text()))
    })
}

/// What became of one row and configuration when an op was looked up.
#[derive(Debug, Clone)]
pub struct Verdict {
    /// The row, its configuration and the format it would read.
    pub choice: Choice,
    /// Cost in seconds, and whether it was measured by a tuner; or the reason for refusing.
    pub outcome: std::result::Result<Cost, Reason>,
}

/// Predicted or measured seconds of one launch.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Cost {
    /// Measured seconds where there are any, else predicted ones, of which only the order matters.
    pub seconds: f32,
    /// Whether a tuner measured them.
    pub measured: bool,
    /// What the row predicts.
    pub predicted: f32,
}

fn cost(choice: &Choice, op: &Op, info: &DeviceInfo, tuning: Option<&Arc<Tuning>>) -> Cost {
    let predicted = (choice.kernel.cost)(&choice.candidate(op, info));
    match tuning.and_then(|t| t.seconds(op, choice)) {
        Some(seconds) => Cost { seconds, measured: true, predicted },
        None => Cost { seconds: predicted, measured: false, predicted },
    }
}

/// Every row of the op with every configuration and format, and what became of it: accepted ones first, measured ones before
/// predicted ones (of which only the order among themselves means something), cheapest first. Vendor rows are among them, so that
/// their libraries are loaded where they are found. The op must be valid.
pub fn explain<'a>(device: &dyn Device, query: impl Into<Query<'a>>) -> Result<Vec<Verdict>> {
    verdicts(device, query.into(), &|_| true)
}

/// The same without vendor rows, which are not even asked: they load libraries.
pub fn explain_own<'a>(device: &dyn Device, query: impl Into<Query<'a>>) -> Result<Vec<Verdict>> {
    verdicts(device, query.into(), &|row| !row.vendor)
}

fn verdicts(device: &dyn Device, query: Query<'_>, wanted: &dyn Fn(&Kernel) -> bool) -> Result<Vec<Verdict>> {
    let Query { op, alignment } = query;
    op.validate()?;
    let (info, tuning) = (device.info(), device.tuning());
    let mut verdicts = Vec::new();
    for &kernel in device.kernels().iter().filter(|k| k.op == op.name() && wanted(k)) {
        for config in 0..kernel.configs.len() {
            let packs = kernel.packs.iter().map(|p| Some(*p));
            let plain = kernel.packs.is_empty().then_some(None);
            for pack in packs.chain(plain) {
                let choice = Choice { kernel, config, pack, alignment };
                let outcome = match choice.refusal(op, info) {
                    Some(reason) => Err(reason),
                    None => Ok(cost(&choice, op, info, tuning.as_ref())),
                };
                verdicts.push(Verdict { choice, outcome });
            }
        }
    }
    // stable: of equal costs the earlier row wins
    verdicts.sort_by(|a, b| match (&a.outcome, &b.outcome) {
        (Ok(x), Ok(y)) => y.measured.cmp(&x.measured).then(x.seconds.total_cmp(&y.seconds)),
        (x, y) => x.is_err().cmp(&y.is_err()),
    });
    Ok(verdicts)
}

fn refused(device: &dyn Device, op: &Op, verdicts: &[Verdict]) -> Error {
    let refusals = verdicts.iter().filter_map(|v| {
        let reason = v.outcome.as_ref().err().cloned()?;
        Some(Refusal { kernel: v.choice.kernel.name, reason })
    });
    let mut refusals: Vec<Refusal> = refusals.collect();
    refusals.dedup();
    Error::Refused { device: device.info().label.clone(), op: op.to_string(), refusals }
}

fn usable(verdict: &Verdict) -> Option<Cost> {
    verdict.outcome.as_ref().ok().copied()
}

/// What a format costs over all shapes: measured seconds if every shape was measured, else predicted ones. A measurement of one shape
/// is no argument against the prediction of another: what was measured in part is held against the rest by predictions alone.
fn total(shapes: &[&[Verdict]], pack: Option<&PackFormat>) -> Option<(bool, f64)> {
    let (mut measured, mut seconds, mut predicted) = (true, 0.0, 0.0);
    for verdicts in shapes {
        let of_pack = || verdicts.iter().filter(|v| v.choice.pack == pack).filter_map(usable);
        let first = of_pack().next()?;
        measured &= first.measured;
        seconds += f64::from(first.seconds);
        predicted += f64::from(of_pack().map(|c| c.predicted).fold(f32::INFINITY, f32::min));
    }
    Some(if measured { (true, seconds) } else { (false, predicted) })
}

/// The cheapest row for `query` that is not a vendor's. `also` names the other shapes that use the same constant operands (prefill
/// beside decode), placed alike: the format that is cheapest over all of them is chosen, so that one packed copy serves all; look
/// their rows up with [`select_packed`]. When every row refuses, the error lists each with its reason.
pub fn select<'a>(device: &dyn Device, query: impl Into<Query<'a>>, also: &[Op]) -> Result<Choice> {
    let query = query.into();
    let first = explain_own(device, query)?;
    let others =
        also.iter().map(|op| explain_own(device, Query { op, ..query })).collect::<Result<Vec<_>>>()?;
    let mut shapes: Vec<&[Verdict]> = vec![&first];
    shapes.extend(others.iter().map(Vec::as_slice));
    let mut best: Option<((bool, f64), Choice)> = None;
    let mut seen: Vec<Option<&'static PackFormat>> = Vec::new();
    for verdict in first.iter().filter(|v| usable(v).is_some()) {
        let pack = verdict.choice.pack;
        if seen.contains(&pack) {
            continue;
        }
        seen.push(pack);
        let Some(total) = total(&shapes, pack) else { continue };
        let better = best.is_none_or(|(b, _)| b.0.cmp(&total.0).then(total.1.total_cmp(&b.1)).is_lt());
        if better {
            best = Some((total, verdict.choice));
        }
    }
    if let Some((_, choice)) = best {
        return Ok(choice);
    }
    // name the op that has no row at all, if it is one of the others
    for (other, verdicts) in also.iter().zip(&others) {
        if !verdicts.iter().any(|v| usable(v).is_some()) {
            return Err(refused(device, other, verdicts));
        }
    }
    if first.iter().any(|v| usable(v).is_some()) {
        return Err(Error::Unsupported {
            what: "one packed copy for all these shapes",
            why: format!("no format serves {} and every other shape; pack it for each", query.op),
        });
    }
    Err(refused(device, query.op, &first))
}

/// The cheapest row for `query` whose constant operands are already packed as `pack` (or plain).
pub fn select_packed<'a>(
    device: &dyn Device,
    query: impl Into<Query<'a>>,
    pack: Option<&'static PackFormat>,
) -> Result<Choice> {
    let query = query.into();
    let verdicts = explain_own(device, query)?;
    let found = verdicts.iter().find(|v| v.choice.pack == pack && usable(v).is_some());
    found.map(|v| v.choice).ok_or_else(|| refused(device, query.op, &verdicts))
}

/// The row of that name for `query`, vendor rows included, with its cheapest configuration.
pub fn select_named<'a>(device: &dyn Device, query: impl Into<Query<'a>>, name: &str) -> Result<Choice> {
    let query = query.into();
    let verdicts = verdicts(device, query, &|row| row.name == name)?;
    let found = verdicts.iter().find(|v| v.outcome.is_ok()).map(|v| v.choice);
    found.ok_or_else(|| refused(device, query.op, &verdicts))
}
