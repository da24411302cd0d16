//! The browser's clock.

use perjoule_engine::sampling::Clock;
use std::time::Duration;
use web_time::Instant;

/// Monotonic, and rounded as the browser likes.
pub(crate) struct Browser {
    origin: Instant,
    step: Duration,
}

/// Steps of the clock that are looked at.
const LOOKED: usize = 20;

impl Browser {
    /// Finds out how coarse the clock is: a few steps of it.
    pub(crate) fn new() -> Self {
        let origin = Instant::now();
        let mut steps = Vec::new();
        let mut last = origin.elapsed();
        while steps.len() < LOOKED && origin.elapsed() < Duration::from_millis(50) {
            let now = origin.elapsed();
            if now > last {
                steps.push(now - last);
                last = now;
            }
        }
        steps.sort();
        let step = steps.get(steps.len() / 2).copied().unwrap_or(Duration::from_millis(1));
        Browser { origin, step }
    }
}

impl Clock for Browser {
    fn now(&self) -> Duration {
        self.origin.elapsed()
    }

    // timestamps of devices are rounded, too, to 100 microseconds where nobody asked for more
    fn step(&self) -> Duration {
        self.step.max(Duration::from_micros(100))
    }
}
