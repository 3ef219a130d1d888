//! What all cases share: the watcher, the Docker engine, and the kernel's own counts.

use std::{fs, path::Path, thread::sleep, time::Duration};

use rustix::time::{ClockId, clock_gettime};
use serde_json::Value;
use tests::{
    cgroup,
    defib::Watch,
    engine::{self, Engine, Kind},
};

/// Arguments of the watcher.
const WATCH: &[&str] = &["--all", "--failed-allocations", "always"];

/// The kernel's log says who owns the limit for ten OOM kills in five seconds (`oom_rs`, mm/oom_kill.c).
const LOG_KILLS: u64 = 8;
const LOG_WINDOW: Duration = Duration::from_millis(5_500);

/// See the module. Everything starts when it is first asked for.
#[derive(Default)]
pub(crate) struct Stage {
    running: Option<Running>,
    engine: Option<Engine>,
    /// OOM kills in the kernel's log since it had room.
    logged_from: Option<u64>,
    /// OOM kills in the cases' own cgroups: counted by those, and seen by the watcher.
    pub(crate) in_cgroups: (u64, u64),
}

/// The watcher, and what the kernel had counted when it began.
struct Running {
    watch: Watch,
    begin_ns: u64,
    kills_before: u64,
    /// Where a Docker engine will be: the watcher has to know before there is one.
    engine: Option<tempfile::TempDir>,
}

impl Running {
    fn start() -> Self {
        let engine = tempfile::tempdir().expect("a directory for the engine");
        let watch = Watch::start_with(&[("DOCKER_HOST", &engine::host(engine.path()))], WATCH);
        Self { watch, begin_ns: boot_ns(), kills_before: kernel_oom_kills(), engine: Some(engine) }
    }
}

impl Stage {
    fn running(&mut self) -> &mut Running {
        self.running.get_or_insert_with(Running::start)
    }

    /// The watcher, ready.
    pub(crate) fn watch(&mut self) -> &mut Watch {
        &mut self.running().watch
    }

    /// What the watcher has seen, and when the count of the kernel's OOM kills began; nothing when no case ran.
    pub(crate) fn seen(&self) -> Option<(&[Value], u64)> {
        self.running.as_ref().map(|running| (running.watch.seen(), running.begin_ns))
    }

    /// OOM kills since the watcher began, as the kernel counts them: all on this machine.
    pub(crate) fn kernel_oom_kills(&mut self) -> u64 {
        let before = self.running().kills_before;
        kernel_oom_kills() - before
    }

    /// A Docker engine, that of the watcher.
    pub(crate) fn engine(&mut self) -> &Engine {
        if self.engine.is_none() {
            let directory = self.running().engine.take().expect("one engine is started");
            self.engine = Some(Engine::start_in(Kind::Docker, directory));
        }
        self.engine.as_ref().expect("it was started")
    }

    /// Ends the engine: its children would outlive the corpus.
    pub(crate) fn end_engine(&mut self) {
        self.engine = None;
    }

    /// Waits until the kernel's log has room for a few OOM kills in full: where programs cannot see whose limit it was,
    /// only the log says so.
    pub(crate) fn let_the_kernel_log_recover(&mut self) {
        let now = kernel_oom_kills();
        if self.logged_from.is_none_or(|from| now - from >= LOG_KILLS) {
            sleep(LOG_WINDOW);
            self.logged_from = Some(kernel_oom_kills());
        }
    }
}

/// Time since boot, sleep included: the clock of the records.
pub(crate) fn boot_ns() -> u64 {
    let time = clock_gettime(ClockId::Boottime);
    u64::try_from(time.tv_sec * 1_000_000_000 + time.tv_nsec).expect("the clock began at 0")
}

/// OOM kills since boot.
pub(crate) fn kernel_oom_kills() -> u64 {
    cgroup::counter(Path::new("/proc/vmstat"), "oom_kill").expect("the kernel counts them since 4.13")
}

/// The kernel's release.
pub(crate) fn kernel() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease").expect("the kernel has a release").trim().to_owned()
}
