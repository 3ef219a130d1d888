//! Diagnostics that the programs themselves write, through aya-log into this agent's log. For developers.

use anyhow::{Context as _, Result};
use aya_log::EbpfLogger;
use tokio::io::unix::AsyncFd;

/// The environment variable that asks for them, with a level: error, warn, info, debug or trace.
pub(super) const VARIABLE: &str = "DEFIB_KERNEL_LOG";

/// The ring of diagnostics.
pub(crate) type Diagnostics = EbpfLogger<&'static dyn log::Log>;

/// aya-log's level, 0 for off. The level is a constant for the verifier, which removes the log statements above it, so
/// diagnostics that are off cost nothing.
pub(super) fn level() -> u8 {
    std::env::var(VARIABLE).ok().and_then(|name| name.parse::<log::Level>().ok()).map_or(0, |level| level as u8)
}

/// Writes them to the log until the agent stops.
///
/// # Errors
/// When the ring cannot be waited for.
pub(crate) async fn follow_diagnostics(diagnostics: Diagnostics) -> Result<()> {
    // SAFETY: the logger owns its map's descriptor, keeps it open and never exchanges it while it is registered.
    let mut ring = unsafe { AsyncFd::register(diagnostics) }.context("cannot wait for the programs' diagnostics")?;
    loop {
        ring.readable_mut().await.context("cannot wait for the programs' diagnostics")?.clear_ready();
        ring.get_mut().flush();
    }
}
