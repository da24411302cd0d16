//! Operands between pages that cannot be touched: a kernel that reads or writes one byte too far stops right there.
//!
//! Sanitisers do not see accesses of inline assembly; the memory management unit does. All unsafe code about pages and signals is here.

use perjoule_kernels::{Access, Arg, Device, Prepared, Stream};
use perjoule_suite::{Place, Trouble};
use std::ptr::NonNull;
use std::sync::Once;
use std::sync::atomic::{AtomicPtr, Ordering};

/// Which end of an operand lies against a forbidden page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The last byte, as far as the operand's alignment allows; the start is aligned to no more than that.
    Right,
    /// The first byte.
    Left,
}

/// Host memory between forbidden pages, with inputs that cannot be written. For devices that take host slices.
#[derive(Debug, Clone, Copy)]
pub struct GuardPages(pub Side);

/// What fills the rest of the pages that can be touched.
const GUARD: u8 = 0xa5;

/// A mapping with a forbidden page at both ends.
struct Pages {
    base: NonNull<u8>,
    page: usize,
    /// Bytes between the forbidden pages.
    usable: usize,
    /// Offset of the operand among them.
    at: usize,
    len: usize,
}

impl Pages {
    fn new(content: &[u8], align: usize, side: Side) -> std::io::Result<Self> {
        // SAFETY: asks for a constant of the system.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize;
        let align = align.max(1);
        let taken = content.len().next_multiple_of(align);
        let usable = taken.max(1).next_multiple_of(page);
        let total = usable + 2 * page;
        // SAFETY: a new anonymous mapping touches no existing memory.
        let base = unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            libc::mmap(std::ptr::null_mut(), total, libc::PROT_NONE, flags, -1, 0)
        };
        if base == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error());
        }
        let Some(base) = NonNull::new(base.cast::<u8>()) else {
            return Err(std::io::Error::other("mmap gave a null pointer"));
        };
        let at = if side == Side::Right { usable - taken } else { 0 };
        let mut pages = Pages { base, page, usable, at, len: content.len() };
        pages.protect(libc::PROT_READ | libc::PROT_WRITE)?;
        pages.inside().fill(GUARD);
        pages.bytes().copy_from_slice(content);
        Ok(pages)
    }

    fn protect(&self, protection: libc::c_int) -> std::io::Result<()> {
        // SAFETY: the middle of the mapping that `new` made.
        let result =
            unsafe { libc::mprotect(self.base.as_ptr().add(self.page).cast(), self.usable, protection) };
        if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
    }

    /// Everything that can be touched.
    fn inside(&mut self) -> &mut [u8] {
        // SAFETY: mapped, initialised by the system, and borrowed through `self`.
        unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr().add(self.page), self.usable) }
    }

    /// The operand. Writing needs pages that are not protected.
    fn bytes(&mut self) -> &mut [u8] {
        let (at, len) = (self.at, self.len);
        &mut self.inside()[at..at + len]
    }

    /// How far from the operand, and on which side, the nearest byte was written that should not have been.
    fn damage(&mut self) -> Option<(usize, &'static str)> {
        let (at, len) = (self.at, self.len);
        let inside = self.inside();
        let before = inside[..at].iter().rposition(|&byte| byte != GUARD);
        let behind = inside[at + len..].iter().position(|&byte| byte != GUARD);
        before.map(|b| (at - b, "in front of")).or(behind.map(|b| (b + 1, "behind")))
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping that `new` made; slices of it have ended.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.usable + 2 * self.page) };
    }
}

impl Place for GuardPages {
    fn name(&self) -> &'static str {
        match self.0 {
            Side::Right => "guard pages behind",
            Side::Left => "guard pages in front",
        }
    }

    fn launch(
        &self,
        _device: &dyn Device,
        stream: &mut dyn Stream,
        prepared: &Prepared,
        contents: &mut [Vec<u8>],
    ) -> Result<(), Trouble> {
        let failed = |error: std::io::Error| Trouble::Violation(format!("guard pages: {error}"));
        let operands = prepared.operands();
        let mut list = Vec::with_capacity(contents.len());
        for (content, operand) in contents.iter().zip(operands) {
            list.push(Pages::new(content, operand.align as usize, self.0).map_err(failed)?);
        }
        stream.reserve(prepared.scratch())?;
        for (pages, operand) in list.iter().zip(operands) {
            if operand.access == Access::Read {
                pages.protect(libc::PROT_READ).map_err(failed)?;
            }
        }
        let args = list.iter_mut().zip(operands).map(|(pages, operand)| match operand.access {
            Access::Read => Arg::Host(pages.bytes()),
            _ => Arg::HostMut(pages.bytes()),
        });
        let mut args: Vec<Arg<'_>> = args.collect();
        let running = Running::new(format!("{} ({})", prepared.choice().kernel.name, prepared.op()));
        prepared.launch(stream, &mut args)?;
        drop(running);
        drop(args);
        for ((pages, operand), content) in list.iter_mut().zip(operands).zip(contents) {
            if let Some((distance, side)) = pages.damage() {
                let text = format!("byte {distance} {side} {} was written", operand.name);
                return Err(Trouble::Violation(text));
            }
            content.copy_from_slice(pages.bytes());
        }
        Ok(())
    }
}

/// Launches in flight, for the message when one of them traps.
static RUNNING: [AtomicPtr<String>; 16] = [const { AtomicPtr::new(std::ptr::null_mut()) }; 16];

/// An entry of [`RUNNING`], if one was free.
struct Running(Option<&'static AtomicPtr<String>>);

impl Running {
    fn new(text: String) -> Self {
        let text = Box::into_raw(Box::new(text));
        for slot in &RUNNING {
            let null = std::ptr::null_mut();
            if slot.compare_exchange(null, text, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
                return Running(Some(slot));
            }
        }
        // SAFETY: made by `into_raw` above and stored nowhere.
        drop(unsafe { Box::from_raw(text) });
        Running(None)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(slot) = self.0 {
            let text = slot.swap(std::ptr::null_mut(), Ordering::SeqCst);
            // SAFETY: made by `into_raw` in `new`; only this guard takes it out of the slot.
            drop(unsafe { Box::from_raw(text) });
        }
    }
}

/// Names the launches in flight when an access traps, before the process ends as it would have.
pub fn report_traps() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: the handler only calls `write`, `signal` and `raise`, which POSIX allows in a handler.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = trapped as extern "C" fn(libc::c_int) as usize;
            action.sa_flags = libc::SA_ONSTACK;
            libc::sigemptyset(&mut action.sa_mask);
            libc::sigaction(libc::SIGSEGV, &action, std::ptr::null_mut());
            libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut());
        }
    });
}

extern "C" fn trapped(signal: libc::c_int) {
    let say = |text: &[u8]| {
        // SAFETY: a valid slice; `write` may be called in a handler.
        unsafe { libc::write(2, text.as_ptr().cast(), text.len()) };
    };
    say(b"\nan access outside of the operands trapped; in flight:\n");
    for slot in &RUNNING {
        let text = slot.load(Ordering::SeqCst);
        // SAFETY: set entries point to live strings, whose owners are inside their launches while this handler runs.
        if let Some(text) = unsafe { text.as_ref() } {
            say(b"  ");
            say(text.as_bytes());
            say(b"\n");
        }
    }
    // SAFETY: both may be called in a handler; the default action ends the process.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        libc::raise(signal);
    }
}
