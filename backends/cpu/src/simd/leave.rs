//! The system's leave to use tiles of AMX, whose state is larger than what threads had room for before.

/// Asks the kernel (x86 `arch_prctl`, `ARCH_REQ_XCOMP_PERM` for `XTILEDATA`), for all threads of this process. It refuses where it is
/// too old (Linux 5.16 is the first), or where a thread's alternative signal stack is too small.
pub(crate) fn may_use_tiles() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_ulong = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_ulong = 18;
    // SAFETY: the call takes two integers and touches no memory of this process.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}
