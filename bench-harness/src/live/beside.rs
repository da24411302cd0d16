//! A panel below a run: what the machine does while something is measured.
//!
//! A thread sleeps nearly always, reads twice a second, and hands lines to the bars of progress, which draw them on stderr below
//! themselves. What is printed meanwhile goes above, as with any bar.

use anyhow::{Context, Result};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::Duration;

use super::sample::Sampler;
use super::text::Look;
use super::view::State;

/// Time between two readings: seldom enough to be nothing beside the work.
pub(crate) const EVERY: Duration = Duration::from_millis(500);

/// The panel; it goes when this is dropped.
#[derive(Debug)]
pub(crate) struct Panel {
    bar: ProgressBar,
    reader: Option<(Sender<()>, JoinHandle<()>)>,
}

impl Panel {
    /// Begins to read and to draw, below all other `bars`.
    pub(crate) fn start(mut sampler: Sampler, bars: &MultiProgress) -> Result<Self> {
        let style = ProgressStyle::with_template("{msg}").context("the template of the panel")?;
        let bar = bars.add(ProgressBar::new(0).with_style(style));
        let (stop, stopped) = mpsc::channel::<()>();
        let shown = bar.clone();
        let read = move || {
            let mut state = State::new(Look::of_environment(), EVERY, Vec::new());
            while stopped.recv_timeout(EVERY) == Err(RecvTimeoutError::Timeout) {
                state.push(sampler.reading());
                // a terminal may be resized
                let width = ratatui::crossterm::terminal::size().map_or(80, |(width, _)| width as usize);
                let lines = state.strip(width.saturating_sub(2).min(120));
                shown.set_message(lines.iter().map(|line| format!(" {line}")).collect::<Vec<_>>().join("\n"));
            }
        };
        let thread = std::thread::Builder::new().name("live".into()).spawn(read);
        Ok(Panel { bar, reader: Some((stop, thread.context("cannot start the thread of --live")?)) })
    }

    /// What other bars are to be drawn above.
    pub(crate) fn bar(&self) -> &ProgressBar {
        &self.bar
    }
}

impl Drop for Panel {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.reader.take() {
            drop(stop);
            // a thread that panicked has nothing left to draw
            let _ = thread.join();
        }
        self.bar.finish_and_clear();
    }
}
