//! Results that are there once the device says so.

use crate::inner::{Inner, locked};
use perjoule_kernels::device::Wait;
use perjoule_kernels::{Error, Local, Pending, Result};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

/// What a callback of `wgpu` tells: once.
#[derive(Default)]
pub(crate) struct Signal {
    state: Mutex<State>,
    /// It comes when this is done; without one, when everything is.
    #[cfg_attr(target_arch = "wasm32", allow(dead_code, reason = "a browser polls by itself"))]
    submission: Option<wgpu::SubmissionIndex>,
}

#[derive(Default)]
struct State {
    told: Option<Result<(), String>>,
    wakers: Vec<Waker>,
}

impl Signal {
    /// Comes when the buffer is mapped for reading, behind the submission that writes it.
    pub(crate) fn mapped(
        inner: &Inner,
        buffer: &wgpu::Buffer,
        submission: Option<wgpu::SubmissionIndex>,
    ) -> Arc<Self> {
        let signal = Arc::new(Signal { state: Mutex::default(), submission });
        let told = Teller(signal.clone());
        let tell = move |result: Result<(), wgpu::BufferAsyncError>| {
            told.0.tell(result.map_err(|error| error.to_string()));
        };
        // an error is told twice: the signal is enough
        let _ = inner.checked(|| buffer.map_async(wgpu::MapMode::Read, .., tell));
        signal
    }

    /// Comes when all that was submitted so far is done, `submission` the last of it.
    pub(crate) fn submitted(queue: &wgpu::Queue, submission: Option<wgpu::SubmissionIndex>) -> Arc<Self> {
        let signal = Arc::new(Signal { state: Mutex::default(), submission });
        let told = Teller(signal.clone());
        queue.on_submitted_work_done(move || told.0.tell(Ok(())));
        signal
    }

    fn tell(&self, result: Result<(), String>) {
        let wakers = {
            let mut state = locked(&self.state);
            state.told.get_or_insert(result);
            std::mem::take(&mut state.wakers)
        };
        wakers.into_iter().for_each(Waker::wake);
    }

    #[cfg(not(target_arch = "wasm32"))]
    fn told(&self) -> Option<Result<(), String>> {
        locked(&self.state).told.clone()
    }

    /// As [`Signal::told`]; where it is not, the task is woken when it is.
    fn ask(&self, context: &Context<'_>) -> Option<Result<(), String>> {
        let mut state = locked(&self.state);
        if state.told.is_none() && !state.wakers.iter().any(|waker| waker.will_wake(context.waker())) {
            state.wakers.push(context.waker().clone());
        }
        state.told.clone()
    }
}

/// Tells at the latest when it goes: a poll that panics drops callbacks whose time had come. Whoever waited then finds a result, or an error.
struct Teller(Arc<Signal>);

impl Drop for Teller {
    fn drop(&mut self) {
        self.0.tell(Ok(()));
    }
}

/// A result that is there once some signals are.
pub(crate) struct Later<T> {
    inner: Arc<Inner>,
    last: &'static str,
    signals: Vec<Arc<Signal>>,
    finish: Option<Finish<T>>,
    watched: bool,
}

#[cfg(not(target_arch = "wasm32"))]
type Finish<T> = Box<dyn FnOnce() -> Result<T, String> + Send>;
#[cfg(target_arch = "wasm32")]
type Finish<T> = Box<dyn FnOnce() -> Result<T, String>>;

impl<T> Unpin for Later<T> {}

impl<T: Local + 'static> Later<T> {
    #[cfg(not(target_arch = "wasm32"))]
    pub(crate) fn pending(
        inner: &Arc<Inner>,
        last: &'static str,
        signals: Vec<Arc<Signal>>,
        finish: impl FnOnce() -> Result<T, String> + Send + 'static,
    ) -> Pending<T> {
        Box::pin(Later {
            inner: inner.clone(),
            last,
            signals,
            finish: Some(Box::new(finish)),
            watched: false,
        })
    }

    #[cfg(target_arch = "wasm32")]
    pub(crate) fn pending(
        inner: &Arc<Inner>,
        last: &'static str,
        signals: Vec<Arc<Signal>>,
        finish: impl FnOnce() -> Result<T, String> + 'static,
    ) -> Pending<T> {
        Box::pin(Later {
            inner: inner.clone(),
            last,
            signals,
            finish: Some(Box::new(finish)),
            watched: false,
        })
    }

    /// The result, now that the signals have come. Faults of the device come first: what was read behind one is nothing.
    fn settle(&mut self, told: Result<(), String>) -> Result<T> {
        self.inner.fault(self.last)?;
        let detail = |detail| Error::Fault { kernel: self.last, detail };
        told.map_err(detail)?;
        let twice =
            || Error::Unsupported { what: "waiting twice", why: "the result was already taken".into() };
        self.finish.take().ok_or_else(twice)?().map_err(detail)
    }
}

impl<T: Local + 'static> Future for Later<T> {
    type Output = Result<T>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<T>> {
        let mut all = Ok(());
        for signal in &self.signals {
            match signal.ask(context) {
                None => {
                    self.watch();
                    return Poll::Pending;
                }
                Some(told) => all = all.and(told),
            }
        }
        Poll::Ready(self.settle(all))
    }
}

impl<T: Local + 'static> Later<T> {
    /// Natively callbacks come while somebody polls the device: a thread does, where a future is awaited.
    #[cfg(not(target_arch = "wasm32"))]
    fn watch(&mut self) {
        if !std::mem::replace(&mut self.watched, true) {
            Awaited::watch(&self.inner, self.signals.clone());
        }
    }

    #[cfg(target_arch = "wasm32")]
    fn watch(&mut self) {
        self.watched = true;
    }
}

/// What is awaited of a device. One thread polls for all of it, while there is any.
#[cfg(not(target_arch = "wasm32"))]
#[derive(Default)]
pub(crate) struct Awaited(Mutex<Watch>);

#[cfg(not(target_arch = "wasm32"))]
#[derive(Default)]
struct Watch {
    waiting: std::collections::VecDeque<Vec<Arc<Signal>>>,
    polled: bool,
}

#[cfg(not(target_arch = "wasm32"))]
impl Awaited {
    fn watch(inner: &Arc<Inner>, signals: Vec<Arc<Signal>>) {
        let mut watch = locked(&inner.awaited.0);
        watch.waiting.push_back(signals);
        if watch.polled {
            return;
        }
        let polling = inner.clone();
        let thread = std::thread::Builder::new().name("perjoule webgpu".into());
        watch.polled = thread.spawn(move || Self::poll(&polling)).is_ok();
        if !watch.polled {
            let waiting = std::mem::take(&mut watch.waiting);
            drop(watch);
            let told = || Err("no thread waits for the device: the system gives none".into());
            waiting.iter().flatten().for_each(|signal| signal.tell(told()));
        }
    }

    fn poll(inner: &Inner) {
        loop {
            let next = {
                let mut watch = locked(&inner.awaited.0);
                let next = watch.waiting.pop_front();
                watch.polled = next.is_some();
                next
            };
            let Some(signals) = next else { return };
            if let Err(error) = until(inner, &signals) {
                // the futures wake, and meet the loss
                signals.iter().for_each(|signal| signal.tell(Err(error.to_string())));
            }
        }
    }
}

/// Polls the device until all signals have come.
#[cfg(not(target_arch = "wasm32"))]
fn until(inner: &Inner, signals: &[Arc<Signal>]) -> Result<()> {
    let start = std::time::Instant::now();
    for signal in signals {
        // its own submission first: later ones are no concern of it
        let mut submission = signal.submission.clone();
        while signal.told().is_none() {
            let polled = inner.poll(submission.take(), start)?;
            // another thread may be about to run the callback
            let idle = polled.is_some_and(|status| status.is_queue_empty());
            if idle && start.elapsed().as_secs() > 30 && signal.told().is_none() {
                return Err(inner.give_up("all work is done, and a result did not come".into()));
            }
            std::thread::yield_now();
        }
        if let Some(Err(_)) = signal.told() {
            // a device that is lost may say so only here
            inner.poll(signal.submission.clone(), start)?;
        }
    }
    Ok(())
}

impl<T: Local + 'static> Wait<T> for Later<T> {
    #[cfg(not(target_arch = "wasm32"))]
    fn wait(mut self: Pin<Box<Self>>) -> Result<T> {
        until(&self.inner, &self.signals)?;
        let told = self.signals.iter().filter_map(|signal| signal.told()).collect::<Result<(), String>>();
        self.settle(told)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_callback_that_is_dropped_tells() {
        let signal = Arc::<Signal>::default();
        let callback = {
            let told = Teller(signal.clone());
            move || told.0.tell(Err("called".into()))
        };
        assert_eq!(signal.told(), None);
        drop(callback);
        assert_eq!(signal.told(), Some(Ok(())));
    }
}
