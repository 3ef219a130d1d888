//! What an agent takes that looks after many services: resident memory, CPU while nothing happens but their memory being
//! measured, and a scrape.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use super::{Programs, agent::Agent, stats};
use crate::say;

/// Numbers of services, one arm each.
const SERVICES: [usize; 3] = [1, 100, 1000];
/// Each service is sampled in every minute.
const IDLE: Duration = Duration::from_secs(120);
const SCRAPES: usize = 21;

/// One arm.
pub(super) struct Scale {
    pub(super) services: usize,
    pub(super) resident_kib: u64,
    /// Share of one core.
    pub(super) cpu: f64,
    /// Median, milliseconds.
    pub(super) scrape_ms: f64,
    pub(super) scrape_bytes: usize,
}

/// Processes that sleep, each in a memory cgroup of its own; gone when it is dropped.
struct Sleepers {
    parent: PathBuf,
    children: Vec<Child>,
}

impl Sleepers {
    fn start(count: usize) -> Result<Self> {
        let v1 = Path::new("/sys/fs/cgroup/memory");
        let mount = if v1.join("cgroup.procs").exists() { v1 } else { Path::new("/sys/fs/cgroup") };
        let parent = mount.join(format!("defib-bench-{}", std::process::id()));
        make(&parent)?;
        let mut sleepers = Self { parent, children: Vec::new() };
        let control = sleepers.parent.join("cgroup.subtree_control");
        if control.exists() {
            fs::write(&control, "+memory").with_context(|| format!("cannot write {}", control.display()))?;
        }
        for number in 0..count {
            let directory = sleepers.parent.join(format!("s{number}"));
            make(&directory)?;
            let child =
                Command::new("sleep").arg("100000").stdin(Stdio::null()).spawn().context("cannot start sleep")?;
            let id = child.id();
            sleepers.children.push(child);
            fs::write(directory.join("cgroup.procs"), id.to_string())
                .with_context(|| format!("cannot move a process to {}", directory.display()))?;
        }
        Ok(sleepers)
    }

    /// A configuration that looks after all of them and starts none.
    fn config(&self) -> String {
        let name = self.parent.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut config = format!("[agent]\nmax_services = {}\n", self.children.len().max(1));
        for number in 0..self.children.len() {
            write!(
                config,
                "[[service]]\nname = \"s{number}\"\n\
                 command = {{ start = [\"/bin/false\"], cgroup = \"/{name}/s{number}\" }}\n"
            )
            .ok();
        }
        config
    }
}

fn make(directory: &Path) -> Result<()> {
    fs::create_dir(directory).with_context(|| format!("cannot make {}", directory.display()))
}

impl Drop for Sleepers {
    fn drop(&mut self) {
        for child in &mut self.children {
            child.kill().ok();
            child.wait().ok();
        }
        for number in 0..self.children.len() {
            fs::remove_dir(self.parent.join(format!("s{number}"))).ok();
        }
        if let Err(error) = fs::remove_dir(&self.parent) {
            say::line(format_args!("left behind: {} ({error})", self.parent.display()));
        }
    }
}

pub(super) fn measure(programs: &Programs) -> Result<Vec<Scale>> {
    SERVICES.into_iter().map(|services| arm(programs, services)).collect()
}

fn arm(programs: &Programs, services: usize) -> Result<Scale> {
    say::line(format_args!("bench: an agent that looks after {services} services, {} s", IDLE.as_secs()));
    let sleepers = Sleepers::start(services)?;
    let agent = Agent::start(programs, &sleepers.config())?;
    let begin = Instant::now();
    let up = || -> Result<usize> {
        let metrics = agent.metrics()?;
        Ok(metrics.iter().filter(|(name, value)| name.starts_with("defib_service_up") && **value == 1.0).count())
    };
    while up()? < services {
        ensure!(begin.elapsed() < Duration::from_secs(60), "the agent does not find all {services} services");
        sleep(Duration::from_millis(100));
    }
    let (begin, cpu) = (Instant::now(), stats::cpu_ns(agent.pid())?);
    sleep(IDLE);
    let cpu = (stats::cpu_ns(agent.pid())? - cpu) as f64 / begin.elapsed().as_nanos() as f64;
    let resident_kib = stats::status_kib(agent.pid(), "VmRSS")?;
    let mut scrapes = Vec::new();
    let mut scrape_bytes = 0;
    for _ in 0..SCRAPES {
        let begin = Instant::now();
        scrape_bytes = agent.get("/metrics")?.len();
        scrapes.push(begin.elapsed().as_secs_f64() * 1e3);
    }
    Ok(Scale { services, resident_kib, cpu, scrape_ms: stats::quantile(&mut scrapes, 0.5), scrape_bytes })
}
