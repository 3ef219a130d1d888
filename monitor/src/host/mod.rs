//! Small readers of the host's own interfaces, one for each. Errors name the path.

pub(crate) mod bounded;
pub(crate) mod cgroup;
pub(crate) mod cgroup_handle;
mod cgroup_memory;
pub(crate) mod cgroup_walk;
pub(crate) mod children;
pub(crate) mod clock;
pub(crate) mod containers;
pub(crate) mod cpus;
pub(crate) mod guarded;
pub(crate) mod inherited;
pub(crate) mod kmsg;
pub(crate) mod last_words;
pub(crate) mod listener;
pub(crate) mod manager;
pub(crate) mod memory;
pub(crate) mod peer;
pub(crate) mod pids;
pub(crate) mod portrait;
pub(crate) mod pressure;
pub(crate) mod privilege;
pub(crate) mod process;
pub(crate) mod systemd;
pub(crate) mod vmstat;
