//! Memory of the host, and the agent's own.

/// All memory of the host, bytes.
pub(crate) fn of_the_host() -> f64 {
    let info = rustix::system::sysinfo();
    let (units, bytes) = (info.totalram as f64, info.mem_unit as f64);
    units * bytes
}

/// Gives freed memory back to the host. The allocator keeps it otherwise: start-up frees tens of megabytes of type
/// information that a resident agent never needs again.
pub(crate) fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim(3) takes the allocator's own locks and has no other precondition.
    unsafe {
        libc::malloc_trim(0);
    }
}
