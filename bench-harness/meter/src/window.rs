//! From readings to energy: a trace of timed samples, and a window that records one in the background.
//!
//! A cumulative counter needs the ends of the window and enough readings between them that it cannot wrap
//! unseen. A power sensor is integrated by the trapezoid rule over the readings.

use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::error::{MeterError, Result};
use crate::meter::{Meter, MeterInfo, Sample};
use crate::quantity::{Energy, Sampling};

/// A pause between power samples beyond this many polling intervals is noted in the result.
const LONG_GAP: u32 = 10;

/// Timed readings of one meter. Most callers want [`Window`]; a trace is for those who poll by themselves,
/// replay recorded readings or draw power over time.
#[derive(Clone, Debug)]
pub struct Trace {
    info: MeterInfo,
    points: Vec<(Instant, Sample)>,
    failed: usize,
    /// [`Meter::faults`] at the first and the last reading.
    faults: Option<(u64, u64)>,
    /// The same energy by another way.
    check: Option<Box<Trace>>,
}

impl Trace {
    /// An empty trace of the meter that `info` describes.
    pub fn new(info: MeterInfo) -> Trace {
        Trace { info, points: Vec::new(), failed: 0, faults: None, check: None }
    }

    /// Adds a reading. Readings come in order of time.
    pub fn push(&mut self, at: Instant, sample: Sample) {
        self.points.push((at, sample));
    }

    /// Reads the meter once. The reading is dated to the middle of the call, since a driver may be slow.
    ///
    /// # Errors
    /// Those of [`Meter::read`]; the trace is then unchanged.
    pub fn record(&mut self, meter: &dyn Meter) -> Result<()> {
        let before = Instant::now();
        let sample = meter.read()?;
        self.push(before + before.elapsed() / 2, sample);
        let faults = meter.faults();
        self.faults = Some((self.faults.map_or(faults, |(first, _)| first), faults));
        if let Some(other) = meter.cross_check() {
            let check = self.check.get_or_insert_with(|| Box::new(Trace::new(other.info().clone())));
            // The check is a help, not a condition: where it cannot be read, the window does without.
            let _ = check.record(other);
        }
        Ok(())
    }

    /// The readings so far.
    pub fn points(&self) -> &[(Instant, Sample)] {
        &self.points
    }

    /// Energy between the first and the last reading.
    ///
    /// # Errors
    /// [`MeterError::TooShort`] for a window below [`MeterInfo::min_window`] or with too few readings,
    /// [`MeterError::Stalled`] for a counter that did not move, [`MeterError::Missed`] for one that was read too
    /// rarely to see it wrap, [`MeterError::Impossible`] for readings that are not finite, are negative or run
    /// backwards.
    pub fn energy(&self) -> Result<Energy> {
        let info = &self.info;
        let too_short = |seconds: f64, needed: Duration| MeterError::TooShort {
            meter: info.id.clone(),
            seconds,
            needed: needed.as_secs_f64(),
        };
        let (Some(&(start, _)), Some(&(end, _))) = (self.points.first(), self.points.last()) else {
            return Err(too_short(0.0, info.min_window()));
        };
        let window = end.saturating_duration_since(start);
        let seconds = window.as_secs_f64();
        if window.is_zero() || window < info.min_window() {
            return Err(too_short(seconds, info.min_window()));
        }
        let impossible =
            |reason: &str| MeterError::Impossible { meter: info.id.clone(), reason: reason.into() };

        let mut series = Vec::with_capacity(self.points.len());
        let counter = matches!(self.points[0].1, Sample::Joules(_));
        for &(at, sample) in &self.points {
            let value = match (counter, sample) {
                (true, Sample::Joules(value)) | (false, Sample::Watts(value)) => value,
                _ => return Err(impossible("energy and power are mixed in one trace")),
            };
            if !value.is_finite() || value < 0.0 {
                return Err(impossible("a value is negative or not finite"));
            }
            series.push((at.saturating_duration_since(start).as_secs_f64(), value));
        }
        if self.points.windows(2).any(|pair| pair[1].0 < pair[0].0) {
            return Err(impossible("the readings are not in order of time"));
        }

        let gap = series.windows(2).map(|pair| pair[1].0 - pair[0].0).fold(0.0, f64::max);
        let (joules, sampling) = if counter {
            if info.may_wrap_within(Duration::from_secs_f64(gap)) {
                return Err(MeterError::Missed { meter: info.id.clone(), seconds: gap });
            }
            if series.windows(2).any(|pair| pair[1].1 < pair[0].1) {
                return Err(impossible("a cumulative counter ran backwards"));
            }
            let joules = series[series.len() - 1].1 - series[0].1;
            if joules == 0.0 && info.update_period > Duration::ZERO {
                return Err(MeterError::Stalled { meter: info.id.clone(), seconds });
            }
            // Two ends, each uniform within one update period (see MeterInfo::window_for) and one step of its value.
            let ends = joules / seconds * info.update_period.as_secs_f64() / 6f64.sqrt();
            (joules, Sampling { ends, rest: resolution(&series) / 6f64.sqrt() })
        } else {
            if series.len() < 3 && info.update_period > Duration::ZERO {
                let spacing = info.poll_every.unwrap_or(info.update_period);
                return Err(too_short(seconds, info.min_window().max(3 * spacing)));
            }
            let long = info.poll_every.map(|spacing| (LONG_GAP * spacing).as_secs_f64());
            integrate(&series, info.update_period.as_secs_f64(), long.unwrap_or(f64::INFINITY))
        };

        let mut energy = Energy::new(info, joules, sampling, seconds);
        if let (false, Some(spacing)) = (counter, info.poll_every)
            && gap > (LONG_GAP * spacing).as_secs_f64()
        {
            energy.notes.push(format!("Power was not sampled for {gap:.2} s within the window."));
        }
        if self.failed > 0 {
            energy.notes.push(format!("{} readings within the window failed.", self.failed));
        }
        if let Some(lost @ 1..) = self.faults.map(|(first, last)| last.saturating_sub(first)) {
            energy.notes.push(format!("{lost} lines of the meter within the window were lost or refused."));
        }
        if let Some(Ok(other)) = self.check.as_ref().map(|check| check.energy()) {
            energy.cross_check(&other);
        }
        Ok(energy)
    }
}

/// Trapezoid integral of power over time, J, and its standard uncertainty from sampling, J.
///
/// The spread of the samples is treated as noise, `window x s / sqrt(n)`: this overstates the error of a
/// smooth trace, but a load that beats with the sampling cannot hide from it. A sensor that averages over
/// `period` also reports each end of the window late, as in [`MeterInfo::window_for`]. In a pause of more than
/// `long` seconds the mean power may have been anything between the extremes of the trace (rectangular, width
/// / sqrt(12)).
fn integrate(series: &[(f64, f64)], period: f64, long: f64) -> (f64, Sampling) {
    let joules = series.windows(2).map(|p| (p[1].0 - p[0].0) * (p[0].1 + p[1].1) / 2.0).sum();
    let n = series.len() as f64;
    let seconds = series[series.len() - 1].0 - series[0].0;
    let mean = series.iter().map(|p| p.1).sum::<f64>() / n;
    let variance = series.iter().map(|p| (p.1 - mean).powi(2)).sum::<f64>() / (n - 1.0);
    let (low, high) = series.iter().fold((f64::MAX, 0f64), |(low, high), p| (low.min(p.1), high.max(p.1)));
    let noise = seconds * (variance / n).sqrt();
    let ends = (high - low) * period / 6f64.sqrt();
    let pauses = series.windows(2).map(|p| p[1].0 - p[0].0).filter(|pause| *pause > long);
    let unseen = pauses.map(|pause| ((high - low) * pause).powi(2) / 12.0).sum::<f64>().sqrt();
    (joules, Sampling { ends, rest: noise.hypot(unseen) })
}

/// Step of a counter's value, J, as far as its readings tell: they rise by multiples of it, so no two rises differ by less. Of a counter
/// that is much finer than its readings are apart, next to nothing is left. 0 where only the ends were read.
fn resolution(series: &[(f64, f64)]) -> f64 {
    if series.len() < 3 {
        return 0.0;
    }
    let rounding = 16.0 * f64::EPSILON * series[series.len() - 1].1;
    let mut rises: Vec<f64> = series.windows(2).map(|pair| pair[1].1 - pair[0].1).collect();
    rises.push(0.0);
    rises.sort_by(f64::total_cmp);
    let apart = rises.windows(2).map(|pair| pair[1] - pair[0]).filter(|apart| *apart > rounding);
    apart.reduce(f64::min).unwrap_or(0.0)
}

/// An open measurement. It reads the meter at its start and end, and in between on a thread of its own where
/// [`MeterInfo::poll_every`] asks for that. The thread sleeps nearly always and ends with the window.
///
/// Windows on one meter may overlap and follow each other freely.
#[derive(Debug)]
pub struct Window {
    meter: Arc<dyn Meter>,
    trace: SharedTrace,
    poller: Option<(Sender<()>, JoinHandle<()>)>,
}

/// The trace of an open window; `None` once the window is closed, so that a late poll cannot extend it.
type SharedTrace = Arc<Mutex<Option<Recording>>>;

/// A trace, and the first error that leaves nothing to be saved, such as a counter that was reset.
#[derive(Debug)]
struct Recording {
    trace: Trace,
    spoilt: Option<MeterError>,
}

impl Window {
    /// Takes the first reading and starts the clock.
    ///
    /// # Errors
    /// Those of [`Meter::read`]; [`MeterError::Library`] when no thread can be started.
    pub fn start(meter: Arc<dyn Meter>) -> Result<Window> {
        let mut trace = Trace::new(meter.info().clone());
        trace.record(&*meter)?;
        let trace = Arc::new(Mutex::new(Some(Recording { trace, spoilt: None })));
        let checked = meter.cross_check().and_then(|other| other.info().poll_every);
        let poller = match meter.info().poll_every.into_iter().chain(checked).min() {
            None => None,
            Some(every) => Some(spawn_poller(meter.clone(), trace.clone(), every)?),
        };
        Ok(Window { meter, trace, poller })
    }

    /// Takes the last reading and gives the energy since [`Window::start`].
    ///
    /// # Errors
    /// Those of [`Meter::read`] and [`Trace::energy`].
    pub fn finish(self) -> Result<Energy> {
        self.finish_trace()?.energy()
    }

    /// As [`Window::finish`], with all readings, for a chart of power over time.
    ///
    /// # Errors
    /// Those of [`Meter::read`], and [`MeterError::Reset`], [`MeterError::Lost`] or [`MeterError::Impossible`] when a
    /// reading within the window showed that.
    pub fn finish_trace(mut self) -> Result<Trace> {
        let (recording, last) = {
            let mut slot = self.trace.lock().unwrap_or_else(PoisonError::into_inner);
            let last = slot.as_mut().map(|recording| recording.trace.record(&*self.meter));
            (slot.take(), last)
        };
        if let Some((stop, thread)) = self.poller.take() {
            drop(stop);
            // A poller that panicked inside a foreign meter leaves a trace that is checked like any other.
            let _ = thread.join();
        }
        last.transpose()?;
        match recording {
            Some(Recording { spoilt: Some(error), .. }) => Err(error),
            Some(Recording { trace, .. }) => Ok(trace),
            None => Ok(Trace::new(self.meter.info().clone())),
        }
    }
}

fn spawn_poller(
    meter: Arc<dyn Meter>,
    trace: SharedTrace,
    every: Duration,
) -> Result<(Sender<()>, JoinHandle<()>)> {
    let (stop, stopped) = mpsc::channel::<()>();
    let origin = meter.info().source;
    let thread = thread::Builder::new()
        .name("energy-poller".into())
        .spawn(move || {
            // Spacings spread evenly over 0.75..1.25 of the interval, so that a periodic load does not beat
            // with the sampling (arXiv 2312.02741).
            let mut phase = 0.0f64;
            loop {
                phase = (phase + 0.618_034).fract();
                if stopped.recv_timeout(every.mul_f64(0.75 + 0.5 * phase)) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
                let mut slot = trace.lock().unwrap_or_else(PoisonError::into_inner);
                let Some(Recording { trace, spoilt }) = slot.as_mut() else { return };
                if let Err(error) = trace.record(&*meter) {
                    trace.failed += 1;
                    if error.spoils_window() {
                        spoilt.get_or_insert(error);
                    }
                }
            }
        })
        .map_err(|e| MeterError::Library {
            origin,
            reason: format!("cannot start the polling thread: {e}"),
        })?;
    Ok((stop, thread))
}

/// Runs `work` inside a window of `meter`.
///
/// The work runs in any case; only the energy may be an error.
pub fn measure<T>(meter: &Arc<dyn Meter>, work: impl FnOnce() -> T) -> (T, Result<Energy>) {
    let window = Window::start(meter.clone());
    let value = work();
    (value, window.and_then(Window::finish))
}

/// Runs `work` again and again inside one window of `meter` until the window is as long as
/// [`MeterInfo::window_for`] asks for `relative` (0.01 for 1 %), at least once. Gives the number of runs: divide
/// by it with [`Energy::per`].
///
/// # Errors
/// Those of [`Window::start`] and [`Window::finish`].
///
/// # Panics
/// Passes on those of `work`.
pub fn repeat(meter: &Arc<dyn Meter>, relative: f64, mut work: impl FnMut()) -> Result<(u64, Energy)> {
    let length = meter.info().window_for(relative);
    let (start, window) = (Instant::now(), Window::start(meter.clone())?);
    let mut runs = 0;
    while runs == 0 || start.elapsed() < length {
        work();
        runs += 1;
    }
    Ok((runs, window.finish()?))
}
