//! Work that nobody waits for, and the end of the process: a driver that still compiles while its own destructors run brings the process
//! down (seen with NVIDIA's). So the end waits for what has begun, and nothing begins any more.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

/// Longest wait at the end: a driver that hangs shall not keep the process.
const MOST: Duration = Duration::from_secs(60);

/// What runs.
struct Running {
    state: Mutex<State>,
    less: Condvar,
}

struct State {
    count: usize,
    ended: bool,
}

static RUNNING: Running =
    Running { state: Mutex::new(State { count: 0, ended: false }), less: Condvar::new() };

impl Running {
    fn begin(&self) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.count += usize::from(!state.ended);
        !state.ended
    }

    fn end(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).count -= 1;
        self.less.notify_all();
    }

    fn close(&self, most: Duration) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.ended = true;
        // whether all ended in time changes nothing
        drop(self.less.wait_timeout_while(state, most, |state| state.count > 0));
    }
}

/// Does `work` on a thread of rayon, unless the process ends.
pub(crate) fn spawn(work: impl FnOnce() + Send + 'static) {
    at_exit();
    rayon::spawn(move || {
        if RUNNING.begin() {
            work();
            RUNNING.end();
        }
    });
}

/// Registered when the driver is loaded already, so that it is called before the driver's destructors.
#[cfg(unix)]
fn at_exit() {
    extern "C" fn close() {
        RUNNING.close(MOST);
    }
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        // SAFETY: the function lives as long as the process, and does not unwind: it locks, waits, and ignores poison. Where it cannot be
        // registered the process ends as it would without it.
        let _ = unsafe { libc::atexit(close) };
    });
}

/// Elsewhere a process ends without calling anybody.
#[cfg(not(unix))]
fn at_exit() {}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[test]
    fn the_end_waits_for_what_runs_and_nothing_begins_behind_it() {
        let running = Running { state: Mutex::new(State { count: 0, ended: false }), less: Condvar::new() };
        let done = AtomicBool::new(false);
        assert!(running.begin());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(50));
                done.store(true, Ordering::Release);
                running.end();
            });
            running.close(MOST);
            assert!(done.load(Ordering::Acquire));
        });
        assert!(!running.begin());
        // what never ends is not waited for for ever
        let running = Running { state: Mutex::new(State { count: 1, ended: false }), less: Condvar::new() };
        running.close(Duration::from_millis(1));
    }
}
