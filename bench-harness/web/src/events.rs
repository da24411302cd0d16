//! What the page is told, as objects of JSON: one function of the page's hears them all.

use js_sys::Function;
use perjoule_record::Record;
use serde::Serialize;
use serde_json::Value;
use std::cell::{Cell, RefCell};
use wasm_bindgen::JsValue;

thread_local! {
    static LISTENER: RefCell<Option<Function>> = const { RefCell::new(None) };
    static STOPPED: Cell<bool> = const { Cell::new(false) };
}

/// What happened.
#[derive(Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub(crate) enum Event<'a> {
    /// The device that was opened, and what the run will do.
    Device { device: Value, steps: usize },
    /// A step of the run begins.
    Step { index: usize, title: &'a str },
    /// How far something within a step is.
    Progress { text: &'a str, done: f64, of: f64 },
    /// A sample of what is measured now, in milliseconds a call.
    Sample { ms: f64 },
    /// A record, and its line of JSON.
    Record { record: &'a Record, line: &'a str },
    /// What was not measured, and why.
    Missing { what: &'a str, dtype: &'a str, shape: &'a str, why: &'a str },
}

/// From now on `listener` hears of events.
pub(crate) fn listen(listener: Function) {
    LISTENER.set(Some(listener));
}

/// Tells an event.
pub(crate) fn tell(event: &Event<'_>) {
    let Ok(text) = serde_json::to_string(event) else { return };
    LISTENER.with_borrow(|listener| {
        if let Some(listener) = listener {
            // a listener that throws is the page's own trouble
            let _ = listener.call1(&JsValue::NULL, &JsValue::from_str(&text));
        }
    });
}

/// Asks the run to end, or allows the next one.
pub(crate) fn set_stopped(stopped: bool) {
    STOPPED.set(stopped);
}

/// Whether it was asked to.
pub(crate) fn stopped() -> bool {
    STOPPED.get()
}
