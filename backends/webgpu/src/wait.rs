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
pub(crate) struct Signal(Mutex<State>);

#[derive(Default)]
struct State {
    told: Option<Result<(), String>>,
    wakers: Vec<Waker>,
}

impl Signal {
    /// Comes when the buffer is mapped for reading.
    pub(crate) fn mapped(buffer: &wgpu::Buffer) -> Arc<Self> {
        let signal: Arc<Signal> = Arc::default();
        let told = signal.clone();
        buffer.map_async(wgpu::MapMode::Read, .., move |result| {
            told.tell(result.map_err(|error| error.to_string()));
        });
        signal
    }

    /// Comes when all that was submitted so far is done.
    pub(crate) fn submitted(queue: &wgpu::Queue) -> Arc<Self> {
        let signal: Arc<Signal> = Arc::default();
        let told = signal.clone();
        queue.on_submitted_work_done(move || told.tell(Ok(())));
        signal
    }

    fn tell(&self, result: Result<(), String>) {
        let wakers = {
            let mut state = locked(&self.0);
            state.told = Some(result);
            std::mem::take(&mut state.wakers)
        };
        wakers.into_iter().for_each(Waker::wake);
    }

    fn told(&self) -> Option<Result<(), String>> {
        locked(&self.0).told.clone()
    }

    /// As [`Signal::told`]; where it is not, the task is woken when it is.
    fn ask(&self, context: &Context<'_>) -> Option<Result<(), String>> {
        let mut state = locked(&self.0);
        if state.told.is_none() {
            state.wakers.push(context.waker().clone());
        }
        state.told.clone()
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

/// A device that answers nothing for so long is taken for lost.
#[cfg(not(target_arch = "wasm32"))]
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(600);

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
        if std::mem::replace(&mut self.watched, true) {
            return;
        }
        let (inner, signals) = (self.inner.clone(), self.signals.clone());
        std::thread::spawn(move || {
            if let Err(error) = until(&inner, &signals) {
                // the futures wake, and meet the loss
                signals.iter().for_each(|signal| signal.tell(Err(error.to_string())));
            }
        });
    }

    #[cfg(target_arch = "wasm32")]
    fn watch(&mut self) {
        self.watched = true;
    }
}

/// Polls the device until all signals have come.
#[cfg(not(target_arch = "wasm32"))]
fn until(inner: &Inner, signals: &[Arc<Signal>]) -> Result<()> {
    use std::time::{Duration, Instant};
    let start = Instant::now();
    loop {
        let timeout = Some(Duration::from_secs(5));
        let polled = inner.device.poll(wgpu::PollType::Wait { submission_index: None, timeout });
        if signals.iter().all(|signal| signal.told().is_some()) {
            return Ok(());
        }
        inner.alive()?;
        match polled {
            Ok(status) if status.is_queue_empty() => {
                // another thread may be about to run the callbacks
                if start.elapsed() > Duration::from_secs(30) {
                    return Err(inner.give_up("all work is done, and a result did not come".into()));
                }
                std::thread::yield_now();
            }
            Ok(_) | Err(wgpu::PollError::Timeout) if start.elapsed() < PATIENCE => {}
            Ok(_) | Err(wgpu::PollError::Timeout) => {
                let seconds = PATIENCE.as_secs();
                return Err(inner.give_up(format!("no answer for {seconds} seconds")));
            }
            Err(error) => return Err(inner.give_up(error.to_string())),
        }
    }
}

impl<T: Local + 'static> Wait<T> for Later<T> {
    #[cfg(not(target_arch = "wasm32"))]
    fn wait(mut self: Pin<Box<Self>>) -> Result<T> {
        until(&self.inner, &self.signals)?;
        let told = self.signals.iter().filter_map(|signal| signal.told()).collect::<Result<(), String>>();
        self.settle(told)
    }
}
