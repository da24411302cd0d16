//! Whether any case of a row was launched, known when the last one is over.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// The cases of a row that are still to come, and whether one was launched so far.
#[derive(Debug)]
pub struct Left {
    name: String,
    cases: AtomicUsize,
    launched: AtomicBool,
}

impl Left {
    /// `cases` to come; `name` is that of the test that fails when none of them is launched.
    pub fn new(name: &str, cases: usize) -> Self {
        Left { name: name.into(), cases: AtomicUsize::new(cases), launched: AtomicBool::new(false) }
    }

    /// The name that was given.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Counts a case that is over; true when it was the last and none was launched.
    pub fn never_launched(&self, launched: bool) -> bool {
        self.launched.fetch_or(launched, Ordering::SeqCst);
        self.cases.fetch_sub(1, Ordering::SeqCst) == 1 && !self.launched.load(Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_case_tells() {
        let told = |list: &[bool]| -> Vec<bool> {
            let left = Left::new("row::none", list.len());
            list.iter().map(|&launched| left.never_launched(launched)).collect()
        };
        assert_eq!(told(&[false, false, false]), [false, false, true]);
        for at in 0..3 {
            let mut list = [false; 3];
            list[at] = true;
            assert_eq!(told(&list), [false; 3]);
        }
        // some may be left out by a filter: then nothing is said
        assert!(!Left::new("row::none", 2).never_launched(false));
    }
}
