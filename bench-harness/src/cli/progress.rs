//! Progress on stderr: a bar when that is a terminal, nothing otherwise.

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::time::Duration;

use crate::live::beside;

/// Where bars are drawn. Hidden when `quiet`, or when stderr is no terminal.
fn target(quiet: bool) -> ProgressDrawTarget {
    if quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() }
}

/// Bars that share the terminal with what is printed meanwhile, and with a panel below them.
#[derive(Debug)]
pub(crate) struct Bars {
    all: MultiProgress,
    panel: Option<beside::Panel>,
}

impl Bars {
    /// None yet.
    pub(crate) fn new(quiet: bool) -> Self {
        Bars { all: MultiProgress::with_draw_target(target(quiet)), panel: None }
    }

    /// Shows what `sampler` reads below all bars, from now on.
    pub(crate) fn watch(&mut self, sampler: crate::live::sample::Sampler) -> anyhow::Result<()> {
        self.panel = Some(beside::Panel::start(sampler, &self.all)?);
        Ok(())
    }

    /// Ends that.
    pub(crate) fn unwatch(&mut self) {
        self.panel = None;
    }

    /// A bar for `length` steps.
    pub(crate) fn bar(&self, length: u64) -> ProgressBar {
        let bar = styled(ProgressBar::new(length));
        match &self.panel {
            None => started(self.all.add(bar), TICK),
            // a panel is drawn seldom, and so are the bars above it
            Some(panel) => started(self.all.insert_before(panel.bar(), bar), beside::EVERY),
        }
    }

    /// A bar that counts bytes.
    pub(crate) fn bytes(&self) -> ProgressBar {
        of_bytes(self.bar(0))
    }

    /// Prints with `print` while nothing is drawn.
    pub(crate) fn suspend<T>(&self, print: impl FnOnce() -> T) -> T {
        self.all.suspend(print)
    }
}

/// Time between two steps of a bar's spinner.
const TICK: Duration = Duration::from_millis(200);

/// A bar of its own for `length` steps.
pub(crate) fn bar(length: u64, quiet: bool) -> ProgressBar {
    started(styled(ProgressBar::with_draw_target(Some(length), target(quiet))), TICK)
}

fn started(bar: ProgressBar, tick: Duration) -> ProgressBar {
    bar.enable_steady_tick(tick);
    bar
}

fn styled(bar: ProgressBar) -> ProgressBar {
    // the template is a constant; an unreadable one would only lose its looks
    if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed:>4} [{bar:30}] {pos}/{len} {msg}") {
        bar.set_style(style.progress_chars("━╸─"));
    }
    bar
}

/// A bar of its own that counts bytes.
pub(crate) fn bytes(quiet: bool) -> ProgressBar {
    of_bytes(bar(0, quiet))
}

fn of_bytes(bar: ProgressBar) -> ProgressBar {
    if let Ok(style) =
        ProgressStyle::with_template("{spinner} {elapsed:>4} [{bar:30}] {bytes}/{total_bytes} {msg}")
    {
        bar.set_style(style.progress_chars("━╸─"));
    }
    bar
}
