//! Running many cases: which rows, how long, and what came of it.

use crate::case::{Case, Scope};
use crate::cases::cases;
use crate::place::{Buffers, Place};
use crate::run::{Failure, Outcome, run};
use perjoule_kernels::{Alignment, Choice, Device, Reason};
use std::time::{Duration, Instant};

/// Which rows and cases to run; an empty list means all.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Names of ops.
    pub ops: Vec<String>,
    /// Names of rows, in full or in part.
    pub kernels: Vec<String>,
    /// Ids of cases.
    pub cases: Vec<String>,
}

impl Filter {
    /// Whether a row is wanted.
    pub fn takes(&self, choice: &Choice) -> bool {
        let kernel = choice.kernel;
        (self.ops.is_empty() || self.ops.iter().any(|op| op == kernel.op))
            && (self.kernels.is_empty()
                || self.kernels.iter().any(|name| kernel.name.contains(name.as_str())))
    }

    /// Whether a case is wanted.
    pub fn takes_case(&self, case: &Case) -> bool {
        self.cases.is_empty() || self.cases.contains(&case.id)
    }
}

/// Every row of a device with each of its configurations and pack formats, vendor rows included, in the order of the table. Operands
/// are vouched for like fresh allocations; where they lie then is no better than the prepared row says it needs.
pub fn subjects(device: &dyn Device) -> Vec<Choice> {
    let alignment = Alignment::uniform(device.info().arena.align);
    let mut list = Vec::new();
    for &kernel in device.kernels().iter() {
        for config in 0..kernel.configs.len() {
            if kernel.packs.is_empty() {
                list.push(Choice::new(kernel, config, None).with_alignment(alignment));
            }
            let choice = |&pack| Choice::new(kernel, config, Some(pack)).with_alignment(alignment);
            list.extend(kernel.packs.iter().map(choice));
        }
    }
    list
}

/// What became of one row with one configuration and pack format.
#[derive(Debug, Clone)]
pub struct RowSummary {
    /// Row, configuration, format.
    pub choice: Choice,
    /// Cases that passed.
    pub passed: usize,
    /// Cases that could not be run, and why the last of them could not.
    pub skipped: Option<(usize, String)>,
    /// Cases that the time did not allow.
    pub left: usize,
    /// Why the row has no case on this device, such as a feature that it lacks.
    pub refusal: Option<Reason>,
    /// Largest error as a share of what is allowed, over the cases that passed.
    pub worst: f64,
    /// What failed.
    pub failures: Vec<Failure>,
}

impl RowSummary {
    /// Why nothing of the row was launched although nothing stood in the way: it has no case, or all were skipped. `None` for rows of
    /// which something ran, that time or the filter left out, or whose instructions the processor lacks.
    pub fn idle(&self) -> Option<String> {
        if self.passed + self.failures.len() + self.left > 0 {
            return None;
        }
        match &self.refusal {
            Some(reason) => (!reason.lacks_feature()).then(|| format!("no case: {reason}")),
            None => {
                self.skipped.as_ref().map(|(count, reason)| format!("all {count} cases skipped: {reason}"))
            }
        }
    }
}

/// What became of all.
#[derive(Debug, Clone, Default)]
pub struct Summary {
    /// One for each row, configuration and format.
    pub rows: Vec<RowSummary>,
}

impl Summary {
    /// Cases that passed.
    pub fn passed(&self) -> usize {
        self.rows.iter().map(|row| row.passed).sum()
    }

    /// What failed.
    pub fn failures(&self) -> impl Iterator<Item = &Failure> {
        self.rows.iter().flat_map(|row| &row.failures)
    }

    /// Cases that the time did not allow.
    pub fn left(&self) -> usize {
        self.rows.iter().map(|row| row.left).sum()
    }

    /// Whether nothing failed, something was run, and no row was idle.
    pub fn is_ok(&self) -> bool {
        self.failures().next().is_none() && self.passed() > 0 && self.rows.iter().all(|r| r.idle().is_none())
    }
}

/// Runs the cases of every row that `filter` takes, one of each row in turn, until all are done or `budget` is used up (every row is
/// tried once even then). `each` sees every outcome as it comes, and ends the run by returning false.
#[cfg(not(target_arch = "wasm32"))]
pub fn check(
    device: &dyn Device,
    filter: &Filter,
    scope: Scope,
    budget: Option<Duration>,
    each: &mut dyn FnMut(&Choice, &Case, &Outcome) -> bool,
) -> Summary {
    let begin = Instant::now();
    let places: [&dyn Place; 1] = [&Buffers { replay: false }];
    let mut summary = Summary::default();
    let mut waiting = Vec::new();
    for choice in subjects(device).into_iter().filter(|choice| filter.takes(choice)) {
        let (mut list, refusal) = match cases(device, &choice, scope) {
            Ok(list) => (list, None),
            Err(reason) => (Vec::new(), Some(reason)),
        };
        list.retain(|case| filter.takes_case(case));
        let left = list.len();
        waiting.push(list.into_iter());
        summary.rows.push(RowSummary {
            choice,
            passed: 0,
            skipped: None,
            left,
            refusal,
            worst: 0.0,
            failures: Vec::new(),
        });
    }
    let mut round = 0;
    while summary.left() > 0 {
        for (row, waiting) in summary.rows.iter_mut().zip(&mut waiting) {
            if round > 0 && budget.is_some_and(|budget| begin.elapsed() > budget) {
                return summary;
            }
            let Some(case) = waiting.next() else { continue };
            row.left -= 1;
            let outcome = run(device, row.choice, &case, &places);
            let go_on = each(&row.choice, &case, &outcome);
            match outcome {
                Outcome::Passed { worst } => {
                    row.passed += 1;
                    row.worst = row.worst.max(worst);
                }
                Outcome::Failed(failure) => row.failures.push(failure),
                Outcome::Skipped { reason } => {
                    let before = row.skipped.as_ref().map_or(0, |(count, _)| *count);
                    row.skipped = Some((before + 1, reason));
                }
            }
            if !go_on {
                return summary;
            }
        }
        round += 1;
    }
    summary
}
