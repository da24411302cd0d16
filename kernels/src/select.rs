//! Choosing a row: the cheapest that does not refuse, with reasons for every refusal.

use crate::device::{Device, DeviceInfo};
use crate::error::{Error, Reason, Refusal, Result};
use crate::kernel::{Kernel, PackFormat};
use crate::op::Op;
use crate::tune::Tuning;
use std::sync::Arc;

/// A row, one of its configurations, and the format of the constant operands.
#[derive(Debug, Clone, Copy)]
pub struct Choice {
    /// The row.
    pub kernel: &'static Kernel,
    /// Index into the row's `configs`.
    pub config: usize,
    /// Format into which every constant operand must be packed before the launch; `None` when they stay plain.
    pub pack: Option<&'static PackFormat>,
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
pub struct Cost {
    /// Seconds; of predictions only the order matters.
    pub seconds: f32,
    /// Whether a tuner measured it.
    pub measured: bool,
}

/// Why `kernel` does not run `op` with this format of the constant operands.
pub(crate) fn refusal(
    kernel: &Kernel,
    config: usize,
    op: &Op,
    pack: Option<&PackFormat>,
    info: &DeviceInfo,
) -> Option<Reason> {
    if kernel.op != op.name() {
        return Some(Reason(format!("runs {}, not {}", kernel.op, op.name()).into()));
    }
    let Some(config) = kernel.configs.get(config) else {
        return Some(Reason(format!("has {} configurations", kernel.configs.len()).into()));
    };
    match pack {
        None if !kernel.packs.is_empty() => {
            return Some(Reason::new(match op.constants()[..] {
                [] => "needs a constant B, which is packed once",
                [_] => "reads only a packed B",
                _ => "reads only packed B",
            }));
        }
        Some(p) if !kernel.packs.contains(&p) => {
            return Some(Reason(format!("does not read B packed as {}", p.name).into()));
        }
        Some(_) if op.constants().is_empty() => return Some(Reason::new("the op has no constant operand")),
        _ => {}
    }
    (kernel.reject)(op, config, info)
}

fn cost(choice: Choice, op: &Op, info: &DeviceInfo, tuning: Option<&Arc<Tuning>>) -> Cost {
    let config = &choice.kernel.configs[choice.config];
    match tuning.and_then(|t| t.seconds(op, choice.kernel.name, config.name)) {
        Some(seconds) => Cost { seconds, measured: true },
        None => Cost { seconds: (choice.kernel.cost)(op, config, info), measured: false },
    }
}

/// Every row of the op with every configuration and format, and what became of it: accepted ones first, measured ones before
/// predicted ones (of which only the order among themselves means something), cheapest first. Vendor rows are among them. The op must be valid.
pub fn explain(device: &dyn Device, op: &Op) -> Result<Vec<Verdict>> {
    op.validate()?;
    let (info, tuning) = (device.info(), device.tuning());
    let mut verdicts = Vec::new();
    for &kernel in device.kernels().iter().filter(|k| k.op == op.name()) {
        for config in 0..kernel.configs.len() {
            let packs = kernel.packs.iter().map(|p| Some(*p));
            let plain = kernel.packs.is_empty().then_some(None);
            for pack in packs.chain(plain) {
                let choice = Choice { kernel, config, pack };
                let outcome = match refusal(kernel, config, op, pack, info) {
                    Some(reason) => Err(reason),
                    None => Ok(cost(choice, op, info, tuning.as_ref())),
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

/// The cheapest row for `op` that is not a vendor's. `also` names the other shapes that use the same constant operands (prefill
/// beside decode): the format that is cheapest over all of them is chosen, so that one packed copy serves all; look their rows up
/// with [`select_packed`]. When every row refuses, the error lists each with its reason.
pub fn select(device: &dyn Device, op: &Op, also: &[Op]) -> Result<Choice> {
    let first = explain(device, op)?;
    let others = also.iter().map(|o| explain(device, o)).collect::<Result<Vec<_>>>()?;
    let usable = |v: &&Verdict| v.outcome.is_ok() && !v.choice.kernel.vendor;
    let cheapest = |verdicts: &[Verdict], pack: Option<&PackFormat>| {
        verdicts.iter().filter(usable).find(|v| v.choice.pack == pack).cloned()
    };
    // predictions in the sum count before seconds: they cannot be added to measurements
    let mut best: Option<(usize, f64, Choice)> = None;
    let mut seen: Vec<Option<&'static PackFormat>> = Vec::new();
    for verdict in first.iter().filter(usable) {
        let pack = verdict.choice.pack;
        if seen.contains(&pack) {
            continue;
        }
        seen.push(pack);
        let Some(all) = others.iter().map(|o| cheapest(o, pack)).collect::<Option<Vec<_>>>() else {
            continue;
        };
        let costs = || all.iter().chain([verdict]).filter_map(|v| v.outcome.as_ref().ok());
        let predicted = costs().filter(|c| !c.measured).count();
        let total: f64 = costs().map(|c| f64::from(c.seconds)).sum();
        let better = best.is_none_or(|(p, t, _)| predicted.cmp(&p).then(total.total_cmp(&t)).is_lt());
        if better {
            best = Some((predicted, total, verdict.choice));
        }
    }
    match best {
        Some((_, _, choice)) => Ok(choice),
        None => {
            // name the op that has no row at all, if it is one of the others
            for (other, verdicts) in also.iter().zip(&others) {
                if !verdicts.iter().any(|v| usable(&v)) {
                    return Err(refused(device, other, verdicts));
                }
            }
            if first.iter().any(|v| usable(&v)) {
                return Err(Error::Unsupported {
                    what: "one packed copy for all these shapes",
                    why: format!("no format serves {op} and every other shape; pack it for each"),
                });
            }
            Err(refused(device, op, &first))
        }
    }
}

/// The cheapest row for `op` whose constant operands are already packed as `pack` (or plain).
pub fn select_packed(device: &dyn Device, op: &Op, pack: Option<&'static PackFormat>) -> Result<Choice> {
    let verdicts = explain(device, op)?;
    let found = verdicts
        .iter()
        .find(|v| v.outcome.is_ok() && !v.choice.kernel.vendor && v.choice.pack == pack)
        .map(|v| v.choice);
    found.ok_or_else(|| refused(device, op, &verdicts))
}

/// The row of that name for `op`, vendor rows included, with its cheapest configuration.
pub fn select_named(device: &dyn Device, op: &Op, name: &str) -> Result<Choice> {
    let mut verdicts = explain(device, op)?;
    verdicts.retain(|v| v.choice.kernel.name == name);
    let found = verdicts.iter().find(|v| v.outcome.is_ok()).map(|v| v.choice);
    found.ok_or_else(|| refused(device, op, &verdicts))
}
