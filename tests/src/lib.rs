//! What the live tests share. They run the real binary against the real kernel, as root, and make real OOM kills in
//! memory cgroups of their own.
//!
//! * [`cage`]: the limits of the packaged unit, for an agent
//! * [`cgroup`]: a memory cgroup that removes itself
//! * [`attacker`]: the program that attacks as an unprivileged user, and that user's directory and cgroups
//! * [`bpffs`]: a place to pin kernel programs
//! * [`defib`]: the binary under test, as a watcher or as an agent
//! * [`victim`]: the program that dies on command
//! * [`engine`]: a container engine of a test's own
//! * [`etcd`]: a cluster of a test's own
//! * [`monitoring`]: Prometheus and Alertmanager of a test's own
//! * [`haproxy`]: a load balancer of a test's own
//! * [`nginx`]: another one
//! * [`ordered`]: a service that is told how to die
//! * [`pod`]: the DaemonSet that is shipped, in a real container
//! * [`processes`]: fork(2), and becoming another user
//! * [`tls`]: certificates of a test's own, and a client that checks them
//! * [`unit`]: units of a real systemd
//! * [`load`]: requests without end, counted
//! * [`live`]: whether a live test can run here; if not, it says why and is counted as skipped

pub mod attacker;
pub mod bpffs;
pub mod cage;
pub mod cgroup;
pub mod defib;
pub mod engine;
pub mod etcd;
pub mod haproxy;
pub mod live;
pub mod load;
pub mod monitoring;
pub mod nginx;
pub mod ordered;
pub mod pod;
pub mod processes;
pub mod tls;
pub mod unit;
pub mod victim;

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

/// How long a test waits for what must happen: long, because a busy machine is no failure of the program.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Asks again and again until `ask` has an answer.
///
/// # Panics
/// When nothing came within [`PATIENCE`]; `what` says what was waited for.
pub fn eventually<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(begin.elapsed() < PATIENCE, "waited {} s in vain for {what}", PATIENCE.as_secs());
        sleep(Duration::from_millis(10));
    }
}
