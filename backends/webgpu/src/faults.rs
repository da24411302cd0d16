//! Errors that no call answers with, kept until they are told.
//!
//! Natively `wgpu` meets an error within the call that made it: a stream keeps the first one of its submissions, and tells it itself. A
//! browser answers later, and code beside ours may use the device: such errors are told to whoever waits first.

use crate::inner::locked;
use perjoule_kernels::{Error, Result};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, OnceLock};

/// What went wrong on a device behind its calls' back.
#[derive(Default)]
pub(crate) struct Faults {
    /// The first error that nobody was told yet.
    first: Mutex<Option<String>>,
    /// What was said when the device was lost.
    lost: OnceLock<String>,
}

impl Faults {
    /// Hears of what goes wrong on a device from now on, in place of whoever did before.
    pub(crate) fn listen(self: &Arc<Self>, device: &wgpu::Device) {
        let (uncaptured, lost) = (self.clone(), self.clone());
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            locked(&uncaptured.first).get_or_insert_with(|| error.to_string());
        }));
        device.set_device_lost_callback(move |reason, message| {
            lost.lose(if message.is_empty() { format!("{reason:?}") } else { message });
        });
    }

    /// The first error that nobody was told yet: it is now.
    pub(crate) fn take(&self) -> Option<String> {
        locked(&self.first).take()
    }

    /// Why the device is lost, if it is.
    pub(crate) fn lost(&self) -> Option<&str> {
        self.lost.get().map(String::as_str)
    }

    /// The device is lost. Gives why, which somebody may have known before.
    pub(crate) fn lose(&self, detail: String) -> &str {
        self.lost.get_or_init(|| detail)
    }
}

/// An error of a stream's submission.
#[derive(Clone)]
pub(crate) struct Fault {
    /// The kernel that was launched last.
    pub(crate) kernel: &'static str,
    pub(crate) detail: String,
}

/// The first fault of a stream, until a call or a result of that stream has told it.
#[derive(Default)]
pub(crate) struct Untold(Mutex<Option<Fault>>);

impl Untold {
    /// Keeps a fault, if it is the first.
    pub(crate) fn keep(&self, kernel: &'static str, detail: String) {
        locked(&self.0).get_or_insert(Fault { kernel, detail });
    }

    /// Tells it.
    pub(crate) fn tell(&self) -> Result<()> {
        match locked(&self.0).take() {
            None => Ok(()),
            Some(Fault { kernel, detail }) => Err(Error::Fault { kernel, detail }),
        }
    }

    /// The fault, for a result that tells it once it is waited for, and calls [`Untold::tell`] then.
    pub(crate) fn get(&self) -> Option<Fault> {
        locked(&self.0).clone()
    }
}

/// What `f` gives, or what it said when it panicked: compilers and `wgpu` panic where they have no other word for an error.
pub(crate) fn caught<T>(f: impl FnOnce() -> T) -> Result<T, String> {
    // what panics here is not used again, or guards its own state
    catch_unwind(AssertUnwindSafe(f)).map_err(|said| match said.downcast::<String>() {
        Ok(text) => *text,
        Err(said) => said.downcast_ref::<&str>().map_or("a panic".into(), |text| text.to_string()),
    })
}

/// What `make` makes of a device, or the error that it met. A browser answers later: there, errors arrive where somebody waits.
#[cfg(not(target_arch = "wasm32"))]
pub(crate) fn checked<T>(device: &wgpu::Device, make: impl FnOnce() -> T) -> Result<T, wgpu::Error> {
    let validation = device.push_error_scope(wgpu::ErrorFilter::Validation);
    let memory = device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
    let internal = device.push_error_scope(wgpu::ErrorFilter::Internal);
    let made = make();
    let errors = [internal.pop(), memory.pop(), validation.pop()].map(pollster::block_on);
    errors.into_iter().flatten().next().map_or(Ok(made), Err)
}

/// What `make` makes. A browser answers later: errors arrive where somebody waits.
#[cfg(target_arch = "wasm32")]
pub(crate) fn checked<T>(_: &wgpu::Device, make: impl FnOnce() -> T) -> Result<T, wgpu::Error> {
    Ok(make())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panics_are_errors() {
        assert_eq!(caught(|| 3), Ok(3));
        assert_eq!(caught(|| panic!("in {}", "words")), Err::<(), _>("in words".into()));
        assert_eq!(caught(|| panic!("plain")), Err::<(), _>("plain".into()));
        assert_eq!(caught(|| std::panic::panic_any(7)), Err::<(), _>("a panic".into()));
    }

    #[test]
    fn the_first_fault_is_told_once() {
        let untold = Untold::default();
        untold.keep("add", "first".into());
        untold.keep("copy", "second".into());
        assert_eq!(untold.get().unwrap().detail, "first");
        assert!(matches!(untold.tell(), Err(Error::Fault { kernel: "add", .. })));
        assert!(untold.tell().is_ok() && untold.get().is_none());
    }
}
