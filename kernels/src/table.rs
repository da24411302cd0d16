//! The rows of a device, what was registered from outside, and what a tuner measured: the same for every backend.

use crate::error::{Error, Result};
use crate::kernel::Kernel;
use crate::tune::Tuning;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

/// A device's rows, in order; the last row of an op is a portable one that runs everything.
pub struct Table {
    built_in: Arc<[&'static Kernel]>,
    rows: RwLock<Arc<[&'static Kernel]>>,
    tuning: RwLock<Option<Arc<Tuning>>>,
    revision: AtomicU64,
}

impl Table {
    /// A backend's own rows.
    pub fn new(rows: impl IntoIterator<Item = &'static Kernel>) -> Self {
        let built_in: Arc<[_]> = rows.into_iter().collect();
        Table {
            rows: RwLock::new(built_in.clone()),
            built_in,
            tuning: RwLock::new(None),
            revision: AtomicU64::new(0),
        }
    }

    /// A snapshot: rows may be registered later.
    pub fn rows(&self) -> Arc<[&'static Kernel]> {
        self.rows.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Adds a row from outside.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when a row of that name exists.
    pub fn register(&self, row: &'static Kernel) -> Result<()> {
        let mut rows = self.rows.write().unwrap_or_else(PoisonError::into_inner);
        if rows.iter().any(|r| r.name == row.name) {
            return Err(Error::Unsupported {
                what: "a second row of the same name",
                why: format!("{} is in the table", row.name),
            });
        }
        // in front: of equal costs the row from outside wins, and the portable row stays last
        *rows = std::iter::once(row).chain(rows.iter().copied()).collect();
        self.revised();
        Ok(())
    }

    /// Whether the row is one of the backend's own, and none that was registered.
    pub fn is_built_in(&self, row: &'static Kernel) -> bool {
        self.built_in.iter().any(|own| std::ptr::eq(*own, row))
    }

    /// What a tuner measured.
    pub fn tuning(&self) -> Option<Arc<Tuning>> {
        self.tuning.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces it, and forgets it with `None`.
    pub fn set_tuning(&self, tuning: Option<Arc<Tuning>>) {
        *self.tuning.write().unwrap_or_else(PoisonError::into_inner) = tuning;
        self.revised();
    }

    /// A number that is another one after every change. Cheap.
    pub fn revision(&self) -> u64 {
        self.revision.load(Ordering::Acquire)
    }

    fn revised(&self) {
        self.revision.fetch_add(1, Ordering::Release);
    }
}
