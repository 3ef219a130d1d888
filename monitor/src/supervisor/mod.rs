//! Those that start services, behind one trait: [`systemd`] for units, [`container`] for containers of Docker and Podman,
//! [`command`] for services without an owner.
//!
//! A supervisor is asked for its [`Plan`] before anything is decided, and starts only what has an end behind it: nothing
//! of the old incarnation is left ([`fence`]).

mod command;
mod container;
mod fence;
mod systemd;

use std::{fmt, path::PathBuf, pin::Pin};

use anyhow::Result;

pub(crate) use command::{CommandSupervisor, Launch};
pub(crate) use container::ContainerSupervisor;
pub(crate) use systemd::SystemdSupervisor;

use crate::{healing::Plan, host::process::Identity};

/// An answer on its way.
pub(crate) type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T>> + Send + 'a>>;

/// Completes when the decision for a start is written down. Until then a supervisor may look, but not touch.
pub(crate) type Permit = Pin<Box<dyn Future<Output = ()> + Send>>;

/// How the last incarnation ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct End {
    /// When, CLOCK_BOOTTIME.
    pub(crate) died_ns: u64,
    /// We asked for it, to start the next one.
    pub(crate) ours: bool,
}

/// The owner of one service.
pub(crate) trait Supervisor: fmt::Debug + Send + Sync {
    /// What it is going to do about the service. Fails when it does not answer.
    fn plan(&self, end: End) -> Answer<'_, Plan>;

    /// Starts a new incarnation, once it is permitted and nothing of the old one is left; its main process. Fails with the
    /// owner's own words.
    fn start(&self, permit: Permit) -> Answer<'_, Identity>;

    /// Ends the incarnation whose main process is `old` and starts the next one, once that is permitted; its main process. Fails
    /// with the owner's own words; what lives then is not known.
    fn renew(&self, old: Identity, permit: Permit) -> Answer<'_, Identity>;

    /// Asks the owner for the pid of the main process, 0 when there is none. `None` when the owner starts no other
    /// process there; systemd also starts what prepares and ends a unit, and engines what `exec` adds to a container.
    fn main_pid(&self) -> Option<Answer<'_, u32>>;

    /// Whether the owner still knows the service, running or not.
    fn knows(&self) -> Answer<'_, bool>;

    /// The file in which it keeps what the service writes, if it does.
    fn output(&self) -> Option<PathBuf> {
        None
    }
}
