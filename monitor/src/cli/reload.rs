//! SIGHUP: the configuration is read again. One that is wrong changes nothing and is said so; with one that is right the
//! agent begins again in its own place, as the same process: what it knows is in its store, its services and the kernel programs
//! live on, and all of the configuration counts, listeners included.

use std::{
    env,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::{
    agent::After,
    config::{Config, ConfigError},
    handover::Handover,
    host::inherited::Named,
    metrics::Reloads,
};

/// Completes at Ctrl-C or SIGTERM, or at a SIGHUP with a configuration that is right. The handlers stand when this returns.
///
/// # Errors
/// When a handler cannot be installed.
pub(super) fn asked_to_stop_or_reload(
    reloads: Reloads,
    load: impl Fn() -> Result<Config, ConfigError>,
) -> Result<impl Future<Output = After>> {
    let install = |kind| signal(kind).context("cannot handle signals");
    let mut interrupt = install(SignalKind::interrupt())?;
    let mut terminate = install(SignalKind::terminate())?;
    let hang_up = install(SignalKind::hangup())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => After::End,
            _ = terminate.recv() => After::End,
            () = found_right(hang_up, &reloads, load) => After::BeginAgain,
        }
    })
}

async fn found_right(mut hang_up: Signal, reloads: &Reloads, load: impl Fn() -> Result<Config, ConfigError>) {
    while hang_up.recv().await.is_some() {
        match load() {
            Ok(_) => {
                tracing::info!("the configuration is right: beginning again with it");
                return;
            }
            Err(error) => {
                reloads.refused();
                tracing::error!("the configuration is wrong, and the old one stays: {error:#}");
            }
        }
    }
    std::future::pending().await
}

/// Becomes the same program with the same arguments, and with what keeps the kernel programs running.
///
/// # Errors
/// When that is not possible.
pub(super) fn begin_again(left: &[Named], pin_dir: Option<&Path>) -> Result<()> {
    // By its path, so that it has its name; by the kernel's link when the file is gone.
    let path = env::current_exe().ok().filter(|path| path.exists());
    let path = path.unwrap_or_else(|| PathBuf::from("/proc/self/exe"));
    let mut command = Command::new(&path);
    Handover::leave(&mut command, left, pin_dir)?;
    let error = command.args(env::args_os().skip(1)).exec();
    Err(error).with_context(|| format!("cannot begin again as {}", path.display()))
}
