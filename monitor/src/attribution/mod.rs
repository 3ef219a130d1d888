//! From a process to the service it belongs to, and to its role there.
//!
//! * [`origin`]: what a cgroup's path claims (pure)
//! * [`table`]: cgroup id → path and service, kept over a cgroup's removal until late records have passed
//! * [`mod@confirm`]: asks the owner (systemd or a container engine) about that claim

mod confirm;
mod origin;
mod table;

use serde::Serialize;

pub(crate) use confirm::{Answer, confirm};
pub(crate) use origin::Origin;
pub(crate) use table::{Place, Table};

/// What a process is to its service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Role {
    /// Its parent lives outside the service: the supervisor started it.
    Main,
    /// Its parent is in the service.
    Worker,
}
