//! What can go wrong between a sensor and a number of joules. Every message says what to do about it.

use std::io;
use std::path::{Path, PathBuf};

use crate::Source;

/// Result of this crate.
pub type Result<T, E = MeterError> = std::result::Result<T, E>;

/// Why there is no reading. No variant stands for zero joules: an unknown energy is always an error.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MeterError {
    /// The machine has no such sensor, or the library that reads it is not installed.
    #[error("no {origin} meter: {reason}")]
    Absent {
        /// The kind of meter that was looked for.
        origin: Source,
        /// What was looked for and not found.
        reason: String,
    },
    /// The sensor is there, but this user may not read it.
    #[error("no permission to read {}: {fix}", path.display())]
    PermissionDenied {
        /// The file that refused.
        path: PathBuf,
        /// Commands that make it readable.
        fix: String,
    },
    /// The sensor's file could not be read for another reason.
    #[error("cannot read {}: {cause}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        cause: io::Error,
    },
    /// The sensor's file holds something that is not a reading.
    #[error("{} holds {found:?}, expected {expected}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What it holds, shortened.
        found: String,
        /// What it should hold.
        expected: &'static str,
    },
    /// A vendor library refused or failed.
    #[error("{origin}: {reason}")]
    Library {
        /// The kind of meter.
        origin: Source,
        /// The library's own words.
        reason: String,
    },
    /// The window is too short for the sensor's update period: stretch it by repeating the work.
    #[error(
        "a window of {seconds:.6} s is too short for {meter}: repeat the work for at least {needed:.6} s"
    )]
    TooShort {
        /// The meter's id.
        meter: String,
        /// Length of the window, s.
        seconds: f64,
        /// Shortest window that gives a reading, s.
        needed: f64,
    },
    /// The counter did not move although the window spans several update periods, as under hypervisors
    /// that expose a dead counter.
    #[error("the counter of {meter} stood still for {seconds:.3} s: it is not connected, use another meter")]
    Stalled {
        /// The meter's id.
        meter: String,
        /// Length of the window, s.
        seconds: f64,
    },
    /// The counter was reset (suspend, driver reload) or read another impossible step.
    #[error(
        "a counter of {meter} jumped by {joules:.0} J in {seconds:.3} s: it was reset, repeat the measurement"
    )]
    Reset {
        /// The meter's id.
        meter: String,
        /// The step, J.
        joules: f64,
        /// The time it took, s.
        seconds: f64,
    },
    /// The counter was not read for so long that it may have wrapped more than once, as when the process was
    /// stopped or the machine slept.
    #[error(
        "{meter} was not read for {seconds:.1} s, in which its counter may have wrapped unseen: repeat the measurement"
    )]
    Missed {
        /// The meter's id.
        meter: String,
        /// The longest time between two readings, s.
        seconds: f64,
    },
    /// What the meter depends on ended: the sender of an external meter closed or fell silent, the machine was
    /// plugged in while its battery was the meter.
    #[error("{meter} has no reading: {reason}")]
    Lost {
        /// The meter's id.
        meter: String,
        /// What happened, and what to do.
        reason: String,
    },
    /// A reading is NaN, infinite or negative, or its kind changed within a trace.
    #[error("{meter} gave an impossible reading: {reason}")]
    Impossible {
        /// The meter's id.
        meter: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Two figures of different meters were combined.
    #[error(
        "an idle baseline of {baseline} cannot be subtracted from energy of {energy}: measure both with one meter"
    )]
    Mismatch {
        /// Id of the meter behind the baseline.
        baseline: String,
        /// Id of the meter behind the energy.
        energy: String,
    },
    /// A parameter of a power model or a window is out of range.
    #[error("{name} = {value}: {expected}")]
    Parameter {
        /// The parameter's name.
        name: &'static str,
        /// The value given.
        value: String,
        /// What is accepted.
        expected: &'static str,
    },
}

impl MeterError {
    /// The commands or settings that would make the meter usable, where they are known.
    pub fn fix(&self) -> Option<&str> {
        match self {
            MeterError::PermissionDenied { fix, .. } => Some(fix),
            _ => None,
        }
    }

    /// Whether a window in which this happened, even if later readings succeed, has no energy.
    pub fn spoils_window(&self) -> bool {
        matches!(self, MeterError::Reset { .. } | MeterError::Lost { .. } | MeterError::Impossible { .. })
    }

    pub(crate) fn io(path: &Path, cause: io::Error, fix: impl FnOnce() -> String) -> MeterError {
        let path = path.to_path_buf();
        match cause.kind() {
            io::ErrorKind::PermissionDenied => MeterError::PermissionDenied { path, fix: fix() },
            _ => MeterError::Io { path, cause },
        }
    }
}
