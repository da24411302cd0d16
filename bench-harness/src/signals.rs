//! What the process does on signals: Ctrl-C ends the measurement in progress and keeps finished records; a file-size limit becomes an
//! error of the write; a closed pipe is an error of the write too, as Rust's runtime already arranges.

use anyhow::{Context, Result};
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};

/// Installs the handlers. A second Ctrl-C ends the process at once.
pub(crate) fn install() -> Result<()> {
    #[cfg(unix)]
    // SAFETY: neither ignoring a signal nor its default runs a handler, and no other thread exists yet that could change it at the same time.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
        // where whoever started us ignores it, the system reaps our children by itself, and what they used is gone
        libc::signal(libc::SIGCHLD, libc::SIG_DFL);
    }
    static ASKED: AtomicBool = AtomicBool::new(false);
    ctrlc::set_handler(|| {
        if ASKED.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
        crate::measure::interrupt();
        // a write that fails here has nobody to tell
        let _ = writeln!(std::io::stderr(), "\nending after the current step; Ctrl-C again ends at once");
    })
    .context("cannot watch for Ctrl-C")
}

/// Stops this process as Ctrl-Z does; returns when the shell lets it go on.
pub(crate) fn suspend() {
    #[cfg(unix)]
    // SAFETY: raising a signal touches no memory; its default action stops the process, and no handler of ours runs.
    unsafe {
        libc::raise(libc::SIGTSTP);
    }
}
