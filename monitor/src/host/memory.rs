//! Memory of the host, and the agent's own.

use std::fs;

use anyhow::{Context as _, Result};
use rustix::mm::{MlockAllFlags, mlockall};

/// How unwillingly the kernel shall kill the agent for want of memory, as in `deploy/systemd/defib.service`. Not −1000, never: an
/// agent that takes all memory itself must not have the whole host killed before it.
const OOM_SCORE_ADJ: i32 = -900;
const OOM_SCORE_ADJ_FILE: &str = "/proc/self/oom_score_adj";

/// All memory of the host, bytes.
pub(crate) fn of_the_host() -> f64 {
    let info = rustix::system::sysinfo();
    let (units, bytes) = (info.totalram as f64, info.mem_unit as f64);
    units * bytes
}

/// Has the kernel look for other victims first. A service manager may have seen to it.
///
/// # Errors
/// When it is not allowed.
pub(crate) fn protect() -> Result<()> {
    let now = fs::read_to_string(OOM_SCORE_ADJ_FILE).with_context(|| format!("cannot read {OOM_SCORE_ADJ_FILE}"))?;
    if now.trim().parse::<i32>().is_ok_and(|now| now <= OOM_SCORE_ADJ) {
        return Ok(());
    }
    fs::write(OOM_SCORE_ADJ_FILE, OOM_SCORE_ADJ.to_string())
        .with_context(|| format!("cannot write {OOM_SCORE_ADJ_FILE}: it takes CAP_SYS_RESOURCE"))
}

/// Keeps in memory what has been used so far: program text above all, which a host that runs out of memory throws away first and
/// has to read back from a busy disk for each death. What was never touched takes no memory by this.
///
/// # Errors
/// When it is not allowed.
pub(crate) fn lock() -> Result<()> {
    mlockall(MlockAllFlags::CURRENT | MlockAllFlags::ONFAULT)
        .context("cannot lock its memory: it takes CAP_IPC_LOCK, or 'ulimit -l unlimited'")
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
