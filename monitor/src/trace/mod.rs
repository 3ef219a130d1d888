//! Where a service's memory grows, by call stack: for suspects only, bounded in time and cost.
//!
//! ```text
//! a service ──▶ its processes ──▶ their allocators                     target.rs, allocator/
//! short watches of allocate and release ──ring──▶ calls with stacks    probe.rs (kernel side: monitor-ebpf)
//! calls ──▶ what was not released ──▶ what stays                       ledger.rs (pure), held.rs
//! what stays, by stack, in bytes an hour                               growth.rs
//! ```
//!
//! All of it runs in a process of its own, which ends with its work: programs and their cost end with it, and other people's
//! files are read far from the agent.

pub(crate) mod growth;

use std::{path::PathBuf, time::Duration};

use anyhow::Result;

use growth::Growth;

/// What to trace, and for how long.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// The service, for the record.
    pub(crate) service: String,
    /// Directory of its cgroup; processes of those inside it belong to it too.
    pub(crate) cgroup: PathBuf,
    /// How long.
    pub(crate) duration: Duration,
}

/// How far it is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Look {
    /// Since the beginning.
    pub(crate) elapsed: Duration,
    /// Processes that are traced now.
    pub(crate) processes: usize,
    /// Calls seen.
    pub(crate) calls: u64,
    /// Growth that stays, as far as it can be told by now, bytes an hour.
    pub(crate) bytes_per_hour: f64,
    /// Time taken from the service, estimate, share of its processor time, 0 to 1.
    pub(crate) cost_share: f64,
}

/// Traces until the time is up, nothing is left to trace or `stop` completes. `look` is called about once a second.
///
/// # Errors
/// When nothing can be traced here: no rights, no uprobes in this kernel, no process, no allocator that is known.
pub(crate) async fn follow(
    options: &Options,
    stop: impl Future<Output = ()>,
    look: impl FnMut(Look),
) -> Result<Growth> {
    drop((options, stop, look));
    anyhow::bail!("not built yet")
}
