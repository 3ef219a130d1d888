//! What an agent takes that looks after many services: resident memory, CPU while nothing happens but their memory being
//! measured, and a scrape.

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};

use super::{Programs, agent::Agent, sleepers::Sleepers, stats};
use crate::say;

/// Numbers of services, one arm each.
const SERVICES: [usize; 4] = [1, 100, 1000, 10_000];
/// Each service is sampled once a minute.
const IDLE: Duration = Duration::from_secs(70);
const SCRAPES: usize = 21;

/// One arm.
pub(super) struct Scale {
    pub(super) services: usize,
    pub(super) resident_kib: u64,
    /// From its start until its programs are attached, milliseconds.
    pub(super) attached_ms: f64,
    /// From its start until its programs are attached and what runs is known, milliseconds.
    pub(super) ready_ms: f64,
    /// Share of one core.
    pub(super) cpu: f64,
    /// Median, milliseconds.
    pub(super) scrape_ms: f64,
    pub(super) scrape_bytes: usize,
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
    let attached_ms = agent.attached_after().as_secs_f64() * 1e3;
    let ready_ms = agent.ready_after().as_secs_f64() * 1e3;
    Ok(Scale {
        services,
        resident_kib,
        attached_ms,
        ready_ms,
        cpu,
        scrape_ms: stats::quantile(&mut scrapes, 0.5),
        scrape_bytes,
    })
}
